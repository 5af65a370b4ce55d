# SPDX-License-Identifier: BSD-3-Clause
"""The channels of a pool, read from its file as `peek` reads the rest: nothing attached, locked or written."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import _channel

if TYPE_CHECKING:
    from .._channel import _RawChannel
    from .._core import Geometry

__all__ = ["read_channels"]

# docs/format.md, format 1
_TABLE_OFFSET = 120
_HIGH_WATER_OFFSET = 4864
_RECORD_NBYTES = 2048
_CELLS_OFFSET = 16384
_ATTACHMENT_NBYTES = _CELL_NBYTES = 64
_READY = 2
_FULL = 2

_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_RECORD = struct.Struct("=QIIIIQ224s")  # word, flags, capacity, cell_nbytes, name_nbytes, created_ns, name

# (nbytes, offset) -> bytes; raises when the file has become shorter
_Read = Callable[[int, int], bytes]


def _words(data: bytes) -> list[int]:
    return [int(_U64.unpack_from(data, at)[0]) for at in range(0, len(data), 64)]


def _channel_at(read: _Read, index: int, at: int, extent: int, extent_nbytes: int) -> _RawChannel | None:
    record = read(_RECORD_NBYTES, at)
    word, flags, capacity, cell_nbytes, name_nbytes, created_ns, name = _RECORD.unpack_from(record)
    if word & 0xF != _READY:
        return None
    (tail,) = _U64.unpack_from(record, 256)
    (high,) = _U32.unpack_from(record, 1024)
    room = extent_nbytes - _channel.PAYLOAD_OFFSET
    sound = 0 < capacity <= _channel.MAX_CAPACITY and 0 < cell_nbytes <= room // capacity and cell_nbytes % 64 == 0
    ends = []
    n_full = 0
    if sound:
        attachments = read(min(high, _channel.MAX_ATTACHMENTS) * _ATTACHMENT_NBYTES, extent)
        ends = [((w >> 4 & 0xFFF) - 1, w & 0xF, w >> 16) for w in _words(attachments) if w]
        n_full = sum(w & 0xF == _FULL for w in _words(read(capacity * _CELL_NBYTES, extent + _CELLS_OFFSET)))
    if _U64.unpack(read(8, at))[0] != word:  # removed meanwhile
        return None
    text = name[: min(name_nbytes, len(name))].decode("utf-8", "replace")
    return index, text, word >> 16, flags, capacity, cell_nbytes, created_ns, tail, n_full, ends, not sound


def read_channels(read: _Read, tables: bytes, geometry: Geometry) -> list[_RawChannel]:
    """As :func:`_channel.snapshot_channels`; `tables` is the beginning of the file, at least two pages."""
    (table,) = _U64.unpack_from(tables, _TABLE_OFFSET)
    (high,) = _U32.unpack_from(tables, _HIGH_WATER_OFFSET)
    found = []
    for index in range(min(high, geometry.max_channels)):
        extent = geometry.channels_offset + index * geometry.channel_nbytes
        channel = _channel_at(read, index, table + index * _RECORD_NBYTES, extent, geometry.channel_nbytes)
        if channel is not None:
            found.append(channel)
    return found
