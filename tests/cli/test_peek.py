# SPDX-License-Identifier: BSD-3-Clause
"""Looking from outside sees what `Pool.stat` sees, and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pools import small
from helpers.processes import Child, Children

import shmpool
from shmpool.cli.peek import look
from shmpool.paths import lock_path


def without_ages(stat: shmpool.PoolStat) -> dict[str, Any]:
    data = stat.to_dict()
    for entry in (*data["slots"], *data["clients"]):
        entry["age"] = entry["age"] is not None
    return data


def test_sees_what_stat_sees(small_pool: shmpool.Pool) -> None:
    wide = small_pool.put(np.zeros(150_000, "u1"))
    views = [small_pool.get(wide), small_pool.get(wide)]
    retired = small_pool.put(np.arange(3), region="output")
    kept = small_pool.get(retired)
    small_pool.free(retired)
    loan = small_pool.loan((70_000,), "u1", region="scratch")
    with small(small_pool.path) as other:
        more = other.get(wide)
        seen, told = look(small_pool.path), small_pool.stat()
        assert without_ages(seen.stat) == without_ages(told)
        for ours, theirs in zip(seen.stat.slots, told.slots, strict=True):
            assert ours.age == pytest.approx(theirs.age, abs=5)
        assert {slot.state for slot in seen.stat.slots} == {"free", "sealed", "tail", "retired", "writing"}
        assert seen.stat.slots[wide.slot].pins == {small_pool.client.index: 2, other.client.index: 1}
        assert seen.in_use
        assert not seen.opening
        assert [client.alive for client in seen.stat.clients] == [True, True]
        del more
    del views, kept, loan


def test_sees_the_channels_that_stat_sees(small_pool: shmpool.Pool, children: Children) -> None:
    assert look(small_pool.path).stat.channels == small_pool.stat().channels == ()
    with (
        shmpool.Channel.open("frames", small_pool, 4) as frames,
        shmpool.Channel.open("näws", small_pool, 3, broadcast=True, cell_nbytes=1024) as news,
        shmpool.Channel.attach("näws", small_pool) as fast,
        shmpool.Channel.attach("näws", small_pool),
    ):
        for number in range(3):
            frames.send(np.zeros(number))
            news.send(np.zeros(number))
            fast.recv()
        frames.recv()
        child = children.start(
            'end = shmpool.Channel.attach("frames", shmpool.Pool.attach(args[0]), role="send"); say(1); hear()',
            small_pool.path,
        )
        child.hear()
        assert look(small_pool.path).stat.channels == small_pool.stat().channels
        child.kill()
        seen, told = look(small_pool.path).stat.channels, small_pool.stat().channels
        assert seen == told
        queue, broadcast = seen
        assert (queue.name, queue.broadcast, queue.capacity, queue.sent, queue.waiting) == ("frames", False, 4, 3, 2)
        assert (queue.senders, queue.receivers, queue.dead) == (1, 1, 1)
        assert [(end.alive, end.sends, end.receives, end.behind) for end in queue.ends] == [
            (True, True, True, None),
            (False, True, False, None),
        ]
        assert (broadcast.name, broadcast.broadcast, broadcast.cell_nbytes) == ("näws", True, 1024)
        assert (broadcast.senders, broadcast.receivers, broadcast.sent, broadcast.waiting) == (1, 2, 3, 3)
        assert [end.behind for end in broadcast.ends] == [None, 0, 3]
        small_pool.reclaim()
        assert look(small_pool.path).stat.channels[0].dead == 0
    assert look(small_pool.path).stat.channels == ()


def test_spans(small_pool: shmpool.Pool) -> None:
    wide = small_pool.put(np.zeros(150_000, "u1"))
    with small_pool.loan((70_000,), "u1", region="scratch") as loan:
        seen = look(small_pool.path)
        written = next(slot for slot in seen.stat.slots if slot.state == "writing")
        assert seen.span_of(seen.stat.slots[wide.slot]) == wide.span == 3
        assert seen.span_of(written) == 2, "not sealed, so only its tails tell"
        loan.abort()


def test_changes_nothing_after_a_crash(holder: Child, pool_path: Path) -> None:
    holder.kill()
    before = pool_path.read_bytes()
    seen = look(pool_path)
    assert pool_path.read_bytes() == before
    assert not seen.in_use
    assert [client.pid for client in seen.dead] == [holder.pid]
    assert sorted(slot.state for slot in seen.held_by_dead) == ["sealed", "sealed", "tail", "writing"]


def test_does_not_make_a_lock_file(small_pool: shmpool.Pool) -> None:
    small_pool.close()
    lock_path(small_pool.path).unlink()
    assert not look(small_pool.path).in_use
    assert not lock_path(small_pool.path).exists()


def test_does_not_keep_the_pool_in_use(small_pool: shmpool.Pool) -> None:
    small_pool.close()
    look(small_pool.path)
    shmpool.Pool.remove(small_pool.path)
    assert not small_pool.path.exists()


def test_works_when_the_client_table_is_full(pool_path: Path) -> None:
    with small(pool_path, max_clients=1):
        with pytest.raises(shmpool.TooManyClientsError):
            small(pool_path)
        assert len(look(pool_path).stat.clients) == 1


def test_held_by_dead_spares_what_the_living_read(holder: Child, pool_path: Path) -> None:
    with small(pool_path) as pool:
        lone = next(slot for slot in pool.stat().slots if slot.state == "sealed" and slot.region == "output")
        handle = shmpool.Handle(pool=pool.uuid, slot=lone.slot, span=1, generation=lone.generation, nbytes=lone.nbytes)
        view = pool.get(handle)
        holder.kill()
        seen = look(pool_path)
        assert lone.slot not in {slot.slot for slot in seen.held_by_dead}
        assert len(seen.held_by_dead) == 3
        del view


def damage(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        (lambda path: damage(path, 0, b"notapool"), shmpool.PoolFormatError),
        (lambda path: damage(path, 8, b"\x63"), shmpool.PoolFormatError),
        (lambda path: damage(path, 12, b"\1\2\3\4"), shmpool.PoolFormatError),
        (lambda path: damage(path, 16, b"\1"), shmpool.PoolBusyError),
        (lambda path: damage(path, 40, b"\xff"), shmpool.PoolCorruptedError),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), shmpool.PoolCorruptedError),
        (lambda path: path.write_bytes(b""), shmpool.PoolBusyError),
        (lambda path: path.unlink(), shmpool.PoolNotFoundError),
        (lambda path: path.chmod(0o666), shmpool.PoolPermissionError),
        (lambda path: (path.unlink(), path.symlink_to("/dev/null")), shmpool.PoolPermissionError),
        (lambda path: (path.unlink(), path.mkdir()), shmpool.PoolPermissionError),
    ],
    ids=["foreign", "version", "build", "unfinished", "header", "cut", "empty", "gone", "open", "link", "folder"],
)
def test_refusals(small_pool: shmpool.Pool, harm: Callable[[Path], object], error: type[Exception]) -> None:
    small_pool.close()
    harm(small_pool.path)
    with pytest.raises(error):
        look(small_pool.path)


def test_a_fifo_is_refused_at_once(pool_path: Path) -> None:
    os.mkfifo(pool_path, 0o600)
    with pytest.raises(shmpool.PoolPermissionError, match="not a regular file"):
        look(pool_path)


def test_corrupt_words_are_shown(small_pool: shmpool.Pool) -> None:
    damage(small_pool.path, 8192 + 3 * 1024, b"\x4f")
    slots = look(small_pool.path).stat.slots
    assert [slot.state for slot in slots] == ["free"] * 3 + ["corrupt"] + ["free"] * 4
    damage(small_pool.path, 8192 + 3 * 1024, b"\0")


def test_a_lying_high_water_mark_does_no_harm(small_pool: shmpool.Pool) -> None:
    damage(small_pool.path, 4736, b"\xff\xff\xff\xff")
    assert [client.pid for client in look(small_pool.path).stat.clients] == [
        client.pid for client in small_pool.stat().clients
    ]
