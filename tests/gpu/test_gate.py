# SPDX-License-Identifier: BSD-3-Clause
"""Device memory: who waits, who is admitted, what an allocation that fails leaves behind."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from gsb_server.backends.base import Job
from gsb_server.errors import ServerError
from gsb_server.gpu.gate import Gate, GateClosedError, GateTimeoutError, estimate
from helpers.processes import DEADLINE, eventually


def test_what_fits_is_admitted_and_the_rest_waits_in_order() -> None:
    gate = Gate(100)
    first = gate.admit(60)
    order: list[str] = []

    def wait(name: str, nbytes: int) -> threading.Thread:
        def run() -> None:
            with gate.admitted(nbytes, time.monotonic() + DEADLINE):
                order.append(name)
                time.sleep(0.01)

        thread = threading.Thread(target=run)
        waiting = gate.waiting
        thread.start()
        eventually(lambda: gate.waiting == waiting + 1, f"{name} waits")
        return thread

    # The small one would fit, but it came after the large one.
    threads = [wait("large", 70), wait("small", 10)]
    assert order == []
    first.give_back()
    first.give_back()
    for thread in threads:
        thread.join(DEADLINE)
    assert order == ["large", "small"]
    assert gate.taken == 0


def test_who_needs_more_than_there_is_gets_it_alone() -> None:
    gate = Gate(100)
    with gate.admitted(10), pytest.raises(GateTimeoutError, match="others wait"):
        gate.admit(1000, time.monotonic() + 0.02)
    with gate.admitted(1000), pytest.raises(GateTimeoutError):
        gate.admit(1, time.monotonic() + 0.02)
    assert (gate.taken, gate.waiting) == (0, 0)


def test_closing_sends_everybody_away_and_growing_lets_them_in() -> None:
    gate = Gate(100)
    held = gate.admit(90)
    found: list[Any] = []

    def run() -> None:
        try:
            gate.admit(50, time.monotonic() + DEADLINE).give_back()
            found.append("in")
        except GateClosedError:
            found.append("closed")

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: gate.waiting == 1, "it waits")
    gate.resize(1000)
    thread.join(DEADLINE)
    assert found == ["in"]
    gate.resize(100)
    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: gate.waiting == 1, "it waits")
    gate.close()
    thread.join(DEADLINE)
    assert found == ["in", "closed"]
    held.give_back()


def test_the_estimate_follows_the_arrays() -> None:
    def need(method: str, *args: Any) -> int:
        return estimate(Job("sklearn.decomposition.PCA", {}, None, method, args, {}, {}))

    array = np.zeros((1000, 1000), np.float32)
    assert need("fit", array) - need("fit") == 12_000_000
    assert need("transform", array) < need("fit", array)
    assert need("fit", [array, (array,)], {"w": array}) > 3 * need("fit", array) - 3 * need("fit")
    from scipy import sparse

    assert need("fit", sparse.csr_matrix(array + 1.0)) > need("fit", array)


def test_four_large_clients_queue_instead_of_failing(make_bench: Any) -> None:
    """Each of four jobs takes most of the device; together they would be four times too much."""
    bench = make_bench(environment={"FAKE_CUPY_TOTAL": str(24 << 20)}, gpu_resident_nbytes=0)
    arrays = [np.full((4 << 20) // 8, float(number)) for number in range(4)]
    handles = [bench.put(array[: (1 << 20) // 8]) for array in arrays]
    results: dict[int, Any] = {}

    def client(number: int) -> None:
        try:
            for _ in range(3):
                outcome = bench.backend.run(bench.job("need", bench.pool.get(handles[number]), 16 << 20))
                assert np.array_equal(outcome.result, arrays[number][: (1 << 20) // 8])
                del outcome
            results[number] = "good"
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert results == dict.fromkeys(range(4), "good")
    assert bench.run("peak") <= 24 << 20
    for handle in handles:
        bench.client.free(handle)


def test_out_of_memory_fails_one_job_and_leaves_nothing(trial: Any) -> None:
    pid = trial.run("pid")
    with pytest.raises(ServerError, match="does not fit into the device's memory") as caught:
        trial.run("need", np.zeros(2000), 4 << 30)
    assert caught.value.code == "out_of_memory"
    assert trial.run("resident") == 0
    used = trial.run("used")
    for _ in range(3):
        with pytest.raises(ServerError):
            trial.run("need", np.zeros(50_000), 4 << 30)
    assert trial.run("used") == used
    assert trial.run("pid") == pid
