# SPDX-License-Identifier: BSD-3-Clause
"""The first hop of a pool that did not exist a moment ago, against the warm hops that follow it."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

import shmpool
from bench.harness.arrays import Stamp, source, touch
from bench.harness.child import Answer, Child
from bench.harness.clock import measure
from bench.harness.quiet import wait_for_quiet
from bench.harness.report import Report, Row
from bench.harness.settings import HOP_NBYTES, MIB, rounds
from bench.harness.workspace import Workspace, require_memory

SECTION = "4. cold pool, 512 MiB hop"
BAR = 3.0
PAUSE = 1.0


@contextlib.contextmanager
def _reader(path: Path) -> Iterator[Answer]:
    with shmpool.Pool.attach(path) as pool:
        yield lambda request: touch(pool.get(shmpool.Handle.from_bytes(request)))


class ColdPool:
    """One fresh pool per round: its first hop is what the benchmark times, the later ones are kept here."""

    def __init__(self, workspace: Workspace, array: NDArray[np.float32], pause: float) -> None:
        self._path = workspace.new("pool.bin")
        self._array = array
        self._stamp = Stamp(array)
        self._pool = shmpool.Pool.open(self._path)
        self._child = Child(_reader, self._path)
        time.sleep(pause)

    def hop(self) -> float:
        expected = self._stamp.next()
        start = time.perf_counter()
        handle = self._pool.put(self._array)
        answer = self._child.ask(handle.to_bytes())
        self._pool.free(handle)
        elapsed = time.perf_counter() - start
        assert answer == expected
        return elapsed

    def close(self) -> None:
        self._child.close()
        self._pool.close()
        shmpool.Pool.remove(self._path)


@pytest.mark.big
@pytest.mark.parametrize("pause", [pytest.param(PAUSE, id="after-1s"), pytest.param(0.0, id="at-once")])
def test_first_hop(benchmark: BenchmarkFixture, workspace: Workspace, report: Report, pause: float) -> None:
    require_memory(4 * 1024 * MIB)
    n_rounds = rounds(9, 3)
    array = source(HOP_NBYTES)
    second: list[float] = []
    warm: list[float] = []
    first: list[float] = []

    def setup() -> tuple[tuple[ColdPool], dict[str, object]]:
        wait_for_quiet()
        return (ColdPool(workspace, array, pause),), {}

    def run(pool: ColdPool) -> None:
        first.append(pool.hop())

    def teardown(pool: ColdPool) -> None:
        # The region holds two such arrays, so the second hop goes to other slots than the first.
        second.append(pool.hop())
        for _ in range(2):
            pool.hop()
        warm.extend(pool.hop() for _ in range(4))
        pool.close()

    measure(benchmark, run, setup=setup, teardown=teardown, rounds=n_rounds)

    reference = statistics.median(warm)
    after = "1 s after" if pause else "right after"
    median = statistics.median(first)
    ratio = median / reference
    judged = bool(pause)
    report.add(
        Row(
            SECTION,
            f"first hop, {after} open",
            median,
            ratio,
            "warm",
            f"≤ {BAR:g}" if judged else "",
            ratio <= BAR if judged else None,
            n_rounds,
        )
    )
    later = statistics.median(second)
    report.add(Row(SECTION, f"second hop, {after} open", later, later / reference, "warm", rounds=n_rounds))
    report.add(Row(SECTION, f"warm hop ({after})", reference, 1.0, "warm", rounds=len(warm)))
    benchmark.extra_info.update(first=first, second=second, warm=warm)
