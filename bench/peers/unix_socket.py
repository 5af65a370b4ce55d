# SPDX-License-Identifier: BSD-3-Clause
"""A Unix stream socket with raw bytes, received into a buffer that is kept."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness.arrays import touch
from bench.harness.child import Answer, Child
from bench.peers.base import Peer

# The largest that an ordinary user gets without a sysctl is smaller; the kernel takes what it allows.
_BUFFER_NBYTES = 4 << 20


@contextlib.contextmanager
def _reader(data: socket.socket, nbytes: int) -> Iterator[Answer]:
    data.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_NBYTES)
    array = np.ones(nbytes // 4, np.float32)
    room = array.data.cast("B")

    def answer(_: bytes) -> bytes:
        have = 0
        while have < nbytes:
            got = data.recv_into(room[have:])
            if got == 0:
                raise EOFError
            have += got
        return touch(array)

    with data:
        yield answer


class UnixSocket(Peer):
    """``sendall`` and ``recv_into``."""

    name = "Unix socket"

    def start(self, array: NDArray[Any]) -> None:
        self._bytes = array.data.cast("B")
        theirs, self._ours = socket.socketpair(socket.AF_UNIX)
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_NBYTES)
        with theirs:
            self._child = Child(_reader, theirs, array.nbytes)

    def hop(self) -> bytes:
        self._child.tell(b"go")
        self._ours.sendall(self._bytes)
        return self._child.answer()

    def close(self) -> None:
        self._child.close()
        self._ours.close()
        self._bytes.release()
