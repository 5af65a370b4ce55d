# SPDX-License-Identifier: BSD-3-Clause
"""The way of bytes between host memory and the device: directly, through a ring of pinned buffers, or pageable.

*Directly* needs the host memory registered (``cudaHostRegister``): then the device reads a slot by DMA at the speed of
the bus. Registration is slow (1 to 2 GB/s) and done once. Where it is refused, or for memory that is nobody's slot,
the bytes go through two pinned buffers, so that the copy into one overlaps with the transfer out of the other.

One transfer must lie in one registered range or in none: CUDA refuses what is half in one. `HostPath.copy` splits.
"""

from __future__ import annotations

import bisect
import ctypes
import enum
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from shmpool._core import fast_copy

__all__ = ["RING_NBYTES", "Direction", "HostPath", "PinReport"]

#: Bytes of one of the two buffers of the ring.
RING_NBYTES = 64 * 2**20

# Portable: good for every context of the process.
_PORTABLE = 1


class Direction(enum.Enum):
    """Which way, by CUDA's number."""

    TO_DEVICE = 1
    TO_HOST = 2


@dataclass(frozen=True, slots=True)
class PinReport:
    """How host memory is reached; for the probe, the log and the benchmarks.

    Attributes
    ----------
    path : str
        ``pinned``, ``ring`` or ``pageable``: what an array in a slot goes through.
    pinned_nbytes : int
        Registered.
    reason : str
        In words, with what was refused.
    """

    path: str
    pinned_nbytes: int
    reason: str


class _Ring:
    """Two pinned buffers and an event for each."""

    def __init__(self, cupy: Any, nbytes: int) -> None:
        self.nbytes = nbytes
        self._memory = [cupy.cuda.alloc_pinned_memory(nbytes) for _ in range(2)]
        self.buffers = [np.frombuffer(memory, np.uint8, nbytes) for memory in self._memory]
        self.events = [cupy.cuda.Event(disable_timing=True) for _ in range(2)]


class HostPath:
    """Copies between host and device memory by address.

    Parameters
    ----------
    cupy : module
    stream : cupy.cuda.Stream
        Of its own.
    mode : {"auto", "ring", "pageable"}
        ``ring`` and ``pageable`` ignore what is pinned.
    ring_nbytes : int
        Size of each of the two buffers.

    Notes
    -----
    Concurrency: one thread. Blocking: `copy` returns when the last byte has arrived.
    """

    def __init__(self, cupy: Any, stream: Any, mode: str = "auto", ring_nbytes: int = RING_NBYTES) -> None:
        if mode not in ("auto", "ring", "pageable"):
            raise ValueError(f"host path must be auto, ring or pageable, not {mode!r}")
        self._cupy = cupy
        self._runtime = cupy.cuda.runtime
        self._stream = stream
        self._mode = mode
        self._ring_nbytes = ring_nbytes
        self._ring: _Ring | None = None
        self._ring_wanted = mode != "pageable"
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._refusals: list[str] = []
        self.seconds = 0.0

    def pin(self, address: int, nbytes: int) -> None:
        """Register a range; page borders are the caller's business. CuPy clears the error of a refusal.

        Raises
        ------
        Exception
            CuPy's; noted for the report.
        """
        if self._mode != "auto":
            return
        if nbytes == 0:
            # CUDA answers a registration of nothing with an error that stays until somebody asks for it.
            return
        try:
            self._runtime.hostRegister(address, nbytes, _PORTABLE)
        except Exception as error:
            self._refusals.append(str(error))
            raise
        at = bisect.bisect(self._starts, address)
        self._starts.insert(at, address)
        self._ends.insert(at, address + nbytes)

    @property
    def pinned_nbytes(self) -> int:
        """Bytes registered."""
        return sum(self._ends) - sum(self._starts)

    def prepare(self) -> None:
        """Allocate the ring now, if transfers will need one: pinned memory takes its time."""
        self._ring_or_none()

    def _ring_or_none(self) -> _Ring | None:
        if self._ring is None and self._ring_wanted:
            try:
                self._ring = _Ring(self._cupy, self._ring_nbytes)
            except Exception as error:
                self._refusals.append(f"no pinned buffers: {error}")
                self._ring_wanted = False
        return self._ring

    def _pieces(self, address: int, nbytes: int) -> list[tuple[int, int, bool]]:
        """Split a range at the borders of registered ones: (offset, bytes, pinned)."""
        pieces: list[tuple[int, int, bool]] = []
        at, end = address, address + nbytes
        while at < end:
            index = bisect.bisect(self._starts, at) - 1
            if index >= 0 and at < self._ends[index]:
                stop, pinned = min(end, self._ends[index]), True
            else:
                following = self._starts[index + 1] if index + 1 < len(self._starts) else end
                stop, pinned = min(end, following), False
            pieces.append((at - address, stop - at, pinned))
            at = stop
        return pieces

    def copy(self, direction: Direction, device: int, host: int, nbytes: int) -> None:
        """Copy between a device address and a host address."""
        if nbytes == 0:
            return
        begun = time.perf_counter()
        try:
            for offset, length, pinned in self._pieces(host, nbytes):
                if pinned:
                    self._transfer(direction, device + offset, host + offset, length)
                elif (ring := self._ring_or_none()) is None:
                    self._pageable(direction, device + offset, host + offset, length)
                elif direction is Direction.TO_DEVICE:
                    self._through_ring_up(ring, device + offset, host + offset, length)
                else:
                    self._through_ring_down(ring, device + offset, host + offset, length)
        finally:
            # Also after an error: the host memory is about to be somebody else's.
            self._stream.synchronize()
            self.seconds += time.perf_counter() - begun

    def _transfer(self, direction: Direction, device: int, host: int, nbytes: int) -> None:
        target, source = (device, host) if direction is Direction.TO_DEVICE else (host, device)
        self._runtime.memcpyAsync(target, source, nbytes, direction.value, self._stream.ptr)

    def _pageable(self, direction: Direction, device: int, host: int, nbytes: int) -> None:
        target, source = (device, host) if direction is Direction.TO_DEVICE else (host, device)
        self._runtime.memcpy(target, source, nbytes, direction.value)

    def _through_ring_up(self, ring: _Ring, device: int, host: int, nbytes: int) -> None:
        for turn, offset in enumerate(range(0, nbytes, ring.nbytes)):
            length = min(ring.nbytes, nbytes - offset)
            buffer, event = ring.buffers[turn % 2], ring.events[turn % 2]
            if turn >= 2:
                event.synchronize()  # the transfer out of this buffer is over
            fast_copy(buffer[:length], _bytes_at(host + offset, length))
            self._transfer(Direction.TO_DEVICE, device + offset, buffer.ctypes.data, length)
            event.record(self._stream)

    def _through_ring_down(self, ring: _Ring, device: int, host: int, nbytes: int) -> None:
        waiting: tuple[int, int, int] | None = None
        for turn, offset in enumerate(range(0, nbytes, ring.nbytes)):
            length = min(ring.nbytes, nbytes - offset)
            self._transfer(Direction.TO_HOST, device + offset, ring.buffers[turn % 2].ctypes.data, length)
            ring.events[turn % 2].record(self._stream)
            if waiting is not None:
                self._empty(ring, host, *waiting)
            waiting = turn % 2, offset, length
        if waiting is not None:
            self._empty(ring, host, *waiting)

    def _empty(self, ring: _Ring, host: int, which: int, offset: int, length: int) -> None:
        ring.events[which].synchronize()
        fast_copy(_bytes_at(host + offset, length), ring.buffers[which][:length])

    def report(self) -> PinReport:
        """Say how an array in a slot is reached."""
        refused = f"; refused: {'; '.join(self._refusals)}" if self._refusals else ""
        mib = self.pinned_nbytes >> 20
        if self._starts:
            return PinReport(
                "pinned", self.pinned_nbytes, f"{mib} MiB of the pool are pinned: DMA from the slot{refused}"
            )
        if not self._ring_wanted:
            return PinReport("pageable", 0, f"pageable copies by the driver{refused}")
        size = self._ring_nbytes >> 20
        return PinReport("ring", 0, f"no slot is pinned: copies go through 2 x {size} MiB of pinned memory{refused}")


def _bytes_at(address: int, nbytes: int) -> Any:
    """Return an array of the bytes at an address. Whoever passes the address keeps the memory alive."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
