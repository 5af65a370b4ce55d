# SPDX-License-Identifier: BSD-3-Clause
"""One Pool object, or several, under many threads: no bytes of others, no lost slots, no deadlock."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.pools import SLOT, check_all_free, check_progress, check_stamped, small, stamped

import shmpool
from shmpool import Pool

DEADLINE = 120.0


def run(*targets: Callable[[], None]) -> None:
    """Run these at once; raise what the first of them raised; fail when one does not end."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(len(targets))

    def guarded(target: Callable[[], None]) -> None:
        barrier.wait(DEADLINE)
        try:
            target()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if failures:
        raise failures[0]


@pytest.fixture(params=[1, 3], ids=["one_object", "three_objects"])
def pools(request: pytest.FixtureRequest, pool_path: Path) -> Iterator[list[Pool]]:
    opened = [small(pool_path, timeout=DEADLINE) for _ in range(request.param)]
    yield opened
    gc.collect()
    check_all_free(opened[0])
    check_progress(opened[0])
    for pool in opened:
        pool.close()


def test_everybody_puts_gets_and_frees(pools: list[Pool]) -> None:
    """More threads than slots: every put waits for somebody's free."""

    def work(seed: int) -> None:
        pool, rng = pools[seed % len(pools)], random.Random(seed)
        for number in range(60):
            nbytes = rng.choice([32, 4096, SLOT, 3 * SLOT])
            handle = pool.put(stamped(seed * 1000 + number, nbytes))
            view = pool.get(handle)
            other = rng.choice(pools).get(handle, copy=rng.random() < 0.5)
            pool.free(handle)
            check_stamped(view, seed * 1000 + number)
            check_stamped(other, seed * 1000 + number)
            del view, other  # waiting for a slot while keeping one is a deadlock of the user's making

    run(*[lambda seed=seed: work(seed) for seed in range(6)])


def test_one_free_wins(pools: list[Pool]) -> None:
    for _ in range(100):
        handle = pools[0].put(np.arange(3))
        won: list[int] = []

        def free(number: int, handle: shmpool.Handle = handle, won: list[int] = won) -> None:
            try:
                pools[number % len(pools)].free(handle)
            except shmpool.StaleHandleError:
                return
            won.append(number)

        threads = [threading.Thread(target=free, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert len(won) == 1


def test_get_against_free(pools: list[Pool]) -> None:
    """A get either yields the whole array or says stale, whatever is put into the slot meanwhile."""
    latest: list[tuple[int, shmpool.Handle]] = []
    done = threading.Event()
    seen: list[int] = []

    def write() -> None:
        end = time.monotonic() + DEADLINE
        number = 0
        try:
            while number < 400 or (not seen and time.monotonic() < end):  # all 400 fit into one turn of this thread
                number += 1
                handle = pools[0].put(stamped(number, 8192))
                latest.append((number, handle))
                if len(latest) > 2:
                    pools[0].free(latest.pop(0)[1])
        finally:
            done.set()

    def read(which: int) -> None:
        pool = pools[which % len(pools)]
        while not done.is_set():
            for number, handle in latest[-1:]:
                try:
                    view = pool.get(handle)
                except shmpool.StaleHandleError:
                    continue
                check_stamped(view, number)
                seen.append(number)

    run(write, lambda: read(1), lambda: read(2))
    assert seen
    for _, handle in latest:
        pools[0].free(handle)


def test_views_dropped_in_other_threads(pools: list[Pool]) -> None:
    handle = pools[0].put(stamped(7))
    views = [pools[number % len(pools)].get(handle) for number in range(300)]
    pools[0].free(handle)
    run(*[lambda part=part: part.clear() for part in (views[:100], views[100:200], views[200:])])
    assert pools[0].stat().slots[handle.slot].state == "retired"
    views.clear()


def test_opening_and_closing_at_once(pool_path: Path) -> None:
    """Threads that open, use and close the same path, with nobody there before: created once at a time."""

    def work(seed: int) -> None:
        for number in range(10):
            with small(pool_path, max_clients=64) as pool:
                handle = pool.put(stamped(seed * 100 + number))
                check_stamped(pool.get(handle, copy=True), seed * 100 + number)

    run(*[lambda seed=seed: work(seed) for seed in range(5)])
    with small(pool_path) as pool:
        assert len(pool.stat().clients) == 1
        check_progress(pool)


def test_close_while_others_work(pool_path: Path) -> None:
    """Threads in the middle of anything get PoolClosedError, and nothing of theirs stays behind."""
    with small(pool_path) as watcher:
        for _ in range(8):
            pool = small(pool_path)
            started = threading.Barrier(4)

            def work(seed: int, pool: Pool = pool, started: threading.Barrier = started) -> None:
                started.wait(DEADLINE)
                while True:
                    try:
                        with pool.loan(100, "i8", timeout=DEADLINE) as loan:
                            loan.array[...] = seed
                            handle = loan.seal()
                        pool.get(pool.put(stamped(seed, 2 * SLOT), timeout=0), copy=True)
                        pool.free(handle)
                    except shmpool.PoolClosedError:
                        return
                    except (shmpool.PoolFullError, shmpool.StaleHandleError):
                        continue

            def close(pool: Pool = pool, started: threading.Barrier = started) -> None:
                started.wait(DEADLINE)
                for _ in range(20):
                    pool.stat()
                pool.close()

            run(*[lambda seed=seed: work(seed) for seed in range(3)], close)
            del pool
            gc.collect()
            assert len(watcher.stat().clients) == 1
            check_all_free(watcher)


def test_stat_and_reclaim_beside_the_work(pools: list[Pool]) -> None:
    done = threading.Event()

    def work() -> None:
        try:
            for number in range(300):
                handle = pools[0].put(stamped(number))
                check_stamped(pools[-1].get(handle), number)
                pools[-1].free(handle)
        finally:
            done.set()

    def look() -> None:
        pool = pools[-1]
        while not done.is_set():
            stat = pool.stat()
            assert stat.n_slots == len(stat.slots)
            assert {client.nonce for client in stat.clients} >= {other.client.nonce for other in pools}
            assert all(client.alive for client in stat.clients)
            assert pool.reclaim() == 0
            assert all(pool.is_alive(other.client) for other in pools)

    run(work, look, look)
