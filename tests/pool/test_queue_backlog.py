# SPDX-License-Identifier: BSD-3-Clause
"""`Queue.put` never waits for a slot: what finds none is kept and sent later, once, also at the end of the process.

The pools here have two slots for messages, and every object needs one.
"""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pools import SLOT, check_all_free, check_progress, check_stamped, small, stamped
from helpers.processes import DEADLINE, Children

import shmpool

LARGE = 40_000  # too large for a cell

# A child that has the queue of `args[0]`, and puts these numbers.
PUT = """
import pickle, sys
sys.path.insert(0, args[1])
from helpers.pools import stamped
q = pickle.loads(bytes.fromhex(args[0]))
for number in range(int(args[2])):
    q.put(stamped(number, 40_000))
say("put")
"""


@pytest.fixture
def pool(pool_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[shmpool.Pool]:
    monkeypatch.setenv("SHMPOOL_PATH", str(pool_path))
    with small(pool_path) as pool:
        yield pool
        pool.reclaim()
        check_all_free(pool)
        check_progress(pool)


def feeders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "shmpool-queue"]


def wait_until_sent(q: shmpool.Queue) -> None:
    end = time.monotonic() + DEADLINE
    while len(q._backlog):
        assert time.monotonic() < end, "the feeder thread does not send"
        time.sleep(0.002)


def start(children: Children, q: shmpool.Queue, code: str, number: int) -> Any:
    return children.start(code, pickle.dumps(q).hex(), str(Path(__file__).parents[1]), number)


@pytest.mark.parametrize("maxsize", [0, 30], ids=["unlimited", "limited"])
def test_put_never_waits_for_a_slot(pool: shmpool.Pool, maxsize: int) -> None:
    q = shmpool.Queue(maxsize, pool=pool)
    for number in range(20):
        q.put(stamped(number, LARGE), timeout=0)
    q.put("small")
    assert q.qsize() == 21
    assert not q.full()
    for number in range(20):
        check_stamped(q.get(timeout=DEADLINE), number)
    assert q.get(timeout=DEADLINE) == "small", "nothing overtakes what waits for a slot"
    wait_until_sent(q)
    q.put("later")
    assert q.get_nowait() == "later"
    q.close()


def test_no_thread_while_there_is_room(pool: shmpool.Pool) -> None:
    q = shmpool.Queue(pool=pool)
    for number in range(10):
        q.put(stamped(number, LARGE))
        check_stamped(q.get_nowait(), number)
    assert feeders() == []
    q.close()


def test_maxsize_counts_what_waits_for_a_slot(pool: shmpool.Pool) -> None:
    q = shmpool.Queue(6, pool=pool)
    for number in range(6):
        q.put_nowait(stamped(number, LARGE))
    assert q.full()
    with pytest.raises(queue.Full):
        q.put_nowait("one more")
    with pytest.raises(queue.Full):
        q.put("one more", timeout=0.05)
    check_stamped(q.get(timeout=DEADLINE), 0)
    q.put("one more", timeout=DEADLINE)
    for number in range(1, 6):
        check_stamped(q.get(timeout=DEADLINE), number)
    assert q.get(timeout=DEADLINE) == "one more"
    assert q.empty()
    q.close()


def test_unlimited_is_more_than_the_ring_has_cells(pool: shmpool.Pool) -> None:
    q = shmpool.Queue(pool=pool)
    for number in range(1500):
        q.put_nowait(number)
    assert q.qsize() == 1500
    assert [q.get(timeout=DEADLINE) for _ in range(1500)] == list(range(1500))
    q.close()


def test_what_put_returned_from_may_be_changed(pool: shmpool.Pool) -> None:
    q = shmpool.Queue(pool=pool)
    array = stamped(0, LARGE)
    for number in range(5):
        array[...] = stamped(number, LARGE)
        q.put(array)
    array[...] = 0
    for number in range(5):
        check_stamped(q.get(timeout=DEADLINE), number)
    q.close()


def test_collected_results_do_not_stop_the_senders(pool: shmpool.Pool, children: Children) -> None:
    """Whoever keeps all that it gets would hold every slot, if these were views."""
    q = shmpool.Queue(pool=pool)
    child = start(children, q, PUT + "q.close(); q.join_thread()", 20)
    got = [q.get(timeout=DEADLINE) for _ in range(20)]
    for number, array in enumerate(got):
        check_stamped(array, number)
    assert any(array.base is not None and not array.flags.owndata for array in got), "the first is a view"
    assert child.wait() == 0
    del got, array
    q.close()


@pytest.mark.parametrize("end", ["", "q.close()", "q.close(); q.join_thread()", "del q"])
def test_a_process_ends_when_everything_is_sent(pool: shmpool.Pool, children: Children, end: str) -> None:
    q = shmpool.Queue(pool=pool)
    child = start(children, q, PUT + end, 10)
    assert child.hear() == "put"
    for number in range(10):
        check_stamped(q.get(timeout=DEADLINE), number)
    assert child.wait() == 0
    assert child.stderr() == ""
    q.close()


def _put_many(q: shmpool.Queue, n: int) -> None:
    for number in range(n):
        q.put(stamped(number, LARGE))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_of_multiprocessing_does_too(pool: shmpool.Pool, method: str) -> None:
    q = shmpool.Queue(pool=pool)
    process = multiprocessing.get_context(method).Process(target=_put_many, args=(q, 10))  # type: ignore[attr-defined]
    process.start()
    for number in range(10):
        check_stamped(q.get(timeout=DEADLINE), number)
    process.join(DEADLINE)
    assert process.exitcode == 0
    q.close()


@pytest.mark.parametrize("end", ["q.cancel_join_thread()", "pool.free(handle)"], ids=["cancelled", "alone"])
def test_a_process_does_not_wait_in_vain(pool: shmpool.Pool, children: Children, end: str) -> None:
    """It was told not to wait; or nobody else has the queue."""
    code = """
import numpy as np, shmpool
pool = shmpool.Pool.open(args[0], prefault_nbytes=0)
handle = pool.put(np.zeros(3))
q = shmpool.Queue(int(args[1]), pool=pool)
for number in range(10):
    q.put(np.zeros(40_000, "u1"))
"""
    child = children.start(code + end, str(pool.path), 20)
    assert child.wait() == 0
    assert child.stderr() == ""


@pytest.mark.parametrize("maxsize", [0, 10], ids=["unlimited", "limited"])
def test_killed_with_objects_that_wait(pool: shmpool.Pool, children: Children, maxsize: int) -> None:
    """What was sent is there; what was not is lost, and its places in the queue are free again."""
    q = shmpool.Queue(maxsize, pool=pool)
    child = start(children, q, PUT + "hear()", 10)
    assert child.hear() == "put"
    child.kill()
    pool.reclaim()
    got = []
    while not q.empty():
        got.append(check_stamped(q.get(timeout=DEADLINE)))
    assert got == [0, 1]
    for number in range(10):
        q.put(number, timeout=0)
    assert [q.get(timeout=DEADLINE) for _ in range(10)] == list(range(10))
    q.close()


@pytest.mark.parametrize("maxsize", [0, 10], ids=["unlimited", "limited"])
def test_a_forked_child_sends_nothing_of_its_parent(pool: shmpool.Pool, maxsize: int) -> None:
    q = shmpool.Queue(maxsize, pool=pool)
    _put_many(q, 6)
    process = multiprocessing.get_context("fork").Process(target=q.put, args=("of the child",))
    process.start()
    got: list[Any] = []
    while len(got) < 7:
        one = q.get(timeout=DEADLINE)
        got.append(one if isinstance(one, str) else check_stamped(one))
        del one
    process.join(DEADLINE)
    assert process.exitcode == 0
    got.remove("of the child")
    assert got == list(range(6))
    assert q.empty()
    q.close()


def test_too_large_is_said_at_once(pool: shmpool.Pool) -> None:
    q = shmpool.Queue(20, pool=pool)
    huge = np.zeros(9 * SLOT, "u1")
    with pytest.raises(shmpool.PayloadTooLargeError):
        q.put(huge)
    _put_many(q, 5)
    with pytest.raises(shmpool.PayloadTooLargeError):
        q.put(huge)
    for number in range(5):
        check_stamped(q.get(timeout=DEADLINE), number)
    for number in range(20):  # a place that a refused object had taken would be missing here
        q.put_nowait(number)
    for _ in range(20):
        q.get(timeout=DEADLINE)
    q.close()


def test_many_threads_and_processes(pool: shmpool.Pool, children: Children) -> None:
    """Each thread's objects in order, each once."""
    q = shmpool.Queue(12, pool=pool)
    code = """
import pickle, threading
q = pickle.loads(bytes.fromhex(args[0]))
def put(thread):
    for number in range(int(args[2])):
        q.put((int(args[1]), thread, number, np.full(5000 if number % 3 else 5, number)))
threads = [threading.Thread(target=put, args=(n,)) for n in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    started = [children.start(code, pickle.dumps(q).hex(), process, 60) for process in range(2)]
    last: dict[tuple[int, int], int] = {}
    for _ in range(240):
        process, thread, number, array = q.get(timeout=DEADLINE)
        assert (array == number).all()
        assert number == last.get((process, thread), -1) + 1
        last[process, thread] = number
        del array
    assert set(last.values()) == {59}
    assert [child.wait() for child in started] == [0, 0]
    assert q.empty()
    q.close()
