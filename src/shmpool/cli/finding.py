# SPDX-License-Identifier: BSD-3-Clause
"""What the checks of `doctor` share: the place they look at, and the form of what they find."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import ShmPoolError
from ..paths import lock_path
from .peek import Look, look

__all__ = ["Finding", "Place", "Status"]

Status = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    status: Status
    found: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """The finding as a JSON-able dict."""
        return asdict(self)


@dataclass
class Place:
    """The pool under examination, looked at once."""

    path: Path
    seen: Look | None = None
    refused: ShmPoolError | None = None
    holders: list[tuple[int, str, str]] = field(default_factory=list)

    @classmethod
    def at(cls, path: Path) -> Place:
        """Look at the pool at `path`, if there is one."""
        place = cls(path)
        try:
            place.seen = look(path)
        except ShmPoolError as error:
            place.refused = error
        place.holders = list(_holders(lock_path(path)))
        return place

    @property
    def folder(self) -> Path:
        """The folder of the pool, or the nearest parent that exists."""
        folder = self.path.parent
        while not folder.exists():
            folder = folder.parent
        return folder


def _holders(lock_file: Path) -> Iterator[tuple[int, str, str]]:
    """(pid, state, command line) of the processes that have the lock file open, as far as we may see."""
    try:
        wanted = os.stat(lock_file)
    except OSError:
        return
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile, or is not ours
            for fd in os.listdir(f"/proc/{entry}/fd"):
                with contextlib.suppress(OSError):
                    if os.path.samestat(os.stat(f"/proc/{entry}/fd/{fd}"), wanted):
                        status = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
                        label = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ")
                        yield int(entry), status.rpartition(")")[2].split()[0], label.decode("utf-8", "replace").strip()
                        break
