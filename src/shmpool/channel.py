# SPDX-License-Identifier: BSD-3-Clause
"""Channels: arrays from process to process, in order, without a server.

See docs/channels.md for what is promised and how it is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _channel, _core
from ._channel import Message, Ring
from .errors import (
    ChannelClosedError,
    ChannelEmptyError,
    ChannelExistsError,
    ChannelFullError,
    ChannelNotFoundError,
    PoolBusyError,
    ShmPoolError,
    TooManyChannelsError,
)
from .paths import default_path
from .pool import Pool, Region, _open_pools

__all__ = ["Channel", "ChannelLoan", "Message", "Role"]

Role = Literal["send", "recv", "both"]

DEFAULT_CAPACITY = 64
# 32 KiB and a description. From 64 to 128 KiB on a slot is faster (docs/performance-notes.md).
DEFAULT_CELL_NBYTES = 33 * 1024
LEAST_CELL_NBYTES = 128

_ROLES = {None: 0, "send": _channel.ROLE_SENDS, "recv": _channel.ROLE_RECEIVES}
_ROLES["both"] = _channel.ROLE_SENDS | _channel.ROLE_RECEIVES
_LOCK_SECONDS = 10.0
_IDLE_SECONDS = 1.0
_PERIOD_SECONDS = 0.2


@contextlib.contextmanager
def _channels_locked(core: _core.Core, timeout: float) -> Iterator[None]:
    """Hold byte 1 of the lock file: nobody else makes, joins or removes a channel meanwhile."""
    deadline = time.monotonic() + timeout
    pause = 0.0002
    while (held := core.lock_channels()) is None:
        if time.monotonic() >= deadline:
            raise PoolBusyError(
                f"another process was making or removing a channel for {timeout:g} s.",
                hint="is it stopped? `python -m shmpool doctor` shows the processes that hold the lock file",
            )
        time.sleep(pause)
        pause = min(2 * pause, 0.01)
    try:
        yield
    finally:
        held.close()


def _unpickle(cls: type[Channel], name: str, path: str, role: Role | None, region: Region) -> Channel:
    pool, is_new = _resolve(path, create=False)
    try:
        channel = cls.attach(name, pool=pool, role=role, region=region)
    except BaseException:
        if is_new:
            pool.close()
        raise
    channel._owns_pool = is_new
    return channel


class ChannelLoan:
    """An array that is born in the pool and sent without a copy. Made by :meth:`Channel.loan`."""

    def __init__(self, channel: Channel, loan: _core.Loan) -> None:
        self._channel = channel
        self._loan = loan

    @property
    def array(self) -> NDArray[Any]:
        """Writable ndarray of the shape and dtype asked for; contents undefined."""
        return self._loan.array

    def seal(self, timeout: float | None = None, *, header: Any = None) -> None:
        """Send the array.

        Raises
        ------
        ChannelFullError
            No room in time. The loan is still there: seal again.
        LoanError
            The loan has ended, or views derived from ``loan.array`` are alive.
        ChannelClosedError
            See :meth:`Channel.send`.
        """
        self._channel._send_loan(self._loan, timeout, header)

    def abort(self) -> None:
        """Give the slot back unsent. Nothing happens if the loan has ended already."""
        self._loan.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loan.abort()


class _Waiter:
    """Tells event loops when a channel has a message, or room: one thread, however many wait."""

    def __init__(self, channel: Channel, receiving: bool) -> None:
        self._channel = channel
        self._receiving = receiving
        self._lock = threading.Condition()
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        self._thread: threading.Thread | None = None

    def add(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """A future that is done when it is worth another try."""
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            self._waiting.append((loop, future))
            if self._thread is None:
                kind = "recv" if self._receiving else "send"
                self._thread = threading.Thread(target=self._run, name=f"shmpool-channel-{kind}", daemon=True)
                self._thread.start()
            else:
                self._lock.notify()
        return future

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting and not self._lock.wait_for(lambda: self._waiting, _IDLE_SECONDS):
                    self._thread = None
                    return
            try:
                ready = self._channel._wait_ready(self._receiving, _PERIOD_SECONDS)
            except ShmPoolError:
                ready = True  # the try will raise it where it belongs
            if ready:
                self._tell()
            with self._lock:
                # Who was cancelled need not be waited for.
                self._waiting = deque(item for item in self._waiting if not item[1].done())

    def _tell(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
        for loop, future in waiting:
            with contextlib.suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(_finish, future)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Channel(Ring):
    """A bounded ring of messages between any processes that are attached to one pool.

    Made by :meth:`open` or :meth:`attach`; a context manager; an iterator and an asynchronous iterator over what
    arrives. Picklable: the other process attaches by name.

    Notes
    -----
    Concurrency: all methods, any thread, any process. Each message goes to exactly one receiver, or, in a broadcast,
    to every receiver attached when it was sent.
    Lifetime: the channel is removed, with what nobody received, when the last object attached to it is closed or its
    process dies.
    Crash: at most the message that the dead process was sending is lost; a message it was receiving goes to another.
    Fork: the child's copy raises :class:`ForkedPoolError`; call :meth:`reattach` there.
    """

    _name: str
    _pool: Pool
    _owns_pool: bool = False
    _role: Role | None
    _region: Region
    # Made when they are needed: each refers back to the channel, which would then be left to the garbage collector.
    _recv_waiter: _Waiter | None
    _send_waiter: _Waiter | None
    created: bool

    def __init__(self) -> None:
        raise TypeError("use Channel.open() or Channel.attach()")

    # -- opening -------------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        name: str,
        pool: Pool | str | os.PathLike[str] | None = None,
        capacity: int = DEFAULT_CAPACITY,
        *,
        broadcast: bool = False,
        cell_nbytes: int | None = None,
        role: Role | None = None,
        region: Region = "scratch",
    ) -> Self:
        """Attach to the channel `name`, creating it first if there is none.

        Parameters
        ----------
        name : str
            At most 224 bytes of UTF-8.
        pool : Pool or path-like, optional
            Default: the pool at ``default_path()``, opened for this channel.
        capacity : int, default 64
            Messages that fit in the ring, for a channel that is created.
        broadcast : bool, default False
            Every receiver gets every message. An existing channel must be of the same kind.
        cell_nbytes : int, optional
            What does not fit in a cell travels through a slot. Default: 33 KiB, or less where many cells must share
            the pool's `channel_nbytes`.
        role : {"send", "recv", "both"}, optional
            Default: what the first call makes of it; in a broadcast, ``open`` sends and ``attach`` receives.
        region : {"input", "output", "scratch"}, default "scratch"
            Where this object's large messages look for slots.

        Raises
        ------
        ChannelExistsError
            It exists and is a broadcast, or is none, against what was asked for.
        TooManyChannelsError, PoolSpaceError, PoolBusyError
            See there.
        """
        encoded = _encoded(name)
        if broadcast and role is None:
            role = "send"
        with contextlib.ExitStack() as undo:
            found, owned = _resolve(pool, create=True)
            if owned:
                undo.callback(found.close)
            room = found.geometry.channel_nbytes - _channel.PAYLOAD_OFFSET
            if cell_nbytes is None:
                cell_nbytes = min(DEFAULT_CELL_NBYTES, room // max(capacity, 1) // 64 * 64)
            else:
                cell_nbytes = -(-cell_nbytes // 64) * 64
            if not 1 <= capacity <= _channel.MAX_CAPACITY or not LEAST_CELL_NBYTES <= cell_nbytes <= room // capacity:
                raise ValueError(
                    f"capacity {capacity} (1 to {_channel.MAX_CAPACITY}) with cells of {cell_nbytes} bytes (at least "
                    f"{LEAST_CELL_NBYTES}) does not fit in the {room} bytes that this pool gives a channel"
                )
            core = found._core
            core.reclaim()  # a channel that only the dead are attached to is no more
            with _channels_locked(core, _LOCK_SECONDS):
                _channel.sweep_channels(core)
                record = _channel.find_channel(core, name)
                created = record is None
                if record is None:
                    flags = _channel.BROADCAST if broadcast else 0
                    index = _channel.make_channel(core, encoded, capacity, cell_nbytes, flags, time.time_ns())
                    if index < 0:
                        raise TooManyChannelsError(
                            f"all {found.geometry.max_channels} channels of the pool are in use.",
                            hint="close channels, or create the pool with a larger max_channels",
                        )
                else:
                    index = record[0]
                    if bool(record[1] & _channel.BROADCAST) != broadcast:
                        kinds = ("a broadcast", "not a broadcast")
                        raise ChannelExistsError(f"channel {name!r} exists and is {kinds[bool(broadcast)]}.")
                self = cls._join(found, name, index, role, region)
            self.created = created
            self._owns_pool = owned
            undo.pop_all()
            return self

    @classmethod
    def attach(
        cls,
        name: str,
        pool: Pool | str | os.PathLike[str] | None = None,
        *,
        role: Role | None = None,
        region: Region = "scratch",
        timeout: float = 0.0,
    ) -> Self:
        """Attach to an existing channel; parameters as for :meth:`open`.

        Parameters
        ----------
        timeout : float, default 0.0
            Seconds to wait for the channel to appear, in a pool that exists.

        Raises
        ------
        ChannelNotFoundError
            There is none of this name.
        PoolNotFoundError
            There is no pool.
        """
        _encoded(name)
        deadline = time.monotonic() + timeout
        pause = 0.001
        with contextlib.ExitStack() as undo:
            found, owned = _resolve(pool, create=False)
            if owned:
                undo.callback(found.close)
            while True:
                found._core.reclaim()
                with _channels_locked(found._core, _LOCK_SECONDS):
                    _channel.sweep_channels(found._core)
                    record = _channel.find_channel(found._core, name)
                    if record is not None:
                        if record[1] & _channel.BROADCAST and role is None:
                            role = "recv"
                        self = cls._join(found, name, record[0], role, region)
                        break
                if time.monotonic() >= deadline:
                    raise ChannelNotFoundError(
                        f"there is no channel {name!r} in {found.path}.",
                        hint="Channel.open() creates one, and it lives as long as somebody is attached",
                    )
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
            self.created = False
            self._owns_pool = owned
            undo.pop_all()
            return self

    @classmethod
    def _join(cls, pool: Pool, name: str, index: int, role: Role | None, region: Region) -> Self:
        if role not in _ROLES:
            raise ValueError(f"role must be 'send', 'recv', 'both' or None, got {role!r}")
        if region not in _core.REGIONS:
            raise ValueError(f"region must be one of {', '.join(_core.REGIONS)}; got {region!r}")
        self = cls.__new__(cls)
        self._name = name
        self._pool = pool
        self._role = role
        self._region = region
        self._recv_waiter = self._send_waiter = None
        self._enter(pool._core, index, _ROLES[role], region)
        return self

    def reattach(self) -> None:
        """Attach anew by name: in a forked child, or after :class:`ClientEvictedError`.

        The pool object is reattached too, if it needs to be. The parent keeps its own attachment.

        Raises
        ------
        ChannelNotFoundError
            The parent is gone, and the channel with it.
        """
        self._abandon()
        if self._pool._core.is_forked or self._pool._core.is_evicted:
            self._pool.reattach()
        core = self._pool._core
        with _channels_locked(core, _LOCK_SECONDS):
            record = _channel.find_channel(core, self._name)
            if record is None:
                raise ChannelNotFoundError(f"there is no channel {self._name!r} in {self._pool.path} any more.")
            self._recv_waiter = self._send_waiter = None
            self._enter(core, record[0], _ROLES[self._role], self._region)

    # -- lifetime ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the channel; wakes everybody who waits for it. Twice is harmless.

        Notes
        -----
        Calls of other threads on this object raise :class:`ChannelClosedError`. Arrays that were received stay good.
        The last one who leaves removes the channel, with what was not received.
        """
        if self.closed:
            return
        self._close()
        if not self.is_forked:
            # Not getting the lock is no harm: whoever has it sweeps, and so does the next reclaim.
            with contextlib.suppress(ShmPoolError), _channels_locked(self._pool._core, 0.0):
                _channel.sweep_channels(self._pool._core)
        if self._owns_pool:
            self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_pool"):
            with contextlib.suppress(Exception):
                self.close()

    def __repr__(self) -> str:
        state = " (forked: call reattach())" if self.is_forked else " (closed)" if self.closed else ""
        kind = "broadcast " if self.broadcast else ""
        return f"<shmpool.Channel {self._name!r}: {kind}{self.capacity} cells of {self.cell_nbytes} bytes{state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (type(self), self._name, str(self._pool.path), self._role, self._region)

    @property
    def name(self) -> str:
        """By which others attach."""
        return self._name

    @property
    def pool(self) -> Pool:
        """The pool it lies in."""
        return self._pool

    # -- sending and receiving -----------------------------------------------------------------------------------

    def loan(
        self,
        shape: int | Sequence[int],
        dtype: DTypeLike = float,
        order: Literal["C", "F"] = "C",
        timeout: float | None = None,
    ) -> ChannelLoan:
        """An array that is born in the pool, to be filled in place and sent by ``seal()``: no copy at all.

        Parameters and errors as for :meth:`Pool.loan`; leaving the block without ``seal()`` gives the slot back.
        """
        return ChannelLoan(self, self._pool.loan(shape, dtype, order, self._region, timeout))

    async def asend(
        self, data: ArrayLike | Mapping[str, ArrayLike], timeout: float | None = None, *, header: Any = None
    ) -> None:
        """`send` for asyncio: waits for room without blocking the event loop. Copying is done in the loop's thread.

        A slot of the pool is waited for at most 10 ms at a time.
        """
        limit = self._pool._core.default_timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        while True:
            try:
                return self.send(data, 0.0, header=header)
            except ChannelFullError:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                if self.full():
                    self._send_waiter = self._send_waiter or _Waiter(self, False)
                    await self._ready(self._send_waiter, left)
                else:  # the ring has room: it is a slot that is missing, and no ring says when there is one
                    await asyncio.sleep(min(0.01, left))

    async def arecv(self, timeout: float | None = None) -> NDArray[Any] | dict[str, NDArray[Any]]:
        """`recv` for asyncio. Cancelling it loses no message."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return self.recv(0.0)
            except ChannelEmptyError:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise
                self._recv_waiter = self._recv_waiter or _Waiter(self, True)
                await self._ready(self._recv_waiter, left)

    async def _ready(self, waiter: _Waiter, left: float | None) -> None:
        future = waiter.add(asyncio.get_running_loop())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(future, left)

    async def __aiter__(self) -> AsyncIterator[NDArray[Any] | dict[str, NDArray[Any]]]:
        while True:
            try:
                message = await self.arecv()
            except ChannelClosedError:
                return
            yield message


def _encoded(name: str) -> bytes:
    if not isinstance(name, str):
        raise TypeError(f"a channel's name is a string, not {name!r}")
    encoded = name.encode()
    if not 1 <= len(encoded) <= _channel.MAX_NAME_NBYTES:
        raise ValueError(f"a channel's name has 1 to {_channel.MAX_NAME_NBYTES} bytes of UTF-8, got {len(encoded)}")
    return encoded


def _resolve(pool: Pool | str | os.PathLike[str] | None, *, create: bool) -> tuple[Pool, bool]:
    """The pool meant; whether it was opened here."""
    if isinstance(pool, Pool):
        return pool, False
    path = default_path() if pool is None else Path(os.path.abspath(pool))
    for found in list(_open_pools):
        if found.path == path and not found.closed and not found._core.is_forked:
            return found, False
    if create:
        return Pool.open(path, prefault_nbytes=0), True
    return Pool.attach(path, prefault_nbytes=0), True
