# SPDX-License-Identifier: BSD-3-Clause
"""fork: the child's copy of a pool is poisoned, and what the child does cannot hurt the parent's place in it."""

from __future__ import annotations

import pytest
from helpers.pools import check_progress, check_stamped, stamped
from helpers.processes import KILLED, Children

import shmpool

# The parent in these tests is itself a child, so that a fork meets a small process without threads of pytest's.
_PARENT = """
import signal
pool = shmpool.Pool.attach(args[0], prefault_nbytes=0, timeout=20)
def fork(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
        os._exit(1)
    return pid
def join(pid):
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
"""


def run(children: Children, pool: shmpool.Pool, text: str) -> None:
    children.start(_PARENT + text, pool.path).finish()


def test_every_use_of_an_inherited_pool_is_refused(small_pool: shmpool.Pool, children: Children) -> None:
    run(
        children,
        small_pool,
        """
h = pool.put(np.arange(5))
loan = pool.loan((4,), "f8")
def work():
    me = pool.client
    uses = [
        lambda: pool.put(np.arange(3)), lambda: pool.loan((3,)), lambda: pool.get(h), lambda: pool.free(h),
        lambda: pool.stat(), lambda: pool.reclaim(), lambda: pool.adopt(h), lambda: pool.give(h, me),
        lambda: pool.owner(h), lambda: pool.is_alive(me), lambda: pool.counters, lambda: pool.epoch,
        lambda: loan.seal(), lambda: pool.put(loan.array),
    ]
    for number, use in enumerate(uses):
        try:
            use()
        except shmpool.ForkedPoolError as error:
            assert "reattach" in error.hint
        else:
            raise AssertionError(f"use {number} was not refused")
    assert "forked" in repr(pool)
join(fork(work))
loan.array[:] = 1
assert pool.get(loan.seal()).tolist() == [1] * 4
assert pool.get(h).tolist() == list(range(5))
""",
    )
    check_progress(small_pool)


def test_reattach_gives_the_child_a_place_of_its_own(small_pool: shmpool.Pool, children: Children) -> None:
    run(
        children,
        small_pool,
        """
h = pool.put(np.arange(5))
def work():
    old = pool.client
    pool.reattach()
    assert pool.client != old and pool.client.index != old.index
    assert pool.is_alive(old) and pool.is_alive(pool.client)
    assert pool.get(h).tolist() == list(range(5))
    mine = pool.put(np.arange(9))
    assert pool.owner(mine) == pool.client and pool.owner(h) == old
join(fork(work))
assert pool.reclaim() == 1
assert [s.state for s in pool.stat().slots].count("sealed") == 1
assert pool.get(h).tolist() == list(range(5))
""",
    )
    check_progress(small_pool)


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "pool.close(); os._exit(0)", "sys.exit(0)"])
def test_the_parents_place_survives_the_end_of_a_child(end: str, small_pool: shmpool.Pool, children: Children) -> None:
    parent = children.start(
        _PARENT
        + f"""
h = pool.put(np.arange(5))
view = pool.get(h)
loan = pool.loan((4,), "f8", region="output")
pid = os.fork()
if pid == 0:
    {end}
os.waitpid(pid, 0)
say([h.to_dict(), pool.client.index, pool.client.nonce])
hear()
loan.array[:] = 2
assert pool.get(loan.seal()).tolist() == [2] * 4 and view.tolist() == list(range(5))
""",
        small_pool.path,
    )
    handle, index, nonce = parent.hear()
    assert small_pool.reclaim() == 0
    assert small_pool.is_alive(shmpool.ClientId(index, nonce))
    assert small_pool.get(shmpool.Handle.from_dict(handle)).tolist() == list(range(5))
    parent.say("go on")
    parent.finish()
    check_progress(small_pool)


def test_a_living_child_does_not_keep_a_killed_parent_alive(small_pool: shmpool.Pool, children: Children) -> None:
    parent = children.start(
        _PARENT
        + """
handles = [pool.put(np.arange(5), "output") for _ in range(2)]
say([pool.client.index, pool.client.nonce])
pid = os.fork()
if pid == 0:
    say("child is here")
    hear()      # both ends stay open for as long as the child lives
    os._exit(0)
os.waitpid(pid, 0)
""",
        small_pool.path,
    )
    place = shmpool.ClientId(*parent.hear())
    assert parent.hear() == "child is here"
    assert small_pool.is_alive(place)
    assert parent.kill() == KILLED
    assert not small_pool.is_alive(place)
    for _ in range(2):
        small_pool.put(stamped(1), "output", 0)


def test_views_that_a_child_drops_stay_pinned_for_the_parent(small_pool: shmpool.Pool, children: Children) -> None:
    ours = small_pool.put(stamped(3, 100_000), "output")
    parent = children.start(
        _PARENT
        + """
h = shmpool.Handle.from_dict(hear())
view = pool.get(h)
loan = pool.loan((4,), "f8")
def work():
    global view, loan
    assert view[0] == 3
    del view, loan
    import gc
    gc.collect()
    pool.close()
join(fork(work))
say("dropped")
hear()
say(int(view[0]))
hear()
""",
        small_pool.path,
    )
    assert parent.ask(ours.to_dict()) == "dropped"
    small_pool.free(ours)
    with pytest.raises(shmpool.PoolFullError):
        small_pool.put(stamped(9), "output", 0)
    assert [slot.state for slot in small_pool.stat().slots].count("writing") == 1
    assert parent.ask("look") == 3
    parent.kill()
    check_progress(small_pool)


def test_grandchildren_and_siblings(small_pool: shmpool.Pool, children: Children) -> None:
    run(
        children,
        small_pool,
        """
h = pool.put(np.arange(5))
def leaf():
    pool.reattach()
    assert pool.get(h).tolist() == list(range(5))
    pool.free(pool.put(np.arange(3)))
def node():
    leaf()
    pids = [fork(leaf) for _ in range(2)]
    for pid in pids:
        join(pid)
    pool.put(np.arange(4))      # its own place is still good
pids = [fork(node) for _ in range(3)]
for pid in pids:
    join(pid)
assert pool.get(h).tolist() == list(range(5))
assert len({c.index for c in pool.stat().clients if c.alive}) == 2
""",
    )
    check_progress(small_pool)


def test_fork_while_other_threads_use_the_pool(small_pool: shmpool.Pool, children: Children) -> None:
    run(
        children,
        small_pool,
        """
import threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
stop = False
def churn():
    while not stop:
        pool.free(pool.put(np.zeros(20_000)))
        pool.reclaim()
threads = [threading.Thread(target=churn) for _ in range(2)]
for thread in threads:
    thread.start()
def work():
    pool.reattach()
    for k in range(5):
        h = pool.put(np.full(9000, k), "output")
        assert (pool.get(h) == k).all()
        pool.free(h)
    pool.reclaim()
for _ in range(10):
    join(fork(work))
stop = True
for thread in threads:
    thread.join()
""",
    )
    check_progress(small_pool)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method: str, small_pool: shmpool.Pool, children: Children) -> None:
    # multiprocessing's children import the main module: it must be a file.
    script = small_pool.path.with_name("script.bin")
    script.write_text(
        """
import multiprocessing, sys
import numpy as np, shmpool
def double(path, handle):
    with shmpool.Pool.attach(path, prefault_nbytes=0) as pool:
        result = pool.put(pool.get(handle) * 2, "output")
        pool.give(result, pool.owner(handle))
        return result
if __name__ == "__main__":
    pool = shmpool.Pool.attach(sys.argv[1], prefault_nbytes=0)
    context = multiprocessing.get_context(sys.argv[2])
    with context.Pool(2) as workers:
        handles = [pool.put(np.arange(k + 1)) for k in range(2)]
        results = workers.starmap(double, [(sys.argv[1], handle) for handle in handles])
        workers.close()
        workers.join()
    assert [pool.get(r).tolist() for r in results] == [[0], [0, 2]]
    assert all(pool.owner(r) == pool.client for r in results)
"""
    )
    child = children.start(
        "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-W', 'ignore', *sys.argv[1:]]))",
        script,
        small_pool.path,
        method,
        prelude=False,
    )
    child.finish()
    check_progress(small_pool)


def test_a_subprocess_inherits_no_descriptor(small_pool: shmpool.Pool, children: Children) -> None:
    parent = children.start(
        _PARENT
        + """
import subprocess
h = pool.put(np.arange(5), "output")
say([pool.client.index, pool.client.nonce])
text = "import os, sys; print([os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if n != '3']," \
    "flush=True); import time; time.sleep(600)"
other = subprocess.Popen([sys.executable, "-c", text], close_fds=False, stdout=subprocess.PIPE)
say(other.stdout.readline().decode())
hear()
""",
        small_pool.path,
    )
    place = shmpool.ClientId(*parent.hear())
    assert str(small_pool.path) not in parent.hear()
    parent.kill()  # the subprocess lives on; it is ended with its process group
    assert not small_pool.is_alive(place)


def test_parent_may_fork_before_it_opens(small_pool: shmpool.Pool, children: Children) -> None:
    run(
        children,
        small_pool,
        """
pool.close()
def work():
    with shmpool.Pool.attach(args[0], prefault_nbytes=0) as own:
        assert own.get(own.put(np.arange(3))).tolist() == [0, 1, 2]
pids = [fork(work) for _ in range(4)]
for pid in pids:
    join(pid)
""",
    )
    check_progress(small_pool)


def test_arrays_of_ours_stay_whole_through_all_this(small_pool: shmpool.Pool, children: Children) -> None:
    ours = small_pool.put(stamped(6, 100_000))
    view = small_pool.get(ours)
    run(
        children,
        small_pool,
        """
for _ in range(20):
    join(fork(lambda: (pool.reattach(), pool.put(np.ones(9000), "output", 5), pool.reclaim())))
""",
    )
    check_stamped(view, 6)
    check_stamped(small_pool.get(ours), 6)
