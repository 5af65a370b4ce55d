# SPDX-License-Identifier: BSD-3-Clause
"""The user's bar: 500 MB into the pool, out of it in another process, and read there, in under 800 ms.

The one benchmark that fails: it is wide of what the pool needs (about an eighth of it), so only a real loss of speed
reaches it.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import shmpool
from bench.harness.arrays import read_all
from bench.harness.child import Answer, Child
from bench.harness.clock import measure
from bench.harness.quiet import wait_for_quiet
from bench.harness.report import Report, Row
from bench.harness.settings import MIB, rounds
from bench.harness.workspace import Workspace, require_memory

NBYTES = 500_000_000
BAR = 0.8


@contextlib.contextmanager
def _reader(path: Path) -> Iterator[Answer]:
    with shmpool.Pool.attach(path) as pool:
        yield lambda request: read_all(pool.get(shmpool.Handle.from_bytes(request)))


@pytest.mark.big
def test_500_mb_in_under_800_ms(benchmark: BenchmarkFixture, workspace: Workspace, report: Report) -> None:
    require_memory(3 * 1024 * MIB)
    n_rounds = rounds(15, 5)
    array = np.random.default_rng(7).random(NBYTES // 4, dtype=np.float32)
    expected = read_all(array)
    times: list[float] = []
    path = workspace.new("pool.bin")
    with shmpool.Pool.open(path) as pool, Child(_reader, path) as child:

        def send() -> None:
            start = time.perf_counter()
            handle = pool.put(array)
            answer = child.ask(handle.to_bytes())
            pool.free(handle)
            times.append(time.perf_counter() - start)
            assert answer == expected

        # No warm-up: the user's first array counts as well.
        measure(benchmark, send, setup=wait_for_quiet, rounds=n_rounds)
    shmpool.Pool.remove(path)

    section = "5. the user's bar: 500 MB, put, get, every byte read"
    median = statistics.median(times)
    report.add(Row(section, "median", median, bar="< 800 ms, enforced", met=median < BAR, rounds=n_rounds))
    report.add(Row(section, "the first, right after open", times[0], times[0] / median, "median", rounds=1))
    report.add(Row(section, "the slowest", max(times), max(times) / median, "median", rounds=n_rounds))
    assert median < BAR, f"500 MB took {median * 1e3:.0f} ms"
