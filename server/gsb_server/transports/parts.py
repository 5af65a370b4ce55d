# SPDX-License-Identifier: BSD-3-Clause
"""Who may use which part of one direction of the mailbox. In the server's memory: nothing is agreed in the file."""

from __future__ import annotations

import bisect
import secrets
import threading
from typing import Any, NamedTuple

from gsb.mailbox import GRANULE_NBYTES

__all__ = ["Part", "Parts"]


class Part(NamedTuple):
    """A lent part: `generation` tells this lending from all others."""

    offset: int
    nbytes: int
    generation: int

    def to_dict(self) -> dict[str, Any]:
        """As it travels in messages."""
        return self._asdict()


class Parts:
    """The parts of one direction.

    Parameters
    ----------
    start, nbytes : int
        Where the direction lies; multiples of 64 KiB.

    Notes
    -----
    Concurrency: any thread. Crash: dies with the server, and with it every claim on the file.
    """

    def __init__(self, start: int, nbytes: int) -> None:
        self._start = start
        self._end = start + nbytes
        self._lent: list[Part] = []
        self._lock = threading.Lock()

    @property
    def lent_nbytes(self) -> int:
        """Bytes that are lent."""
        with self._lock:
            return sum(part.nbytes for part in self._lent)

    def lend(self, nbytes: int) -> Part | None:
        """Lend the first part that is large enough, rounded up to 64 KiB; None if there is none."""
        wanted = max(1, -(-nbytes // GRANULE_NBYTES)) * GRANULE_NBYTES
        with self._lock:
            at = self._start
            for index, lent in enumerate([*self._lent, Part(self._end, 0, 0)]):
                if lent.offset - at >= wanted:
                    found = Part(at, wanted, secrets.randbits(63))
                    self._lent.insert(index, found)
                    return found
                at = lent.offset + lent.nbytes
        return None

    def give_back(self, part: Part) -> None:
        """Take a part back; twice is harmless, because no two lendings have one generation."""
        with self._lock:
            index = bisect.bisect_left(self._lent, part)
            if index < len(self._lent) and self._lent[index] == part:
                del self._lent[index]
