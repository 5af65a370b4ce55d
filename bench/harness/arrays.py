# SPDX-License-Identifier: BSD-3-Clause
"""The array that every contender moves, and the reading that proves it arrived."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = 4096


def source(nbytes: int) -> NDArray[np.float32]:
    """A float32 array of random values: equal pages would hide pages that were never moved."""
    return np.random.default_rng(7).random(nbytes // 4, dtype=np.float32)


def touch(array: NDArray[Any]) -> bytes:
    """Read one byte of every page; their sum, packed, is the acknowledgement of all contenders."""
    return struct.pack("<Q", int(array.reshape(-1).view(np.uint8)[::PAGE].sum(dtype=np.uint64)))


def read_all(array: NDArray[Any]) -> bytes:
    """Read every byte, as a consumer would; the exact sum of its 64-bit words, packed."""
    return struct.pack("<Q", int(array.reshape(-1).view(np.uint64).sum(dtype=np.uint64)))


class Stamp:
    """Changes the array a little before every hop, so that the arrival of the last round does not pass for this one."""

    def __init__(self, array: NDArray[np.float32]) -> None:
        self._bytes = array.view(np.uint8)
        self._sum = int(self._bytes[::PAGE].sum(dtype=np.uint64))

    def next(self) -> bytes:
        """Stamp the array; the acknowledgement that `touch` gives for it."""
        old = int(self._bytes[0])
        new = (old + 1) % 256
        self._bytes[0] = new
        self._sum += new - old
        return struct.pack("<Q", self._sum)
