# SPDX-License-Identifier: BSD-3-Clause
"""``top``: who holds what, longest first, live."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PoolNotFoundError, ShmPoolError
from ..stat import SlotStat
from . import render
from .peek import Look, look
from .stat import as_dict

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

__all__ = ["Frame", "channel_rates", "leak_suspects", "rates", "run"]

_NO_LIVE = "shmpool: top needs rich: pip install 'shmpool[cli]'. Or `top --json`: one line per look."

# Lines of slots from which on there is room for channels too.
_LEAST_FOR_BOTH = 7


@dataclass(frozen=True)
class Frame:
    """One look, the one before it, and when both were taken."""

    now: Look
    before: Look | None
    seconds: float


def rates(frame: Frame) -> dict[str, float | None]:
    """Slots claimed per second and region since the look before; None where there is none of this pool."""
    new, old = frame.now.stat, frame.before.stat if frame.before else None
    if old is None or old.uuid != new.uuid or frame.seconds <= 0:
        return dict.fromkeys(new.counters, None)
    return {region: ((value - old.counters[region]) % 2**64) / frame.seconds for region, value in new.counters.items()}


def channel_rates(frame: Frame) -> dict[int, float | None]:
    """Messages sent per second since the look before, by channel index; None for a channel that was not there then."""
    old = frame.before.stat if frame.before else None
    same = old is not None and old.uuid == frame.now.stat.uuid and frame.seconds > 0
    sent = {(c.index, c.generation): c.sent for c in old.channels} if old is not None and same else {}
    found: dict[int, float | None] = {}
    for channel in frame.now.stat.channels:
        before = sent.get((channel.index, channel.generation))
        found[channel.index] = None if before is None else ((channel.sent - before) % 2**48) / frame.seconds
    return found


def leak_suspects(seen: Look, leak_after: float) -> set[int]:
    """Slots with a sealed array that nobody reads, for longer than `leak_after` seconds.

    A suspicion only: somebody may mean to read it later. Who owns it is the one to ask.
    """
    return {
        slot.slot
        for slot in seen.stat.slots
        if slot.state == "sealed" and not slot.pins and slot.age is not None and slot.age >= leak_after
    }


def _rows(seen: Look) -> list[SlotStat]:
    held = [slot for slot in seen.stat.slots if slot.state not in ("free", "tail")]
    return sorted(held, key=lambda slot: (-(slot.age or 0.0), slot.slot))


def _per_second(rate: float | None) -> str:
    return ("-" if rate is None else f"{rate:.0f}" if rate >= 10 or rate == 0 else f"{rate:.1f}") + "/s"


def _title(frame: Frame, suspects: set[int]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    stat = frame.now.stat
    dead = len(frame.now.dead)
    head = Text(stat.path, style="bold", no_wrap=True, overflow="ellipsis")
    use = Text.assemble(
        "slots ",
        (f"{stat.used_slots}/{stat.n_slots}", "bold red" if stat.used_slots == stat.n_slots else "bold"),
        f"  memory {render.size(stat.reserved_nbytes)}",
        f"  clients {len(stat.clients) - dead}",
        (f" + {dead} dead", "bold red") if dead else "",
        f"  channels {len(stat.channels)}" if stat.channels else "",
        (f"  leak suspects {len(suspects)}", "bold yellow") if suspects else "",
        no_wrap=True,
        overflow="ellipsis",
    )
    speed = Text(no_wrap=True, overflow="ellipsis")
    for region, rate in rates(frame).items():
        of_region = [slot for slot in stat.slots if slot.region == region]
        used = sum(slot.state != "free" for slot in of_region)
        full = used == len(of_region) and used > 0
        speed.append(f"{region} ")
        speed.append(f"{used}/{len(of_region)}", style="bold red" if full else "bold")
        speed.append(f" {_per_second(rate)}   ")
    return Group(head, use, speed)


def _table(frame: Frame, suspects: set[int], limit: int | None) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    clients = {client.index: client for client in frame.now.stat.clients}
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), expand=True)
    table.add_column("age", justify="right", no_wrap=True, min_width=5)
    table.add_column("slot", no_wrap=True)
    table.add_column("region", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("owner", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("read by", no_wrap=True, overflow="ellipsis", ratio=1)
    rows = _rows(frame.now)
    for slot in rows[:limit]:
        owner = clients.get(slot.owner) if slot.owner is not None else None
        if slot.pins:
            readers = Text(", ".join(render.who(index, clients) for index in slot.pins))
            if all(index in clients and not clients[index].alive for index in slot.pins):
                readers.stylize("red")
        elif slot.slot in suspects:
            readers = Text("nobody: a leak?", style="yellow")
        else:
            readers = Text("")
        table.add_row(
            render.age(slot.age),
            render.span(slot, frame.now.span_of(slot)),
            slot.region,
            Text(slot.state, style=render.STATE_STYLES.get(slot.state, "")),
            "" if slot.state == "writing" else render.size(slot.nbytes),
            Text(render.who(slot.owner, clients), style="red" if owner is not None and not owner.alive else ""),
            readers,
        )
    if limit is not None and len(rows) > limit:
        table.caption = f"and {len(rows) - limit} younger"
        table.caption_justify = "left"
    elif not rows:
        table.caption = "every slot is free"
        table.caption_justify = "left"
    return table


def _channels(frame: Frame, limit: int | None) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), expand=True)
    table.add_column("channel", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("kind", no_wrap=True)
    for title in ("waiting", "senders", "receivers", "dead", "messages"):
        table.add_column(title, justify="right", no_wrap=True)
    speed = channel_rates(frame)
    channels = frame.now.stat.channels
    if limit is not None and len(channels) > limit:
        busy = sorted(channels, key=lambda channel: -(speed[channel.index] or 0.0))[: max(1, limit - 1)]
        table.caption = f"and {len(channels) - len(busy)} slower"
        table.caption_justify = "left"
        channels = tuple(channel for channel in channels if channel in busy)
    for channel in channels:
        table.add_row(*render.channel_cells(channel), _per_second(speed[channel.index]))
    return table


def _picture(frame: Frame, leak_after: float, height: int | None) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    suspects = leak_suspects(frame.now, leak_after)
    # title 3, blank, head and rule of the table, caption, and a line to spare
    room = None if height is None else max(1, height - 8)
    channels = len(frame.now.stat.channels)
    if not channels or (room is not None and room < _LEAST_FOR_BOTH):
        return Group(_title(frame, suspects), Text(), _table(frame, suspects, room))
    if room is None:
        return Group(_title(frame, suspects), Text(), _channels(frame, None), Text(), _table(frame, suspects, None))
    left = room - 3  # a second table has a head, a rule and a blank line too; at most half of the rest is the channels'
    shown = min(channels, left // 2)
    slots = _table(frame, suspects, left - shown)
    return Group(_title(frame, suspects), Text(), _channels(frame, shown), Text(), slots)


def _json_line(frame: Frame, leak_after: float) -> None:
    data = as_dict(frame.now)
    data["rates"] = rates(frame)
    data["channel_rates"] = channel_rates(frame)
    data["leak_suspects"] = sorted(leak_suspects(frame.now, leak_after))
    render.print_json(data, indent=None)


def _pair(path: Path, interval: float) -> Frame:
    before, start = look(path), time.monotonic()
    time.sleep(interval)
    now = look(path)
    return Frame(now, before, time.monotonic() - start)


def _pictures(path: Path, interval: float, leak_after: float, console: Console) -> Iterator[RenderableType]:
    """A picture per interval, until the pool is gone: then PoolNotFoundError."""
    from rich.text import Text

    before: Look | None = None
    taken = time.monotonic()
    while True:
        try:
            now = look(path)
        except PoolNotFoundError:
            raise
        except ShmPoolError as error:
            if before is None:
                raise
            yield Text(str(error), style="red")  # being made anew, perhaps: look again
        else:
            moment = time.monotonic()
            height = console.height if console.is_terminal else None
            yield _picture(Frame(now, before, moment - taken), leak_after, height)
            before, taken = now, moment
        time.sleep(interval)


def _follow(path: Path, console: Console, interval: float, leak_after: float) -> None:
    if not console.is_terminal:  # into a file or a pipe: one picture below the other
        for picture in _pictures(path, interval, leak_after, console):
            console.print(picture)
            console.print()
            console.file.flush()
        return
    from rich.live import Live

    look(path)  # nothing there: say so before the screen is cleared
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for picture in _pictures(path, interval, leak_after, console):
            live.update(picture, refresh=True)


def run(path: Path, *, as_json: bool, interval: float, leak_after: float, once: bool) -> int:
    """Show the pool at `path` until Ctrl-C, or once."""
    if as_json:
        while True:
            _json_line(_pair(path, interval), leak_after)
            if once:
                return 0
    console = render.console(_NO_LIVE)
    if console is None:
        return 1
    if once:
        console.print(_picture(_pair(path, interval), leak_after, None))
        return 0
    _follow(path, console, interval, leak_after)
    return 0
