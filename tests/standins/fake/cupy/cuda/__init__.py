# SPDX-License-Identifier: BSD-3-Clause
"""Streams, events, pinned memory."""

from __future__ import annotations

import os
import weakref
from typing import Any

import numpy as np

from . import memory, runtime


def is_available() -> bool:
    return not os.environ.get("FAKE_CUPY_NO_DEVICE")


class Device:
    def __init__(self, device: int = 0) -> None:
        self.id = device

    def use(self) -> None:
        runtime.check()


class Stream:
    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: Any = None
    ) -> None:
        self.ptr = runtime.new_stream()

    def synchronize(self) -> None:
        runtime.finish(self.ptr)
        runtime.check()


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._stream = 0
        self._mark = 0

    def record(self, stream: Any = None) -> None:
        self._stream, self._mark = stream.ptr, runtime.mark(stream.ptr)

    def synchronize(self) -> None:
        runtime.finish(self._stream, self._mark)
        runtime.check()


class PinnedMemoryPointer(bytearray):
    """Readable and writable through the buffer protocol, as CuPy's."""


def alloc_pinned_memory(size: int) -> PinnedMemoryPointer:
    if os.environ.get("FAKE_CUPY_REFUSE_RING"):
        raise runtime.CUDARuntimeError(2)
    made = PinnedMemoryPointer(size)
    address = np.frombuffer(made, np.uint8).ctypes.data
    runtime.note_pinned(address, size)
    weakref.finalize(made, runtime.hostUnregister, address).atexit = False
    return made


__all__ = ["memory", "runtime"]
