# SPDX-License-Identifier: BSD-3-Clause
"""How long a slot lives: as long as anything derived from a view of it; and that nobody can write through one."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pools import SLOT, check_all_free, small

import shmpool
from shmpool import Pool

DERIVED: dict[str, Callable[[Any], Any]] = {
    "itself": lambda v: v,
    "slice": lambda v: v[10:20],
    "negative": lambda v: v[::-1],
    "view": lambda v: v.view("u1"),
    "subclass": lambda v: v.view(np.matrix),
    "reshape": lambda v: v.reshape(10, -1),
    "transpose": lambda v: v.reshape(10, -1).T,
    "of_a_view": lambda v: v[5:][3:].reshape(-1)[::2],
    "scalar_view": lambda v: v[3:4].reshape(()),
    "memoryview": memoryview,
    "cast_memoryview": lambda v: memoryview(v).cast("B")[7:],
    "frombuffer": lambda v: np.frombuffer(v, "u1"),
    "asarray_of_memoryview": lambda v: np.asarray(memoryview(v)),
    "dlpack": lambda v: np.from_dlpack(v),
    "base": lambda v: v.base,
    "iterator": lambda v: v.flat,
    "nditer": lambda v: np.nditer(v),
    "in_a_list": lambda v: [v[1:], {"x": v[2:]}],
    "closure": lambda v: lambda: v,
    "ctypes": lambda v: v.ctypes,
    "broadcast": lambda v: np.broadcast_to(v, (3, v.size)),
}


@pytest.mark.parametrize("how", DERIVED)
@pytest.mark.parametrize("end", ["free", "close", "drop"])
def test_anything_derived_pins(pool_path: Path, how: str, end: str) -> None:
    """The slot is reused when the last derived object is gone, and not before, whatever ended first."""
    with small(pool_path) as watcher:
        pool = small(pool_path)
        array = np.arange(1000.0)
        handle = pool.put(array)
        view = pool.get(handle)
        derived = DERIVED[how](view)
        del view
        if end == "free":
            pool.free(handle)
        elif end == "close":
            pool.close()
        else:
            del pool
        gc.collect()
        expected = "sealed" if end == "drop" else "retired"
        assert watcher.stat().slots[handle.slot].state == expected
        filler = [watcher.put(np.zeros(1000)) for _ in range(3)]
        assert handle.slot not in {other.slot for other in filler}
        if isinstance(derived, np.ndarray) and derived.dtype == array.dtype:
            assert np.isin(derived, array).all()
        del derived
        gc.collect()
        for other in filler:
            watcher.free(other)
        check_all_free(watcher)


def test_views_count(small_pool: Pool) -> None:
    handle = small_pool.put(np.arange(10))
    views = [small_pool.get(handle) for _ in range(5)]
    me = small_pool.client.index
    assert small_pool.stat().slots[handle.slot].pins == {me: 5}
    views.append(views[0][2:])
    assert small_pool.stat().slots[handle.slot].pins == {me: 5}
    small_pool.free(handle)
    for left in range(4, -1, -1):
        del views[0]
        # the slice keeps the first view's pin alive until the end
        assert sum(small_pool.stat().slots[handle.slot].pins.values()) == left + 1
    views.clear()
    check_all_free(small_pool)


def test_reference_cycles(small_pool: Pool) -> None:
    handle = small_pool.put(np.arange(10))
    small_pool.get(handle)
    cycle: list[Any] = [small_pool.get(handle)]
    cycle.append(cycle)
    small_pool.free(handle)
    del cycle
    gc.collect()
    check_all_free(small_pool)


def test_pool_in_a_cycle_with_its_view(pool_path: Path) -> None:
    class Holder:
        pool: Pool
        view: Any
        loan: Any
        me: Any

    with small(pool_path) as watcher:
        holder = Holder()
        holder.me = holder
        holder.pool = small(pool_path)
        handle = holder.pool.put(np.arange(10))
        holder.view = holder.pool.get(handle)
        holder.loan = holder.pool.loan(5)
        holder.pool.free(handle)
        gone = weakref.ref(holder)
        del holder
        gc.collect()
        assert gone() is None
        check_all_free(watcher)
        assert len(watcher.stat().clients) == 1


def test_view_from_a_finaliser(small_pool: Pool) -> None:
    """A view that is dropped while the collector is at work, by an object with a finaliser of its own."""
    seen = []

    class Owner:
        def __init__(self) -> None:
            self.handle = small_pool.put(np.arange(5))
            self.view = small_pool.get(self.handle)
            self.me = self

        def __del__(self) -> None:
            seen.append(self.view.tolist())
            small_pool.free(self.handle)

    Owner()
    gc.collect()
    assert seen == [[0, 1, 2, 3, 4]]
    check_all_free(small_pool)


def test_views_cannot_be_written(small_pool: Pool) -> None:
    handle = small_pool.put(np.arange(10.0))
    view: Any = small_pool.get(handle)
    for target in (view, view[2:], view.reshape(2, 5), view.view("u8"), np.asarray(view), np.asarray(memoryview(view))):
        assert not target.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            target[...] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            target.flags.writeable = True
        with pytest.raises(ValueError, match="WRITEABLE"):
            target.setflags(write=True)
    with pytest.raises((ValueError, BufferError)):
        np.from_dlpack(view)[0] = 1
    assert memoryview(view).readonly
    with pytest.raises(ValueError, match="read-only"):
        np.add(view, 1, out=view)
    with pytest.raises(ValueError, match="read-only"):
        view.sort()
    with pytest.raises(ValueError, match=r"resize|own"):
        view.resize(20)
    with pytest.raises((ValueError, TypeError)):
        np.ndarray(10, "f8", view.data)[0] = 1
    assert not hasattr(view.base, "__array_interface__")
    pin: Any = view.base
    with pytest.raises(TypeError):
        memoryview(pin)
    view.flags.writeable = False
    assert view.tolist() == list(range(10))


def test_empty_views_pin_too(small_pool: Pool) -> None:
    handle = small_pool.put(np.zeros((0, 3)))
    view = small_pool.get(handle)
    small_pool.free(handle)
    assert small_pool.stat().slots[handle.slot].state == "retired"
    assert view.shape == (0, 3)
    del view
    check_all_free(small_pool)


def test_generations(small_pool: Pool) -> None:
    """A handle never reaches another array, however often its slot was used since."""
    old = []
    for number in range(20):
        handle = small_pool.put(np.full(10, number))
        assert small_pool.get(handle)[0] == number
        small_pool.free(handle)
        old.append(handle)
        alive = small_pool.put(np.full(10, -1))
        for stale in old:
            for call in (small_pool.get, small_pool.free, small_pool.owner, small_pool.adopt):
                with pytest.raises(shmpool.StaleHandleError):
                    call(stale)
            with pytest.raises(shmpool.StaleHandleError):
                small_pool.get(stale, copy=True)
            with pytest.raises(shmpool.StaleHandleError):
                small_pool.give(stale, small_pool.client)
        small_pool.free(alive)
    assert len(set(old)) == 20
    check_all_free(small_pool)


def test_free_while_viewed(small_pool: Pool) -> None:
    handle = small_pool.put(np.arange(10))
    view = small_pool.get(handle)
    small_pool.free(handle)
    with pytest.raises(shmpool.StaleHandleError):
        small_pool.free(handle)
    with pytest.raises(shmpool.StaleHandleError):
        small_pool.get(handle)
    filler = [small_pool.put(np.zeros(10)) for _ in range(3)]
    with pytest.raises(shmpool.PoolFullError):
        small_pool.put(np.zeros(10), timeout=0)
    assert view.tolist() == list(range(10))
    del view
    filler.append(small_pool.put(np.zeros(10), timeout=0))
    assert filler[-1].slot == handle.slot


def test_copies_are_independent(small_pool: Pool) -> None:
    handle = small_pool.put(np.arange(10))
    copy = small_pool.get(handle, copy=True)
    copy[0] = 99
    assert small_pool.get(handle)[0] == 0
    small_pool.free(handle)
    check_all_free(small_pool)
    assert copy.tolist() == [99, *range(1, 10)]


def test_copy_auto(small_pool: Pool) -> None:
    """Small arrays are copied; large ones are viewed as long as two slots of the region stay free."""
    little = small_pool.put(np.zeros(100))
    assert small_pool.get(little, copy="auto").flags.owndata
    small_pool.free(little)
    large = small_pool.put(np.ones(SLOT, "u1"))
    view = small_pool.get(large, copy="auto")
    assert not view.flags.owndata
    second = small_pool.put(np.ones(SLOT, "u1"))
    assert not small_pool.get(second, copy="auto").flags.owndata
    third = small_pool.put(np.ones(SLOT, "u1"))
    assert small_pool.get(third, copy="auto").flags.owndata
    for handle in (large, second, third):
        small_pool.free(handle)


@pytest.mark.parametrize("copy", ["yes", "", None, 1, 0, "Auto", [True]])
def test_other_values_of_copy(small_pool: Pool, copy: Any) -> None:
    handle = small_pool.put(np.arange(3))
    with pytest.raises(ValueError, match="copy must be"):
        small_pool.get(handle, copy=copy)
    small_pool.free(handle)
    check_all_free(small_pool)


def test_two_views_are_the_same_memory(pool_path: Path) -> None:
    """Zero-copy: within one attachment the same address; between two mappings the same bytes."""
    with small(pool_path) as one, small(pool_path) as two:
        handle = one.put(np.arange(100.0))
        first, second, other = one.get(handle), one.get(handle), two.get(handle)
        assert first.ctypes.data == second.ctypes.data
        assert np.shares_memory(first, second)
        assert first.ctypes.data != other.ctypes.data
        assert first.ctypes.data % 4096 == other.ctypes.data % 4096 == 0


def test_views_of_views_can_be_put_again(small_pool: Pool) -> None:
    handle = small_pool.put(np.arange(100))
    view = small_pool.get(handle)
    again = small_pool.put(view[10:20])
    assert again.slot != handle.slot
    small_pool.free(handle)
    del view
    assert small_pool.get(again).tolist() == list(range(10, 20))


def test_pickled_views_are_copies(small_pool: Pool) -> None:
    handle = small_pool.put(np.arange(10))
    copy = pickle.loads(pickle.dumps(small_pool.get(handle)))
    small_pool.free(handle)
    check_all_free(small_pool)
    assert copy.tolist() == list(range(10))


def test_view_outlives_the_pool_file(pool_path: Path) -> None:
    pool = small(pool_path)
    view = pool.get(pool.put(np.arange(1000)))
    pool.close()
    del pool
    gc.collect()
    with pytest.raises(shmpool.PoolExistsError):
        Pool.remove(pool_path)  # a view is a use
    pool_path.unlink()
    assert view.sum() == 499500
    del view
    Pool.remove(pool_path)
