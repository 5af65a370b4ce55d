# SPDX-License-Identifier: BSD-3-Clause
"""``stat`` shows what is in the pool, as a table, as JSON, and without `rich`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from helpers.pools import SLOT
from helpers.processes import Child

import shmpool

Run = Callable[..., Any]


def test_json_is_the_snapshot(run: Run, small_pool: shmpool.Pool) -> None:
    wide = small_pool.put(np.zeros(100_000, "u1"))
    view = small_pool.get(wide)
    data = run("stat", "--json").data
    assert data["path"] == str(small_pool.path)
    assert data["uuid"] == small_pool.uuid
    assert data["epoch"] == small_pool.epoch
    assert data["counters"] == small_pool.counters
    assert data["in_use"] is True
    assert data["used_slots"] == 2
    head, tail = data["slots"][:2]
    assert (head["state"], head["span"], head["nbytes"], head["owner"]) == ("sealed", 2, 100_000, 0)
    assert head["pins"] == {"0": 1}
    assert (tail["state"], tail["head"]) == ("tail", 0)
    assert data["clients"][0]["alive"] is True
    del view


def test_table(run: Run, holder: Child, small_pool: shmpool.Pool) -> None:
    result = run("stat")
    assert result.code == 0
    assert result.err == ""
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 100
    rows = {line.split()[0]: line.split() for line in lines if line[:1].isdigit()}
    assert rows["0-1"][1:4] == ["input", "sealed", str(holder.pid)]
    assert rows["0-1"].count(str(holder.pid)) == 2, "owner and reader"
    assert rows["2-3"][1:3] == ["input", "free"]
    assert rows["4"][1:3] == ["output", "sealed"]
    assert rows["6"][1:3] == ["scratch", "writing"]
    assert "8 slots of 64 KiB = 512 KiB (4 input, 2 output, 2 scratch)" in result.out
    assert "2 attached, room for 16" in result.out


def test_all_shows_every_slot(run: Run, holder: Child, small_pool: shmpool.Pool) -> None:
    out = run("stat", "--all").out
    assert [line.split()[0] for line in out.splitlines() if line[:1].isdigit()] == [str(slot) for slot in range(8)]
    assert "belongs to slot 0" in out


def test_dead_clients_are_shown_and_left_alone(run: Run, holder: Child, small_pool: shmpool.Pool) -> None:
    holder.kill()
    for _ in range(2):
        result = run("stat")
        assert f"dead {holder.pid}" in result.out
        assert "4 slot(s) are held by dead processes" in result.out
        assert "1 attached, 1 dead" in result.out


def test_narrow_terminal(run: Run, holder: Child, small_pool: shmpool.Pool) -> None:
    lines = run("stat", COLUMNS="80").out.splitlines()
    # The words of the header fold at blanks only; a path has none and is folded.
    assert max(map(len, lines)) <= 80


def test_corrupt_slot(run: Run, small_pool: shmpool.Pool) -> None:
    with small_pool.path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\x09")
    result = run("stat")
    assert result.code == 0
    assert "Corrupt slots are never handed out again" in result.out


def test_without_rich(run: Run, small_pool: shmpool.Pool, without_rich: dict[str, str]) -> None:
    result = run("stat", **without_rich)
    assert result.code == 0
    assert result.data["slot_nbytes"] == SLOT
    assert result.err == "shmpool: rich is not installed, so this is JSON. For tables: pip install 'shmpool[cli]'\n"
    assert run("stat", "--json", **without_rich).err == ""


def test_channels(run: Run, small_pool: shmpool.Pool) -> None:
    with (
        shmpool.Channel.open("frames", small_pool, 4, role="send") as frames,
        shmpool.Channel.open("news", small_pool, 8, broadcast=True),
        shmpool.Channel.attach("news", small_pool),
    ):
        frames.send(np.zeros(3))
        out = run("stat", COLUMNS="80").out
        assert max(map(len, out.splitlines())) <= 80
        rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
        assert rows["frames"][1:6] == ["queue", "1/4", "1", "0", "1"]
        assert rows["news"][1:6] == ["broadcast", "0/8", "1", "1", "0"]
        assert [channel["name"] for channel in run("stat", "--json").data["channels"]] == ["frames", "news"]
    assert "frames" not in run("stat").out


def test_corrupt_channel(run: Run, small_pool: shmpool.Pool) -> None:
    with shmpool.Channel.open("frames", small_pool, 4):
        table = int.from_bytes(small_pool.path.read_bytes()[120:128], "little")
        with small_pool.path.open("r+b") as file:
            file.seek(table + 12)
            file.write((4097).to_bytes(4, "little"))
        out = run("stat").out
        assert "corrupt" in out
        assert "A channel's record is damaged" in out
        with small_pool.path.open("r+b") as file:
            file.seek(table + 12)
            file.write((4).to_bytes(4, "little"))
