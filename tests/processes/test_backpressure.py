# SPDX-License-Identifier: BSD-3-Clause
"""Waiting for a slot: woken by a free elsewhere, by a death, by Ctrl-C; and told who holds what."""

from __future__ import annotations

import math
import signal
import threading

import pytest
from helpers.pools import check_progress, check_stamped, stamped
from helpers.processes import Child, Children, eventually

import shmpool

_WAITER = """
pool = shmpool.Pool.attach(args[0], prefault_nbytes=0)
say("ready")
hear()
say("waiting")
before = time.monotonic()
try:
    handle = pool.put(np.full(10, 7), args[1], float(args[2]))
    say(handle.to_dict())
except (KeyboardInterrupt, shmpool.PoolFullError, shmpool.PoolClosedError) as error:
    say([type(error).__name__, time.monotonic() - before])
hear()
"""


def start_waiter(
    children: Children, pool: shmpool.Pool, region: str = "output", timeout: float = 60, text: str = _WAITER
) -> Child:
    """A process that asks for a slot of a full region; "go" has been said and it is in the wait."""
    waiter = children.start(text, pool.path, region, timeout)
    assert waiter.hear() == "ready"
    before = pool.counters[region]
    assert waiter.ask("go") == "waiting"
    eventually(lambda: pool.counters[region] > before, "the waiter has asked")
    return waiter


@pytest.fixture
def full(small_pool: shmpool.Pool) -> list[shmpool.Handle]:
    """Two arrays of ours, which are all that fits in "output"."""
    return [small_pool.put(stamped(k), "output") for k in range(2)]


def test_a_free_in_another_process_serves_a_waiter(
    small_pool: shmpool.Pool, full: list[shmpool.Handle], children: Children
) -> None:
    for round in range(5):
        waiter = start_waiter(children, small_pool)
        small_pool.free(full[round % 2])
        handle = shmpool.Handle.from_dict(waiter.hear())
        assert handle.slot == full[round % 2].slot
        assert small_pool.get(handle).tolist() == [7] * 10
        small_pool.adopt(handle)
        full[round % 2] = handle
        waiter.say("leave")
        waiter.finish()


def test_the_end_of_a_view_serves_a_waiter(
    small_pool: shmpool.Pool, full: list[shmpool.Handle], children: Children
) -> None:
    view = small_pool.get(full[0])
    small_pool.free(full[0])
    waiter = start_waiter(children, small_pool)
    check_stamped(view, 0)
    del view
    assert shmpool.Handle.from_dict(waiter.hear()).slot == full[0].slot


def test_an_abort_and_a_close_serve_waiters(small_pool: shmpool.Pool, children: Children) -> None:
    loan = small_pool.loan((100_000,), "u1", region="output")
    waiter = start_waiter(children, small_pool)
    loan.abort()
    waiter.hear()
    other = shmpool.Pool.attach(small_pool.path, prefault_nbytes=0)
    other.put(stamped(1), "output", 0)
    second = start_waiter(children, small_pool)
    other.close()
    second.hear()


def test_many_waiters_are_all_served(small_pool: shmpool.Pool, full: list[shmpool.Handle], children: Children) -> None:
    text = _WAITER.replace("say(handle.to_dict())", "pool.free(handle); say('served')")
    waiters = [start_waiter(children, small_pool, text=text) for _ in range(5)]
    small_pool.free(full[0])
    assert [waiter.hear() for waiter in waiters] == ["served"] * 5


def test_a_span_is_served_when_its_last_slot_is(small_pool: shmpool.Pool, children: Children) -> None:
    handles = [small_pool.put(stamped(k)) for k in range(4)]
    waiter = start_waiter(children, small_pool, "input", text=_WAITER.replace("np.full(10, 7)", "np.full(10_000, 7)"))
    small_pool.free(handles[0])
    small_pool.free(handles[2])
    states = [slot.state for slot in small_pool.stat().slots[:4]]
    assert states[1] == states[3] == "sealed"
    small_pool.free(handles[3])
    wide = shmpool.Handle.from_dict(waiter.hear())
    assert wide.span == 2
    assert (small_pool.get(wide) == 7).all()


def test_the_death_of_a_holder_serves_a_waiter(small_pool: shmpool.Pool, children: Children) -> None:
    holder = children.start(
        "pool = shmpool.Pool.attach(args[0], prefault_nbytes=0)\n"
        "hs = [pool.put(np.arange(3), 'output') for _ in range(2)]; say('full'); hear()",
        small_pool.path,
    )
    assert holder.hear() == "full"
    waiter = start_waiter(children, small_pool)
    holder.kill()
    assert small_pool.get(shmpool.Handle.from_dict(waiter.hear())).tolist() == [7] * 10


def test_a_killed_waiter_leaves_nothing(
    small_pool: shmpool.Pool, full: list[shmpool.Handle], children: Children
) -> None:
    waiters = [start_waiter(children, small_pool) for _ in range(3)]
    waiters[0].kill()
    waiters[1].kill()
    small_pool.free(full[0])
    survivor = shmpool.Handle.from_dict(waiters[2].hear())
    assert survivor.slot == full[0].slot
    waiters[2].kill()
    small_pool.free(full[1])
    check_progress(small_pool)


def test_interrupt(small_pool: shmpool.Pool, full: list[shmpool.Handle], children: Children) -> None:
    waiter = start_waiter(children, small_pool, timeout=math.inf)
    waiter.signal(signal.SIGINT)
    name, waited = waiter.hear()
    assert name == "KeyboardInterrupt"
    assert waited < 30  # not at the end of a time-out: there is none
    for handle in full:
        check_stamped(small_pool.get(handle))
        small_pool.free(handle)
    waiter.say("leave")
    waiter.finish()
    check_progress(small_pool)


def test_a_signal_handler_that_returns_does_not_end_the_wait(
    small_pool: shmpool.Pool, full: list[shmpool.Handle], children: Children
) -> None:
    text = "import signal\nsignal.signal(signal.SIGALRM, lambda *_: say('alarm'))\n" + _WAITER
    waiter = start_waiter(children, small_pool, text=text)
    for _ in range(3):
        waiter.signal(signal.SIGALRM)
        assert waiter.hear() == "alarm"
    small_pool.free(full[1])
    assert shmpool.Handle.from_dict(waiter.hear()).slot == full[1].slot


def test_full_error_names_the_holders(small_pool: shmpool.Pool, full: list[shmpool.Handle], children: Children) -> None:
    reader = children.start(
        "pool = shmpool.Pool.attach(args[0], prefault_nbytes=0)\n"
        "v = pool.get(shmpool.Handle.from_dict(hear())); say('looking'); hear()",
        small_pool.path,
    )
    assert reader.ask(full[1].to_dict()) == "looking"
    small_pool.free(full[1])
    with pytest.raises(shmpool.PoolFullError) as caught:
        small_pool.put(stamped(9), "output", 0.05)
    error = caught.value
    assert {(item.slot - full[0].slot, item.state, item.pid, item.alive) for item in error.holders} >= {
        (0, "sealed", _pid(small_pool), True),
        (1, "retired", reader.pid, True),
    }
    for piece in ("output", str(reader.pid), "pinned", "owned", "alive"):
        assert piece in str(error)
    assert isinstance(error, TimeoutError)


def _pid(pool: shmpool.Pool) -> int:
    return next(client.pid for client in pool.stat().clients if client.index == pool.client.index)


def test_timeout_zero_and_the_pools_own(small_pool: shmpool.Pool, full: list[shmpool.Handle]) -> None:
    with pytest.raises(shmpool.PoolFullError):
        small_pool.loan((3,), "f8", region="output", timeout=0)
    with (
        shmpool.Pool.attach(small_pool.path, prefault_nbytes=0, timeout=0.01) as hasty,
        pytest.raises(shmpool.PoolFullError),
    ):
        hasty.put(stamped(1), "output")
    small_pool.free(full[0])
    small_pool.put(stamped(1), "output", 0)


def test_the_gil_is_free_during_the_wait(small_pool: shmpool.Pool, full: list[shmpool.Handle]) -> None:
    served: list[shmpool.Handle] = []
    thread = threading.Thread(target=lambda: served.append(small_pool.put(stamped(5), "output", 30)))
    before = small_pool.counters["output"]
    thread.start()
    eventually(lambda: small_pool.counters["output"] > before, "the thread has asked")
    small_pool.free(full[0])  # could not run if the waiter held the GIL
    thread.join(30)
    assert [handle.slot for handle in served] == [full[0].slot]


def test_close_ends_the_waits_of_other_threads(small_pool: shmpool.Pool, children: Children) -> None:
    handles = [small_pool.put(stamped(k), "output") for k in range(2)]
    text = _WAITER.replace(
        "before = time", "import threading; threading.Timer(0.2, pool.close).start()\nbefore = time", 1
    )
    waiter = start_waiter(children, small_pool, text=text)
    assert waiter.hear()[0] == "PoolClosedError"
    waiter.say("leave")
    waiter.finish()
    for handle in handles:
        small_pool.free(handle)
    check_progress(small_pool)
