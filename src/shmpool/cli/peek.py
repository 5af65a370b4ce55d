# SPDX-License-Identifier: BSD-3-Clause
"""Look at a pool without becoming a client of it.

An attached client changes what it looks at: it takes a client entry, keeps the pool "in use", and, when it is the
first to come, frees what the dead left, which is just what somebody wants to see after a crash. So the inspection
commands read the tables as a file (docs/format.md has the offsets) and ask the kernel who is alive (on
Windows, which has no such question, by trying the locks for a moment). They write nothing, hold nothing and map
nothing: a file that is truncated meanwhile is an error, not a SIGBUS.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .. import _core
from ..attach import refuse
from ..errors import PoolBusyError, PoolCorruptedError, PoolNotFoundError, PoolPermissionError
from ..paths import check_owner, lock_path
from ..space import mount_of
from ..stat import ClientStat, PoolStat, SlotStat, take_stat
from .peek_channels import read_channels

if TYPE_CHECKING:
    from .._core import Geometry, _RawClient, _RawSlot

__all__ = ["Look", "Lookout", "is_opening", "look"]

# docs/format.md, format 1. Another format never comes this far: header_check refuses it.
_SLOT_NBYTES = 1024
_CLIENT_NBYTES = 256
_ROTATION_OFFSETS = {"input": 4096, "output": 4224, "scratch": 4352}
_HIGH_WATER_OFFSET = 4736
_SLOT_TABLE_OFFSET = 8192
_CREATED_OFFSET = 104
_EPOCH_OFFSET = 128

_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")

_HOLE = "there is no pool at {}."
_HINT = "Pool.open() creates one; or compare SHMPOOL_PATH in both processes"


@contextmanager
def _reading(path: Path) -> Iterator[_core.Descriptor]:
    try:
        file = _core.open_file(os.fsencode(path), _core.OPEN_READ)
    except (FileNotFoundError, NotADirectoryError):
        raise PoolNotFoundError(_HOLE.format(path), hint=_HINT) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PoolPermissionError(f"{path} is a symbolic link, which a pool does not follow.") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.ENXIO):
            raise PoolPermissionError(f"{path} cannot be opened: {error.strerror}.") from None
        if error.errno == errno.EBUSY:
            raise PoolBusyError(f"{path} is opened by somebody who does not share it, or is being removed.") from None
        raise
    try:
        check_owner(file, path)
        yield file
    finally:
        file.close()


@dataclass(frozen=True)
class Look:
    """What was seen: the same snapshot as :meth:`Pool.stat`, and what only an outsider can tell.

    Attributes
    ----------
    stat : PoolStat
    created : float
        Wall-clock time of the creation, in seconds since 1970.
    in_use : bool
        Whether any process is attached.
    opening : bool
        Whether a process was alone in the middle of creating, recovering or removing the pool.
    lock_lost : bool
        Whether the pool has users that hold nothing in the lock file: it was removed under them, or they have closed
        it. Who lives cannot be told then.
    """

    stat: PoolStat
    created: float
    in_use: bool
    opening: bool
    lock_lost: bool

    def span_of(self, slot: SlotStat) -> int:
        """How many slots hang together from this one on. A slot being written does not say so yet; its tails do."""
        return max(slot.span, 1 + sum(other.head == slot.slot for other in self.stat.slots))

    @property
    def dead(self) -> tuple[ClientStat, ...]:
        """Client entries whose process is gone and that nobody has cleaned up after yet."""
        return tuple(client for client in self.stat.clients if not client.alive)

    @property
    def held_by_dead(self) -> tuple[SlotStat, ...]:
        """Slots that only dead clients keep from being free, tails included."""
        gone = {client.index for client in self.dead}
        held = {
            slot.slot
            for slot in self.stat.slots
            if slot.state in ("writing", "sealed", "retired")
            and (slot.state == "retired" or slot.owner in gone)
            and set(slot.pins) <= gone
        }
        return tuple(slot for slot in self.stat.slots if slot.slot in held or slot.head in held)


class Lookout:
    """The tables of one pool, read once. Offers what `take_stat` asks of a core."""

    def __init__(self, path: Path) -> None:
        with _reading(path) as file:
            page = file.read(_core.PAGE_NBYTES, 0)
            size = file.size()
            verdict, geometry, uuid, version, stamp = _core.header_check(page, size)
            if size == 0 or verdict == "creating":
                raise PoolBusyError(
                    f"the pool at {path} is not finished.",
                    hint="either a process is creating it at this moment, or its creator died: then the next "
                    "Pool.open() makes it anew",
                )
            if verdict != "ok" or geometry is None:
                raise refuse(verdict, path, page, size, version, stamp)
            self.uuid: bytes = uuid
            self.geometry: Geometry = geometry
            self._read_tables(file, path)
            # Users hold a byte of the pool file too: it outlives a lock file that somebody has removed. Asked on both
            # sides of the other question, so that one who is just leaving is not mistaken for such a user.
            locked = file.is_locked(_core.LOCK_BYTE_POOL, exclusively=False)
            used = self._ask_locks(lock_path(path))
            locked = locked and file.is_locked(_core.LOCK_BYTE_POOL, exclusively=False)
        self.lock_lost: bool = locked and not used
        self.in_use: bool = used or locked
        (self.epoch,) = _U64.unpack_from(page, _EPOCH_OFFSET)
        (created_ns,) = _U64.unpack_from(page, _CREATED_OFFSET)
        self.created: float = created_ns / 1e9

    def _read_tables(self, file: _core.Descriptor, path: Path) -> None:
        n_slots, n_clients = self.geometry.n_slots, self.geometry.max_clients
        clients_at = _SLOT_TABLE_OFFSET + n_slots * _SLOT_NBYTES
        pins_at = clients_at + n_clients * _CLIENT_NBYTES
        stride = (n_clients * 4 + 63) // 64 * 64

        def read(nbytes: int, offset: int) -> bytes:
            data = file.read(nbytes, offset)
            if len(data) < nbytes:
                raise PoolCorruptedError(f"{path} became shorter while it was read.")
            return data

        self._tables = read(clients_at, 0)
        self.channels = read_channels(read, self._tables, self.geometry)
        (high,) = _U32.unpack_from(self._tables, _HIGH_WATER_OFFSET)
        self._high = min(high, n_clients)
        self._clients = read(self._high * _CLIENT_NBYTES, clients_at)
        self._rows = [read(self._high * 4, pins_at + slot * stride) for slot in range(n_slots)]
        self._now = _core.monotonic_ns()

    def _ask_locks(self, lock_file: Path) -> bool:
        """Who is alive, and whether anybody is attached, by the lock file."""
        self.opening = False
        self._alive: frozenset[int] = frozenset()
        try:
            with _reading(lock_file) as file:
                used = file.is_locked(_core.LOCK_BYTE_LIFE, exclusively=False)
                self.opening = file.is_locked(_core.LOCK_BYTE_LIFE, exclusively=True)
                self._alive = frozenset(
                    index
                    for index in range(self._high)
                    if file.is_locked(_core.LOCK_BYTE_CLIENTS + index, exclusively=True)
                )
        except PoolNotFoundError:
            return False
        return used

    def counters(self) -> dict[str, int]:
        """The rotation counters by region."""
        return {name: _U64.unpack_from(self._tables, offset)[0] for name, offset in _ROTATION_OFFSETS.items()}

    def _slot(self, index: int) -> _RawSlot:
        at = _SLOT_TABLE_OFFSET + index * _SLOT_NBYTES

        def u64(offset: int) -> int:
            return int(_U64.unpack_from(self._tables, at + offset)[0])

        def u32(offset: int) -> int:
            return int(_U32.unpack_from(self._tables, at + offset)[0])

        word = u64(0)
        state, owner = word & 0xF, word >> 4 & 0xFFF
        name = _core.STATES[state] if state < len(_core.STATES) else "corrupt"
        counts = struct.unpack(f"={self._high}I", self._rows[index])
        return (
            name,
            owner - 1 if 0 < owner < 4095 else None,  # 4095: a channel
            word >> 16,
            u32(216),
            u64(200),
            u64(136),
            u64(192),
            u64(128),
            u32(72) if name == "tail" else None,
            {client: count for client, count in enumerate(counts) if count},
        )

    def snapshot(self) -> tuple[int, list[_RawSlot], list[_RawClient]]:
        """As :meth:`_core.Core.snapshot`."""
        clients: list[_RawClient] = []
        for index in range(self._high):
            at = index * _CLIENT_NBYTES
            nonce, attached, pid, namespace = struct.unpack_from("=QQI4xQ", self._clients, at)
            if nonce:
                text = self._clients[at + 32 : at + 160].split(b"\0", 1)[0]
                clients.append(
                    (index, nonce, pid, namespace, attached, text.decode("utf-8", "replace"), index in self._alive)
                )
        return self._now, [self._slot(index) for index in range(self.geometry.n_slots)], clients


def is_opening(lock_file: Path) -> bool:
    """Whether a process is alone at this moment: creating, recovering or removing the pool."""
    try:
        with _reading(lock_file) as file:
            return file.is_locked(_core.LOCK_BYTE_LIFE, exclusively=True)
    except PoolNotFoundError:
        return False


def look(path: Path) -> Look:
    """Look at the pool at `path` without touching it.

    Raises
    ------
    PoolNotFoundError, PoolBusyError
        There is none, or it is not finished.
    PoolFormatError, PoolCorruptedError, PoolPermissionError
        As :meth:`Pool.attach`.
    """
    seen = Lookout(path)
    stat = take_stat(cast("_core.Core", seen), seen.channels, str(path), mount_of(path).filesystem)
    return Look(stat=stat, created=seen.created, in_use=seen.in_use, opening=seen.opening, lock_lost=seen.lock_lost)
