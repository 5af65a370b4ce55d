# SPDX-License-Identifier: BSD-3-Clause
"""The four commands and their options. Each does its work in a module of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gsb.errors import GSBError

__all__ = ["app"]

app = typer.Typer(
    name="gsb",
    help="scikit-learn estimators whose work is done by another process, over shared memory.\n\n"
    "Start a server with [bold]gsb serve[/], then write [bold]from gsb.decomposition import PCA[/] where you "
    "wrote [bold]from sklearn.decomposition import PCA[/]. To see it at work first: [bold]gsb demo[/].",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

console = Console()
error_console = Console(stderr=True)


def _fail(error: GSBError) -> typer.Exit:
    error_console.print(f"[bold red]✘[/] {error.message}", highlight=False)
    if error.hint:
        error_console.print(f"  [dim]→ {error.hint}[/]", highlight=False)
    return typer.Exit(1)


@app.command()
def serve(
    socket: Annotated[Path | None, typer.Option(help="Unix socket to listen on. Clients find the default.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Listen on this TCP port of 127.0.0.1 too.", min=1, max=65535)
    ] = None,
    pool: Annotated[Path | None, typer.Option(help="File of the shared pool; best on /dev/shm.")] = None,
    slot_size: Annotated[
        str | None, typer.Option(help="Size of one of the 16 slots of a new pool, such as 256M.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Calls computed at once.", min=1)] = None,
    backend: Annotated[str | None, typer.Option(help="What computes: auto, or a name `gsb doctor` lists.")] = None,
    strict_gpu: Annotated[
        bool, typer.Option("--strict-gpu", help="Refuse what the GPU cannot do, instead of using the CPU.")
    ] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "warning",
) -> None:
    """Start the server and keep it running until Ctrl-C.

    It serves this user's programs on this machine, and nobody else: a token, made at the first start, is
    found by them and asked of everybody.
    """
    from gsb.cli.serve import run_server

    options = {
        "--socket": socket,
        "--port": port,
        "--pool": pool,
        "--slot-size": slot_size,
        "--workers": workers,
        "--backend": backend,
        "--log-level": log_level,
    }
    arguments = [text for name, value in options.items() if value is not None for text in (name, str(value))]
    if strict_gpu:
        arguments.append("--strict-gpu")
    try:
        status = run_server(console, arguments, socket)
    except GSBError as error:
        raise _fail(error) from None
    raise typer.Exit(status)


@app.command()
def demo(
    rows: Annotated[int, typer.Option(help="Rows of the float32 matrix.", min=100)] = 500_000,
    columns: Annotated[int, typer.Option(help="Its columns.", min=2)] = 250,
    components: Annotated[int, typer.Option(help="Principal components to find.", min=1)] = 8,
    runs: Annotated[int, typer.Option(help="How often to run it; the median is shown.", min=1)] = 3,
) -> None:
    """Run PCA on 500 MB through a server of its own, and report every stage.

    The server, its socket and its pool are temporary: nothing is left behind, and a server that is running
    already is not touched.
    """
    from gsb.cli.demo import Job, run_demo

    try:
        status = run_demo(console, Job(rows, columns, components, runs))
    except GSBError as error:
        raise _fail(error) from None
    raise typer.Exit(status)


@app.command()
def status(json: Annotated[bool, typer.Option("--json", help="Print the server's own answer.")] = False) -> None:
    """Show the running server: pool, sessions, models, how many calls and how fast."""
    from gsb.cli.status import show_status

    try:
        show_status(console, as_json=json)
    except GSBError as error:
        raise _fail(error) from None


@app.command()
def doctor(
    report: Annotated[
        bool, typer.Option("--report", help="Print everything that somebody who helps from afar would ask for.")
    ] = False,
) -> None:
    """Check this environment, piece by piece, and say what to do about what is wrong."""
    if report:
        from gsb.cli.report import report_lines

        for line in report_lines():
            typer.echo(line)
        return
    from gsb.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(console))
