# SPDX-License-Identifier: BSD-3-Clause
"""Which slots are handed out, and what happens when there are none: rotation, spans, back-pressure."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pools import SLOT, check_all_free, small

import shmpool
from shmpool import Pool

DEADLINE = 60.0


def test_rotation(small_pool: Pool) -> None:
    """An idle pool hands out 0,1,2,3,0,1,... region by region."""
    for region, slots in (("input", [0, 1, 2, 3, 0, 1]), ("output", [4, 5, 4, 5]), ("scratch", [6, 7, 6])):
        found = []
        for _ in slots:
            handle = small_pool.put(np.arange(3), region)  # type: ignore[arg-type]
            found.append(handle.slot)
            small_pool.free(handle)
        assert found == slots
    assert small_pool.counters == {"input": 6, "output": 4, "scratch": 3}


def test_rotation_is_shared(pool_path: Path) -> None:
    with small(pool_path) as one, small(pool_path) as two:
        slots = []
        for pool in (one, two, two, one, two):
            handle = pool.put(np.arange(3))
            slots.append(handle.slot)
            pool.free(handle)
        assert slots == [0, 1, 2, 3, 0]
        assert one.counters == two.counters


def test_slots_in_use_are_passed_over(small_pool: Pool) -> None:
    kept = small_pool.put(np.arange(3))
    viewed = small_pool.put(np.arange(4))
    view = small_pool.get(viewed)
    small_pool.free(viewed)
    seen = set()
    for _ in range(8):
        handle = small_pool.put(np.arange(5))
        seen.add(handle.slot)
        small_pool.free(handle)
    assert seen == {2, 3}
    assert view.tolist() == [0, 1, 2, 3]
    assert small_pool.get(kept).tolist() == [0, 1, 2]


def test_spans(small_pool: Pool) -> None:
    """Larger than a slot: adjacent slots, one contiguous view; larger than the region: anywhere."""
    for n_slots, region, expected in (
        (1, "input", 1),
        (2, "input", 2),
        (4, "input", 4),
        (5, "output", 5),
        (8, "scratch", 8),
    ):
        for nbytes in {(n_slots - 1) * SLOT + 1, n_slots * SLOT}:
            array = np.random.default_rng(nbytes).integers(0, 256, nbytes, "u1")
            handle = small_pool.put(array, region)  # type: ignore[arg-type]
            assert (handle.span, handle.nbytes) == (expected, nbytes)
            view = small_pool.get(handle)
            assert view.flags.c_contiguous
            assert np.array_equal(view, array)
            small_pool.free(handle)
            assert small_pool.stat().used_slots == handle.span
            del view
            check_all_free(small_pool)


def test_payload_too_large(small_pool: Pool) -> None:
    nbytes = 8 * SLOT + 1
    for call in (lambda: small_pool.put(np.zeros(nbytes, "u1")), lambda: small_pool.loan(nbytes, "u1")):
        with pytest.raises(shmpool.PayloadTooLargeError, match=f"{nbytes}.*{8 * SLOT}") as caught:
            call()
        assert (caught.value.nbytes, caught.value.pool_nbytes) == (nbytes, 8 * SLOT)  # type: ignore[attr-defined]
    with pytest.raises(shmpool.PayloadTooLargeError):
        small_pool.loan((2**40, 2**40), "f8")
    check_all_free(small_pool)


def test_pool_full_error_says_who(pool_path: Path) -> None:
    with small(pool_path) as pool, small(pool_path) as other:
        handles = [pool.put(np.arange(3)) for _ in range(2)]
        loan = other.loan(3)
        handles.append(other.put(np.arange(4)))
        view = other.get(handles[0])
        pool.free(handles[0])
        with pytest.raises(shmpool.PoolFullError) as caught:
            pool.put(np.arange(9), timeout=0.02)
        error: Any = caught.value
        assert issubclass(type(error), TimeoutError)
        assert (error.region, error.span) == ("input", 1)
        assert error.waited >= 0.02
        holders = {(holder.slot, holder.state, holder.client) for holder in error.holders}
        assert holders == {
            (0, "retired", other.client.index),
            (1, "sealed", pool.client.index),
            (2, "writing", other.client.index),
            (3, "sealed", other.client.index),
        }
        assert all(holder.alive and holder.age >= 0 for holder in error.holders)
        assert "slot 0 retired, pinned 1x by client 1" in str(error)
        assert "alive" in str(error)
        assert error.hint
        # the other regions are free and stay usable
        pool.free(pool.put(np.arange(3), "output", timeout=0))
        with pytest.raises(shmpool.PoolFullError, match="run of 2 adjacent slots"):
            pool.put(np.zeros(SLOT + 1, "u1"), timeout=0)
        del view, loan


def test_timeout_zero_does_not_wait(small_pool: Pool) -> None:
    handles = [small_pool.put(np.arange(3), timeout=0) for _ in range(4)]
    with pytest.raises(shmpool.PoolFullError):
        small_pool.put(np.arange(3), timeout=0)
    with pytest.raises(shmpool.PoolFullError):
        small_pool.loan(3, timeout=0)
    small_pool.free(handles[2])
    assert small_pool.put(np.arange(3), timeout=0).slot == 2


@pytest.mark.parametrize("timeout", [math.nan, -1, -1e-9, -math.inf])
def test_bad_timeouts(small_pool: Pool, timeout: float) -> None:
    for _ in range(2):  # the same on a pool with room and on a full one
        with pytest.raises(ValueError, match="timeout"):
            small_pool.put(np.arange(3), timeout=timeout)
        with pytest.raises(ValueError, match="timeout"):
            small_pool.loan(3, timeout=timeout)
        while small_pool.stat().used_slots < 4:
            small_pool.put(np.arange(3))
    assert small_pool.stat().used_slots == 4


@pytest.mark.parametrize("timeout", ["1", (), True])
def test_timeouts_of_other_types(small_pool: Pool, timeout: Any) -> None:
    with pytest.raises(TypeError, match="timeout"):
        small_pool.put(np.arange(3), timeout=timeout)
    check_all_free(small_pool)


@pytest.mark.parametrize("region", ["inputs", "", None, 0, ["input"]])
def test_bad_region(small_pool: Pool, region: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        small_pool.put(np.arange(3), region)
    with pytest.raises((ValueError, TypeError)):
        small_pool.loan(3, region=region)
    check_all_free(small_pool)


@pytest.mark.parametrize("timeout", [DEADLINE, math.inf, np.float32(DEADLINE)])
@pytest.mark.parametrize("how", ["free", "unpin", "abort", "close"])
def test_back_pressure(pool_path: Path, how: str, timeout: float) -> None:
    """A put into a full pool goes on when anybody lets go of a slot, however that happens."""
    with small(pool_path) as pool:
        other = small(pool_path)
        handles = [pool.put(np.arange(3)) for _ in range(3)]
        last = other.loan(3)
        view = pool.get(handles[0])
        if how == "unpin":
            pool.free(handles[0])
        started, result = threading.Event(), []

        def put() -> None:
            started.set()
            result.append(pool.put(np.arange(7), timeout=timeout))

        thread = threading.Thread(target=put)
        thread.start()
        assert started.wait(DEADLINE)
        thread.join(0.05)
        assert thread.is_alive(), "the pool was full"
        if how == "free":
            pool.free(handles[1])
        elif how == "unpin":
            del view
        elif how == "abort":
            last.abort()
        else:
            del last
            other.close()
        thread.join(DEADLINE)
        assert not thread.is_alive()
        assert pool.get(result[0]).tolist() == list(range(7))
        other.close()


def test_close_wakes_a_waiter(pool_path: Path) -> None:
    with small(pool_path) as holder:
        for _ in range(4):
            holder.put(np.arange(3))
        pool = small(pool_path)
        caught: list[BaseException] = []

        def put() -> None:
            try:
                pool.put(np.arange(3), timeout=math.inf)
            except shmpool.PoolClosedError as error:
                caught.append(error)

        thread = threading.Thread(target=put)
        thread.start()
        thread.join(0.03)
        pool.close()
        thread.join(DEADLINE)
        assert not thread.is_alive()
        assert len(caught) == 1
        assert len(holder.stat().clients) == 1


def test_waiting_releases_the_gil(small_pool: Pool) -> None:
    """Somebody in the same process can free what the waiter waits for, and count meanwhile."""
    handles = [small_pool.put(np.arange(3)) for _ in range(4)]
    thread = threading.Thread(target=lambda: small_pool.free(small_pool.put(np.arange(5), timeout=DEADLINE)))
    thread.start()
    deadline = time.monotonic() + DEADLINE
    count = 0
    while count < 20000 and time.monotonic() < deadline:
        count += 1
    assert thread.is_alive()
    small_pool.free(handles[0])
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_spans_wait_too(small_pool: Pool) -> None:
    handles = [small_pool.put(np.arange(3)) for _ in range(4)]
    result: list[shmpool.Handle] = []
    array = np.arange(3 * SLOT, dtype="u1")
    thread = threading.Thread(target=lambda: result.append(small_pool.put(array, timeout=DEADLINE)))
    thread.start()
    for handle in handles[:3]:
        thread.join(0.01)
        assert thread.is_alive()
        small_pool.free(handle)
    thread.join(DEADLINE)
    assert result[0].span == 3
    assert np.array_equal(small_pool.get(result[0]), array)
    small_pool.free(result[0])
    small_pool.free(handles[3])
    check_all_free(small_pool)


def test_fragmented_pool_is_full_for_a_span_only(small_pool: Pool) -> None:
    handles = [small_pool.put(np.arange(3)) for _ in range(4)]
    small_pool.free(handles[0])
    small_pool.free(handles[2])
    with pytest.raises(shmpool.PoolFullError):
        small_pool.put(np.zeros(SLOT + 1, "u1"), timeout=0.01)
    assert [slot.state for slot in small_pool.stat().slots[:4]] == ["free", "sealed", "free", "sealed"]
    small_pool.put(np.arange(3), timeout=0)
