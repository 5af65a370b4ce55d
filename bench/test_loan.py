# SPDX-License-Identifier: BSD-3-Clause
"""The hop without a copy: an array born in the pool, of which the reader checks the ends. Its size must not matter."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import shmpool
from bench.harness.child import Answer, Child
from bench.harness.clock import Turns, measure
from bench.harness.report import Report, Row, duration
from bench.harness.settings import MIB, rounds
from bench.harness.workspace import Workspace, require_memory

SMALL = 4096
LARGE = 512 * MIB
BETWEEN = [64 * 1024, MIB, 16 * MIB, 64 * MIB, 256 * MIB]
BAR = 2.0


@contextlib.contextmanager
def _reader(path: Path) -> Iterator[Answer]:
    with shmpool.Pool.attach(path) as pool:

        def answer(request: bytes) -> bytes:
            view = pool.get(shmpool.Handle.from_bytes(request))
            return np.array([view[0], view[-1]], view.dtype).tobytes()

        yield answer


def _hop(pool: shmpool.Pool, child: Child, nbytes: int) -> Callable[[], float]:
    n = nbytes // 4
    state = 0

    def run() -> float:
        nonlocal state
        state = (state + 1) % 1000
        start = time.perf_counter()
        with pool.loan(n, np.float32) as loan:
            loan.array[0] = state
            loan.array[-1] = state + 1
            handle = loan.seal()
        answer = child.ask(handle.to_bytes())
        pool.free(handle)
        elapsed = time.perf_counter() - start
        assert answer == np.array([state, state + 1], np.float32).tobytes()
        return elapsed

    return run


@pytest.mark.big
def test_loan(benchmark: BenchmarkFixture, workspace: Workspace, report: Report) -> None:
    require_memory(2 * 1024 * MIB)
    n_rounds = rounds(301, 51)
    path = workspace.new("pool.bin")
    with shmpool.Pool.create(path) as pool, Child(_reader, path) as child:
        turns = Turns({nbytes: _hop(pool, child, nbytes) for nbytes in (SMALL, *BETWEEN)})
        large = _hop(pool, child, LARGE)
        for _ in range(8):  # every slot of the region, each at its full size
            large()
        turns.turn()
        for times in turns.times.values():
            times.clear()
        # pytest-benchmark's own call costs microseconds, which count here: what `large` timed itself is compared
        times_large: list[float] = []
        measure(benchmark, lambda: times_large.append(large()), setup=turns.turn, rounds=n_rounds)
    shmpool.Pool.remove(path)

    median = statistics.median(times_large)
    small = turns.median(SMALL)
    section = "2. hop with loan, first and last element read"
    for nbytes in (SMALL, *BETWEEN):
        label = f"{nbytes // MIB} MiB" if nbytes >= MIB else f"{nbytes // 1024} KiB"
        report.add(Row(section, label, turns.median(nbytes), turns.median(nbytes) / small, "4 KiB", rounds=n_rounds))
    ratio = median / small
    report.add(Row(section, "512 MiB", median, ratio, "4 KiB", f"≤ {BAR:g}", ratio <= BAR, n_rounds))
    benchmark.extra_info["4 KiB"] = duration(small)
    benchmark.extra_info["ratio_to_4_KiB"] = ratio
