# SPDX-License-Identifier: BSD-3-Clause
"""What estimators print, collected per job, although several jobs run at once.

``verbose=1`` makes scikit-learn and joblib print; the user expects it in the user's own terminal. ``sys.stdout`` and
``sys.stderr`` are replaced once by objects that write to the collector of the current context, and to the stream
they replaced where there is none. What C code prints by itself goes to the server's own streams.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["Output", "collect_output", "install"]

_LIMIT = 2**20


class Output:
    """Texts in the order in which they were written, each with its stream's name; bounded."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, str]] = []
        self._room = _LIMIT

    def write(self, stream: str, text: str) -> None:
        """Take a text; what is beyond a mebibyte is left out, and that is said."""
        if self._room <= 0 or not text:
            return
        if len(text) > self._room:
            text = f"{text[: self._room]}\n[gsb: the rest of the output is left out]\n"
        self._room -= len(text)
        if self.parts and self.parts[-1][0] == stream:
            self.parts[-1] = (stream, self.parts[-1][1] + text)
        else:
            self.parts.append((stream, text))


_current: ContextVar[Output | None] = ContextVar("gsb_output", default=None)
_install_lock = threading.Lock()


class _Stream:
    """Stands for ``sys.stdout`` or ``sys.stderr``."""

    def __init__(self, name: str, real: Any) -> None:
        self._name = name
        self._real = real

    def write(self, text: str) -> int:
        output = _current.get()
        if output is None:
            return int(self._real.write(text) or 0)
        output.write(self._name, text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if _current.get() is None:
            self._real.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def install() -> None:
    """Replace the two streams; again, if somebody else has replaced them since."""
    with _install_lock:
        for name in ("stdout", "stderr"):
            real = getattr(sys, name)
            if real is not None and not isinstance(real, _Stream):
                setattr(sys, name, _Stream(name, real))


@contextmanager
def collect_output() -> Iterator[Output]:
    """Collect what is printed in this context, and nobody else's.

    Notes
    -----
    Concurrency: any number of threads at once. A thread started inside collects into the same place if it was given a
    copy of the context.
    """
    install()
    output = Output()
    token = _current.set(output)
    try:
        yield output
    finally:
        _current.reset(token)
