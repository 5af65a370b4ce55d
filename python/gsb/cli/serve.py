# SPDX-License-Identifier: BSD-3-Clause
"""``gsb serve``: the server in the foreground."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from gsb import runtime
from gsb._client import Client
from gsb.cli.machine import format_bytes
from gsb.cli.server_process import ServerProcess

__all__ = ["run_server"]


class _Stop(Exception):  # noqa: N818 - a signal, not an error
    pass


def run_server(console: Console, arguments: list[str], socket: Path | None) -> int:
    """Start the server, show where it is, wait for it to end or for a signal.

    Returns
    -------
    int
        Exit status.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stop

    if socket is None:
        # Also beside a TCP port: local clients look there first.
        runtime.runtime_dir(create=True)
        socket = Path(os.environ.get("GSB_SOCKET") or runtime.socket_path())
        arguments = [*arguments, "--socket", str(socket)]
    server = ServerProcess(arguments)
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with console.status("starting the server …"):
            server.start()
        port = arguments[arguments.index("--port") + 1] if "--port" in arguments else None
        url = f"unix://{socket.absolute()}"
        console.print(_card(url, port, server.pid))
        status = server.wait()
        console.print(f"[bold red]✘[/] the server ended by itself, with exit status {status}")
        return status or 1
    except _Stop:
        for number in previous:
            signal.signal(number, signal.SIG_IGN)
        console.print("\nstopping …")
        server.stop()
        console.print("[green]✔[/] stopped")
        return 0
    finally:
        server.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _card(url: str, port: str | None, pid: int) -> Panel:
    client = Client(url)
    try:
        found = client.status()
    finally:
        client.close()
    pool, backend = found["pool"], found["backend"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("listens on", f"{url}\nhttp://127.0.0.1:{port}" if port else url)
    table.add_row("pool", f"{pool['path']}  ({format_bytes(pool['nbytes'])}, {pool['filesystem']})")
    table.add_row(
        "computes with", f"{', then '.join(backend['names'])} on {backend['device']}  [dim]{backend['reason']}[/]"
    )
    table.add_row("process", f"{pid}; Ctrl-C stops it")
    note = "" if url == f"unix://{runtime.socket_path()}" else f'[dim]GSB_SERVER="{url}"[/]\n'
    table.add_row("try", f"{note}from gsb.decomposition import PCA")
    return Panel(table, title="[bold]gsb server[/]", border_style="green", expand=False)
