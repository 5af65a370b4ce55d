# SPDX-License-Identifier: BSD-3-Clause
"""``bench``: what the pool brings on this machine, against the ways of the standard library, side by side.

The ways take turns, so that other load falls on all of them; figures are medians. The pool is a temporary one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ShmPoolError
from ..pool import Pool
from . import plot, render
from .contenders import Contenders, serve

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.queues import Queue

    from rich.console import Console

__all__ = ["run"]

_SIZES = (4 << 10, 256 << 10, 8 << 20, 128 << 20)
_MIN_TURNS, _MAX_TURNS = 3, 300
# Two slots of the pool and two segments of SharedMemory; and in private memory the array, its copy, and what pipe and
# queue hold at once on both sides.
_SHARED_COPIES, _PRIVATE_COPIES = 4, 6

Results = dict[int, dict[str, float]]
Report = Callable[[str], None]


def _largest(folder: Path, wanted: int) -> int:
    """The largest array for which there is room, with as much left for everybody else."""
    with contextlib.suppress(OSError, KeyError, ValueError):
        shared = min(_free(folder), _free(Path("/dev/shm")))
        wanted = min(wanted, shared // (2 * _SHARED_COPIES))
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
        wanted = min(wanted, available // (2 * (_SHARED_COPIES + _PRIVATE_COPIES)))
    return max(4096, wanted // 4096 * 4096)


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def _stage(folder: Path, largest: int) -> Iterator[tuple[Pool, Connection, Queue[Any]]]:
    """A pool of its own and a reading process; both gone afterwards, however it ends."""
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="shmpool-bench-", dir=folder) as private,
        Pool.create(
            Path(private) / "pool.bin",
            slot_nbytes=largest,
            input_slots=2,
            output_slots=0,
            scratch_slots=0,
            prefault_nbytes=0,
        ) as pool,
    ):
        ours, theirs = context.Pipe()
        queue: Queue[Any] = context.Queue()
        reader = context.Process(target=serve, args=(theirs, queue, pool.path), daemon=True)
        reader.start()
        theirs.close()
        try:
            if not ours.poll(60) or ours.recv() != "ready":
                raise TimeoutError("the reading process did not start")
            yield pool, ours, queue
        finally:
            ours.close()
            queue.cancel_join_thread()
            queue.close()
            reader.join(5)
            if reader.is_alive():
                reader.kill()
                reader.join()


def _measure(pool: Pool, connection: Connection, queue: Queue[Any], nbytes: int, seconds: float) -> dict[str, float]:
    """Median seconds of each way for one size."""
    array = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
    contenders = Contenders(pool, connection, queue, array)
    try:
        times: dict[str, list[float]] = {name: [] for name in contenders.ways}
        deadline = time.monotonic() + seconds
        for turn in range(-2, _MAX_TURNS):  # two turns to warm up: once round the slots of the pool
            if turn >= _MIN_TURNS and time.monotonic() > deadline:
                break
            for name, hop in contenders.ways.items():
                start = time.perf_counter()
                hop()
                if turn >= 0:
                    times[name].append(time.perf_counter() - start)
        return {name: statistics.median(values) for name, values in times.items()}
    finally:
        contenders.close()


def _run_all(folder: Path, largest: int, seconds: float, report: Report) -> Results:
    sizes = sorted({*(nbytes for nbytes in _SIZES if nbytes < largest), largest})
    results: Results = {}
    with _stage(folder, largest) as (pool, connection, queue):
        for nbytes in sizes:
            report(f"measuring {render.size(nbytes)}")
            results[nbytes] = _measure(pool, connection, queue, nbytes, seconds / len(sizes))
    return results


def _time(seconds: float) -> str:
    value, unit = (seconds * 1e6, "us") if seconds < 1e-3 else (seconds * 1e3, "ms")
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def _show(console: Console, results: Results) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("one hop", no_wrap=True)
    for nbytes in results:
        table.add_column(render.size(nbytes), justify="right", no_wrap=True)
    for name in next(iter(results.values())):
        cells = []
        for times in results.values():
            ratio = times[name] / times["pool, put"]
            text = f"{ratio:.2f}x" if ratio < 0.95 else f"{ratio:.1f}x" if ratio < 99.95 else f"{ratio:.0f}x"
            cells.append(Text.assemble(_time(times[name]), (f"{text:>6}", "green" if ratio < 1 else "dim")))
        table.add_row(Text(name, style="bold" if name.startswith("pool") else ""), *cells)
    console.print(table)
    console.print(
        "\nMedian time from the writer's call to the reader's answer, and how many times as long as the pool's put. "
        "The reader looks at every page. A loan is written in place.",
        style="dim",
    )


def _as_dict(results: Results) -> dict[str, Any]:
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "sizes": [
            {
                "nbytes": nbytes,
                "seconds": times,
                "ratio_to_put": {name: value / times["pool, put"] for name, value in times.items()},
                "ratio_to_copyto": {name: value / times["np.copyto, no hop"] for name, value in times.items()},
            }
            for nbytes, times in results.items()
        ],
    }


def run(path: Path, *, as_json: bool, max_mib: int, seconds: float, picture: Path | None = None) -> int:
    """Measure with a temporary pool beside `path` and print the table; draw it too if a file is named."""
    if picture is not None and not plot.available():
        print("shmpool: --plot needs matplotlib (pip install matplotlib)", file=sys.stderr)
        return 1
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    wanted = max_mib << 20
    largest = _largest(folder, wanted)
    if largest < wanted:
        print(f"shmpool: there is room for {render.size(largest)} only, not {render.size(wanted)}", file=sys.stderr)
    console = None if as_json else render.console()
    try:
        if console is None:
            results = _run_all(folder, largest, seconds, lambda _: None)
            render.print_json(_as_dict(results))
        else:
            with console.status(f"about {seconds:.0f} s") as status:
                results = _run_all(folder, largest, seconds, status.update)
            _show(console, results)
        if picture is not None:
            plot.draw(results, picture)
    except (EOFError, ConnectionError, TimeoutError) as error:
        if isinstance(error, (ShmPoolError, BrokenPipeError)):
            raise
        print(f"shmpool: the reading process failed: {str(error) or 'it ended'}", file=sys.stderr)
        return 1
    return 0
