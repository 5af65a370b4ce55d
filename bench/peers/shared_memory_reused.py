# SPDX-License-Identifier: BSD-3-Clause
"""multiprocessing.shared_memory, one block that both sides keep mapped: the hand-written best case of the library."""

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
def _reader(name: str, nbytes: int) -> Iterator[Answer]:
    block = SharedMemory(name)
    try:
        yield lambda _: touch(np.ndarray(nbytes // 4, np.float32, block.buf))
    finally:
        block.close()


class SharedMemoryReused(Peer):
    """Protected by nothing but the pipe: the writer waits for the reader before it writes again."""

    name = "SharedMemory, reused"

    def start(self, array: NDArray[Any]) -> None:
        self._array = array
        self._block = SharedMemory(create=True, size=array.nbytes)
        self._target = np.ndarray(array.shape, array.dtype, self._block.buf)
        self._child = Child(_reader, self._block.name, array.nbytes)

    def hop(self) -> bytes:
        np.copyto(self._target, self._array)
        return self._child.ask(b"go")

    def close(self) -> None:
        self._child.close()
        del self._target
        self._block.close()
        self._block.unlink()
