# SPDX-License-Identifier: BSD-3-Clause
"""Creating, taking over and removing a pool: by many at once, by processes that die or stand still in the middle."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.failpoints import CHECK_BUILD, FailpointBuild, failpoint_labels
from helpers.pools import check_progress, small
from helpers.processes import KILLED, Children

import shmpool

_OPEN = (
    "pool = shmpool.Pool.open(args[0], slot_nbytes=65536, input_slots=4, output_slots=2, scratch_slots=2, "
    "max_clients=64, prefault_nbytes=0)\n"
)
CREATION = [label for label in failpoint_labels() if label.startswith(("create.", "open.", "enter."))]


@pytest.mark.parametrize("attempt", range(3))
def test_many_open_a_pool_that_does_not_exist(attempt: int, pool_path: Path, children: Children) -> None:
    del attempt
    crowd = [
        children.start(
            "say('here'); hear()\n" + _OPEN + "h = pool.put(np.full(10, os.getpid()), 'input')\n"
            "say([pool.uuid, pool.created, pool.epoch, pool.client.index, h.to_dict()]); hear()",
            pool_path,
        )
        for _ in range(4)  # as many arrays as there are input slots
    ]
    for child in crowd:
        assert child.hear() == "here"
    for child in crowd:
        child.say("go")
    answers = [child.hear() for child in crowd]
    assert len({uuid for uuid, *_ in answers}) == 1
    assert sum(created for _, created, *_ in answers) == 1
    assert {epoch for _, _, epoch, *_ in answers} == {1}
    assert len({index for _, _, _, index, _ in answers}) == len(crowd)
    with shmpool.Pool.attach(pool_path, prefault_nbytes=0) as pool:
        for child, (*_, handle) in zip(crowd, answers, strict=True):
            assert pool.get(shmpool.Handle.from_dict(handle)).tolist() == [child.pid] * 10
        for child in crowd:
            child.kill()
        check_progress(pool)


def test_openers_in_a_loop_with_a_remover(pool_path: Path, children: Children) -> None:
    opener = """
for k in range(10**9):
    try:
        POOL
    except shmpool.PoolNotFoundError:
        continue            # removed between two looks at it
    h = pool.put(np.full(100, k))
    assert (pool.get(h) == k).all() and pool.owner(h) == pool.client
    pool.close()
    time.sleep(0.003)           # so that there are moments at which nobody is attached
""".replace("POOL", _OPEN.strip())
    remover = """
removed = 0
while removed < 20:
    try:
        shmpool.Pool.remove(args[0])
        removed += 1
    except (shmpool.PoolExistsError, shmpool.PoolNotFoundError):
        pass
say("done")
"""
    openers = [children.start(opener, pool_path) for _ in range(2)]
    assert children.start(remover, pool_path).hear() == "done"
    for child in openers:
        assert child.is_running, child.stderr()
        assert child.kill() == KILLED
    with small(pool_path) as pool:
        check_progress(pool)


def prepare(label: str, path: Path) -> str:
    """Make what an opener must find in order to pass `label`; the child text that then opens the pool."""
    if label in ("open.reclaimed", "create.unlinked"):
        small(path).close()
    return _OPEN.replace("Pool.open(", "Pool.create(") if label == "create.unlinked" else _OPEN


@pytest.mark.parametrize("label", CREATION)
def test_killed_opener(label: str, pool_path: Path, children: Children, failpoint_build: FailpointBuild) -> None:
    """Killed while others wait for it: one of them does the work instead."""
    opener = children.start(
        CHECK_BUILD + prepare(label, pool_path),
        pool_path,
        env={**failpoint_build.env(), "SHMPOOL_FAILPOINT": f"{label}:stop"},
    )
    opener.wait_stopped()
    others = [
        children.start("say('here')\n" + _OPEN + "say([pool.uuid, pool.epoch]); hear()", pool_path) for _ in range(2)
    ]
    for child in others:
        assert child.hear() == "here"
    assert opener.kill() == KILLED
    answers = [child.hear() for child in others]
    assert answers[0] == answers[1]
    with small(pool_path) as pool:
        assert pool.uuid == answers[0][0]
        for child in others:
            child.kill()
        check_progress(pool)


@pytest.mark.parametrize("label", [label for label in CREATION if not label.startswith("enter.")])
def test_stopped_opener(label: str, pool_path: Path, children: Children, failpoint_build: FailpointBuild) -> None:
    opener = children.start(
        CHECK_BUILD + prepare(label, pool_path) + "say(pool.uuid); hear()",
        pool_path,
        env={**failpoint_build.env(), "SHMPOOL_FAILPOINT": f"{label}:stop"},
    )
    opener.wait_stopped()
    before = _contents(pool_path)
    with pytest.raises(shmpool.PoolBusyError, match="stopped"):
        small(pool_path, attach_timeout=0.2)
    with pytest.raises(shmpool.PoolExistsError):
        shmpool.Pool.remove(pool_path)
    assert _contents(pool_path) == before
    waiting = children.start(_OPEN + "say(pool.uuid); hear()", pool_path)
    opener.resume()
    uuid = opener.hear()
    assert waiting.hear() == uuid
    with small(pool_path) as pool:
        assert pool.uuid == uuid
        opener.kill()
        waiting.kill()
        check_progress(pool)


def _contents(path: Path) -> list[tuple[str, int, bytes]]:
    """Names, sizes and headers of what lies in the pool's folder."""
    return [(each.name, each.stat().st_size, each.read_bytes()[:8192]) for each in sorted(path.parent.iterdir())]


def test_everybody_died_and_many_come_back(pool_path: Path, children: Children) -> None:
    first = children.start(
        _OPEN + "l = pool.loan((9,), 'f8'); h = pool.put(np.zeros(100_000, 'u1')); v = pool.get(h); "
        "say([pool.uuid, h.to_dict()]); hear()",
        pool_path,
    )
    uuid, handle = first.hear()
    first.kill()
    crowd = [
        children.start("say('here'); hear()\n" + _OPEN + "say([pool.uuid, pool.epoch]); hear()", pool_path)
        for _ in range(4)
    ]
    for child in crowd:
        assert child.hear() == "here"
    for child in crowd:
        child.say("go")
    assert [child.hear() for child in crowd] == [[uuid, 2]] * 4
    with small(pool_path) as pool:
        with pytest.raises(shmpool.StaleHandleError):
            pool.get(shmpool.Handle.from_dict(handle))
        for child in crowd:
            child.kill()
        check_progress(pool)


def test_create_refuses_a_pool_in_use_and_replaces_a_left_one(pool_path: Path, children: Children) -> None:
    user = children.start(_OPEN + "h = pool.put(np.arange(3)); say([pool.uuid, h.to_dict()]); hear()", pool_path)
    uuid, handle = user.hear()
    with pytest.raises(shmpool.PoolExistsError):
        shmpool.Pool.create(pool_path, slot_nbytes=4096, prefault_nbytes=0)
    with shmpool.Pool.attach(pool_path, prefault_nbytes=0) as pool:
        assert pool.get(shmpool.Handle.from_dict(handle)).tolist() == [0, 1, 2]
    user.kill()
    with shmpool.Pool.create(pool_path, slot_nbytes=4096, prefault_nbytes=0) as pool:
        assert pool.uuid != uuid
        assert pool.geometry.slot_nbytes == 4096
        with pytest.raises(shmpool.HandleError):
            pool.get(shmpool.Handle.from_dict(handle))
        check_progress(pool)


def test_more_processes_than_client_entries(pool_path: Path, children: Children) -> None:
    with small(pool_path, max_clients=2) as pool:
        other = children.start(_OPEN + "say('in'); hear()", pool_path)
        assert other.hear() == "in"
        with pytest.raises(shmpool.TooManyClientsError):
            small(pool_path, attach_timeout=0.2)
        other.kill()
        with small(pool_path) as third:
            check_progress(third)
        check_progress(pool)


def test_a_cleaner_does_not_crowd_out_a_newcomer(pool_path: Path, children: Children) -> None:
    """Whoever cleans up locks the index of the dead for a moment; that must not look like a full table."""
    with small(pool_path, max_clients=2) as pool:
        small(pool_path).close()
        newcomer = children.start(
            f"for _ in range(300):\n    {_OPEN.strip()}\n    pool.close()\nsay('done')", pool_path
        )
        while newcomer.is_running:
            for _ in range(100):
                pool.reclaim()
        newcomer.finish()
        check_progress(pool)


def test_lock_file_alone_is_no_pool(pool_path: Path) -> None:
    lock = pool_path.with_name("pool.bin.lock")
    os.close(os.open(lock, os.O_CREAT | os.O_RDWR, 0o600))
    with pytest.raises(shmpool.PoolNotFoundError):
        shmpool.Pool.attach(pool_path)
    with small(pool_path) as pool:
        check_progress(pool)
