# SPDX-License-Identifier: BSD-3-Clause
"""How soon the slots of a client that was killed with SIGKILL serve again."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import shmpool
from bench.harness.child import Answer, Child
from bench.harness.clock import measure
from bench.harness.report import Report, Row
from bench.harness.settings import rounds
from bench.harness.workspace import Workspace

SECTION = "6. slots of a killed client"
BAR = 0.01
SLOTS = 4
ARRAY = np.arange(1024, dtype=np.float32)


@contextlib.contextmanager
def _hoarder(path: Path) -> Iterator[Answer]:
    """Holds every input slot in one way or another: half written, sealed, and viewed."""
    with shmpool.Pool.attach(path, prefault_nbytes=0) as pool:
        loans = [pool.loan(ARRAY.shape, ARRAY.dtype) for _ in range(SLOTS // 2)]
        handles = [pool.put(ARRAY) for _ in range(SLOTS - SLOTS // 2)]
        views = [pool.get(handle) for handle in handles]
        yield lambda _: str(len(loans) + len(views)).encode()


@pytest.mark.parametrize("waiting", [pytest.param(False, id="next-claim"), pytest.param(True, id="waiting-claim")])
def test_reclaim(benchmark: BenchmarkFixture, workspace: Workspace, report: Report, waiting: bool) -> None:
    n_rounds = rounds(21, 5)
    path = workspace.new("pool.bin")
    times: list[float] = []
    handles: list[shmpool.Handle] = []
    with shmpool.Pool.create(path, input_slots=SLOTS, prefault_nbytes=0) as pool:
        pool.free(pool.put(ARRAY))

        def setup() -> tuple[tuple[Child], dict[str, object]]:
            child = Child(_hoarder, path)
            with pytest.raises(shmpool.PoolFullError):
                pool.put(ARRAY, timeout=0)
            if not waiting:
                child.kill()
            return (child,), {}

        def claim_after_death(child: Child) -> None:
            start = time.perf_counter()
            handles.append(pool.put(ARRAY))
            times.append(time.perf_counter() - start)

        def claim_across_death(child: Child) -> None:
            killed: list[float] = []

            def kill() -> None:
                time.sleep(0.05)
                killed.append(time.perf_counter())
                os.kill(child.pid, signal.SIGKILL)

            killer = threading.Thread(target=kill)
            killer.start()
            handles.append(pool.put(ARRAY))
            done = time.perf_counter()
            killer.join()
            times.append(done - killed[0])

        def teardown(child: Child) -> None:
            pool.free(handles.pop())
            if waiting:
                child.kill()

        target = claim_across_death if waiting else claim_after_death
        measure(benchmark, target, setup=setup, teardown=teardown, rounds=n_rounds)
    shmpool.Pool.remove(path)

    times.sort()
    median = times[len(times) // 2]
    if waiting:
        what = "a claim that waited: from SIGKILL to its slot"
        report.add(Row(SECTION, what, median, rounds=n_rounds))
        report.add(Row(SECTION, "the same, slowest", times[-1], rounds=n_rounds))
    else:
        report.add(Row(SECTION, "the next claim", median, bar="< 10 ms", met=median < BAR, rounds=n_rounds))
        report.add(
            Row(SECTION, "the next claim, slowest", times[-1], bar="< 10 ms", met=times[-1] < BAR, rounds=n_rounds)
        )
    benchmark.extra_info["seconds"] = times
