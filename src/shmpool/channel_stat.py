# SPDX-License-Identifier: BSD-3-Clause
"""What the channels of a pool look like at one moment: what waits, who is at which end, and whether they live."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _channel

if TYPE_CHECKING:
    from ._channel import _RawChannel

__all__ = ["ChannelStat", "EndStat", "channel_stats"]


@dataclass(frozen=True)
class EndStat:
    """One object attached to a channel. One that neither sends nor receives has not decided yet.

    ``behind`` is the number of messages that a receiver of a broadcast has not had; None for everybody else.
    """

    client: int
    alive: bool
    sends: bool
    receives: bool
    behind: int | None


@dataclass(frozen=True)
class ChannelStat:
    """One channel. The living are counted; ``dead`` are those whose process is gone and that nobody has cleaned up.

    ``sent`` counts all messages since the channel was made. ``waiting`` are those that somebody may still receive: in
    a broadcast, what the slowest receiver has not had. ``created`` is wall-clock time, in seconds since 1970.
    ``generation`` tells channels apart that have had the same place in the pool. ``corrupt``: something else has
    written to the pool file; the other values mean nothing.
    """

    index: int
    name: str
    generation: int
    broadcast: bool
    capacity: int
    cell_nbytes: int
    created: float
    sent: int
    waiting: int
    senders: int
    receivers: int
    dead: int
    ends: tuple[EndStat, ...]
    corrupt: bool


def _stat(raw: _RawChannel, alive: Mapping[int, bool]) -> ChannelStat:
    index, name, generation, flags, capacity, cell_nbytes, created_ns, tail, n_full, attachments, corrupt = raw
    broadcast = bool(flags & _channel.BROADCAST)
    ends = []
    for client, role, cursor in attachments:
        if client not in alive:  # has left between the two looks
            continue
        has_cursor = bool(role & _channel.ROLE_CURSOR)
        ends.append(
            EndStat(
                client=client,
                alive=alive[client],
                sends=bool(role & _channel.ROLE_SENDS),
                receives=bool(role & _channel.ROLE_RECEIVES),
                behind=min(max(tail - cursor, 0), capacity) if has_cursor else None,
            )
        )
    return ChannelStat(
        index=index,
        name=name,
        generation=generation,
        broadcast=broadcast,
        capacity=capacity,
        cell_nbytes=cell_nbytes,
        created=created_ns / 1e9,
        sent=tail,
        # a cell of a broadcast stays full after everybody has read it
        waiting=max((end.behind or 0 for end in ends), default=0) if broadcast else n_full,
        senders=sum(end.sends and end.alive for end in ends),
        receivers=sum(end.receives and end.alive for end in ends),
        dead=sum(not end.alive for end in ends),
        ends=tuple(ends),
        corrupt=corrupt,
    )


def channel_stats(raw: Iterable[_RawChannel], alive: Mapping[int, bool]) -> tuple[ChannelStat, ...]:
    """The channels of a snapshot. `alive`: whether the process of each client lives; looked at after `raw`."""
    return tuple(_stat(channel, alive) for channel in raw)
