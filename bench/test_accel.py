# SPDX-License-Identifier: BSD-3-Clause
"""``python -m gsb.accel`` against plain Python: a program of small calls, and where sending begins to pay."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.harness.clock import Turns, measure
from bench.harness.report import Report, Row
from bench.harness.settings import MIB, rounds

SECTION = "8. python -m gsb.accel"
BAR = 1.05
PROGRAM = Path(__file__).with_name("small_calls.py")
DEADLINE = 300


class _Program:
    """Runs the program; keeps what its calls, and the whole of it in CPU time, have taken."""

    def __init__(self, *before: str) -> None:
        self._command = [sys.executable, *before, str(PROGRAM), str(rounds(10, 2))]
        self.calls: list[float] = []
        self.cpu: list[float] = []

    def __call__(self) -> float:
        # One thread each: those of BLAS would spend CPU time on waiting for each other.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        start, cpu = time.perf_counter(), os.times()
        done = subprocess.run(
            self._command, check=True, capture_output=True, text=True, timeout=DEADLINE, env=environment
        )
        elapsed, after = time.perf_counter() - start, os.times()
        self.calls.append(float(done.stdout))
        self.cpu.append(after.children_user + after.children_system - cpu.children_user - cpu.children_system)
        return elapsed


def test_program_of_small_calls(benchmark: BenchmarkFixture, report: Report) -> None:
    n_rounds = rounds(15, 3)
    plain, ours = _Program(), _Program("-m", "gsb.accel")
    turns = Turns({"plain": plain, "ours": ours})

    def turn() -> None:
        turns.turn()

    measure(benchmark, turn, rounds=n_rounds, iterations=1, warmup_rounds=1)
    for what, mine, theirs in (
        ("a program of small calls, wall clock", turns.times["ours"], turns.times["plain"]),
        ("its CPU time", ours.cpu, plain.cpu),
        ("its calls alone, wall clock", ours.calls, plain.calls),
    ):
        ratio = float(np.median(np.array(mine) / np.array(theirs)))
        bar = "<= 1.05" if what == "its CPU time" else ""
        met = ratio <= BAR if bar else None
        report.add(Row(SECTION, what, float(np.median(mine)), ratio, "plain Python", bar, met, n_rounds))


# ---------------------------------------------------------------------------------- where sending begins to pay
@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    from gsb.cli.private_server import PrivateServer

    server = PrivateServer("--backend", "sklearn")
    yield server
    server.stop()


def _fit(name: str, path: str, X: Any, y: Any) -> Callable[[], object]:
    import gsb

    module, _, cls = path.rpartition(".")
    made = getattr(__import__(module, fromlist=[cls]), cls)
    remote = gsb.remote(made)
    parameters: dict[str, Any] = {"PCA": {"n_components": 4}, "KMeans": {"n_clusters": 8, "n_init": 1}}.get(cls, {})
    model = (remote if name == "there" else made)(**parameters)
    return lambda: model.fit(X, y)


@pytest.mark.parametrize("nbytes", [64 << 10, MIB, 8 * MIB, 64 * MIB], ids=["64K", "1M", "8M", "64M"])
@pytest.mark.parametrize(
    "path",
    [
        "sklearn.preprocessing.StandardScaler",
        "sklearn.decomposition.PCA",
        "sklearn.linear_model.LinearRegression",
        "sklearn.linear_model.LogisticRegression",
        "sklearn.cluster.KMeans",
    ],
)
def test_there_against_here(benchmark: BenchmarkFixture, report: Report, server: Any, path: str, nbytes: int) -> None:
    import gsb

    rng = np.random.default_rng(0)
    X = rng.random((nbytes // 8 // 20, 20))
    y = (X[:, 0] > 0.5).astype(np.int64)
    n_rounds = rounds(15 if nbytes <= MIB else 5, 3)

    def timed(run: Callable[[], object]) -> Callable[[], float]:
        def once() -> float:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

        return once

    with gsb.config(server=server.url, token=server.token, local_nbytes=0):
        turns = Turns({name: timed(_fit(name, path, X, y)) for name in ("here", "there")})
        measure(benchmark, turns.turn, rounds=n_rounds, iterations=1, warmup_rounds=1)
        gsb.disconnect()
    there, here = turns.median("there"), turns.median("here")
    what = f"{path.rpartition('.')[2]}.fit, {nbytes / MIB:g} MiB, sent"
    report.add(Row(SECTION, what, there, there / here, "in the program", rounds=n_rounds))
