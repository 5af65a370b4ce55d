# SPDX-License-Identifier: BSD-3-Clause
"""The public object: a pool of shared-memory slots for NumPy arrays."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ._channel import snapshot_channels
from ._core import REGIONS, Core, Geometry, Handle, Loan, fast_copy
from .attach import Mode, attach, remove
from .errors import UnsupportedDtypeError
from .paths import default_path
from .space import mount_of
from .stat import PoolStat, take_stat
from .warm import DEFAULT_PREFAULT_NBYTES, every_slot, next_slots, start_warming, warm

__all__ = ["ClientId", "Pool", "Region"]

Region = Literal["input", "output", "scratch"]

DEFAULT_TIMEOUT = 30.0
DEFAULT_MAX_CLIENTS = 256
DEFAULT_MAX_CHANNELS = 32
DEFAULT_CHANNEL_NBYTES = 4 * 2**20

# copy="auto": small arrays are cheaper to copy than to keep a slot for, and a region must not be starved by views.
_AUTO_COPY_NBYTES = 64 * 1024
_AUTO_KEEP_FREE = 2

_open_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class ClientId:
    """One attachment to one pool. ``nonce`` is random, so a later client of the same index is another one."""

    index: int
    nonce: int


class Pool:
    """A pool of shared-memory slots, attached to by any number of processes of one user.

    Made by :meth:`open`, :meth:`create` or :meth:`attach`; a context manager.

    Notes
    -----
    Concurrency: all methods, any thread, any process.
    Blocking: only :meth:`put` and :meth:`loan` wait (for a free slot), with the GIL released; large copies
    release it too.
    Lifetime: views keep the mapping alive beyond :meth:`close`. What this object has put and nobody adopted is
    freed by :meth:`close` (while others still view it: when they stop).
    Crash: a process that dies, however, frees all it held: the kernel drops its lock, and whoever next needs a slot
    cleans up. A process that is only stopped keeps everything.
    Fork: the child's copy raises :class:`ForkedPoolError`; call :meth:`reattach` there.
    Pickling: the copy attaches to the same path, as a client of its own.
    """

    def __init__(self) -> None:
        raise TypeError("use Pool.open(), Pool.create() or Pool.attach()")

    _core: Core
    _path: Path
    _prefault_nbytes: int
    _attach_timeout: float
    _trust_mount: bool
    _warmers: list[threading.Thread | None]
    filesystem: str
    created: bool

    # -- opening -------------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        slot_nbytes: int = 256 * 2**20,
        input_slots: int = 4,
        output_slots: int = 4,
        scratch_slots: int = 8,
        max_clients: int = DEFAULT_MAX_CLIENTS,
        max_channels: int = DEFAULT_MAX_CHANNELS,
        channel_nbytes: int = DEFAULT_CHANNEL_NBYTES,
        timeout: float = DEFAULT_TIMEOUT,
        prefault_nbytes: int = DEFAULT_PREFAULT_NBYTES,
        attach_timeout: float = 10.0,
        trust_mount: bool = False,
    ) -> Self:
        """Attach to the pool at `path`, creating it first if there is none.

        Parameters
        ----------
        path : path-like, optional
            The pool file. Default: ``$SHMPOOL_PATH``, else ``pool.bin`` in a private folder on tmpfs. The lock file
            ``<path>.lock`` stands beside it.
        slot_nbytes, input_slots, output_slots, scratch_slots, max_clients, max_channels, channel_nbytes : int
            Geometry of a pool that is created. An existing pool keeps its own: look at :attr:`geometry`.
            ``slot_nbytes`` is a multiple of 4096. The file is sparse: memory is reserved as slots are first used.
        timeout : float, default 30.0
            Seconds that `put` and `loan` of this object wait for a free slot unless told otherwise.
        prefault_nbytes : int, default 1 GiB
            How much of the input region to prepare in the background. 0 for none; it never takes more than an
            eighth of what is free.
        attach_timeout : float, default 10.0
            Seconds to wait while another process is in the middle of creating or removing this pool.
        trust_mount : bool, default False
            Use the file even on a mount that is known to break shared mappings. Only for those who have made sure of it
            in another way, as `gsb` does: on such a mount a pool gives wrong numbers, not errors.

        Returns
        -------
        Pool

        Raises
        ------
        PoolFormatError, PoolCorruptedError
            The file is not a pool, of another version or build, truncated or damaged. It is left as it is.
        PoolPermissionError
            The file, its lock file or the default folder is not this user's alone.
        PoolSpaceError
            There is no memory even for the header.
        UnsupportedFilesystemError
            The path lies on a mount that cannot carry a coherent mapping (9P, FUSE, NFS, CIFS, virtiofs).
        PoolBusyError, TooManyClientsError
            See there.
        """
        geometry = Geometry(
            slot_nbytes, input_slots, output_slots, scratch_slots, max_clients, max_channels, channel_nbytes
        )
        return cls._attach(path, Mode.OPEN, geometry, timeout, prefault_nbytes, attach_timeout, trust_mount)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        slot_nbytes: int = 256 * 2**20,
        input_slots: int = 4,
        output_slots: int = 4,
        scratch_slots: int = 8,
        max_clients: int = DEFAULT_MAX_CLIENTS,
        max_channels: int = DEFAULT_MAX_CHANNELS,
        channel_nbytes: int = DEFAULT_CHANNEL_NBYTES,
        timeout: float = DEFAULT_TIMEOUT,
        prefault_nbytes: int = DEFAULT_PREFAULT_NBYTES,
        attach_timeout: float = 10.0,
        trust_mount: bool = False,
    ) -> Self:
        """Create a pool with exactly this geometry; parameters as for :meth:`open`.

        A left-over pool that nobody is attached to is made anew; handles to it become foreign.

        Raises
        ------
        PoolExistsError
            Somebody is attached to the pool at this path.
        """
        geometry = Geometry(
            slot_nbytes, input_slots, output_slots, scratch_slots, max_clients, max_channels, channel_nbytes
        )
        return cls._attach(path, Mode.CREATE, geometry, timeout, prefault_nbytes, attach_timeout, trust_mount)

    @classmethod
    def attach(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        prefault_nbytes: int = DEFAULT_PREFAULT_NBYTES,
        attach_timeout: float = 10.0,
        trust_mount: bool = False,
    ) -> Self:
        """Attach to the pool at `path`; parameters as for :meth:`open`.

        Raises
        ------
        PoolNotFoundError
            There is none.
        """
        return cls._attach(path, Mode.ATTACH, None, timeout, prefault_nbytes, attach_timeout, trust_mount)

    @classmethod
    def _attach(
        cls,
        path: str | os.PathLike[str] | None,
        mode: Mode,
        geometry: Geometry | None,
        timeout: float,
        prefault_nbytes: int,
        attach_timeout: float,
        trust_mount: bool,
    ) -> Self:
        self = cls.__new__(cls)
        self._path = default_path() if path is None else Path(os.path.abspath(path))
        self._prefault_nbytes = prefault_nbytes
        self._attach_timeout = attach_timeout
        self._trust_mount = trust_mount
        self._enter(mode, geometry, timeout)
        return self

    def _enter(self, mode: Mode, geometry: Geometry | None, timeout: float) -> None:
        self._core, self.created = attach(
            self._path,
            mode,
            geometry,
            attach_timeout=self._attach_timeout,
            default_timeout=timeout,
            trust_mount=self._trust_mount,
        )
        self.filesystem = mount_of(self._path).filesystem
        steps = next_slots(self._core, "input", self._prefault_nbytes)
        self._warmers = [start_warming(self._core, str(self._path), steps)]
        _open_pools.add(self)

    def reattach(self) -> None:
        """Attach anew under a new identity: in a forked child, or after :class:`ClientEvictedError`.

        The object keeps its path. Handles made elsewhere stay good; arrays that the child inherited are the parent's,
        and good only as long as the parent keeps its own.
        """
        old = self._core
        old.close()
        self._enter(Mode.ATTACH, None, old.default_timeout)

    @staticmethod
    def remove(path: str | os.PathLike[str] | None = None) -> None:
        """Delete a pool and its lock file.

        Raises
        ------
        PoolExistsError
            Somebody is attached.
        PoolNotFoundError
            There is none.
        PoolFormatError
            The file is not a pool.
        """
        remove(default_path() if path is None else Path(os.path.abspath(path)))

    # -- lifetime ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the pool. Frees what this object put and nobody adopted. Twice is harmless.

        Notes
        -----
        Lifetime: arrays from :meth:`get` stay good; the mapping goes when the last of them is gone.
        """
        self._core.close()
        warmers, self._warmers = self._warmers, []
        for warmer in warmers:
            if warmer is not None and warmer is not threading.current_thread() and not self._core.is_forked:
                warmer.join(5.0)
        _open_pools.discard(self)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._core.is_closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " (forked: call reattach())" if self._core.is_forked else " (closed)" if self.closed else ""
        g = self._core.geometry
        return f"<shmpool.Pool {str(self._path)!r}: {g.n_slots} slots of {g.slot_nbytes} bytes{state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # To another process goes the way to the pool, not this object's place in it.
        return _attach_again, (
            type(self),
            str(self._path),
            self._core.default_timeout,
            self._prefault_nbytes,
            self._trust_mount,
        )

    # -- identity ------------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The pool file."""
        return self._path

    @property
    def uuid(self) -> str:
        """32 hex digits, new at every creation; handles carry it."""
        return self._core.uuid.hex()

    @property
    def epoch(self) -> int:
        """How often a process has found this pool with nobody attached."""
        return self._core.epoch

    @property
    def geometry(self) -> Geometry:
        """slot_nbytes, input_slots, output_slots, scratch_slots, n_slots, max_clients, nbytes."""
        return self._core.geometry

    @property
    def nbytes(self) -> int:
        """Bytes of all slots together."""
        return self._core.geometry.nbytes

    @property
    def counters(self) -> dict[str, int]:
        """The free-running rotation counters: where the next search of each region starts, modulo its size."""
        return self._core.counters()

    @property
    def client(self) -> ClientId:
        """This object's identity in the pool."""
        return ClientId(self._core.client_index, self._core.client_nonce)

    def is_alive(self, client: ClientId) -> bool:
        """Whether that very attachment lives. Decided by its kernel lock: no pid, no time-out."""
        return self._core.is_alive(client.index, client.nonce)

    # -- arrays --------------------------------------------------------------------------------------------------

    def put(self, array: ArrayLike, region: Region = "input", timeout: float | None = None) -> Handle:
        """Copy an array into the pool and seal it.

        Parameters
        ----------
        array : array_like
            Any shape and fixed-size dtype, structured ones included. Fortran-ordered arrays stay so, others arrive in C
            order. An array that lies in an unsealed loan of this pool is sealed where it is: no copy.
        region : {"input", "output", "scratch"}
            Where to look for slots. What does not fit there takes any free run of the pool.
        timeout : float, optional
            Seconds to wait for a free slot; ``math.inf`` without limit. Default: the pool's `timeout`.

        Returns
        -------
        Handle
            Send it to any process attached to this pool.

        Raises
        ------
        PoolFullError
            No slot became free in time; says who holds what.
        PayloadTooLargeError
            Larger than the whole pool.
        PoolSpaceError
            The file system is full. Nothing was lost.
        UnsupportedDtypeError
            Object and other reference dtypes; masked arrays.

        Notes
        -----
        Concurrency: any thread. Blocking: releases the GIL while it waits and copies.
        Lifetime: the array lives until :meth:`free`, or until this client closes or dies, unless adopted.
        Crash: nobody ever sees an array whose put was not completed.
        """
        if type(array) is not np.ndarray:
            array = _plain(array)
        return self._core.put(array, region, timeout)

    def loan(
        self,
        shape: int | Sequence[int],
        dtype: DTypeLike = float,
        order: Literal["C", "F"] = "C",
        region: Region = "input",
        timeout: float | None = None,
    ) -> Loan:
        """Claim an array that is born in the pool, to be filled in place: no copy at all.

        ::

            with pool.loan((1000, 3), "f4") as loan:
                loan.array[...] = compute()
                handle = loan.seal()

        Leaving the block without ``seal()`` gives the slot back.

        Parameters
        ----------
        shape, dtype, order
            As for :func:`numpy.empty`. Contents are undefined.
        region, timeout
            As for :meth:`put`.

        Returns
        -------
        Loan
            ``.array``, ``.seal()``, ``.abort()``.

        Raises
        ------
        PoolFullError, PayloadTooLargeError, PoolSpaceError, UnsupportedDtypeError
            As for :meth:`put`.
        """
        return self._core.loan(shape, dtype, order, region, timeout)

    def get(
        self, handle: Handle, copy: bool | Literal["auto"] = False, *, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """The array behind a handle.

        Parameters
        ----------
        handle : Handle
        copy : bool or "auto", default False
            False: a read-only view of the slot, no copy; it pins the slot until it and everything derived from it
            are gone. True: a private, writable copy. "auto": a copy when the array is below 64 KiB or fewer than
            two slots of its region are free, a view otherwise, so that kept results do not starve writers.
        out : ndarray, optional
            Copy into this array of the same shape and dtype instead of a new one, and return it: memory that is used
            again costs no page faults.

        Returns
        -------
        ndarray

        Raises
        ------
        StaleHandleError
            The array was freed.
        HandleError
            The handle is of another pool or was made up.
        PoolCorruptedError
            The slot's descriptor contradicts itself.

        Notes
        -----
        Concurrency: any thread, any process; a free at the same time either happens after the view is gone or makes
        this raise. Lifetime: the view stays good after :meth:`close`.
        """
        if out is not None:
            return _copy_to(out, self._core.get(handle, False))
        if not isinstance(copy, bool):
            if copy != "auto":
                raise ValueError(f"copy must be True, False or 'auto', got {copy!r}")
            copy = self._copy_is_better(handle)
        return self._core.get(handle, copy)

    def _copy_is_better(self, handle: Handle) -> bool:
        if handle.nbytes < _AUTO_COPY_NBYTES or handle.slot >= self._core.geometry.n_slots:
            return True
        return self._core.n_free(self._core.geometry.region_of(handle.slot)) < _AUTO_KEEP_FREE

    def handle_of(self, array: NDArray[Any]) -> Handle | None:
        """The handle of an array that :meth:`get` has returned: for sending on what is in the pool already.

        Returns
        -------
        Handle or None
            None for any other array, slices and reshaped views of one from :meth:`get` included.

        Notes
        -----
        Lifetime: the array may have been freed meanwhile: then the handle is stale, while this view stays.
        """
        return self._core.handle_of(array)

    def free(self, handle: Handle) -> None:
        """Free an array: now, or when the last view of it is gone. Any client may, once.

        Raises
        ------
        StaleHandleError
            It was freed already.
        """
        self._core.free(handle)

    # -- ownership -----------------------------------------------------------------------------------------------

    def owner(self, handle: Handle) -> ClientId | None:
        """The client with which the array lives and dies; None if it is nobody's."""
        found = self._core.owner(handle)
        return None if found is None else ClientId(*found)

    def give(self, handle: Handle, client: ClientId) -> None:
        """Make `client` the owner: from then on the array lives and dies with it instead of with us.

        Raises
        ------
        ClientGoneError
            That client is not attached any more. The array has been freed.
        StaleHandleError
            The array was freed.
        """
        self._core.give(handle, client.index, client.nonce)

    def adopt(self, handle: Handle) -> None:
        """Become the owner of an array that another client put.

        Raises
        ------
        StaleHandleError
            The array was freed, perhaps because its owner died.
        """
        self._core.give(handle, self._core.client_index, self._core.client_nonce)

    def prefault(self, region: Region, slot_nbytes: int, *, wait: bool = False) -> int:
        """Prepare the first bytes of every slot of a region in the background, as opening does for the input region.

        Parameters
        ----------
        region : {"input", "output", "scratch"}
        slot_nbytes : int
            How much of each slot; memory is taken for it, but never more than an eighth of what is free.
        wait : bool, default False
            Do it now, in the calling thread.

        Returns
        -------
        int
            Bytes that were prepared; 0 without `wait`.

        Notes
        -----
        Blocking: returns at once unless `wait`. Contents are not touched, whoever owns the slots.
        """
        steps = every_slot(self._core, region, slot_nbytes)
        if wait:
            return warm(self._core, str(self._path), steps)
        self._warmers.append(start_warming(self._core, str(self._path), steps))
        return 0

    def memory(self, region: Region) -> tuple[int, int]:
        """Where the slots of a region lie in this process, for registering them with a device (pinned memory).

        Returns
        -------
        address, nbytes : int
            One contiguous range, page-aligned. ``(0, 0)`` for a region without slots.

        Notes
        -----
        Lifetime: good until :meth:`close`, and as long as an array of this pool lives. Pages that nobody has used yet
        are not there: see :meth:`prefault`.
        """
        geometry = self._core.geometry
        counts = (geometry.input_slots, geometry.output_slots, geometry.scratch_slots)
        index = REGIONS.index(region)
        if not counts[index]:
            return 0, 0
        return self._core.address(sum(counts[:index])), counts[index] * geometry.slot_nbytes

    def reclaim(self) -> int:
        """Free at once what dead clients left; how many there were. Claims do this by themselves when they need to."""
        return self._core.reclaim()

    def stat(self) -> PoolStat:
        """A snapshot: slots, owners, ages, pins, channels, counters, bytes reserved, file system."""
        return take_stat(self._core, snapshot_channels(self._core), str(self._path), self.filesystem)


def _attach_again(cls: type[Pool], path: str, timeout: float, prefault_nbytes: int, trust_mount: bool) -> Pool:
    return cls.attach(path, timeout=timeout, prefault_nbytes=prefault_nbytes, trust_mount=trust_mount)


def _copy_to(out: NDArray[Any], view: NDArray[Any]) -> NDArray[Any]:
    if out.shape != view.shape or out.dtype != view.dtype or not out.flags.writeable:
        raise ValueError(
            f"out must be a writable array of shape {view.shape} and dtype {view.dtype}; "
            f"it has shape {out.shape} and dtype {out.dtype}{'' if out.flags.writeable else ' and is read-only'}"
        )
    if out.flags.c_contiguous and view.flags.c_contiguous:
        fast_copy(out, view)
    elif out.flags.f_contiguous and view.flags.f_contiguous:
        fast_copy(out.T, view.T)
    else:
        np.copyto(out, view)
    return out


def _plain(array: ArrayLike) -> NDArray[Any]:
    if isinstance(array, np.ma.MaskedArray):
        raise UnsupportedDtypeError(
            "a masked array is two arrays.", hint="put its .data and its .mask, or array.filled(value)"
        )
    return np.asarray(array)


@atexit.register
def _close_all() -> None:
    # Frees our slots at once instead of at the next claim of somebody else, and ends the prefault threads.
    for pool in list(_open_pools):
        pool.close()
