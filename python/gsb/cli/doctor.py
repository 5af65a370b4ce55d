# SPDX-License-Identifier: BSD-3-Clause
"""``gsb doctor``: is everything here that should be, and what to do where it is not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

import shmpool
from gsb import runtime
from gsb._client import Client
from gsb._config import get_config
from gsb.cli.doctor_backends import would_compute
from gsb.cli.machine import available_memory, format_bytes, space
from gsb.cli.ways import choice, ways
from gsb.errors import GSBError

__all__ = ["run_doctor"]

_POOL_NBYTES = 4 * 2**30
_SKLEARN = ((1, 6), (1, 9))
_SERVER_PACKAGES = ("starlette", "uvicorn", "uvloop", "httptools")


class Finding(NamedTuple):
    """One line: ``ok``, ``note`` or ``bad``."""

    mark: str
    subject: str
    text: str
    hint: str = ""


_MARKS = {"ok": "[green]✔[/]", "note": "[yellow]●[/]", "bad": "[red]✘[/]"}


def run_doctor(console: Console) -> int:
    """Print every check.

    Returns
    -------
    int
        1 if something is wrong, 0 otherwise; notes are not wrong.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(style="bold")
    table.add_column()
    bad = 0
    for check in _CHECKS:
        try:
            findings = list(check())
        except Exception as error:
            findings = [Finding("bad", check.__name__.strip("_"), f"{type(error).__name__}: {error}")]
        for finding in findings:
            bad += finding.mark == "bad"
            hint = f"\n[dim]→ {finding.hint}[/]" if finding.hint else ""
            table.add_row(_MARKS[finding.mark], finding.subject, finding.text + hint)
    console.print(table)
    console.print(f"\n[red]{bad} to put right[/]" if bad else "\n[green]all is well[/]")
    return 1 if bad else 0


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    yield Finding(
        "ok" if good else "bad",
        "Python",
        f"{version} on {platform.system()} {platform.machine()}",
        "" if good else "3.11 or later is needed",
    )


def _packages() -> Iterator[Finding]:
    for name in ("numpy", "scikit-learn", "shmpool"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("bad", name, "is not installed", f"pip install {name}")
            continue
        if name == "scikit-learn":
            numbers = tuple(int(part) for part in version.split(".")[:2])
            if not _SKLEARN[0] <= numbers <= _SKLEARN[1]:
                yield Finding("note", name, version, "1.6 to 1.9 are tested")
                continue
        yield Finding("ok", name, version)


def _server_packages() -> Iterator[Finding]:
    if importlib.util.find_spec("gsb_server") is None:
        yield Finding("note", "server", "is not installed here", "only needed where `gsb serve` runs: shmpool[server]")
        return
    missing = [name for name in _SERVER_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding("bad", "server", f"lacks {', '.join(missing)}", "pip install 'shmpool[server]'")
        return
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _SERVER_PACKAGES)
    yield Finding("ok", "server", f"can run here: {versions}")


def _backends() -> Iterator[Finding]:
    if importlib.util.find_spec("gsb_server") is not None:
        yield from (Finding(*found) for found in would_compute())


def _memory() -> Iterator[Finding]:
    path = shmpool.default_path()
    found = space(path)
    memory = available_memory()
    if found is None:
        yield Finding("note", "shared memory", f"{path.parent}: its size is unknown")
    else:
        size, free = found
        text = f"{path.parent}: {format_bytes(size)}, {format_bytes(free)} free"
        if size < _POOL_NBYTES:
            yield Finding(
                "bad",
                "shared memory",
                text,
                "the pool may grow to 4 GiB: enlarge it (docker run --shm-size=5g), or `gsb serve --slot-size 64M`",
            )
        elif free < _POOL_NBYTES and not path.exists():
            yield Finding("note", "shared memory", text, "less than the pool may grow to; remove what fills it")
        else:
            yield Finding("ok", "shared memory", text)
    if memory is not None:
        yield Finding("ok" if memory > _POOL_NBYTES else "note", "memory", f"{format_bytes(memory)} available")


def _pool_folder() -> Iterator[Finding]:
    path = shmpool.default_path()
    if not path.exists():
        yield Finding("ok", "pool", f"{path}: none yet; the server makes it")
        return
    expected = {path.name, f"{path.name}.lock"}
    others = sorted(entry.name for entry in path.parent.iterdir() if entry.name not in expected)
    text = f"{path}: {format_bytes(path.stat().st_blocks * 512)} in use"
    if others:
        yield Finding("note", "pool", f"{text}; beside it: {', '.join(others[:5])}", "gsb makes no files per message")
    else:
        yield Finding("ok", "pool", text)


def _token() -> Iterator[Finding]:
    source = runtime.token_source()
    if source is None:
        yield Finding("note", "token", f"{runtime.token_path()}: none yet", "the first `gsb serve` makes it")
    elif source == "GSB_TOKEN":
        yield Finding("ok", "token", "from GSB_TOKEN")
    else:
        yield Finding("ok", "token", f"{source}, readable by you alone")


def _server() -> Iterator[Finding]:
    url = get_config().server or runtime.default_url()
    if runtime.load_token() is None and get_config().token is None:
        yield Finding("note", "connection", f"{url}: not tried without a token", "start a server with `gsb serve`")
        return
    client = Client(url, get_config().token)
    try:
        begun = time.perf_counter()
        found = client.status()
        first = time.perf_counter() - begun
        begun = time.perf_counter()
        client.status()
        second = time.perf_counter() - begun
    except GSBError as error:
        running = not url.startswith("unix://") or Path(url.removeprefix("unix://")).exists()
        yield Finding("bad" if running else "note", "connection", error.message, error.hint)
        return
    finally:
        client.close()
    yield Finding("ok", "connection", f"{url}: connected in {first * 1e3:.1f} ms, answers in {second * 1e3:.2f} ms")
    yield from _server_says(found)
    yield from _transports(url)


def _transports(url: str) -> Iterator[Finding]:
    token = get_config().token
    kind, reason = choice(url, token)
    for way in ways(url, token):
        name = f"transport {way.kind}{' (in use)' if way.kind == kind else ''}"
        if not way.works:
            yield Finding("note", name, way.text)
            continue
        rates = f"{way.there:.0f} MB/s there, {way.back:.0f} MB/s back, opened in {way.opened * 1e3:.1f} ms"
        yield Finding("ok", name, f"{way.text}: {rates}")
    if kind == "none":
        yield Finding("bad", "transport", reason, "docs/wsl2.md and docs/transports.md have the set-ups that work")
    elif kind != "shared":
        yield Finding("note", "transport", reason, "arrays are copied through the kernel instead of shared")


def _server_says(found: dict[str, Any]) -> Iterator[Finding]:
    here = importlib.metadata.version("scikit-learn")
    same = found["sklearn"] == here
    yield Finding(
        "ok" if same else "note",
        "versions",
        f"server {found['version']}, scikit-learn {found['sklearn']}",
        "" if same else f"this process has scikit-learn {here}; fitted models may not travel between versions",
    )
    chosen = found["backend"]
    for name, probe in chosen["probes"].items():
        mark = "ok" if probe["available"] else "note"
        used = " (in use)" if name in chosen["names"] else ""
        yield Finding(mark, f"backend {name}{used}", probe["reason"])


_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _server_packages,
    _backends,
    _memory,
    _pool_folder,
    _token,
    _server,
)
