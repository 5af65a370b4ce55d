# SPDX-License-Identifier: BSD-3-Clause
"""Words and tables shared by the commands. `rich` draws; without it there is JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from ..channel_stat import ChannelStat
from ..stat import ClientStat, SlotStat

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["STATE_STYLES", "age", "channel_cells", "console", "print_json", "program", "size", "span", "who"]

STATE_STYLES = {
    "free": "dim",
    "writing": "yellow",
    "sealed": "green",
    "retired": "magenta",
    "tail": "dim",
    "corrupt": "bold red",
}

_NO_TABLES = "shmpool: rich is not installed, so this is JSON. For tables: pip install 'shmpool[cli]'"


def console(purpose: str = _NO_TABLES) -> Console | None:
    """A console of `rich`; None where it is missing, after `purpose` has been said on stderr."""
    try:
        from rich.console import Console
    except ImportError:
        print(purpose, file=sys.stderr)
        return None

    class _Console(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # one exit code for all commands, with tables or without

    return _Console(highlight=False, markup=False, emoji=False)


def print_json(data: Any, *, indent: int | None = 2) -> None:
    """JSON on stdout."""
    print(json.dumps(data, indent=indent), flush=True)


def size(nbytes: float) -> str:
    """Bytes for people: ``256 MiB``, ``1.5 GiB``."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while nbytes >= 1024 and len(units) > 1:
        nbytes /= 1024
        del units[0]
    exact = units[0] == "B" or nbytes >= 99.95 or nbytes % 1 == 0
    return f"{nbytes:.0f} {units[0]}" if exact else f"{nbytes:.1f} {units[0]}"


def age(seconds: float | None) -> str:
    """A duration for people, at most five characters: ``0.3 s``, ``42 s``, ``17 m``, ``5.2 h``, ``12 d``."""
    if seconds is None:
        return ""
    for unit, length in (("s", 60), ("m", 60), ("h", 24)):
        if seconds < length - 0.5:
            return f"{seconds:.1f} {unit}" if seconds < 9.95 else f"{seconds:.0f} {unit}"
        seconds /= length
    return f"{seconds:.0f} d"


def program(label: str) -> str:
    """The telling part of a command line: ``/usr/bin/python3 -u jobs/feed.py --fast`` is ``feed.py``."""
    words = label.split()
    if words and os.path.basename(words[0]).startswith("python"):
        for position, word in enumerate(words[1:], 1):
            if word == "-m" and position + 1 < len(words):
                return words[position + 1]
            if word in ("-c", "-"):
                return os.path.basename(words[0])
            if not word.startswith("-"):
                return os.path.basename(word)
    return os.path.basename(words[0]) if words else "?"


def who(index: int | None, clients: dict[int, ClientStat]) -> str:
    """A client in few words: ``4242 feed.py``, with ``dead`` in front where its process is gone."""
    if index is None:
        return "nobody"
    client = clients.get(index)
    if client is None:
        return f"client {index} (gone)"
    # "dead" stands first: a narrow column cuts the end off
    return ("" if client.alive else "dead ") + f"{client.pid} {program(client.label)}"


def span(slot: SlotStat, n_slots: int) -> str:
    """``7``, or ``4-6`` for an array over several slots."""
    return str(slot.slot) if n_slots <= 1 else f"{slot.slot}-{slot.slot + n_slots - 1}"


def channel_cells(channel: ChannelStat) -> list[RenderableType]:
    """Name, kind, waiting, senders, receivers, dead: what every table of channels begins with."""
    from rich.text import Text

    if channel.corrupt:
        return [channel.name, Text("corrupt", style="bold red"), "", "", "", ""]
    full = channel.waiting >= channel.capacity
    return [
        channel.name,
        "broadcast" if channel.broadcast else "queue",
        Text(f"{channel.waiting}/{channel.capacity}", style="bold red" if full else ""),
        str(channel.senders),
        str(channel.receivers),
        Text(str(channel.dead), style="bold red") if channel.dead else "",
    ]
