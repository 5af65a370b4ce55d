# SPDX-License-Identifier: BSD-3-Clause
"""What stays on the device for the next call, and that nobody gets to write to it."""

from __future__ import annotations

from typing import Any

import numpy as np
from gsb_server.gpu.residency import Residency

X = np.random.default_rng(2).standard_normal((2000, 20))


class Memory:
    """A device of which only the free bytes matter."""

    def __init__(self, residency: Residency, total: int) -> None:
        self.residency, self.total = residency, total

    def memory(self) -> tuple[int, int]:
        return self.total - self.residency.nbytes, self.total


def test_least_recently_used_goes_first_and_the_limit_holds() -> None:
    kept = Residency(100)
    assert kept.put("a", object(), 40)
    assert kept.put("b", object(), 40)
    assert kept.get("a") is not None
    assert kept.put("c", object(), 40)
    assert kept.get("b") is None
    assert (len(kept), kept.nbytes, kept.evictions) == (2, 80, 1)
    assert not kept.put("d", object(), 101)
    assert kept.put("a", object(), 10)
    assert kept.nbytes == 50
    kept.clear()
    assert (len(kept), kept.nbytes) == (0, 0)


def test_pressure_drops_as_much_as_is_needed() -> None:
    kept = Residency(100)
    for name in "abcd":
        kept.put(name, object(), 20)
    device: Any = Memory(kept, 100)
    kept.make_room(device, 50)
    assert list(kept._arrays) == ["c", "d"]
    kept.make_room(device, 1000)
    assert len(kept) == 0


def test_the_next_call_on_the_same_slot_uploads_nothing(trial: Any) -> None:
    handle = trial.put(X)
    before = trial.run("uploads")
    for method in ("echo", "echo", "shared", "spoil", "echo"):
        found = trial.run_on(method, handle)
        # What one call has done to its copy is not seen by the next.
        assert np.array_equal(found, X + (method == "spoil"))
    assert trial.run("uploads") == before + 1
    assert trial.run("resident") >= 1
    resident = trial.backend.status()["resident"]
    assert resident["hits"] >= 4
    assert resident["nbytes"] >= X.nbytes
    trial.client.free(handle)
    # The slot again, other content: another generation.
    second = trial.put(X * 2)
    assert np.array_equal(trial.run_on("echo", second), X * 2)
    assert trial.run("uploads") == before + 2
    trial.client.free(second)


def test_one_array_named_twice_is_uploaded_once(trial: Any) -> None:
    handle = trial.put(X)
    before = trial.run("uploads")
    view = trial.pool.get(handle)
    first, second = trial.finish(trial.backend.run(trial.job("several", view, view)))
    assert np.array_equal(first, X)
    assert np.array_equal(second, X)
    assert trial.run("uploads") == before + 1
    del view
    trial.client.free(handle)


def test_residents_make_room_for_jobs(make_bench: Any) -> None:
    bench = make_bench(environment={"FAKE_CUPY_TOTAL": str(32 << 20)}, gpu_resident_nbytes=16 << 20)
    for number in range(20):
        handle = bench.put(np.full(1 << 16, float(number)))
        assert bench.run_on("echo", handle)[0] == number
        bench.client.free(handle)
    assert bench.run("resident") > 4
    outcome = bench.backend.run(bench.job("need", np.zeros(1 << 17), 20 << 20))
    assert outcome.result.shape == (1 << 17,)


def test_without_room_nothing_is_kept(make_bench: Any) -> None:
    bench = make_bench(gpu_resident_nbytes=0)
    handle = bench.put(X)
    for _ in range(2):
        assert np.array_equal(bench.run_on("spoil", handle), X + 1)
    assert bench.run("resident") == 0
    bench.client.free(handle)
