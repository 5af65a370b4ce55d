# SPDX-License-Identifier: BSD-3-Clause
"""What the pool costs without a payload: a small array in one process, and the core alone."""

from __future__ import annotations

import pickle
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import shmpool
from bench.harness.clock import Turns, measure
from bench.harness.report import Report, Row
from bench.harness.settings import rounds
from bench.harness.workspace import Workspace

SECTION = "3. small arrays"
BAR = 4e-6
CORE_BAR = 300e-9
CORE_SOURCE = Path(__file__).parent / "c" / "bench_core.c"
# one line per span and number of clients; the number matters because a free looks at the pins of each of them
CORE_LINE = re.compile(r"span 1, clients' high water\s+(\d+):\s+([0-9.]+) ns")
CALLS = 2000


def _per_call(action: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        for _ in range(CALLS):
            action()
        return (time.perf_counter() - start) / CALLS

    return run


def test_put_get_free(benchmark: BenchmarkFixture, workspace: Workspace, report: Report) -> None:
    n_rounds = rounds(101, 21)
    path = workspace.new("pool.bin")
    array = np.arange(64, dtype=np.float32)
    with shmpool.Pool.create(path, prefault_nbytes=0) as pool:

        def ours() -> None:
            handle = pool.put(array)
            pool.get(handle)
            pool.free(handle)

        def pickled() -> None:
            pickle.loads(pickle.dumps(array, protocol=5))

        measure(benchmark, ours, rounds=n_rounds, iterations=CALLS, warmup_rounds=1)
        times = Turns({"ours": _per_call(ours), "pickle": _per_call(pickled)})
        for _ in range(n_rounds):
            times.turn()
    shmpool.Pool.remove(path)
    median, theirs = times.median("ours"), times.median("pickle")
    report.add(
        Row(SECTION, "put + get + free, 256 bytes", median, median / theirs, "pickle", "< 4 µs", median < BAR, n_rounds)
    )
    report.add(Row(SECTION, "pickle.dumps + loads of it", theirs, 1.0, "pickle", rounds=n_rounds))


def test_core(benchmark: BenchmarkFixture, workspace: Workspace, report: Report) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not CORE_SOURCE.exists():
        pytest.skip(f"needs a C compiler and {CORE_SOURCE.name}")
    program = workspace.new("bench_core")
    build = [compiler, "-std=gnu11", "-O2", "-pthread", "-o", str(program), str(CORE_SOURCE)]
    subprocess.run(build, check=True, timeout=120)

    times: dict[int, list[float]] = {}

    def run() -> None:
        done = subprocess.run([str(program)], check=True, capture_output=True, text=True, timeout=120)
        found = CORE_LINE.findall(done.stdout)
        assert found, f"no figure in the output:\n{done.stdout}"
        for clients, figure in found:
            times.setdefault(int(clients), []).append(float(figure) * 1e-9)

    n_rounds = rounds(9, 3)
    measure(benchmark, run, rounds=n_rounds)
    for clients in (min(times), max(times)):
        median = statistics.median(times[clients])
        what = f"claim + seal + pin + release in C, {clients} client{'s' if clients > 1 else ''}"
        report.add(Row(SECTION, what, median, bar="< 300 ns", met=median < CORE_BAR, rounds=n_rounds))
