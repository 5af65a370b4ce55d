# SPDX-License-Identifier: BSD-3-Clause
"""A GPU worker over stand-ins: a fake CuPy on host memory and a backend that can go wrong in every way.

``GSB_TEST_GPU=1`` (``make test-gpu``) takes the real CuPy and a real device instead; what needs a failure that only the
fake can bring about is skipped then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gsb_server.backends.base import Job, Outcome
from gsb_server.gpu.supervisor import SupervisedBackend
from gsb_server.settings import Settings
from helpers.processes import eventually

import shmpool

STANDINS = Path(__file__).parent.parent / "standins"
#: Whether the tests use a real device.
REAL = bool(os.environ.get("GSB_TEST_GPU"))
# Methods of the trial backend that look into the fake.
FAKE_ONLY = frozenset({"copies", "peak", "estimator_error_over_sticky"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything here that a real device can run as well."""
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.gpu)


def _needs_fake() -> None:
    if REAL:
        pytest.skip("only the fake CuPy can do that")


SLOT = 1 << 20
DEADLINE = 30.0
TRIAL = ("trial_backend:TrialBackend",)


class Bench:
    """A supervised worker and what a test asks of it."""

    def __init__(self, pool: shmpool.Pool, backend: SupervisedBackend) -> None:
        self.pool = pool
        self.backend = backend
        self.client = shmpool.Pool.attach(pool.path, prefault_nbytes=0)

    def job(self, method: str, *args: Any, timeout: float | None = DEADLINE, **kwargs: Any) -> Job:
        return Job("trial.Trial", {}, None, method, args, kwargs, {}, timeout=timeout)

    def run(self, method: str, *args: Any, timeout: float | None = DEADLINE, **kwargs: Any) -> Any:
        """Run a method of the trial backend on inline arguments; the result, copied."""
        if method in FAKE_ONLY:
            _needs_fake()
        return self.finish(self.backend.run(self.job(method, *args, timeout=timeout, **kwargs)))

    def run_on(self, method: str, *handles: shmpool.Handle, timeout: float | None = DEADLINE) -> Any:
        """Run it on arrays in slots."""
        return self.finish(self.backend.run(self.job_on(method, *handles, timeout=timeout)))

    def job_on(self, method: str, *handles: shmpool.Handle, timeout: float | None = DEADLINE) -> Job:
        views = [self.pool.get(handle) for handle in handles]
        return self.job(method, *views, timeout=timeout)

    def finish(self, outcome: Outcome) -> Any:
        """Copy the result; its slots are free when the outcome dies."""

        def copy(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                return value.copy(order="K")
            if isinstance(value, tuple):
                return tuple(copy(item) for item in value)
            return {key: copy(item) for key, item in value.items()} if isinstance(value, dict) else value

        return copy(outcome.result)

    def put(self, array: np.ndarray[Any, Any]) -> shmpool.Handle:
        return self.client.put(array, timeout=DEADLINE)

    def sklearn(self, estimator: str, method: str, *args: Any, **fields: Any) -> Job:
        return Job(
            f"sklearn.{estimator}",
            fields.get("params", {}),
            fields.get("model"),
            method,
            args,
            {},
            {},
            timeout=DEADLINE,
        )

    def busy(self) -> list[Any]:
        return [slot for slot in self.pool.stat().slots if slot.state != "free"]

    def check(self) -> None:
        """No slot is taken."""
        eventually(lambda: self.busy() == [], "all slots are free", 10.0)

    def end(self) -> None:
        """Check, and end the worker."""
        try:
            self.check()
        finally:
            pid = self.backend.status()["pid"]
            self.close()
            assert pid is None or not Path(f"/proc/{pid}").exists()

    def close(self) -> None:
        self.client.close()
        self.backend.close()
        self.pool.close()


def start(
    pool_path: Path,
    *,
    backends: tuple[str, ...] = TRIAL,
    environment: dict[str, str] | None = None,
    geometry: dict[str, Any] | None = None,
    probe: bool = True,
    longest_pause: float = 0.05,
    **settings: Any,
) -> Bench:
    """Make a pool and start a worker over the stand-ins."""
    if any(name.startswith("FAKE_") for name in environment or {}):
        _needs_fake()
    pool = shmpool.Pool.open(
        pool_path,
        **{"slot_nbytes": SLOT, "input_slots": 4, "output_slots": 4, "scratch_slots": 8, "prefault_nbytes": 0}
        | (geometry or {}),
    )
    path = os.pathsep.join([*_standin_paths(), *filter(None, [os.environ.get("PYTHONPATH", ""), *_source_paths()])])
    backend = SupervisedBackend(
        pool,
        Settings(**{"output_timeout": 2.0, "gpu_start_timeout": 60.0, **settings}),
        device="gsb_server.gpu.device:CupyDevice",
        device_options={"host_path": settings.get("gpu_host_path", "auto")},
        backends=backends,
        longest_pause=longest_pause,
        environment={"PYTHONPATH": path, **(environment or {})},
    )
    bench = Bench(pool, backend)
    if probe:
        found = backend.probe()
        if not found.available:
            bench.close()
            raise AssertionError(found.reason)
    return bench


@pytest.fixture
def make_bench(pool_path: Path) -> Iterator[Callable[..., Bench]]:
    """Start workers; at the end they are gone and have left no slot taken."""
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(start(pool_path, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.end()


def _standin_paths() -> list[str]:
    return [str(STANDINS)] if REAL else [str(STANDINS), str(STANDINS / "fake")]


def _source_paths() -> list[str]:
    root = Path(__file__).parents[2]
    return [str(root / part) for part in ("src", "python", "server")]


@pytest.fixture(scope="session")
def lasting(places: Any) -> Iterator[Bench]:
    """A worker for all tests that leave it well, or whose harm a new worker heals."""
    folder = places.new("gpu")
    bench = start(folder / "pool.bin")
    yield bench
    bench.end()
    places.discard(folder)


@pytest.fixture
def trial(lasting: Bench) -> Iterator[Bench]:
    """The lasting worker, alive; afterwards no slot may be taken."""
    assert lasting.backend.probe().available
    yield lasting
    lasting.check()


@pytest.fixture
def standins() -> dict[str, str]:
    """The environment of a process that finds the stand-ins."""
    return {"PYTHONPATH": os.pathsep.join([*_standin_paths(), *_source_paths()])}


@pytest.fixture
def standin_cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The fake CuPy in this process, for one test."""
    _needs_fake()
    import importlib
    import sys

    found = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "cupy"}
    for name in found:
        del sys.modules[name]
    monkeypatch.syspath_prepend(str(STANDINS / "fake"))
    importlib.invalidate_caches()
    yield importlib.import_module("cupy")
    for name in [name for name in sys.modules if name.partition(".")[0] == "cupy"]:
        del sys.modules[name]
    sys.modules.update(found)
