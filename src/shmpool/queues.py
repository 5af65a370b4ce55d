# SPDX-License-Identifier: BSD-3-Clause
"""`multiprocessing.Queue` over a channel: replacing the import is all that a program does."""

from __future__ import annotations

import contextlib
import io
import math
import os
import pickle
import queue
import secrets
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _channel
from .backlog import Backlog
from .channel import Channel
from .errors import ChannelClosedError, ChannelEmptyError, ChannelFullError, PayloadTooLargeError
from .pool import Pool

__all__ = ["Queue"]

DEFAULT_CAPACITY = 1024
# Each buffer outside the pickle needs an entry in the message; beyond this many they go inside.
_MOST_BUFFERS = 60_000


class Queue:
    """A queue of Python objects between processes, with the methods of :class:`multiprocessing.Queue`.

    Objects are pickled; the bytes of NumPy arrays in them, however nested, go through the pool instead, once copied by
    `put` and not at all by `get`: large arrays come out as writable views of the pool, or, when views that somebody
    keeps take half of its slots, as private copies.

    Parameters
    ----------
    maxsize : int, default 0
        Objects that fit, at most 4096; 0 or less for no limit.
    ctx : object, optional
        Ignored; for those who pass a multiprocessing context.
    pool : Pool or path-like, optional
        Default: the pool at ``default_path()``.

    Notes
    -----
    What differs from :class:`multiprocessing.Queue`:

    * `put` pickles and copies by itself: it raises what pickling raises, what it has returned from may be changed, and
      can be got at once by anybody. Only while the pool has no slot for an object, or the ring no cell, does a feeder
      thread keep a copy of it and send it later; then the rules of multiprocessing's feeder thread hold for `close`,
      `join_thread`, `cancel_join_thread` and the end of the process, but that nobody waits when no other process has
      the queue.
    * A pickled queue can be sent anywhere, not only to a process being started. It names the queue: somebody must keep
      it open until the other has attached.
    * The queue, with what is in it, ends when the last process that has it ends.
    * A process that dies in the middle of `put` or `get` blocks and damages nothing.

    Fork: the child's copy attaches by itself when it is first used.
    """

    def __init__(
        self, maxsize: int = 0, *, ctx: object = None, pool: Pool | str | os.PathLike[str] | None = None
    ) -> None:
        capacity = DEFAULT_CAPACITY if maxsize <= 0 else min(maxsize, _channel.MAX_CAPACITY)
        self._maxsize = maxsize
        self._closed = False
        self._channel = Channel.open(f"queue-{os.getpid()}-{secrets.token_hex(8)}", pool, capacity, role="both")
        self._backlog = Backlog(self._channel)

    @classmethod
    def _attach(cls, name: str, path: str, maxsize: int) -> Queue:
        self = cls.__new__(cls)
        self._maxsize = maxsize
        self._closed = False
        self._channel = Channel.attach(name, path, role="both")
        self._backlog = Backlog(self._channel)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        channel = self._open()
        return type(self)._attach, (channel.name, str(channel.pool.path), self._maxsize)

    def __repr__(self) -> str:
        return f"<shmpool.Queue {self._channel.name!r}{' (closed)' if self._closed else ''}>"

    def _open(self) -> Channel:
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        if self._channel.is_forked:
            self._channel.reattach()
            self._backlog = Backlog(self._channel)  # what the parent has not sent yet, the parent sends
        return self._channel

    def put(self, obj: object, block: bool = True, timeout: float | None = None) -> None:
        """Put an object into the queue.

        Raises
        ------
        queue.Full
            `maxsize` objects are in the queue: at once if not `block`, else after `timeout` seconds (None: never).
        ValueError
            The queue is closed.
        PayloadTooLargeError, PoolSpaceError
            Larger than the whole pool; no memory.
        """
        channel = self._open()
        limit = _limit(block, timeout)
        stream = io.BytesIO()
        buffers: list[NDArray[np.uint8]] = []

        def outside(buffer: pickle.PickleBuffer) -> bool:
            if len(buffers) >= _MOST_BUFFERS:
                return True
            buffers.append(np.frombuffer(buffer.raw(), np.uint8))
            return False

        ForkingPickler(stream, pickle.HIGHEST_PROTOCOL, True, outside).dump(obj)
        message = [np.frombuffer(stream.getbuffer(), np.uint8), *buffers]
        if self._maxsize <= 0:
            self._send(None, message)
            return
        try:
            position = channel._reserve(limit)  # a place in the queue, whether or not there is a slot now
        except ChannelFullError:
            raise queue.Full from None
        try:
            self._send(position, message)
        except BaseException:
            channel._cancel(position)
            raise

    def _send(self, position: int | None, message: list[NDArray[np.uint8]]) -> None:
        """Send it now if there is room and nothing before it waits; else have the feeder thread do it."""
        pool_nbytes = self._channel.pool.nbytes
        if (nbytes := sum(array.nbytes for array in message)) > pool_nbytes:
            raise PayloadTooLargeError(
                f"the object has {nbytes} bytes, the whole pool has {pool_nbytes}.",
                hint="create the pool with larger slots (slot_nbytes) or more of them",
                nbytes=nbytes,
                pool_nbytes=pool_nbytes,
            )
        if not self._backlog:
            with contextlib.suppress(ChannelFullError):
                if position is None:
                    self._channel._send_list(message, 0.0)
                else:
                    self._channel._send_reserved(position, message, 0.0)
                return
        self._backlog.add(position, message)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the next object from the queue.

        Raises
        ------
        queue.Empty
            There was none: at once if not `block`, else after `timeout` seconds (None: never).
        ValueError
            The queue is closed.
        """
        channel = self._open()
        limit = _limit(block, timeout)
        try:
            first, *buffers = channel._recv_list(None if math.isinf(limit) else limit)
        except ChannelEmptyError:
            raise queue.Empty from None
        except ChannelClosedError:
            raise ValueError(f"Queue {self!r} is closed") from None
        return pickle.loads(first.data, buffers=buffers)

    def put_nowait(self, obj: object) -> None:
        """`put` without waiting."""
        self.put(obj, False)

    def get_nowait(self) -> Any:
        """`get` without waiting."""
        return self.get(False)

    def qsize(self) -> int:
        """Objects in the queue at this moment, without those that another process's feeder thread has."""
        return self._open().qsize() + len(self._backlog)

    def empty(self) -> bool:
        """Whether there is nothing to get at this moment."""
        return self._open().empty()

    def full(self) -> bool:
        """Whether there is no room at this moment."""
        return self._open().full() and self._maxsize > 0

    def close(self) -> None:
        """This process will not use the queue any more; what it has put is still sent. Twice is harmless."""
        if not self._closed:
            self._closed = True
            if self._channel.is_forked:
                self._channel.close()
            else:
                self._backlog.close()

    def join_thread(self) -> None:
        """Wait until everything that this process has put is sent. Only after `close`."""
        if not self._closed:
            raise AssertionError(f"Queue {self!r} not closed")
        self._backlog.join()

    def cancel_join_thread(self) -> None:
        """Let this process end with objects that are not sent yet: they are lost."""
        self._backlog.leave_at_exit()


def _limit(block: bool, timeout: float | None) -> float:
    if not block:
        return 0.0
    return math.inf if timeout is None else max(0.0, timeout)
