# SPDX-License-Identifier: BSD-3-Clause
"""multiprocessing.shared_memory as its documentation shows it: a block per array."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness.arrays import touch
from bench.harness.child import Answer, Child
from bench.peers.base import Peer


@contextlib.contextmanager
def _reader(nbytes: int) -> Iterator[Answer]:
    def answer(request: bytes) -> bytes:
        block = SharedMemory(request.decode())
        try:
            return touch(np.ndarray(nbytes // 4, np.float32, block.buf))
        finally:
            block.close()

    yield answer


class SharedMemoryFresh(Peer):
    """Create, copy, attach, read, unlink."""

    name = "SharedMemory, fresh"

    def start(self, array: NDArray[Any]) -> None:
        self._array = array
        self._child = Child(_reader, array.nbytes)

    def hop(self) -> bytes:
        block = SharedMemory(create=True, size=self._array.nbytes)
        try:
            np.copyto(np.ndarray(self._array.shape, self._array.dtype, block.buf), self._array)
            return self._child.ask(block.name.encode())
        finally:
            block.close()
            block.unlink()

    def close(self) -> None:
        self._child.close()
