# SPDX-License-Identifier: BSD-3-Clause
"""The worker dies, hangs, talks nonsense, loses its device: one job fails with a clear error, the next one works."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gsb_server.backends.base import EstimatorRaisedError, RefusedByBackend
from gsb_server.errors import ServerError
from helpers.processes import DEADLINE, Children, eventually

X = np.random.default_rng(1).standard_normal((2000, 20))


def _code(call: Callable[[], Any]) -> str:
    with pytest.raises(ServerError) as caught:
        call()
    assert caught.value.hint
    return str(caught.value.code)


def _in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run it in a thread; the list gets its result or its exception."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


@pytest.mark.parametrize("way", ["die", "exit"])
def test_a_worker_that_dies_fails_its_job_and_is_replaced(trial: Any, way: str) -> None:
    first = trial.run("pid")
    restarts = trial.backend.restarts
    handle = trial.put(X)
    with pytest.raises(ServerError, match="signal 9" if way == "die" else "status 5") as caught:
        trial.run(way, *(() if way == "die" else (5,)))
    assert caught.value.code == "worker_lost"
    assert np.array_equal(trial.run_on("echo", handle), X)
    trial.client.free(handle)
    assert trial.run("pid") != first
    assert trial.backend.restarts == restarts + 1
    assert not Path(f"/proc/{first}").exists()


def test_killed_from_outside_while_it_computes_and_while_it_is_idle(trial: Any) -> None:
    thread, found = _in_thread(lambda: trial.run("sleep", 60.0))
    eventually(lambda: trial.backend._turn.taken == 1, "the job is with the worker")
    time.sleep(0.05)
    # Behind it waits another job, which the death of the worker must not touch.
    second, later = _in_thread(lambda: trial.run("host", np.arange(3.0)))
    os.kill(trial.backend.status()["pid"], signal.SIGKILL)
    thread.join(DEADLINE)
    second.join(DEADLINE)
    assert found[0].code == "worker_lost"
    assert later[0]["sum"] == 3.0
    pid = trial.backend.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: trial.backend.status()["pid"] not in (pid, None), "there is a new worker")
    assert trial.run("pid") != pid


def test_a_result_that_was_being_written_is_taken_back(trial: Any) -> None:
    """The slot of a worker that dies in the middle of an answer is free again."""
    large = np.zeros(400_000)  # four slots
    for _ in range(3):
        thread, found = _in_thread(lambda: trial.run("echo", large))
        time.sleep(0.02)
        if (pid := trial.backend.status()["pid"]) is not None:
            os.kill(pid, signal.SIGKILL)
        thread.join(DEADLINE)
        assert isinstance(found[0], ServerError) or np.array_equal(found[0], large)
        found.clear()
        gc.collect()
        trial.check()
        assert trial.backend.probe().available


def test_a_hang_ends_at_the_deadline_of_the_request(trial: Any) -> None:
    first = trial.run("pid")
    begun = time.monotonic()
    assert _code(lambda: trial.run("sleep", 600.0, timeout=0.3)) == "timeout"
    assert time.monotonic() - begun < 20
    assert trial.run("pid") != first


def test_a_stopped_worker_does_not_hold_anybody_for_ever(trial: Any) -> None:
    first = trial.run("pid")
    os.kill(first, signal.SIGSTOP)
    # More than a pipe takes: the sender must not be caught in the write.
    assert _code(lambda: trial.run("host", np.zeros(500_000), timeout=0.5)) == "timeout"
    assert trial.run("pid") != first


def test_who_only_waited_for_its_turn_does_not_kill_the_worker(trial: Any) -> None:
    first = trial.run("pid")
    thread, found = _in_thread(lambda: trial.run("sleep", 1.0))
    eventually(lambda: trial.backend._turn.taken == 1, "the job is with the worker")
    assert _code(lambda: trial.run("host", np.arange(3.0), timeout=0.1)) == "timeout"
    thread.join(DEADLINE)
    assert found == [1.0]
    assert trial.run("pid") == first


@pytest.mark.parametrize(
    "garbage",
    [os.urandom(64), b"gsbW" + (4).to_bytes(8, "little") + b"\x80\x05K\x01"],
    ids=["random", "torn"],
)
def test_nonsense_on_the_pipe_ends_the_worker_and_nothing_else(trial: Any, garbage: bytes) -> None:
    first = trial.run("pid")
    assert _code(lambda: trial.run("garbage", garbage)) == "worker_lost"
    assert trial.run("pid") != first


@pytest.mark.parametrize("status", [719, 214])
def test_a_sticky_error_replaces_the_worker(trial: Any, status: int) -> None:
    first = trial.run("pid")
    with pytest.raises(ServerError, match="device is lost") as caught:
        trial.run("sticky", status)
    assert caught.value.code == "worker_lost"
    assert trial.run("pid") != first
    assert np.array_equal(trial.run("echo", X), X)


def test_a_sticky_error_shows_at_the_synchronisation_at_the_latest(trial: Any) -> None:
    assert _code(lambda: trial.run("sticky", 700, False)) == "worker_lost"
    # A library that turns CUDA's error into one of its own does not hide it.
    assert _code(lambda: trial.run("estimator_error_over_sticky")) == "worker_lost"
    with pytest.raises(EstimatorRaisedError):
        trial.run("raise", "ValueError", "only that")


def test_models_of_a_dead_worker_are_reported_as_lost(trial: Any) -> None:
    params = {"n_components": 2}
    model = trial.backend.run(trial.sklearn("decomposition.PCA", "fit", X, params=params)).model
    assert _code(lambda: trial.run("die")) == "worker_lost"
    assert (
        _code(lambda: trial.backend.run(trial.sklearn("decomposition.PCA", "transform", X, model=model)))
        == "model_lost"
    )
    assert _code(lambda: trial.backend.export(model)) == "model_lost"
    assert _code(lambda: trial.backend.attributes(model)["components_"]) == "model_lost"
    again = trial.backend.run(trial.sklearn("decomposition.PCA", "fit", X, params=params)).model
    assert trial.finish(trial.backend.run(trial.sklearn("decomposition.PCA", "transform", X, model=again))).shape == (
        2000,
        2,
    )


def test_workers_that_keep_dying_are_started_more_and_more_rarely(make_bench: Any) -> None:
    bench = make_bench(longest_pause=30.0)
    for _ in range(4):
        assert _code(lambda: bench.run("exit", 1)) == "worker_lost"
    # 0.1, 0.3, 0.9 s: up to here the next job waited for the next worker. Now the CPU had better do it.
    with pytest.raises(RefusedByBackend, match=r"keeps ending .*status 1"):
        bench.run("pid")


# ---------------------------------------------------------------------------------- at the start


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"FAKE_CUPY_NO_DEVICE": "1"}, "CuPy sees no CUDA device"),
        ({"FAKE_CUPY_BROKEN": "1"}, "libnvrtc"),
    ],
    ids=["no device", "broken install"],
)
def test_without_a_device_the_reason_is_given(make_bench: Any, environment: dict[str, str], reason: str) -> None:
    bench = make_bench(environment=environment, probe=False)
    probe = bench.backend.probe()
    assert not probe.available
    assert reason in probe.reason
    with pytest.raises(RefusedByBackend, match="does not start"):
        bench.run("pid")


def test_a_backend_that_cannot_be_loaded_is_left_out(make_bench: Any) -> None:
    bench = make_bench(
        backends=("trial_backend:BrokenBackend", "trial_backend:AbsentBackend", "trial_backend:TrialBackend")
    )
    reasons = {name: probe.reason for name, probe in bench.backend.probes.items()}
    assert "libcuml.so" in reasons["trial_backend"]
    assert reasons["absent"] == "nothing there"
    assert bench.run("pid")


def test_a_worker_that_takes_too_long_to_start_is_ended(make_bench: Any) -> None:
    bench = make_bench(probe=False, gpu_start_timeout=0.05)
    probe = bench.backend.probe()
    assert not probe.available
    assert "did not start in 0.05 s" in probe.reason


SERVER = """
import os, sys, time
from pathlib import Path
from gsb_server.gpu.supervisor import SupervisedBackend
pool = shmpool.Pool.open(args[0], slot_nbytes=1 << 20, prefault_nbytes=0)
backend = SupervisedBackend(pool, device="gsb_server.gpu.device:CupyDevice", backends=("trial_backend:TrialBackend",))
found = backend.probe()
assert found.available, found.reason
say(backend.status()["pid"])
if hear() == "busy":
    from gsb_server.backends.base import Job
    backend.run(Job("trial.T", {}, None, "sleep", (600.0,), {}, {}))
backend.close()
pool.close()
"""


@pytest.mark.parametrize("busy", ["idle", "busy"])
def test_the_worker_does_not_outlive_the_server(
    children: Children, pool_path: Path, standins: dict[str, str], busy: str
) -> None:
    server = children.start(SERVER, pool_path, env=standins)
    pid = server.hear()
    if busy == "busy":
        server.say("busy")
        time.sleep(0.2)
    server.kill()
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the worker is gone")


def test_a_server_that_ends_well_ends_its_worker(children: Children, pool_path: Path, standins: dict[str, str]) -> None:
    server = children.start(SERVER, pool_path, env=standins)
    pid = server.hear()
    server.say("end")
    server.finish()
    assert not Path(f"/proc/{pid}").exists()
