# SPDX-License-Identifier: BSD-3-Clause
"""The runtime API by address: copies, registration, errors."""

from __future__ import annotations

import ctypes
import itertools
import os
from typing import Any

from . import memory

memcpyHostToDevice = 1  # noqa: N816
memcpyDeviceToHost = 2  # noqa: N816

_NAMES = {
    1: "cudaErrorInvalidValue: invalid argument",
    2: "cudaErrorMemoryAllocation: out of memory",
    214: "cudaErrorECCUncorrectable: uncorrectable ECC error encountered",
    700: "cudaErrorIllegalAddress: an illegal memory access was encountered",
    712: "cudaErrorHostMemoryAlreadyRegistered: part or all of the requested memory range is already mapped",
    719: "cudaErrorLaunchFailure: unspecified launch failure",
    999: "cudaErrorUnknown: unknown error",
}


class CUDARuntimeError(RuntimeError):
    """As CuPy's: the status is an attribute."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_NAMES.get(status, f"status {status}"))

    def __reduce__(self) -> Any:
        return type(self), (self.status,)


_sticky = 0
_streams: dict[int, list[tuple[int, int, int, int]]] = {}
_done: dict[int, int] = {}
_numbers = itertools.count(1)
_ranges: list[tuple[int, int]] = []
#: What was asked for, for tests: (kind, bytes, direct).
copies: list[tuple[int, int, bool]] = []


def inject_sticky(status: int) -> None:
    """Have every later call fail, as after a kernel's illegal access."""
    global _sticky
    _sticky = status


def check() -> None:
    if _sticky:
        raise CUDARuntimeError(_sticky)


def new_stream() -> int:
    number = next(_numbers)
    _streams[number], _done[number] = [], 0
    return number


def mark(stream: int) -> int:
    return _done[stream] + len(_streams[stream])


def finish(stream: int, upto: int | None = None) -> None:
    queue = _streams[stream]
    while queue and (upto is None or _done[stream] < upto):
        target, source, nbytes, _ = queue.pop(0)
        ctypes.memmove(target, source, nbytes)
        _done[stream] += 1


def deviceSynchronize() -> None:  # noqa: N802
    for stream in _streams:
        finish(stream)
    check()


def note_pinned(address: int, nbytes: int) -> None:
    _ranges.append((address, address + nbytes))


def hostRegister(ptr: int, size: int, flags: int) -> None:  # noqa: N802
    check()
    refused = int(os.environ.get("FAKE_CUPY_REFUSE_PIN", "0"))
    limit = int(os.environ.get("FAKE_CUPY_PIN_LIMIT", str(2**62)))
    if refused:
        raise CUDARuntimeError(refused)
    if size == 0 or ptr % 4096:
        raise CUDARuntimeError(1)
    if any(ptr < end and start < ptr + size for start, end in _ranges):
        raise CUDARuntimeError(712)
    if sum(end - start for start, end in _ranges) + size > limit:
        raise CUDARuntimeError(2)
    note_pinned(ptr, size)


def hostUnregister(ptr: int) -> None:  # noqa: N802
    _ranges[:] = [item for item in _ranges if item[0] != ptr]


def _direct(host: int, nbytes: int) -> bool:
    touched = [item for item in _ranges if host < item[1] and item[0] < host + nbytes]
    if not touched:
        return False
    start, end = touched[0]
    if len(touched) > 1 or host < start or host + nbytes > end:
        raise CUDARuntimeError(1)
    return True


def memcpyAsync(dst: int, src: int, size: int, kind: int, stream: int) -> None:  # noqa: N802
    check()
    direct = _direct(src if kind == memcpyHostToDevice else dst, size)
    copies.append((kind, size, direct))
    _streams[stream].append((dst, src, size, kind))
    if not direct:
        # CUDA stages pageable memory before it returns.
        finish(stream)


def memcpy(dst: int, src: int, size: int, kind: int) -> None:
    check()
    copies.append((kind, size, _direct(src if kind == memcpyHostToDevice else dst, size)))
    ctypes.memmove(dst, src, size)


def memGetInfo() -> tuple[int, int]:  # noqa: N802
    check()
    return memory.total - memory.used, memory.total


def getDeviceProperties(device: int) -> dict[str, Any]:  # noqa: N802
    return {"name": b"Fake GPU", "totalGlobalMem": memory.total, "major": 9, "minor": 0}


def driverGetVersion() -> int:  # noqa: N802
    return 13000


def runtimeGetVersion() -> int:  # noqa: N802
    return 13000
