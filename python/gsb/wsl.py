# SPDX-License-Identifier: BSD-3-Clause
"""Windows and its Linux: which kind of WSL this is, and the token of a server inside of it. Standard library only."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

#: Where Windows shows the files of its distributions. ``\\wsl$`` is the older name.
SHARES: Final = (r"\\wsl.localhost", r"\\wsl$")

#: Where a server keeps its token inside of one, if nothing else was said there: see `gsb.runtime`.
_PLACES: Final = ("run/user/*/gsb/token", "tmp/gsb-*/token")

# Listing asks a service, looking into a share may wait for a machine to start.
_SECONDS: Final = 5.0

_T = TypeVar("_T")


def kind() -> str:
    """Return ``"wsl1"``, ``"wsl2"``, or an empty text outside of WSL.

    Notes
    -----
    By the release that the kernel names: ``4.4.0-19041-Microsoft`` is the translation layer of WSL1,
    ``6.6.87.2-microsoft-standard-WSL2`` a Linux kernel of its own.
    """
    if not sys.platform.startswith("linux"):
        return ""
    return kind_of_release(os.uname().release)


def kind_of_release(release: str) -> str:
    """Tell the kind by the release of the kernel.

    >>> kind_of_release("6.6.87.2-microsoft-standard-WSL2"), kind_of_release("4.4.0-19041-Microsoft")
    ('wsl2', 'wsl1')
    """
    if "microsoft" not in release.lower():
        return ""
    return "wsl1" if release.startswith(("3.", "4.4.")) else "wsl2"


def decode_list(output: bytes) -> list[str]:
    r"""Read what ``wsl.exe --list --quiet`` prints: one name a line, in UTF-16 unless ``WSL_UTF8`` is set.

    >>> decode_list("Ubuntu\r\ndocker-desktop\r\n".encode("utf-16-le"))
    ['Ubuntu', 'docker-desktop']
    """
    text = output.decode("utf-16-le" if b"\0" in output else "utf-8", "replace")
    return [name for line in text.splitlines() if (name := line.strip().lstrip("\ufeff"))]


def distributions() -> list[str]:
    """Return the names of the running distributions, as ``wsl.exe`` lists them; none is started by asking."""
    command = ["wsl.exe", "--list", "--running", "--quiet"]
    try:
        found = subprocess.run(command, capture_output=True, timeout=_SECONDS, stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    # Docker's own have no users, and no server.
    return (
        [name for name in decode_list(found.stdout) if not name.startswith("docker-")] if not found.returncode else []
    )


def find_token(
    names: Callable[[], list[str]] = distributions, shares: Iterable[str | Path] = SHARES, seconds: float = _SECONDS
) -> tuple[str, str] | None:
    """Look for a server's token in the running distributions.

    Parameters
    ----------
    names : callable
        Gives the distributions.
    shares : iterable of path
        Where their files are shown.
    seconds : float
        How long looking may take in all.

    Returns
    -------
    (str, str) or None
        The newest token, and where it was found.

    Notes
    -----
    The share gives the files with the rights of the distribution's default user, so another user's token is not found.
    """
    return _within(seconds, lambda: _look(names(), shares))


def _look(names: list[str], shares: Iterable[str | Path]) -> tuple[str, str] | None:
    found: list[tuple[float, str, str]] = []
    for share in shares:
        for name in names:
            for place in _PLACES:
                with contextlib.suppress(OSError):
                    for path in Path(share, name).glob(place):
                        with contextlib.suppress(OSError, UnicodeDecodeError):
                            token = path.read_text("ascii").strip()
                            if token and len(token) <= 1024:
                                found.append((path.stat().st_mtime, token, str(path)))
        if found:
            _, token, where = max(found)
            return token, where
    return None


def _within(seconds: float, function: Callable[[], _T]) -> _T | None:
    """Call in a thread that is given up after a while: a share may hang."""
    answers: queue.SimpleQueue[_T | None] = queue.SimpleQueue()

    def call() -> None:
        try:
            answers.put(function())
        except Exception:
            answers.put(None)

    threading.Thread(target=call, name="gsb-wsl", daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return None
