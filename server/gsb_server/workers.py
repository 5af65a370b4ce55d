# SPDX-License-Identifier: BSD-3-Clause
"""A bounded pool of threads for work that must not run on the event loop.

``run_in_executor`` makes two futures and a callback chain per call, which shows at calls of half a
millisecond. Here a call is one queue item and one wake-up of the loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from .errors import ServerError

__all__ = ["Workers"]

_Item = tuple[Callable[..., Any], tuple[Any, ...], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


def _resolve(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    # The request may have been cancelled while the thread was at work.
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


class Workers:
    """Fixed number of daemon threads and a bounded queue.

    Parameters
    ----------
    threads : int
        How many calls run at once.
    queue_limit : int
        How many may wait; further ones are refused.

    Notes
    -----
    Concurrency: ``run`` belongs to the event loop, ``close`` to the end of the process.
    Crash: the threads are daemons, so an estimator that never returns cannot keep the process alive.
    """

    def __init__(self, threads: int, queue_limit: int) -> None:
        self.threads = threads
        self.queue_limit = queue_limit
        self.pending = 0
        self._closed = False
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"gsb-worker-{index}", daemon=True) for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run ``function(*args)`` on a worker and return what it returns."""
        if self._closed:
            raise ServerError("shutting_down", "the server is shutting down", "Start it again with `gsb serve`.")
        if self.pending >= self.threads + self.queue_limit:
            raise ServerError(
                "busy",
                f"{self.pending} calls are running or waiting",
                "Try again later, or raise GSB_WORKERS or GSB_QUEUE_LIMIT.",
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self.pending += 1
        future.add_done_callback(self._done)
        self._queue.put((function, args, future, loop))
        return await future

    def _done(self, future: asyncio.Future[Any]) -> None:
        self.pending -= 1

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            function, args, future, loop = item
            value: Any = None
            error: BaseException | None = None
            try:
                value = function(*args)
            except BaseException as caught:
                error = caught
            try:
                loop.call_soon_threadsafe(_resolve, future, value, error)
            except RuntimeError:
                return  # the loop is closed: the process is ending
            # Nothing of the call may stay alive in this frame: views pin slots.
            del item, function, args, future, value, error

    async def drain(self, timeout: float) -> bool:
        """Refuse new calls, wait for the running ones; False if some are still at work."""
        self._closed = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while self.pending and loop.time() < deadline:
            await asyncio.sleep(0.01)
        return self.pending == 0

    def close(self, timeout: float = 1.0) -> None:
        """Let the threads end."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout)
