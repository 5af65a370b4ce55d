# SPDX-License-Identifier: BSD-3-Clause
"""``gsb demo``: 500 MB of data, PCA in another process, every stage measured.

Everything it makes is temporary: a directory with socket and token, a pool on tmpfs, a server that ends with
it. A server that is running already is not touched.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import gsb
import shmpool
from gsb._client import disconnect, get_client
from gsb._report import Report
from gsb.cli.machine import disk_written, format_bytes, pss
from gsb.cli.server_process import ServerProcess
from gsb.protocol import STAGES

__all__ = ["Job", "run_demo"]

#: The user's bar: everything but the compute, for 500 MB.
BAR_SECONDS = 0.8
BAR_NBYTES = 500_000_000

_EXPLANATIONS = {
    "client_encode": "copy the array into the pool",
    "request": "the HTTP round trip, without the array",
    "server_decode": "find the slot, map it: no copy",
    "compute": "scikit-learn's own work",
    "server_encode": "write the result into the pool",
    "client_decode": "copy the result out of it",
}


class Job(NamedTuple):
    """What the demo runs."""

    rows: int
    columns: int
    components: int
    runs: int

    @property
    def nbytes(self) -> int:
        """Bytes of the float32 matrix."""
        return self.rows * self.columns * 4


@dataclass
class Findings:
    """What the runs have shown."""

    reports: list[Report] = field(default_factory=list)
    copy_seconds: float = 0.0
    identical: bool = False
    status: dict[str, Any] = field(default_factory=dict)
    pss: dict[str, int | None] = field(default_factory=dict)
    disk: dict[str, int | None] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    @property
    def median(self) -> Report:
        """The run whose overhead is the median."""
        return sorted(self.reports, key=lambda report: report.overhead)[len(self.reports) // 2]


def run_demo(console: Console, job: Job) -> int:
    """Run the demo and print the report.

    Returns
    -------
    int
        0, or 1 if the result differs from scikit-learn's own.
    """
    with _temporary_server(console) as server:
        findings = _measure(console, job, server)
    console.print(_report(job, findings))
    console.print("[dim]The server is stopped; its pool, socket and token are removed.[/]")
    return 0 if findings.identical else 1


@contextmanager
def _temporary_server(console: Console) -> Iterator[ServerProcess]:
    # The pool goes where shmpool would put it: tmpfs, wherever this system has it.
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(shmpool.default_path().parent.parent)
    pool_folder = Path(tempfile.mkdtemp(prefix="gsb-demo-pool-", dir=parent))
    # The socket lies beside it: nothing of this touches a disk.
    folder = Path(tempfile.mkdtemp(prefix="gsb-demo-", dir=parent))
    # The user's own server and settings are left alone.
    environment = {
        "GSB_RUNTIME_DIR": str(folder),
        "GSB_TOKEN": os.urandom(24).hex(),
        "GSB_SOCKET": "",
        "GSB_PORT": "0",
        "GSB_POOL_PATH": "",
    }
    socket = folder / "server.sock"
    arguments = ["--socket", str(socket), "--pool", str(pool_folder / "pool.bin"), "--log-level", "warning"]
    server = ServerProcess(arguments, environment)
    try:
        with console.status("starting a server …"):
            server.start()
        with gsb.config(server=f"unix://{socket}", token=environment["GSB_TOKEN"]):
            try:
                yield server
            finally:
                disconnect()
    finally:
        server.stop()
        gsb.ShmTransport.reset()
        shutil.rmtree(pool_folder, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def _measure(console: Console, job: Job, server: ServerProcess) -> Findings:
    from gsb.decomposition import PCA

    findings = Findings()
    with console.status(f"making {format_bytes(job.nbytes)} of float32 data …"):
        X = _data(job)
    target = np.zeros_like(X)
    copies: list[float] = []
    pids = {"server": server.pid, "client": os.getpid()}
    before: dict[str, int | None] = {}
    model: Any = None
    result: Any = None
    for run in range(job.runs + 1):
        label = "warming up" if run == 0 else f"run {run} of {job.runs}"
        with console.status(f"PCA.fit_transform in the server, {label} …"):
            # In turn with the runs, so that a busy machine is as busy for both.
            copies.append(_copy_seconds(target, X))
            model = PCA(n_components=job.components, svd_solver="covariance_eigh")
            result = model.fit_transform(X)
        # The first run touches memory for the first time, everywhere.
        if run:
            findings.reports.append(model.gsb_report_)
        else:
            before = {name: disk_written(pid) for name, pid in pids.items()}
    findings.copy_seconds = statistics.median(copies[1:])
    del target
    findings.status = get_client().status()
    findings.pss = {name: pss(pid) for name, pid in pids.items()}
    findings.disk = {name: _difference(disk_written(pid), before[name]) for name, pid in pids.items()}
    findings.files = sorted(entry.name for entry in Path(findings.status["pool"]["path"]).parent.iterdir())
    with console.status("comparing with scikit-learn in this process …"):
        plain = type(model.to_sklearn())(n_components=job.components, svd_solver="covariance_eigh")
        expected = plain.fit_transform(X)
        findings.identical = bool(
            np.array_equal(result, expected) and np.array_equal(model.components_, plain.components_)
        )
    return findings


def _difference(after: int | None, before: int | None) -> int | None:
    return None if after is None or before is None else after - before


def _data(job: Job) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Noise around a few directions, made block by block."""
    generator = np.random.default_rng(0)
    directions = generator.standard_normal((job.components, job.columns), dtype=np.float32)
    X = np.empty((job.rows, job.columns), dtype=np.float32)
    for start in range(0, job.rows, 50_000):
        block = X[start : start + 50_000]
        generator.standard_normal(out=block, dtype=np.float32)
        block += generator.standard_normal((len(block), job.components), dtype=np.float32) @ directions
    return X


def _copy_seconds(target: np.ndarray[Any, Any], X: np.ndarray[Any, Any]) -> float:
    start = time.perf_counter()
    np.copyto(target, X)
    return time.perf_counter() - start


def _report(job: Job, findings: Findings) -> Panel:
    report = findings.median
    heading = Text.assemble(
        ("PCA", "bold"),
        f"(n_components={job.components}).fit_transform of {job.rows:,} x {job.columns} float32, "
        f"{job.nbytes / 1e6:.0f} MB, median of {len(findings.reports)} runs",
    )
    return Panel(
        Group(heading, "", _stages(job, report), "", _verdicts(job, findings, report)),
        title="[bold]gsb demo[/]",
        border_style="cyan",
        expand=False,
        padding=(1, 2),
    )


def _stages(job: Job, report: Report) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("stage")
    table.add_column("ms", justify="right")
    table.add_column("GB/s", justify="right")
    table.add_column("", width=24)
    table.add_column("what happens", style="dim")
    longest = max(report.stages.values())
    moved = {"client_encode": report.nbytes_sent, "compute": job.nbytes, "server_encode": report.nbytes_received}
    moved["client_decode"] = report.nbytes_received
    for name in STAGES:
        seconds = report.stages[name]
        rate = moved.get(name, 0) / seconds / 1e9 if seconds > 1e-4 and moved.get(name, 0) > 1e6 else 0
        colour = "yellow" if name == "compute" else "cyan"
        bar = "█" * max(1 if seconds > 0.001 * longest else 0, round(24 * seconds / longest))
        table.add_row(
            name,
            f"{seconds * 1e3:,.2f}",
            f"{rate:.1f}" if rate else "",
            f"[{colour}]{bar}[/]",
            _EXPLANATIONS[name],
        )
    table.add_row("[bold]total[/]", f"[bold]{report.total * 1e3:,.2f}[/]")
    return table


def _mark(good: bool) -> str:
    return "[green]✔[/]" if good else "[red]✘[/]"


def _verdicts(job: Job, findings: Findings, report: Report) -> Table:
    overhead, copy = report.overhead, findings.copy_seconds
    bar = BAR_SECONDS * job.nbytes / BAR_NBYTES
    pool = findings.status["pool"]
    slots = pool["stat"]["slots"]
    free = sum(slot["state"] == "free" for slot in slots)
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(style="dim")
    table.add_column()
    table.add_row(
        _mark(overhead < bar),
        "besides the compute",
        f"[bold]{overhead * 1e3:.0f} ms[/]; the bar for {job.nbytes / 1e6:.0f} MB is {bar * 1e3:.0f} ms",
    )
    table.add_row(
        _mark(overhead < 1.5 * copy),
        "against one np.copyto",
        f"{overhead / copy:.2f} x ({copy * 1e3:.0f} ms, {job.nbytes / copy / 1e9:.1f} GB/s)",
    )
    table.add_row(
        _mark(findings.identical), "same as scikit-learn", "bit for bit" if findings.identical else "the results differ"
    )
    table.add_row(" ", "ran on", f"{report.backend}, {report.device}: {report.reason}")
    sent = ", ".join(map(str, report.slots_sent)) or "none"
    received = ", ".join(map(str, report.slots_received)) or "none"
    table.add_row(
        _mark(free == len(slots)),
        "slots",
        f"last run: in {sent}, out {received}; {free} of {len(slots)} free now",
    )
    names = findings.files
    table.add_row(
        _mark(len(names) == 2),
        "files",
        f"{' and '.join(names)} on {pool['filesystem']}, {format_bytes(pool['nbytes'])}; none per message",
    )
    written = [count for count in findings.disk.values() if count is not None]
    if written:
        table.add_row(_mark(sum(written) == 0), "written to disk", f"{format_bytes(sum(written))} during the runs")
    if None not in findings.pss.values():
        total = sum(count or 0 for count in findings.pss.values())
        parts = ", ".join(f"{name} {format_bytes(count)}" for name, count in findings.pss.items())
        table.add_row(" ", "memory (PSS)", f"{format_bytes(total)}: {parts}")
    return table
