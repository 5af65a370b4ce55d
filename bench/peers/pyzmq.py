# SPDX-License-Identifier: BSD-3-Clause
"""ZeroMQ over ipc://, with copy=False on both sides."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness.arrays import touch
from bench.harness.child import Answer, Child
from bench.peers.base import Peer


@contextlib.contextmanager
def _reader(address: str) -> Iterator[Answer]:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PULL) as data:
        data.connect(address)
        yield lambda _: touch(np.frombuffer(data.recv(copy=False).buffer, np.float32))


class Pyzmq(Peer):
    """``send(array, copy=False)`` and ``recv(copy=False)``, PUSH to PULL."""

    name = "pyzmq, ipc"
    package = "zmq"

    def start(self, array: NDArray[Any]) -> None:
        import zmq

        self._array = array
        self._context = zmq.Context()
        self._ours = self._context.socket(zmq.PUSH)
        address = f"ipc://{self.workspace.new('zmq')}"
        self._ours.bind(address)
        self._child = Child(_reader, address)

    def hop(self) -> bytes:
        self._child.tell(b"go")
        self._ours.send(self._array.data, copy=False)
        return self._child.answer()

    def close(self) -> None:
        self._child.close()
        self._ours.close(linger=0)
        self._context.term()
