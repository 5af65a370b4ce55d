# SPDX-License-Identifier: BSD-3-Clause
"""``gc`` frees what the dead left and nothing else; ``--remove`` deletes what nobody uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pools import check_all_free, small
from helpers.processes import Child

import shmpool
from shmpool.paths import lock_path

Run = Callable[..., Any]


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside the living"])
def test_frees_what_the_dead_left(run: Run, holder: Child, pool_path: Path, alone: bool) -> None:
    with small(pool_path) as pool:
        mine = None if alone else pool.put(np.arange(5), region="output")
        holder.kill()
        if alone:
            pool.close()
        result = run("gc")
        assert result.code == 0
        assert f"cleaned up after pid {holder.pid}: " in result.out
        assert f"freed 4 slot(s) with 78.2 KiB of arrays; {0 if alone else 1} still in use" in result.out
        if mine is not None:
            assert pool.get(mine).tolist() == [0, 1, 2, 3, 4]
            pool.free(mine)
            check_all_free(pool)
    assert run("gc").out == "nothing to do: no dead process left anything in this pool\n"


def test_leaves_the_living_alone(run: Run, holder: Child, small_pool: shmpool.Pool) -> None:
    before = small_pool.stat().slots
    assert run("gc", "--json").data == {
        "path": str(small_pool.path),
        "dead_clients": [],
        "freed_slots": [],
        "freed_nbytes": 0,
        "used_slots": 4,
    }
    assert [(slot.state, slot.generation) for slot in small_pool.stat().slots] == [
        (slot.state, slot.generation) for slot in before
    ]


def test_json(run: Run, holder: Child, small_pool: shmpool.Pool) -> None:
    holder.kill()
    data = run("gc", "--json").data
    assert data["dead_clients"] == [holder.pid]
    assert data["freed_slots"] == [0, 1, 4, 6]
    assert data["freed_nbytes"] == 80_080
    assert data["used_slots"] == 0


def test_remove(run: Run, small_pool: shmpool.Pool) -> None:
    small_pool.put(np.zeros(3))
    reserved = small_pool.stat().reserved_nbytes
    assert reserved > 0
    small_pool.close()
    data = run("gc", "--remove", "--json").data
    assert data == {"path": str(small_pool.path), "removed": True, "returned_nbytes": reserved}
    assert not small_pool.path.exists()
    assert not lock_path(small_pool.path).exists()


def test_remove_after_a_crash(run: Run, holder: Child, pool_path: Path) -> None:
    holder.kill()
    result = run("gc", "--remove")
    assert result.code == 0
    assert result.out.startswith(f"removed {pool_path}; ")
    assert not pool_path.exists()


def test_remove_refuses_a_pool_in_use(run: Run, holder: Child, pool_path: Path) -> None:
    before = pool_path.read_bytes()
    result = run("gc", "--remove")
    assert result.code == 1
    assert "is in use and was left as it is" in result.err
    assert f"pid {holder.pid} for " in result.err
    assert pool_path.read_bytes() == before
    assert run("gc", "--remove", "--json").data == {
        "path": str(pool_path),
        "removed": False,
        "users": [holder.pid],
    }


def test_remove_of_a_damaged_pool(run: Run, small_pool: shmpool.Pool) -> None:
    small_pool.close()
    with small_pool.path.open("r+b") as file:
        file.seek(40)
        file.write(b"\xff")
    assert run("gc").code == 1
    assert run("gc", "--remove").code == 0
    assert not small_pool.path.exists()


def test_needs_no_rich(run: Run, holder: Child, small_pool: shmpool.Pool, without_rich: dict[str, str]) -> None:
    holder.kill()
    result = run("gc", **without_rich)
    assert result.err == ""
    assert "freed 4 slot(s)" in result.out
