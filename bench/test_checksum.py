# SPDX-License-Identifier: BSD-3-Clause
"""`shmpool.checksum` against one plain copy of the same bytes: naming content must cost less than moving it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import shmpool
from bench.harness.arrays import source
from bench.harness.clock import Turns, measure
from bench.harness.report import Report, Row
from bench.harness.settings import MIB, rounds
from bench.harness.workspace import require_memory

SECTION = "10. checksum"
KIB = 2**10
# One call on a small array says more about the clock than about the call.
PER_ROUND_NBYTES = 16 * MIB


def _timed(action: Callable[[], object], nbytes: int) -> Callable[[], float]:
    calls = max(1, PER_ROUND_NBYTES // nbytes)

    def run() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            action()
        return (time.perf_counter() - start) / calls

    return run


@pytest.mark.parametrize("nbytes", [4 * KIB, 64 * KIB, MIB, 16 * MIB, 512 * MIB])
def test_checksum(benchmark: BenchmarkFixture, report: Report, nbytes: int) -> None:
    require_memory(2 * nbytes + 1024 * MIB)
    array = source(nbytes)
    target = np.zeros_like(array)
    n_rounds = rounds(31, 5)

    def ours() -> None:
        shmpool.checksum(array)

    measure(benchmark, ours, rounds=3, warmup_rounds=1)
    times = Turns({"ours": _timed(ours, nbytes), "copyto": _timed(lambda: np.copyto(target, array), nbytes)})
    for _ in range(n_rounds):
        times.turn()
    median, theirs = times.median("ours"), times.median("copyto")
    size = f"{nbytes // MIB} MiB" if nbytes >= MIB else f"{nbytes // KIB} KiB"
    what = f"checksum of {size} ({nbytes / median / 1e9:.1f} GB/s)"
    # A small copy stays in the cache and costs next to nothing; the bar is about what goes to memory.
    bar, met = ("< 1 copyto", median < theirs) if nbytes >= 512 * MIB else ("", None)
    report.add(Row(SECTION, what, median, median / theirs, "np.copyto", bar, met, n_rounds))
