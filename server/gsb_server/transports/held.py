# SPDX-License-Identifier: BSD-3-Clause
"""Arrays that the server holds for a session under an id, so that messages can refer to them."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from typing import Any, Final

import numpy as np
from gsb.protocol.data import Form

import shmpool

from ..errors import ServerError

__all__ = ["FIRST_RESULT", "Held", "Shelf"]

Array = np.ndarray[Any, np.dtype[Any]]

#: Ids below are chosen by the client, ids from here on by the server.
FIRST_RESULT: Final = 2**48

_MAX_HELD = 4096


class Held:
    """One array: on its way in, there, or gone.

    Notes
    -----
    Concurrency: any thread. The one that receives the bytes ends with `publish` or `fail`.
    Lifetime: an array given out by `wait` stays good after `drop`.
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        self._changed = threading.Condition()
        self._pool: shmpool.Pool | None = None
        self._handle: shmpool.Handle | None = None
        self._array: Array | None = None
        self._dropped = False

    @property
    def private_nbytes(self) -> int:
        """Bytes outside the pool."""
        array = self._array
        return 0 if array is None else array.nbytes

    def publish(self, pool: shmpool.Pool, handle: shmpool.Handle) -> None:
        """Note the slot in which the whole array lies now; frees it if nobody wants it any more."""
        with self._changed:
            if not self._dropped:
                self._pool, self._handle = pool, handle
                self._changed.notify_all()
                return
        _free(pool, handle)

    def publish_private(self, array: Array) -> None:
        """Note an array outside the pool."""
        array.flags.writeable = False
        with self._changed:
            if not self._dropped:
                self._array = array
            self._changed.notify_all()

    def wait(self, timeout: float) -> Array:
        """Give the array, read-only, as soon as all of it is there.

        Raises
        ------
        ServerError
            ``stale_handle``: it is gone, or has not arrived in time.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._dropped:
                if self._array is not None:
                    return self._array
                if self._handle is not None and self._pool is not None:
                    return self._pool.get(self._handle)
                if not self._changed.wait(deadline - time.monotonic()):
                    raise ServerError("stale_handle", "the array has not arrived in time", "send it again")
        raise _gone()

    def drop(self) -> bool:
        """Let go of the array; False if that has been done."""
        with self._changed:
            if self._dropped:
                return False
            self._dropped = True
            pool, handle = self._pool, self._handle
            self._array = self._handle = None
            self._changed.notify_all()
        if pool is not None and handle is not None:
            _free(pool, handle)
        return True


class Shelf:
    """The arrays of one session by id.

    Notes
    -----
    Concurrency: any thread. After `close` it stays empty.
    """

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}
        self._lock = threading.Lock()
        self._ids = itertools.count(FIRST_RESULT)
        self._closed = False

    def __len__(self) -> int:
        return len(self._held)

    @property
    def private_nbytes(self) -> int:
        """Bytes outside the pool."""
        with self._lock:
            return sum(held.private_nbytes for held in self._held.values())

    def new_id(self) -> int:
        """Choose the id of a result."""
        return next(self._ids)

    def place(self, number: int, form: Form) -> Held:
        """Make room for an array; one of the same id, left over from a broken connection, is dropped."""
        held = Held(form)
        with self._lock:
            if self._closed:
                raise ServerError("session_lost", "the session has ended", "")
            if len(self._held) >= _MAX_HELD:
                raise ServerError("pool_full", f"the session holds {_MAX_HELD} arrays", "let go of some")
            former = self._held.get(number)
            self._held[number] = held
        if former is not None:
            former.drop()
        return held

    def get(self, number: object) -> Held:
        """Find an array by its id, which is not trusted."""
        with self._lock:
            held = self._held.get(number) if type(number) is int else None
        if held is None:
            raise _gone()
        return held

    def drop(self, number: object, only: Held | None = None) -> bool:
        """Let go of an array (of `only`, if the id has not been used again); False if it was gone."""
        with self._lock:
            held = self._held.get(number) if type(number) is int else None
            if held is None or (only is not None and held is not only):
                return False
            del self._held[number]  # type: ignore[arg-type]
        return held.drop()

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._closed = True
            doomed = list(self._held.values())
            self._held.clear()
        for held in doomed:
            held.drop()


def _gone() -> ServerError:
    return ServerError("stale_handle", "the array is gone, or never was the session's", "send it again")


def _free(pool: shmpool.Pool, handle: shmpool.Handle) -> None:
    with contextlib.suppress(shmpool.ShmPoolError):
        pool.free(handle)
