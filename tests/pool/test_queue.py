# SPDX-License-Identifier: BSD-3-Clause
"""shmpool.Queue: CPython's own queue tests, run against it, and what multiprocessing.Queue does not have.

Not run are the tests of what such a queue does otherwise (docs/channels.md, *Queue*).
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import pickle
import queue
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pools import check_all_free, check_stamped, small, stamped
from helpers.processes import Children

import shmpool

theirs = pytest.importorskip("test._test_multiprocessing", reason="this CPython came without its test suite")

# What is not tested, and why.
DIFFERENT = {
    "test_task_done": "of JoinableQueue, which shmpool does not have",
    "test_queue_feeder_donot_stop_onexc": "put() raises what pickling raises, at once and where it can be caught",
    "test_queue_feeder_on_queue_feeder_error": "put() pickles, not a feeder thread: there is no hook for its errors",
    "test_no_import_lock_contention": "tests multiprocessing's feeder thread against the import lock, not a queue",
}
TESTS = sorted(name for name in dir(theirs._TestQueue) if name.startswith("test_") and name not in DIFFERENT)


@pytest.fixture
def queue_pool(pool_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[shmpool.Pool]:
    """The default pool of this process and its children."""
    monkeypatch.setenv("SHMPOOL_PATH", str(pool_path))
    with small(pool_path) as pool:
        yield pool


def test_differences_are_tests() -> None:
    assert set(DIFFERENT) <= set(dir(theirs._TestQueue))
    assert len(TESTS) >= 6


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("name", TESTS)
def test_of_cpython(name: str, method: str, queue_pool: shmpool.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    if method == "spawn" and name == "test_fork":
        pytest.skip("it is the test of fork")
    context = multiprocessing.get_context(method)
    made: list[shmpool.Queue] = []

    def make(*args: Any, **kwargs: Any) -> shmpool.Queue:
        made.append(shmpool.Queue(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(multiprocessing, "Queue", make)
    monkeypatch.setattr(multiprocessing, "JoinableQueue", make)

    class Case(theirs._TestQueue, unittest.TestCase):  # type: ignore[misc,name-defined]
        TYPE = "processes"
        Process = staticmethod(context.Process)
        Queue = staticmethod(make)
        Event = staticmethod(context.Event)
        # The targets of child processes: bound to a class that a spawned child can import.
        _test_put = staticmethod(theirs._TestQueue._test_put)
        _test_get = staticmethod(theirs._TestQueue._test_get)
        _test_fork = staticmethod(theirs._TestQueue._test_fork)
        _test_task_done = staticmethod(theirs._TestQueue._test_task_done)

    result = unittest.TestResult()
    case = Case(name)
    case.run(result)
    for one in made:
        one.close()
    assert not result.skipped
    assert result.testsRun == 1
    assert [text for _, text in result.errors + result.failures] == []


def test_arrays_anywhere_in_an_object(queue_pool: shmpool.Pool) -> None:
    q = shmpool.Queue(pool=queue_pool)
    sent = {
        "a": [stamped(1, 40_000), (stamped(2, 256), "text")],
        "b": {"c": np.asfortranarray(np.ones((7, 5)))},
        "n": None,
    }
    q.put(sent)
    got = q.get()
    check_stamped(got["a"][0], 1)
    check_stamped(got["a"][1][0], 2)
    assert got["a"][1][1] == "text"
    assert got["b"]["c"].flags.f_contiguous
    assert got["b"]["c"].sum() == 35
    assert got["n"] is None
    got["a"][0][...] = 0  # nobody else has them
    got["b"]["c"][0, 0] = 2
    del got
    gc.collect()
    check_all_free(queue_pool)
    q.close()


def test_objects_keep_their_order_and_type(queue_pool: shmpool.Pool) -> None:
    q = shmpool.Queue(8, pool=queue_pool)
    objects: list[Any] = [None, 1, "x" * 30_000, [], {"a": (1, 2)}, functools.partial(int, "5"), b"", np.float32(2)]
    for one in objects:
        q.put(one)
    assert q.full()
    with pytest.raises(queue.Full):
        q.put_nowait(0)
    got = [q.get() for _ in objects]
    assert got[:5] == objects[:5]
    assert got[5]() == 5
    assert got[6:] == objects[6:]
    assert q.empty()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.01)
    q.close()


def test_what_cannot_be_pickled_is_said_at_once(queue_pool: shmpool.Pool) -> None:
    q = shmpool.Queue(pool=queue_pool)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        q.put(lambda: None)
    q.put("next")
    assert q.get() == "next"
    q.close()


def test_join_thread_wants_close_first(queue_pool: shmpool.Pool) -> None:
    q = shmpool.Queue(pool=queue_pool)
    with pytest.raises(AssertionError):
        q.join_thread()
    q.cancel_join_thread()
    q.close()
    q.close()
    q.join_thread()
    for call in (q.get, q.qsize, q.empty, q.full, lambda: q.put(1), lambda: pickle.dumps(q)):
        with pytest.raises(ValueError, match="is closed"):
            call()


def test_a_dead_process_takes_nothing_along(queue_pool: shmpool.Pool, children: Children) -> None:
    """Killed between two puts: what it had put is there, and what comes later too."""
    q = shmpool.Queue(pool=queue_pool)
    with_arrays = children.start(
        "import pickle\n"
        "q = pickle.loads(bytes.fromhex(args[0]))\n"
        "for n in range(2):\n"
        "    q.put((n, np.full(5000, n)))\n"
        "say('put'); hear()",
        pickle.dumps(q).hex(),
    )
    assert with_arrays.hear() == "put"
    with_arrays.kill()
    q.put((2, "text"))
    for n in range(2):
        number, array = q.get(timeout=20)
        assert number == n
        assert (array == n).all()
    assert q.get(timeout=20) == (2, "text")
    del array
    q.close()
    check_all_free(queue_pool)
