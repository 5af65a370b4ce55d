# SPDX-License-Identifier: BSD-3-Clause
"""multiprocessing.Queue: a Pipe with a feeder thread in front."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from multiprocessing.queues import Queue as MpQueue
from typing import Any

from numpy.typing import NDArray

from bench.harness.arrays import touch
from bench.harness.child import CONTEXT, Answer, Child
from bench.peers.base import Peer


@contextlib.contextmanager
def _reader(data: MpQueue[NDArray[Any]]) -> Iterator[Answer]:
    yield lambda _: touch(data.get())


class Queue(Peer):
    """``put(array)`` and ``get()``."""

    name = "multiprocessing Queue"

    def start(self, array: NDArray[Any]) -> None:
        self._array = array
        self._queue: MpQueue[NDArray[Any]] = CONTEXT.Queue()
        self._child = Child(_reader, self._queue)

    def hop(self) -> bytes:
        self._child.tell(b"go")
        self._queue.put(self._array)
        return self._child.answer()

    def close(self) -> None:
        self._child.close()
        self._queue.close()
        self._queue.join_thread()
