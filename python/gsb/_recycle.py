# SPDX-License-Identifier: BSD-3-Clause
"""Memory for results, used again instead of fetched anew from the kernel.

A page that a process touches for the first time costs several times the copy into it: 4 KiB are copied in
less than a microsecond and faulted in in about as much again or, in a virtual machine, five times that. A loop
that calls ``transform`` and drops the former result would pay this each time, because the allocator gives large
blocks back. So blocks between `SMALLEST` and `LIMIT` stay here when their last array is gone, `LIMIT`
bytes in all.
"""

from __future__ import annotations

import collections
import contextlib
import math
import mmap
import sys
import weakref
from typing import Any, Final, Literal

import numpy as np

SMALLEST: Final = 2**20
LIMIT: Final = 128 * 2**20

_STEP: Final = 2 * 2**20  # a huge page

Array = np.ndarray[Any, np.dtype[Any]]


class Recycler:
    """Blocks of anonymous memory that come back.

    Notes
    -----
    Concurrency: any thread; a block comes back in whichever thread drops the last array of it, possibly in the
    middle of another operation here, so there is no lock: only the deque's own atomic operations.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._free: collections.deque[mmap.mmap] = collections.deque()

    def copy(self, source: Array) -> Array:
        """Give a private, writable copy of an array, in the same order."""
        if not SMALLEST <= source.nbytes <= self._limit:
            return source.copy(order="K")
        fortran = source.flags.f_contiguous and not source.flags.c_contiguous
        copied = self.empty(source.shape, source.dtype, "F" if fortran else "C")
        np.copyto(copied, source)
        return copied

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], order: Literal["C", "F"] = "C") -> Array:
        """Give a private, writable array of undefined contents; of `SMALLEST` bytes or more."""
        nbytes = math.prod(shape) * dtype.itemsize
        block = self._take(nbytes)
        whole = np.frombuffer(block, np.uint8)
        # Arrays made from `whole` keep it alive, so its end is the end of the last of them.
        weakref.finalize(whole, self._give_back, block).atexit = False
        return np.ndarray(shape, dtype, whole, order=order)

    @property
    def nbytes(self) -> int:
        """Bytes that wait to be used again."""
        return sum(len(block) for block in list(self._free))

    def _take(self, nbytes: int) -> mmap.mmap:
        for _ in range(len(self._free)):
            try:
                block = self._free.popleft()
            except IndexError:
                break
            # Not one of much more than is needed: that would keep the rest from others.
            if nbytes <= len(block) <= 2 * nbytes:
                return block
            self._free.append(block)
        size = -(-nbytes // _STEP) * _STEP
        if sys.platform == "win32":
            return mmap.mmap(-1, size)
        # Private: by default it would be shared with forked children, and never in huge pages.
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                block.madvise(mmap.MADV_HUGEPAGE)
        return block

    def _give_back(self, block: mmap.mmap) -> None:
        if len(block) > self._limit:
            return
        self._free.append(block)
        while self.nbytes > self._limit:
            try:
                self._free.popleft()
            except IndexError:
                break


recycler: Final = Recycler()
