# SPDX-License-Identifier: BSD-3-Clause
"""Arrays that are born in the pool: sealed without a copy, aborted without a trace, never writable after the seal."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pools import SLOT, check_all_free, small

import shmpool
from shmpool import Pool


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def test_loan_and_seal(small_pool: Pool) -> None:
    with small_pool.loan((10, 20), "f4") as loan:
        assert loan.array.shape == (10, 20)
        assert loan.array.dtype == "f4"
        assert loan.array.flags.c_contiguous
        assert loan.array.flags.writeable
        loan.array[...] = np.arange(200).reshape(10, 20)
        place = address(loan.array)
        handle = loan.seal()
    view = small_pool.get(handle)
    assert address(view) == place
    assert np.array_equal(view, np.arange(200).reshape(10, 20))
    assert not view.flags.writeable
    small_pool.free(handle)
    del view
    check_all_free(small_pool)


@pytest.mark.parametrize(
    ("shape", "dtype", "order"),
    [
        (5, "f8", "C"),
        ((), "i4", "C"),
        ((0, 3), "f4", "C"),
        ((3, 4), ">c16", "F"),
        ([2, 3, 4], [("a", "u1"), ("b", "f8")], "F"),
        (np.int64(7), "M8[s]", "C"),
        ((SLOT, 3), "u1", "C"),
        (10, "U", "C"),
        (10, "S0", "C"),
        ((2, 3), bool, "F"),
    ],
)
def test_shapes_dtypes_orders(small_pool: Pool, shape: Any, dtype: Any, order: Any) -> None:
    like = np.zeros(shape, dtype, order)
    loan = small_pool.loan(shape, dtype, order)
    assert loan.array.shape == like.shape
    assert loan.array.flags.c_contiguous == like.flags.c_contiguous
    assert loan.array.flags.f_contiguous == like.flags.f_contiguous
    assert loan.array.nbytes <= max(like.nbytes, 0)
    loan.array[...] = like
    handle = loan.seal()
    got = small_pool.get(handle)
    assert got.tobytes() == like.tobytes()[: got.nbytes]
    assert got.flags.f_contiguous == like.flags.f_contiguous


def test_default_dtype_is_float(small_pool: Pool) -> None:
    assert small_pool.loan(3).array.dtype == np.float64
    check_all_free(small_pool)


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (ValueError, {"shape": (-1,)}),
        (ValueError, {"shape": 3, "order": "K"}),
        (TypeError, {"shape": (2.5,)}),
        (TypeError, {"shape": 2.5}),
        (TypeError, {"shape": None}),
        (TypeError, {"shape": "34"}),
        (TypeError, {"shape": 3, "dtype": "no dtype"}),
        (TypeError, {"shape": 3, "dtype": ("f4", (2,))}),
        ((ValueError, OverflowError), {"shape": (2**63,)}),
        ((ValueError, OverflowError), {"shape": (0, 2**63)}),
        ((ValueError, OverflowError), {"shape": (0, 2**62)}),
    ],
)
def test_bad_arguments(small_pool: Pool, error: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(error):
        small_pool.loan(**arguments)
    check_all_free(small_pool)


def test_leaving_without_seal_aborts(small_pool: Pool) -> None:
    with small_pool.loan(5) as loan:
        loan.array[...] = 1
        assert small_pool.stat().used_slots == 1
    check_all_free(small_pool)
    for use in (lambda: loan.array, loan.seal):
        with pytest.raises(shmpool.LoanError, match="ended"):
            use()
    loan.abort()


def test_an_exception_aborts(small_pool: Pool) -> None:
    with contextlib.suppress(KeyError), small_pool.loan(3 * SLOT, "u1") as loan:
        loan.array[...] = 1
        raise KeyError
    with pytest.raises(shmpool.LoanError):
        loan.seal()
    del loan
    gc.collect()
    check_all_free(small_pool)


def test_abort(small_pool: Pool) -> None:
    loan = small_pool.loan(5)
    loan.abort()
    loan.abort()
    check_all_free(small_pool)
    with pytest.raises(shmpool.LoanError):
        loan.seal()


def test_dropped_loan_is_aborted(small_pool: Pool) -> None:
    small_pool.loan(5)
    gc.collect()
    check_all_free(small_pool)


def test_sealing_twice(small_pool: Pool) -> None:
    with small_pool.loan(5) as loan:
        loan.array[...] = 1
        loan.seal()
        with pytest.raises(shmpool.LoanError, match="ended"):
            loan.seal()
        with pytest.raises(shmpool.LoanError, match="ended"):
            loan.array  # noqa: B018
        loan.abort()
    assert small_pool.stat().used_slots == 1


DERIVED: dict[str, Callable[[Any], Any]] = {
    "slice": lambda a: a[1:],
    "view": lambda a: a.view("u1"),
    "reshape": lambda a: a.reshape(2, -1),
    "row": lambda a: a.reshape(2, -1)[0],
    "transpose": lambda a: a.reshape(2, -1).T,
    "of_view": lambda a: a[1:][1:],
    "frombuffer": lambda a: np.frombuffer(a, "u1"),
    "memoryview_of_slice": lambda a: memoryview(a[1:]),
    "locked_slice": lambda a: _locked(a[1:]),
}


def _locked(array: Any) -> Any:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("how", DERIVED)
@pytest.mark.parametrize("by_put", [False, True])
def test_derived_views_keep_it_from_being_sealed(small_pool: Pool, how: str, by_put: bool) -> None:
    """They could change the bytes under a reader. Nothing is lost: delete them, then seal."""
    loan = small_pool.loan(10, "f8")
    loan.array[...] = np.arange(10)
    derived = DERIVED[how](loan.array)
    for _ in range(2):
        with pytest.raises(shmpool.LoanError, match="1 view") as caught:
            small_pool.put(loan.array) if by_put else loan.seal()
        assert caught.value.hint
        assert isinstance(caught.value, BufferError)
    assert small_pool.stat().slots[0].state == "writing"
    del derived, caught
    gc.collect()
    handle = small_pool.put(loan.array) if by_put else loan.seal()
    assert small_pool.get(handle).tolist() == list(range(10))


def test_loop_variable_is_a_view(small_pool: Pool) -> None:
    loan = small_pool.loan((3, 4), "f8")
    for row in loan.array:
        row[...] = 7
    with pytest.raises(shmpool.LoanError):
        loan.seal()
    del row
    assert (small_pool.get(loan.seal()) == 7).all()


def test_array_kept_after_the_seal(small_pool: Pool) -> None:
    """It becomes read-only, and it is a pin: its bytes stay."""
    loan = small_pool.loan(10, "f8")
    array = loan.array
    array[...] = np.arange(10)
    handle = loan.seal()
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    inner: Any = array.base
    with pytest.raises(ValueError, match="WRITEABLE"):
        inner.flags.writeable = True
    del inner
    assert small_pool.stat().slots[handle.slot].pins == {small_pool.client.index: 1}
    small_pool.free(handle)
    derived = array[3:]
    del array, loan
    gc.collect()
    assert small_pool.stat().slots[handle.slot].state == "retired"
    assert derived.tolist() == list(range(3, 10))
    del derived
    check_all_free(small_pool)


def test_array_kept_after_the_abort(small_pool: Pool) -> None:
    """Somebody can still write to it, so the slot is not handed out until it is gone."""
    loan = small_pool.loan(10, "f8")
    view = loan.array[2:4]
    loan.abort()
    assert small_pool.stat().slots[0].state == "writing"
    for _ in range(6):
        handle = small_pool.put(np.zeros(10))
        assert handle.slot != 0
        small_pool.free(handle)
    view[...] = 5
    del view
    check_all_free(small_pool)


def test_array_kept_after_the_abort_may_still_be_put(small_pool: Pool) -> None:
    loan = small_pool.loan(10, "f8")
    array = loan.array
    loan.abort()
    array[...] = 3
    place = address(array)
    handle = small_pool.put(array)
    assert address(small_pool.get(handle)) == place
    assert not array.flags.writeable
    small_pool.free(handle)
    del array
    check_all_free(small_pool)


def test_put_of_a_loaned_array_copies_nothing(small_pool: Pool) -> None:
    with small_pool.loan((6, 4), "f8") as loan:
        loan.array[...] = np.arange(24).reshape(6, 4)
        place = address(loan.array)
        handle = small_pool.put(loan.array)
        with pytest.raises(shmpool.LoanError):
            loan.array  # noqa: B018
    assert small_pool.counters["input"] == 1
    view = small_pool.get(handle)
    assert address(view) == place
    assert np.array_equal(view, np.arange(24).reshape(6, 4))


PARTS: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "rows": (lambda a: a[2:5], False),
    "row": (lambda a: a[3], False),
    "element": (lambda a: a[3, 2:3], False),
    "flat": (lambda a: a.reshape(-1), False),
    "bytes": (lambda a: a.view("u1"), False),
    "transposed": (lambda a: a.T, False),
    "transposed_rows": (lambda a: a[1:3].T, False),
    "columns": (lambda a: a[:, 1:3], True),
    "reversed": (lambda a: a[::-1], True),
    "empty": (lambda a: a[3:3], True),
}


@pytest.mark.parametrize("part", PARTS)
def test_put_of_a_part_of_a_loaned_array(small_pool: Pool, part: str) -> None:
    """A contiguous part is sealed where it is; anything else is an ordinary copy and leaves the loan open."""
    take, is_copied = PARTS[part]
    loan = small_pool.loan((6, 4), "f8")
    loan.array[...] = np.arange(24).reshape(6, 4)
    expected = take(loan.array).copy(order="A")
    place = address(take(loan.array))
    handle = small_pool.put(take(loan.array))
    view = small_pool.get(handle)
    assert (address(view) != place) == is_copied
    assert view.dtype == expected.dtype
    assert np.array_equal(view, expected)
    assert handle.nbytes == expected.nbytes
    assert small_pool.stat().used_slots == (2 if is_copied else 1)
    assert (small_pool.counters["input"] == 2) == is_copied
    del view
    small_pool.free(handle)
    loan.abort()
    check_all_free(small_pool)


def test_put_of_a_named_part(small_pool: Pool) -> None:
    """The view that is put is not in its own way; it becomes read-only. Any other view is."""
    loan = small_pool.loan(10, "f8")
    loan.array[...] = np.arange(10)
    part = loan.array[2:6]
    other = loan.array[0:1]
    with pytest.raises(shmpool.LoanError):
        small_pool.put(part)
    del other
    handle = small_pool.put(part)
    assert not part.flags.writeable
    assert small_pool.get(handle).tolist() == [2, 3, 4, 5]
    small_pool.free(handle)
    assert small_pool.stat().used_slots == 1
    del part
    check_all_free(small_pool)


def test_put_of_another_pools_loan_copies(pool_dir: Path) -> None:
    with small(pool_dir / "one.bin") as one, small(pool_dir / "two.bin") as two:
        loan = one.loan(10, "f8")
        loan.array[...] = 4
        handle = two.put(loan.array)
        assert handle.pool == two.uuid
        loan.array[...] = 5
        assert (two.get(handle) == 4).all()


def test_put_of_a_sealed_loan_copies(small_pool: Pool) -> None:
    loan = small_pool.loan(10, "f8")
    array = loan.array
    array[...] = 4
    first = loan.seal()
    second = small_pool.put(array)
    assert first.slot != second.slot
    assert (small_pool.get(second) == 4).all()


def test_long_description_of_a_loan(small_pool: Pool) -> None:
    dtype = np.dtype([(f"field_with_a_long_name_{number:03d}", "u1") for number in range(64)])
    for n in (0, 1, SLOT // 64):
        loan = small_pool.loan(n, dtype)
        loan.array[...] = np.ones(n, dtype)
        handle = loan.seal()
        assert np.array_equal(small_pool.get(handle), np.ones(n, dtype))
        small_pool.free(handle)
        check_all_free(small_pool)
    # there was no reason to keep room for this one
    loan = small_pool.loan(SLOT, "u1")
    loan.array[...] = 1
    with pytest.raises(shmpool.UnsupportedDtypeError, match="no room"):
        small_pool.put(loan.array.view(dtype))
    handle = loan.seal()
    assert (small_pool.get(handle) == 1).all()


def test_loans_outlive_close(pool_path: Path) -> None:
    """The mapping and the claim stay as long as the array; sealing needs an open pool."""
    with small(pool_path) as watcher:
        pool = small(pool_path)
        loan = pool.loan(10, "f8")
        pool.close()
        loan.array[...] = 3
        assert watcher.stat().slots[0].state == "writing"
        assert watcher.is_alive(pool.client)
        with pytest.raises(shmpool.PoolClosedError):
            loan.seal()
        loan.abort()
        check_all_free(watcher)
        assert not watcher.is_alive(pool.client)


def test_loans_are_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match="made by"):
        shmpool.Loan()


def test_loans_in_threads(small_pool: Pool) -> None:
    """Each loan its own slot; nobody sees another's bytes."""
    failures: list[object] = []

    def work(seed: int) -> None:
        for number in range(50):
            with small_pool.loan(100, "i8", timeout=60) as loan:
                loan.array[...] = seed * 1000 + number
                if number % 5 == 0:
                    continue
                handle = loan.seal()
            got = small_pool.get(handle)
            if not (got == seed * 1000 + number).all():
                failures.append(got)
            small_pool.free(handle)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert failures == []
    gc.collect()
    check_all_free(small_pool)
