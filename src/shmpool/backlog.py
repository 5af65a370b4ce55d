# SPDX-License-Identifier: BSD-3-Clause
"""What a queue's `put` has accepted and could not send yet, and the thread that sends it.

A queue sends from the thread that puts, as long as there is a cell and a slot. Only what finds none comes here, so most
queues never have the thread.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import threading
import time
import weakref
from collections import deque
from multiprocessing import util
from typing import Any

from numpy.typing import NDArray

from .channel import Channel
from .errors import ChannelFullError, PoolSpaceError, ShmPoolError

__all__ = ["Backlog"]

# How long one attempt lasts: after it the thread looks whether it is to stop.
_ATTEMPT_SECONDS = 0.2
_SPACE_PAUSE_SECONDS = 0.05

_backlogs: weakref.WeakSet[Backlog] = weakref.WeakSet()


class Backlog:
    """The messages of one process for one channel, in order.

    Notes
    -----
    Concurrency: any thread. Blocking: only :meth:`join` and :meth:`finish` wait.
    Lifetime: the thread keeps the channel until everything is sent; `close` closes it then.
    Fork: belongs to the parent; a child makes one of its own.
    Crash: what was not sent is lost with the process; reserved cells become tombstones.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._messages: deque[tuple[int | None, list[NDArray[Any]]]] = deque()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._discarded = False
        self._joins_at_exit = True

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, position: int | None, message: list[NDArray[Any]]) -> None:
        """Send this later: into the cell that was reserved for it, or into any."""
        message = [array.copy() for array in message]  # what `put` has returned from may be changed
        with self._lock:
            self._messages.append((position, message))
            if self._thread is None:
                _finish_at_exit(self)
                self._thread = threading.Thread(target=self._run, name="shmpool-queue", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Close the channel: now, or when the last message is sent."""
        with self._lock:
            self._closing = True
            if self._thread is not None:
                return
        self._channel.close()

    def join(self) -> None:
        """Wait until everything is sent."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def discard(self) -> None:
        """Send no more."""
        self._discarded = True

    def leave_at_exit(self) -> None:
        """Do not keep the process from ending."""
        self._joins_at_exit = False

    def finish(self) -> None:
        """Before the process ends: send everything, unless nobody is there who could receive it."""
        while (thread := self._thread) is not None and thread.is_alive():
            if not self._joins_at_exit or self._is_alone():
                self.discard()
            thread.join(0.1)

    def _is_alone(self) -> bool:
        with contextlib.suppress(ShmPoolError):
            # A child of ours may be starting, and attach later.
            return self._channel.n_receivers <= 1 and not multiprocessing.active_children()
        return True

    def _run(self) -> None:
        try:
            while (entry := self._next()) is not None:
                if self._send(*entry):
                    self._messages.popleft()
        except BaseException:
            # The channel or the pool is closed, or this process was cleaned up as dead: nothing more can be sent.
            with self._lock:
                self._drop()
            raise

    def _next(self) -> tuple[int | None, list[NDArray[Any]]] | None:
        with self._lock:
            if self._messages and not self._discarded:
                return self._messages[0]
            self._drop()
            return None

    def _drop(self) -> None:
        """The thread ends: what is left is lost."""
        for position, _ in self._messages:
            if position is not None:
                self._channel._cancel(position)
        self._messages.clear()
        self._thread = None
        if self._closing:
            self._channel.close()

    def _send(self, position: int | None, message: list[NDArray[Any]]) -> bool:
        try:
            if position is None:
                self._channel._send_list(message, _ATTEMPT_SECONDS)
            else:
                self._channel._send_reserved(position, message, _ATTEMPT_SECONDS)
        except ChannelFullError:
            return False
        except PoolSpaceError:
            # Memory that a slot has got it keeps: there is some again when another message has been received.
            time.sleep(_SPACE_PAUSE_SECONDS)
            return False
        return True


_registered_in = 0


def _finish_at_exit(backlog: Backlog) -> None:
    global _registered_in
    _backlogs.add(backlog)
    if _registered_in != os.getpid():
        _registered_in = os.getpid()
        # As multiprocessing does for its own feeder: its processes end without running `atexit`.
        util.Finalize(None, _finish_all, exitpriority=-5)


@atexit.register
def _finish_all() -> None:
    # Registered after the pool's own handler, and therefore run before it closes the pools.
    for backlog in list(_backlogs):
        backlog.finish()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_backlogs.clear)
