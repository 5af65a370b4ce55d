# SPDX-License-Identifier: BSD-3-Clause
"""The pages by which two processes find out whether they see one memory (docs/format.md, *witness area*).

Known bad mounts are refused by name. This is for all others, and for those that lie: each side writes nonces into a
page of its own and is told, over another way, what the other side reads there; the same with locks. Only then is the
rest of the file touched. Nothing in these pages is ever read as state, so it does not matter what a stale, dead or
hostile peer leaves in them.
"""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from . import _core
from .attach import open_existing, refuse
from .errors import PoolFormatError
from .paths import lock_path
from .space import space_error

__all__ = ["LANES", "NONCE_NBYTES", "Side", "Witness"]

#: How many pairs of processes can be at it at once.
LANES: int = _core.WITNESS_LANES

NONCE_NBYTES = 32

Side = Literal["server", "client"]
_SIDES: tuple[Side, Side] = ("server", "client")


class Witness:
    """The witness area of a pool file, mapped without attaching to the pool.

    Parameters
    ----------
    path : path-like
        The pool file. Nothing is created.
    uuid : str
        Which pool it must be.

    Raises
    ------
    PoolNotFoundError, PoolPermissionError, PoolCorruptedError
        As for :meth:`Pool.attach`.
    PoolFormatError
        It is not a pool of this format, or not that pool.
    OSError
        The file cannot be mapped.

    Notes
    -----
    Concurrency: lanes are independent of each other; who uses which is agreed elsewhere.
    Crash: the kernel drops the locks. What was written stays, and is overwritten by the next.
    """

    def __init__(self, path: str | os.PathLike[str], uuid: str) -> None:
        path = Path(os.path.abspath(path))
        self._file = open_existing(path)
        self._map: mmap.mmap | None = None
        try:
            page = self._file.read(_core.PAGE_NBYTES, 0)
            size = self._file.size()
            verdict, geometry, found, version, stamp = _core.header_check(page, size)
            if verdict != "ok" or geometry is None:
                raise refuse(verdict, path, page, size, version, stamp)
            if found.hex() != uuid:
                raise PoolFormatError(
                    f"{path} is pool {found.hex()}, not {uuid}.",
                    hint="the two sides see different files at this path",
                    expected=uuid,
                    found=found.hex(),
                )
            self._offset = geometry.witness_offset
            self._lock = open_existing(lock_path(path))
            # From the last border that the system can map at.
            self._skip = self._offset % mmap.ALLOCATIONGRANULARITY
            nbytes = self._skip + LANES * 2 * _core.WITNESS_STRIDE
            if sys.platform == "win32":
                # Python's mmap wants a descriptor of the C library. Nobody can replace the file while we have it.
                with open(path, "r+b", buffering=0) as file:
                    self._map = mmap.mmap(file.fileno(), nbytes, offset=self._offset - self._skip)
            else:
                self._map = mmap.mmap(self._file.fileno(), nbytes, offset=self._offset - self._skip)
        except BaseException:
            self.close()
            raise

    def reserve(self, lane: int) -> None:
        """Back both pages of a lane with memory, so that looking at them cannot fail. Before anything else.

        Raises
        ------
        PoolSpaceError
            There is none.
        """
        for side in _SIDES:
            try:
                _core.reserve(self._file.fileno(), self._offset + _place(lane, side), NONCE_NBYTES)
            except OSError as error:
                raise space_error(error.errno or 0, self._file, _core.PAGE_NBYTES) from None

    def write(self, lane: int, side: Side, nonce: bytes) -> None:
        """Store a nonce through the mapping, in the page of one's own side."""
        start = self._skip + _place(lane, side)
        self._mapped[start : start + NONCE_NBYTES] = nonce

    def read(self, lane: int, side: Side) -> bytes:
        """Load what the mapping shows in the page of a side."""
        start = self._skip + _place(lane, side)
        return self._mapped[start : start + NONCE_NBYTES]

    def lock(self, lane: int, side: Side) -> bool:
        """Take the lock of a side, without waiting; False if somebody else has it."""
        return self._lock.lock(_byte(lane, side), _core.LOCK_EXCLUSIVE)

    def unlock(self, lane: int, side: Side) -> None:
        """Let go of the lock of a side."""
        self._lock.lock(_byte(lane, side), _core.LOCK_NONE)

    @property
    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            raise ValueError("this witness is closed")
        return self._map

    def close(self) -> None:
        """Unmap, and drop the locks. Twice is harmless."""
        if self._map is not None:
            self._map.close()
            self._map = None
        self._file.close()
        if hasattr(self, "_lock"):
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _place(lane: int, side: Side) -> int:
    if not 0 <= lane < LANES:
        raise ValueError(f"there is no lane {lane}")
    return (2 * lane + _SIDES.index(side)) * _core.WITNESS_STRIDE


def _byte(lane: int, side: Side) -> int:
    return _core.LOCK_BYTE_WITNESS + 2 * lane + _SIDES.index(side)
