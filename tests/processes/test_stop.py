# SPDX-License-Identifier: BSD-3-Clause
"""SIGSTOP: a process that stands still is alive, keeps everything, and holds up nobody but those who need its slots."""

from __future__ import annotations

import time

import pytest
from helpers.pools import check_progress, check_stamped, stamped
from helpers.processes import Child, Children

import shmpool

# Far beyond every interval in the code (waits look around every 10 ms), far below a test run.
LONG = 2.0

_HOLDER = """
pool = shmpool.Pool.attach(args[0], prefault_nbytes=0)
loan = pool.loan((8192,), "u8", region="output")
loan.array[:] = 3
sealed = pool.put(np.arange(1000), "output")
theirs = pool.get(shmpool.Handle.from_dict(hear()))
say(sealed.to_dict())
assert hear() == "look"
assert (loan.array == 3).all()
assert (pool.get(sealed) == np.arange(1000)).all()
handle = loan.seal()
say([handle.to_dict(), int(theirs[0])])
hear()
"""


@pytest.fixture
def holder(small_pool: shmpool.Pool, children: Children) -> Child:
    """Has both slots of "output" (one is being written, one sealed), and a view of an array of ours."""
    return children.start(_HOLDER, small_pool.path)


def test_stopped_holder_is_never_robbed(small_pool: shmpool.Pool, holder: Child) -> None:
    ours = small_pool.put(stamped(4, 100_000), "scratch")
    sealed = shmpool.Handle.from_dict(holder.ask(ours.to_dict()))
    small_pool.free(ours)
    holder.stop()
    before = [(slot.state, slot.owner, slot.generation, slot.pins) for slot in small_pool.stat().slots]

    rounds = 0
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        assert small_pool.reclaim() == 0
        for region in ("output", "scratch"):  # what it owns, and what it only looks at
            with pytest.raises(shmpool.PoolFullError) as caught:
                small_pool.put(stamped(1), region, 0.1)
            assert all(item.alive for item in caught.value.holders if item.client != small_pool.client.index)
        # Who does not need its slots goes on as if nothing were.
        small_pool.free(small_pool.put(stamped(rounds), "input"))
        rounds += 1
    after = [(slot.state, slot.owner, slot.generation, slot.pins) for slot in small_pool.stat().slots]
    assert [word for word in after if word[0] != "free"] == [word for word in before if word[0] != "free"]
    assert small_pool.get(sealed)[999] == 999
    assert rounds > 2

    holder.resume()
    handle, seed = holder.ask("look")
    assert seed == 4
    array = small_pool.get(shmpool.Handle.from_dict(handle))
    assert (array == 3).all()
    del array
    holder.kill()
    check_progress(small_pool)


def test_a_waiter_gets_the_slot_after_the_holder_goes_on(small_pool: shmpool.Pool, children: Children) -> None:
    child = children.start(
        "pool = shmpool.Pool.attach(args[0], prefault_nbytes=0)\n"
        "hs = [pool.put(np.arange(3), 'output') for _ in range(2)]; say('full'); hear()\n"
        "pool.free(hs[0]); say('freed'); hear()",
        small_pool.path,
    )
    waiter = children.start(
        "pool = shmpool.Pool.attach(args[0], prefault_nbytes=0); say('ready'); hear(); say('waiting')\n"
        "h = pool.put(np.arange(7), 'output', 60); say(h.to_dict()); hear()",
        small_pool.path,
    )
    assert child.hear() == "full"
    assert waiter.hear() == "ready"
    child.stop()
    assert waiter.ask("go") == "waiting"
    child.say("free")  # it cannot hear us
    time.sleep(0.3)
    states = [slot.state for slot in small_pool.stat().slots if slot.region == "output"]
    assert states == ["sealed", "sealed"]
    child.resume()
    assert child.hear() == "freed"
    assert small_pool.get(shmpool.Handle.from_dict(waiter.hear())).tolist() == list(range(7))


def test_stopped_and_killed(small_pool: shmpool.Pool, holder: Child) -> None:
    ours = small_pool.put(stamped(4))
    holder.ask(ours.to_dict())
    holder.stop()
    assert small_pool.reclaim() == 0
    holder.kill()
    assert small_pool.reclaim() == 1
    check_stamped(small_pool.get(ours), 4)
    small_pool.free(ours)
    check_progress(small_pool)


def test_stopped_waiter_delays_nobody(small_pool: shmpool.Pool, children: Children) -> None:
    waiter = children.start(
        "pool = shmpool.Pool.attach(args[0], prefault_nbytes=0); say('waiting')\n"
        "h = pool.put(np.arange(7), 'output', 60); say(h.to_dict()); hear()",
        small_pool.path,
    )
    handles = [small_pool.put(stamped(k), "output") for k in range(2)]
    assert waiter.hear() == "waiting"
    waiter.stop()
    for _ in range(100):
        small_pool.free(handles.pop(0))
        handles.append(small_pool.put(stamped(1), "output", 1))
    waiter.resume()
    small_pool.free(handles.pop())
    assert small_pool.get(shmpool.Handle.from_dict(waiter.hear())).tolist() == list(range(7))
