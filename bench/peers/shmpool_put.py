# SPDX-License-Identifier: BSD-3-Clause
"""shmpool: put, 44 bytes of handle over a pipe, get, free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import shmpool
from bench.harness.arrays import touch
from bench.harness.child import Answer, Child
from bench.peers.base import Peer


@contextlib.contextmanager
def _reader(path: Path) -> Iterator[Answer]:
    with shmpool.Pool.attach(path) as pool:
        yield lambda request: touch(pool.get(shmpool.Handle.from_bytes(request)))


class ShmpoolPut(Peer):
    """Ours, with the default geometry."""

    name = "shmpool put/get"

    def start(self, array: NDArray[Any]) -> None:
        self._array = array
        self._pool = shmpool.Pool.create(self.workspace.new("pool.bin"))
        self._child = Child(_reader, self._pool.path)

    def hop(self) -> bytes:
        handle = self._pool.put(self._array)
        answer = self._child.ask(handle.to_bytes())
        self._pool.free(handle)
        return answer

    def close(self) -> None:
        self._child.close()
        self._pool.close()
        shmpool.Pool.remove(self._pool.path)
