# SPDX-License-Identifier: BSD-3-Clause
"""kill -9: what the dead held is free again at the next claim, and nobody ever sees a wrong byte."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.pools import check_all_free, check_progress, check_stamped, small, stamped
from helpers.processes import KILLED, Children, eventually

import shmpool

SOAK = Path(__file__).resolve().parents[1] / "soak" / "soak_kills.py"

_HEAD = "pool = shmpool.Pool.attach(args[0], prefault_nbytes=0, timeout=0)\n"

# Each takes both slots of the region "output" and says so.
HOLDERS = {
    "writing": """
loans = [pool.loan((10,), "u8", region="output") for _ in range(2)]
""",
    "writing a span": """
loan = pool.loan((100_000,), "u1", region="output")
""",
    "in the middle of writing": """
loan = pool.loan((100_000,), "u1", region="output")
loan.array[:50_000] = 1
""",
    "sealed": """
handles = [pool.put(np.arange(10), "output") for _ in range(2)]
""",
    "sealed span": """
handle = pool.put(np.zeros(100_000, "u1"), "output")
""",
    "sealed and pinned by itself": """
views = [pool.get(pool.put(np.arange(10), "output")) for _ in range(2)]
""",
    "freed but still viewed": """
handle = pool.put(np.zeros(100_000, "u1"), "output")
view = pool.get(handle)
pool.free(handle)
""",
    "two attachments": """
second = shmpool.Pool.attach(args[0], prefault_nbytes=0)
handles = [pool.put(np.arange(10), "output"), second.put(np.arange(10), "output")]
""",
    "views after close": """
views = [pool.get(pool.put(np.arange(10), "output")) for _ in range(2)]
pool.close()
""",
}


@pytest.mark.parametrize("how", HOLDERS)
def test_next_claim_finds_the_slots_of_a_killed_holder(how: str, small_pool: shmpool.Pool, children: Children) -> None:
    holder = children.start(_HEAD + HOLDERS[how] + 'say("holding"); hear()', small_pool.path)
    assert holder.hear() == "holding"
    with pytest.raises(shmpool.PoolFullError) as caught:
        small_pool.put(stamped(1), "output", 0.05)
    assert caught.value.holders
    assert all(item.alive and item.pid == holder.pid for item in caught.value.holders)

    assert holder.kill() == KILLED
    handles = [small_pool.put(stamped(k), "output", 0) for k in range(2)]
    for k, handle in enumerate(handles):
        check_stamped(small_pool.get(handle), k)
        small_pool.free(handle)
    check_progress(small_pool)


def test_a_zombie_is_dead(small_pool: shmpool.Pool, children: Children) -> None:
    holder = children.start(_HEAD + HOLDERS["sealed"] + 'say("holding"); hear()', small_pool.path)
    assert holder.hear() == "holding"
    holder.signal(signal.SIGKILL)
    eventually(lambda: holder.state() == "Z", "the holder is a zombie that nobody has waited for")
    # Not at once: the process's other threads may still be ending, and with them its files and locks.
    small_pool.free(small_pool.put(stamped(1), "output", 30))


def test_pins_of_a_killed_reader_go(small_pool: shmpool.Pool, children: Children) -> None:
    handles = [small_pool.put(stamped(k), "output") for k in range(2)]
    reader = children.start(
        _HEAD + "views = [pool.get(shmpool.Handle.from_dict(h)) for h in hear()]; say(int(views[1][0])); hear()",
        small_pool.path,
    )
    assert reader.ask([handle.to_dict() for handle in handles]) == 1
    for handle in handles:
        small_pool.free(handle)
    with pytest.raises(shmpool.PoolFullError, match="pinned"):
        small_pool.put(stamped(5), "output", 0)
    reader.kill()
    small_pool.free(small_pool.put(stamped(6), "output", 0))
    check_progress(small_pool)


def test_arrays_of_the_dead_stay_whole_for_their_readers(small_pool: shmpool.Pool, children: Children) -> None:
    child = children.start(
        _HEAD + "pool.close(); sys.path.append(args[1])\n"
        "from helpers.pools import small, stamped\npool = small(args[0])\n"
        "say([pool.put(stamped(7)).to_dict(), pool.put(stamped(8, 150_000)).to_dict()]); hear()",
        small_pool.path,
        SOAK.parents[1],
    )
    handles = [shmpool.Handle.from_dict(each) for each in child.hear()]
    views = [small_pool.get(handle) for handle in handles]
    child.kill()
    assert small_pool.reclaim() == 1
    # Retired, not free: nobody gets a new pin, and nobody the slots.
    for handle in handles:
        with pytest.raises(shmpool.StaleHandleError):
            small_pool.get(handle)
    with pytest.raises(shmpool.PoolFullError):
        small_pool.put(stamped(1), "input", 0)
    check_stamped(views[0], 7)
    check_stamped(views[1], 8)
    views.clear()
    check_progress(small_pool)


def test_adopted_and_given_arrays_outlive_their_writer(small_pool: shmpool.Pool, children: Children) -> None:
    child = children.start(
        _HEAD + "sys.path.append(args[1]); from helpers.pools import stamped\n"
        "given, adopted, lost = [pool.put(stamped(k, 100_000 if k == 1 else 4096)) for k in range(3)]\n"
        "pool.give(given, shmpool.ClientId(*hear())); say([h.to_dict() for h in (given, adopted, lost)]); hear()",
        small_pool.path,
        SOAK.parents[1],
    )
    me = small_pool.client
    given, adopted, lost = (shmpool.Handle.from_dict(each) for each in child.ask([me.index, me.nonce]))
    small_pool.adopt(adopted)
    child.kill()
    small_pool.reclaim()
    check_stamped(small_pool.get(given), 0)
    check_stamped(small_pool.get(adopted), 1)
    with pytest.raises(shmpool.StaleHandleError):
        small_pool.get(lost)
    small_pool.free(given)
    small_pool.free(adopted)
    check_progress(small_pool)


def test_an_index_of_the_dead_starts_clean(small_pool: shmpool.Pool, children: Children) -> None:
    child = children.start(
        _HEAD + HOLDERS["freed but still viewed"] + "say([pool.client.index, pool.client.nonce]); hear()",
        small_pool.path,
    )
    dead = shmpool.ClientId(*child.hear())
    assert small_pool.is_alive(dead)
    child.kill()
    assert not small_pool.is_alive(dead)
    with small(small_pool.path) as successor:
        assert successor.client.index == dead.index
        assert successor.client != dead
        assert not small_pool.is_alive(dead)
        assert small_pool.is_alive(successor.client)
        check_all_free(small_pool)
        mine = successor.put(stamped(1))
        with pytest.raises(shmpool.ClientGoneError):
            successor.give(mine, dead)


def test_random_kills(pool_dir: Path) -> None:
    """Some hundred of what tests/soak/soak_kills.py does in thousands."""
    done = subprocess.run(
        [sys.executable, str(SOAK), "--kills", "150", "--seconds", "100", "--folder", str(pool_dir)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    summary = re.search(r"^(\d+) kills, (\d+) operations, 0 errors$", done.stdout, re.MULTILINE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary, done.stdout + done.stderr
    assert int(summary[1]) >= 100
