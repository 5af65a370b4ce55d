# SPDX-License-Identifier: BSD-3-Clause
"""`ShmTransport`: arrays between client and server through one shared pool of 16 slots.

A thin layer over `shmpool.Pool`, which does the work: claiming, sealing, pinning, reclaiming the slots of
dead processes. This module only names the regions and holds the process-wide instance.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np

import shmpool
from gsb._recycle import LIMIT, SMALLEST, recycler
from shmpool.pool import Region

_log = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[Any]]


class ShmTransport:
    """Arrays through a shared-memory pool.

    Parameters
    ----------
    pool : shmpool.Pool
        The pool; closed together with the transport.

    Attributes
    ----------
    POOL_SIZE : int
        Bytes of all slots together: 4 GiB unless configured otherwise.
    SLOT_SIZE : int
        Bytes of one slot: 256 MiB. An array that is larger takes several adjacent ones.
    SLOT_INPUT_START, SLOT_INPUT_END, SLOT_OUTPUT_END, SLOT_SCRATCH_END : int
        The regions: slots 0 to 3 take requests, 4 to 7 results, 8 to 15 are scratch.

    Notes
    -----
    Concurrency: any thread. Fork: `get` gives the child a transport of its own. Crash: slots of a dead
    process are reclaimed by whoever needs one.
    """

    SLOT_SIZE: int = 256 * 2**20
    SLOT_INPUT_START: int = 0
    SLOT_INPUT_END: int = 4
    SLOT_OUTPUT_END: int = 8
    SLOT_SCRATCH_END: int = 16
    POOL_SIZE: int = SLOT_SCRATCH_END * SLOT_SIZE

    _instance: ClassVar[ShmTransport | None] = None
    _options: ClassVar[dict[str, Any]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, pool: shmpool.Pool) -> None:
        geometry = pool.geometry
        self.pool: Final = pool
        self._pid: Final = os.getpid()
        self.SLOT_SIZE = geometry.slot_nbytes
        self.SLOT_INPUT_END = geometry.input_slots
        self.SLOT_OUTPUT_END = self.SLOT_INPUT_END + geometry.output_slots
        self.SLOT_SCRATCH_END = self.SLOT_OUTPUT_END + geometry.scratch_slots
        self.POOL_SIZE = pool.nbytes
        _log.info("[ShmTransport] mmap pool: %s (%.1f GB) on %s", pool.path, self.POOL_SIZE / 2**30, pool.filesystem)

    # ------------------------------------------------------------------------------ the instance
    @classmethod
    def get(cls) -> ShmTransport:
        """Give the transport of this process; the first call attaches to the pool or creates it."""
        found = ShmTransport._instance
        if found is not None and found._pid == os.getpid():
            return found
        with ShmTransport._lock:
            found = ShmTransport._instance
            if found is None or found._pid != os.getpid():
                found = ShmTransport._instance = cls(shmpool.Pool.open(**cls._options))
            return found

    @classmethod
    def configure(cls, **options: Any) -> None:
        """Set what the first `get` opens.

        Parameters
        ----------
        path : str or Path, optional
            The pool file.
        slot_nbytes, input_slots, output_slots, scratch_slots : int, optional
            Its geometry, if it is not there yet.
        """
        ShmTransport._options = {name: value for name, value in options.items() if value is not None}

    @classmethod
    def attach(cls, path: str | Path, uuid: str, *, trust_mount: bool = False) -> ShmTransport:
        """Make the pool that a server names the one of this process; `trust_mount` as for `shmpool.Pool.attach`."""
        with ShmTransport._lock:
            found = ShmTransport._instance
            if found is not None and found._pid == os.getpid() and found.pool.uuid == uuid:
                return found
            # The former pool is not closed: views of it may still be in use. It goes with the last of them.
            found = ShmTransport._instance = cls(shmpool.Pool.attach(path, trust_mount=trust_mount))
            ShmTransport._options = {"path": path}
            return found

    @classmethod
    def reset(cls) -> None:
        """Close the transport of this process and forget the options."""
        with ShmTransport._lock:
            found, ShmTransport._instance = ShmTransport._instance, None
            ShmTransport._options = {}
        if found is not None and found._pid == os.getpid():
            found.close()

    def close(self) -> None:
        """Detach from the pool."""
        self.pool.close()

    # ------------------------------------------------------------------------------ arrays
    def write(self, array: Array, is_output: bool = False, timeout: float | None = None) -> shmpool.Handle:
        """Copy an array into the next free slot, or slots, and seal it.

        Parameters
        ----------
        array : ndarray
            Of any size that the pool can hold, any strides, any dtype but object.
        is_output : bool, default False
            Take an output slot rather than an input slot.
        timeout : float, optional
            Seconds to wait for a slot; default: the pool's, 30.

        Returns
        -------
        shmpool.Handle
            Names the array to any process attached to the pool. Whoever is done with it frees it.

        Raises
        ------
        shmpool.PoolFullError
            No slot became free in time.
        shmpool.PayloadTooLargeError
            The array is larger than the pool.
        """
        return self.pool.put(array, region=self._region(array.nbytes, is_output), timeout=timeout)

    def loan(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], order: Literal["C", "F"] = "C", timeout: float | None = None
    ) -> shmpool.Loan:
        """Claim input slots for an array that is to be written in place; region and errors as for `write`."""
        nbytes = math.prod(shape) * dtype.itemsize
        return self.pool.loan(shape, dtype, order, self._region(nbytes, False), timeout)

    def _region(self, nbytes: int, is_output: bool) -> Region:
        """Choose where an array goes: what is too large for its own region goes to scratch, if it fits there.

        The pool would otherwise take any free run, and a request over the output slots leaves no room for
        its own answer.
        """
        slots = -(-nbytes // self.SLOT_SIZE)
        own = self.SLOT_OUTPUT_END - self.SLOT_INPUT_END if is_output else self.SLOT_INPUT_END
        if own < slots <= self.SLOT_SCRATCH_END - self.SLOT_OUTPUT_END:
            return "scratch"
        return "output" if is_output else "input"

    def read(self, handle: shmpool.Handle, copy: bool = True) -> Array:
        """Give the array that a handle names: a private copy, or a read-only view that pins the slot."""
        if copy and SMALLEST <= handle.nbytes <= LIMIT:
            return recycler.copy(self.pool.get(handle))
        return self.pool.get(handle, copy=copy)

    def free(self, handle: shmpool.Handle) -> None:
        """Free a slot; harmless if it is free already."""
        try:
            self.pool.free(handle)
        except (shmpool.StaleHandleError, shmpool.HandleError, shmpool.PoolClosedError):
            _log.debug("slot %s was free already", handle)

    # ------------------------------------------------------------------------------ slots
    def _alloc_input_slot(self, nbytes: int | None = None, timeout: float | None = None) -> Any:
        """Claim an input slot (0 to 3 in rotation); returns the loan, to be sealed or aborted."""
        return self._alloc("input", nbytes, timeout)

    def _alloc_output_slot(self, nbytes: int | None = None, timeout: float | None = None) -> Any:
        """Claim an output slot (4 to 7 in rotation)."""
        return self._alloc("output", nbytes, timeout)

    def _alloc_scratch_slot(self, nbytes: int | None = None, timeout: float | None = None) -> Any:
        """Claim a scratch slot (8 to 15 in rotation)."""
        return self._alloc("scratch", nbytes, timeout)

    def _alloc(self, region: Region, nbytes: int | None, timeout: float | None) -> Any:
        size = self.SLOT_SIZE if nbytes is None else nbytes
        return self.pool.loan((size,), np.uint8, region=region, timeout=timeout)

    @property
    def _input_counter(self) -> int:
        return self.pool.counters["input"]

    @property
    def _output_counter(self) -> int:
        return self.pool.counters["output"]

    @property
    def _scratch_counter(self) -> int:
        return self.pool.counters["scratch"]


def _after_fork() -> None:
    # Another thread of the parent may have held it.
    ShmTransport._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
