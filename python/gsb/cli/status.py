# SPDX-License-Identifier: BSD-3-Clause
"""``gsb status``: what a running server says of itself."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from gsb._client import get_client
from gsb.cli.machine import format_bytes, pss

__all__ = ["show_status"]


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def show_status(console: Console, as_json: bool = False) -> None:
    """Ask the server and print its answer.

    Raises
    ------
    ConnectError
        No server answers.
    """
    client = get_client()
    found = client.status()
    if as_json:
        console.print_json(json.dumps(found))
        return
    console.print(_overview(client.url, found))
    if found["sessions"]:
        console.print(_sessions(found["sessions"]))


def _overview(url: str, found: dict[str, Any]) -> Table:
    pool, backend, models, metrics = found["pool"], found["backend"], found["models"], found["metrics"]
    slots = Counter((slot["region"], slot["state"]) for slot in pool["stat"]["slots"])
    regions = []
    for region in ("input", "output", "scratch"):
        free = slots[region, "free"]
        total = sum(count for (name, _), count in slots.items() if name == region)
        regions.append(f"{region} {free} of {total} free")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("server", f"[green]{found['status']}[/]  {url}  pid {found['pid']}")
    table.add_row(
        "version", f"{found['version']}, scikit-learn {found['sklearn']}, up {_age(metrics['uptime_seconds'])}"
    )
    table.add_row(
        "computes with", f"{', then '.join(backend['names'])} on {backend['device']}  [dim]{backend['reason']}[/]"
    )
    table.add_row("pool", f"{pool['path']}  {format_bytes(pool['nbytes'])} on {pool['filesystem']}")
    table.add_row("slots", ", ".join(regions))
    table.add_row("memory (PSS)", format_bytes(pss(found["pid"])))
    table.add_row(
        "models",
        f"{models['count']}, {format_bytes(models['nbytes'])} of {format_bytes(models['max_nbytes'])}"
        f", {models['evictions']} evicted",
    )
    table.add_row("workers", f"{found['workers']['threads']}, {found['workers']['pending']} calls running or waiting")
    table.add_row(
        "calls", f"{metrics['calls']}, {format_bytes(metrics['bytes_in'])} in, {format_bytes(metrics['bytes_out'])} out"
    )
    if metrics["errors"]:
        table.add_row("refused", ", ".join(f"{code} {count}" for code, count in metrics["errors"].items()))
    for name, seconds in metrics["median_stages"].items():
        table.add_row(f"  {name}", f"{seconds * 1e3:.3f} ms [dim]median[/]")
    return table


def _sessions(sessions: list[dict[str, Any]]) -> Table:
    table = Table(title="sessions", title_justify="left", title_style="bold", header_style="dim", box=None)
    for name in ("arrays by", "client", "program", "calls", "running", "age", "idle"):
        table.add_column(name, justify="left" if name in ("arrays by", "program") else "right")
    for session in sessions:
        table.add_row(
            session["transport"],
            str(session["client"]),
            session["label"] or "—",
            str(session["calls"]),
            str(session["running"]),
            _age(session["age_seconds"]),
            _age(session["idle_seconds"]),
        )
    return table
