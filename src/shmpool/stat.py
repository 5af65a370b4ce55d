# SPDX-License-Identifier: BSD-3-Clause
"""What a pool looks like at one moment: who holds what, since when, and whether they live."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .channel_stat import ChannelStat, channel_stats
from .errors import PoolFullError

if TYPE_CHECKING:
    from . import _core
    from ._channel import _RawChannel

__all__ = ["ClientStat", "PoolStat", "SlotStat", "full_error", "take_stat"]


@dataclass(frozen=True)
class SlotStat:
    """One slot. Ages are in seconds; ``pins`` maps client index to pin count."""

    slot: int
    region: str
    state: str
    owner: int | None
    generation: int
    span: int
    nbytes: int
    age: float | None
    reserved_nbytes: int
    head: int | None
    pins: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientStat:
    """One attachment. ``pid`` is true in the process's own pid namespace only, and decides nothing."""

    index: int
    nonce: int
    pid: int
    pid_namespace: int
    age: float
    label: str
    alive: bool


@dataclass(frozen=True)
class PoolStat:
    """A snapshot of a pool. Every value was true at its own instant; the pool goes on meanwhile."""

    path: str
    uuid: str
    epoch: int
    filesystem: str
    slot_nbytes: int
    n_slots: int
    max_clients: int
    counters: dict[str, int]
    reserved_nbytes: int
    used_slots: int
    slots: tuple[SlotStat, ...]
    clients: tuple[ClientStat, ...]
    channels: tuple[ChannelStat, ...]

    def to_dict(self) -> dict[str, Any]:
        """The snapshot as JSON-able containers."""
        return asdict(self)


def slots_and_clients(core: _core.Core) -> tuple[tuple[SlotStat, ...], tuple[ClientStat, ...]]:
    """The dynamic part of a snapshot."""
    now, raw_slots, raw_clients = core.snapshot()
    slots = []
    for index, raw in enumerate(raw_slots):
        state, owner, generation, span, nbytes, claimed, sealed, reserved, head, pins = raw
        since = sealed if state in ("sealed", "retired") else claimed if state == "writing" else 0
        if head is not None and head < len(raw_slots):
            since = raw_slots[head][5]
        holds = state in ("sealed", "retired")
        slots.append(
            SlotStat(
                slot=index,
                region=core.geometry.region_of(index),
                state=state,
                owner=owner,
                generation=generation,
                span=span if holds else 1,
                nbytes=nbytes if holds else 0,
                age=max(0, now - since) / 1e9 if since and state != "free" else None,
                reserved_nbytes=reserved,
                head=head,
                pins=pins,
            )
        )
    clients = tuple(
        ClientStat(index, nonce, pid, namespace, max(0, now - attached) / 1e9, label, alive)
        for index, nonce, pid, namespace, attached, label, alive in raw_clients
    )
    return tuple(slots), clients


def take_stat(core: _core.Core, channels: Iterable[_RawChannel], path: str, filesystem: str) -> PoolStat:
    """A snapshot of the pool that `core` is attached to, with the channels that it had a moment ago."""
    slots, clients = slots_and_clients(core)
    return PoolStat(
        path=path,
        uuid=core.uuid.hex(),
        epoch=core.epoch,
        filesystem=filesystem,
        slot_nbytes=core.geometry.slot_nbytes,
        n_slots=core.geometry.n_slots,
        max_clients=core.geometry.max_clients,
        counters=core.counters(),
        reserved_nbytes=sum(slot.reserved_nbytes for slot in slots),
        used_slots=sum(slot.state != "free" for slot in slots),
        slots=slots,
        clients=clients,
        channels=channel_stats(channels, {client.index: client.alive for client in clients}),
    )


@dataclass(frozen=True)
class Holder:
    """Who keeps a slot from being free, and how."""

    slot: int
    state: str
    how: str
    client: int | None
    pid: int | None
    label: str
    alive: bool
    age: float | None

    def __str__(self) -> str:
        nobody = "a channel" if self.state == "sealed" else "nobody"
        who = f"client {self.client}" if self.client is not None else nobody
        if self.pid is not None:
            who += f" (pid {self.pid}, {'alive' if self.alive else 'dead'}: {self.label[:60]})"
        since = f" for {self.age:.1f} s" if self.age is not None else ""
        return f"slot {self.slot} {self.state}, {self.how} by {who}{since}"


def full_error(core: _core.Core, region: str, span: int, waited: float) -> PoolFullError:
    """The error for a claim that found no slot, with everybody who is in the way."""
    slots, clients = slots_and_clients(core)
    known = {client.index: client for client in clients}

    def holder(slot: SlotStat, how: str, index: int | None) -> Holder:
        client = known.get(index) if index is not None else None
        return Holder(
            slot.slot,
            slot.state,
            how,
            index,
            client.pid if client else None,
            client.label if client else "",
            client.alive if client else False,
            slot.age,
        )

    holders: list[Holder] = []
    for slot in slots:
        if slot.state == "free" or (slot.region != region and span <= _region_slots(core, region)):
            continue
        if slot.state == "retired" or (slot.state == "sealed" and slot.pins):
            holders += [holder(slot, f"pinned {count}x", index) for index, count in slot.pins.items()]
        if slot.state != "retired" or not slot.pins:
            holders.append(holder(slot, "owned", slot.owner))
    lines = "".join(f"\n  {item}" for item in holders[:32])
    return PoolFullError(
        f"no {'slot' if span == 1 else f'run of {span} adjacent slots'} of region {region!r} became free "
        f"in {waited:.3g} s.{lines}",
        hint="free handles that nobody needs and drop views of old arrays, wait longer (timeout), or create the pool "
        "with more slots",
        region=region,
        span=span,
        waited=waited,
        holders=tuple(holders),
    )


def _region_slots(core: _core.Core, region: str) -> int:
    geometry = core.geometry
    return {"input": geometry.input_slots, "output": geometry.output_slots, "scratch": geometry.scratch_slots}[region]
