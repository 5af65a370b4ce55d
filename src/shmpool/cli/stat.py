# SPDX-License-Identifier: BSD-3-Clause
"""``stat``: one picture of a pool."""

from __future__ import annotations

import time
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..space import mount_of
from ..stat import ClientStat, SlotStat
from . import render
from .peek import Look, look

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["as_dict", "run"]


def as_dict(seen: Look) -> dict[str, Any]:
    """A look as JSON-able containers: ``Pool.stat().to_dict()`` and what `Look` adds."""
    return {
        **seen.stat.to_dict(),
        "created": seen.created,
        "in_use": seen.in_use,
        "opening": seen.opening,
        "lock_lost": seen.lock_lost,
    }


def _header(seen: Look) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    stat = seen.stat
    count = {region: sum(slot.region == region for slot in stat.slots) for region in stat.counters}
    dead = len(seen.dead)
    users = f"{len(stat.clients) - dead} attached" + (f", {dead} dead" if dead else "")
    if seen.opening:
        users += ", one process is opening or removing it"
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    grid.add_row("pool", stat.path)
    grid.add_row("file system", f"{stat.filesystem} on {mount_of(stat.path).point}")
    grid.add_row("identity", f"{stat.uuid}, epoch {stat.epoch}, made {render.age(time.time() - seen.created)} ago")
    grid.add_row(
        "geometry",
        f"{stat.n_slots} slots of {render.size(stat.slot_nbytes)} = {render.size(stat.n_slots * stat.slot_nbytes)} ("
        + ", ".join(f"{n} {region}" for region, n in count.items())
        + ")",
    )
    grid.add_row("memory", f"{render.size(stat.reserved_nbytes)} reserved")
    grid.add_row("counters", ", ".join(f"{region} {value}" for region, value in stat.counters.items()))
    grid.add_row("slots", f"{stat.used_slots} used, {stat.n_slots - stat.used_slots} free")
    grid.add_row("clients", Text(f"{users}, room for {stat.max_clients}", style="red" if dead else ""))
    return grid


def _slot_row(slot: SlotStat, clients: dict[int, ClientStat], n_slots: int, reserved: int) -> list[RenderableType]:
    from rich.text import Text

    def person(index: int | None, count: int = 1) -> Text:
        client = None if index is None else clients.get(index)
        text = render.who(index, clients) + (f" x{count}" if count > 1 else "")
        return Text(text, style="red" if client is not None and not client.alive else "")

    if slot.state == "tail":
        owner: RenderableType = Text(f"belongs to slot {slot.head}", style="dim")
    else:
        owner = "" if slot.state == "free" else person(slot.owner)
    return [
        render.span(slot, n_slots),
        slot.region,
        Text(slot.state, style=render.STATE_STYLES.get(slot.state, "")),
        owner,
        render.size(slot.nbytes) if slot.nbytes or slot.state in ("sealed", "retired") else "",
        render.age(slot.age),
        Text("\n").join([person(index, count) for index, count in slot.pins.items()]),
        render.size(reserved),
    ]


def _slots(seen: Look, *, every_slot: bool, wide: bool) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    clients = {client.index: client for client in seen.stat.clients}
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("slot", "region", "state", "owner"):
        table.add_column(title, no_wrap=title != "owner")
    for title in ("bytes", "age"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("pinned by")
    if wide:
        table.add_column("reserved", justify="right", no_wrap=True)
    columns = len(table.columns)
    # A pool may have thousands of free slots; a run of them is one line.
    for (free, region), run in groupby(seen.stat.slots, key=lambda slot: (slot.state == "free", slot.region)):
        slots = list(run)
        if free and len(slots) > 1 and not every_slot:
            reserved = sum(slot.reserved_nbytes for slot in slots)
            cells = [f"{slots[0].slot}-{slots[-1].slot}", region, "free", *[""] * 4, render.size(reserved)]
            table.add_row(*cells[:columns], style="dim")
            continue
        for slot in slots:
            if slot.state == "tail" and not every_slot:
                continue
            n_slots = 1 if every_slot else seen.span_of(slot)
            reserved = sum(part.reserved_nbytes for part in seen.stat.slots[slot.slot : slot.slot + n_slots])
            table.add_row(*_slot_row(slot, clients, n_slots, reserved)[:columns], style="dim" if free else "")
    return table


def _clients(seen: Look) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), expand=True)
    table.add_column("client", justify="right", no_wrap=True)
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("alive", no_wrap=True)
    table.add_column("attached", justify="right", no_wrap=True)
    table.add_column("owns", justify="right", no_wrap=True)
    table.add_column("pins", justify="right", no_wrap=True)
    table.add_column("command line", overflow="ellipsis", no_wrap=True, ratio=1)
    for client in seen.stat.clients:
        table.add_row(
            str(client.index),
            str(client.pid),
            Text("yes", style="green") if client.alive else Text("dead", style="bold red"),
            render.age(client.age),
            str(sum(slot.owner == client.index for slot in seen.stat.slots)),
            str(sum(slot.pins.get(client.index, 0) for slot in seen.stat.slots)),
            client.label,
        )
    return table


def _channels(seen: Look) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), expand=True)
    table.add_column("channel", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("kind", no_wrap=True)
    for title in ("waiting", "senders", "receivers", "dead", "sent", "cell", "age"):
        table.add_column(title, justify="right", no_wrap=True)
    for channel in seen.stat.channels:
        table.add_row(
            *render.channel_cells(channel),
            str(channel.sent),
            render.size(channel.cell_nbytes),
            render.age(max(0.0, time.time() - channel.created)),
        )
    return table


def _advice(console: Console, seen: Look) -> None:
    held = seen.held_by_dead
    if any(channel.corrupt for channel in seen.stat.channels):
        console.print(
            "A channel's record is damaged: something else has written to the pool file. End the processes that use "
            "this pool, then `python -m shmpool gc --remove`.",
            style="bold red",
        )
    if held:
        console.print(
            f"{len(held)} slot(s) are held by dead processes. The next claim that needs one frees them; "
            "`python -m shmpool gc` does it now.",
            style="yellow",
        )
    if any(slot.state == "corrupt" for slot in seen.stat.slots):
        console.print(
            "Corrupt slots are never handed out again. End the processes that use this pool, then "
            "`python -m shmpool gc --remove`.",
            style="bold red",
        )


def run(path: Path, *, as_json: bool, every_slot: bool) -> int:
    """Print the pool at `path`."""
    seen = look(path)
    console = None if as_json else render.console()
    if console is None:
        render.print_json(as_dict(seen))
        return 0
    console.print(_header(seen))
    console.print()
    console.print(_slots(seen, every_slot=every_slot, wide=console.width >= 100))
    console.print()
    if seen.stat.clients:
        console.print(_clients(seen))
        console.print()
    if seen.stat.channels:
        console.print(_channels(seen))
        console.print()
    _advice(console, seen)
    return 0
