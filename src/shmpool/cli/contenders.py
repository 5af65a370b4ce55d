# SPDX-License-Identifier: BSD-3-Clause
"""The ways of `bench` to get an array into another process, and the other process.

One hop: the array leaves, the reader looks at one byte of every page, its answer comes back. The answer is checked, so
no way can win by not delivering.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pool import Pool

__all__ = ["Contenders", "checksum", "serve"]

_PAGE = 4096
_DEADLINE = 60.0

Bytes = NDArray[np.uint8]


def checksum(array: Bytes) -> int:
    """The sum of one byte of every page: brings each page in, and tells whether the right array arrived."""
    return int(array[::_PAGE].sum(dtype=np.int64))


def serve(connection: Connection, queue: Queue[Any], path: Path) -> None:
    """The reader's side of every hop. Ends when the other side closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other side's to handle
    segments: dict[str, SharedMemory] = {}
    with contextlib.suppress(EOFError, OSError), Pool.attach(path, prefault_nbytes=0) as pool:
        connection.send("ready")
        while True:
            way, what = connection.recv()
            if way == "pool":
                answer = checksum(pool.get(what))
            elif way == "pipe":
                answer = checksum(np.frombuffer(connection.recv_bytes(), np.uint8))
            elif way == "queue":
                answer = checksum(queue.get(timeout=_DEADLINE))
            else:
                name, nbytes = what
                segment = segments.get(name) or SharedMemory(name)
                answer = checksum(np.ndarray(nbytes, np.uint8, segment.buf))
                if way == "reused":
                    segments[name] = segment
                else:
                    segment.close()
            connection.send(answer)
    for segment in segments.values():
        segment.close()


class Contenders:
    """The writer's side of every hop, for one array."""

    def __init__(self, pool: Pool, connection: Connection, queue: Queue[Any], array: Bytes) -> None:
        self.pool, self.connection, self.queue, self.array = pool, connection, queue, array
        self.expected = checksum(array)
        self._copy = np.zeros_like(array)
        self._segment = SharedMemory(create=True, size=array.nbytes)

    def close(self) -> None:
        """Give the segment back."""
        self._segment.close()
        self._segment.unlink()

    @property
    def ways(self) -> dict[str, Callable[[], None]]:
        """Name to hop; each returns when the reader has answered."""
        return {
            "pool, put": self._put,
            "pool, loan": self._loan,
            "SharedMemory, reused": self._reused,
            "SharedMemory, fresh": self._fresh,
            "Pipe": self._pipe,
            "Queue": self._queue,
            "np.copyto, no hop": self._copyto,
        }

    def _answer(self, expected: int | None) -> None:
        if not self.connection.poll(_DEADLINE):
            raise TimeoutError("the reading process does not answer")
        answer = self.connection.recv()
        if expected is not None and answer != expected:
            raise AssertionError(f"wrong bytes arrived: checksum {answer}, expected {expected}")

    def _put(self) -> None:
        handle = self.pool.put(self.array)
        self.connection.send(("pool", handle))
        self._answer(self.expected)
        self.pool.free(handle)

    def _loan(self) -> None:
        # The array is made in the pool, so its making is no part of the hop. What it holds is left from earlier.
        with self.pool.loan(self.array.shape, self.array.dtype) as loan:
            handle = loan.seal()
        self.connection.send(("pool", handle))
        self._answer(None)
        self.pool.free(handle)

    def _reused(self) -> None:
        np.copyto(np.ndarray(self.array.shape, np.uint8, self._segment.buf), self.array)
        self.connection.send(("reused", (self._segment.name, self.array.nbytes)))
        self._answer(self.expected)

    def _fresh(self) -> None:
        segment = SharedMemory(create=True, size=self.array.nbytes)
        try:
            np.copyto(np.ndarray(self.array.shape, np.uint8, segment.buf), self.array)
            self.connection.send(("fresh", (segment.name, self.array.nbytes)))
            self._answer(self.expected)
        finally:
            segment.close()
            segment.unlink()

    def _pipe(self) -> None:
        self.connection.send(("pipe", None))
        self.connection.send_bytes(self.array.data)
        self._answer(self.expected)

    def _queue(self) -> None:
        self.connection.send(("queue", None))
        self.queue.put(self.array)
        self._answer(self.expected)

    def _copyto(self) -> None:
        np.copyto(self._copy, self.array)
