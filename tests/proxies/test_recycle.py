# SPDX-License-Identifier: BSD-3-Clause
"""Result memory is used again, and never while somebody still has it."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from gsb._recycle import SMALLEST, Recycler

N = SMALLEST // 8


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f8", "i4", ">f4", "U3"])
def test_copies_are_private_and_writable(order: str, dtype: str) -> None:
    source = np.asarray(np.arange(2 * N).reshape(2, N).astype(dtype), order=order)  # type: ignore[call-overload]
    source.flags.writeable = False
    found = Recycler().copy(source)
    np.testing.assert_array_equal(found, source, strict=True)
    assert found.flags.writeable
    assert found.flags.f_contiguous == source.flags.f_contiguous
    assert not np.shares_memory(found, source)


def test_memory_is_used_again_once_the_last_view_is_gone() -> None:
    recycler = Recycler()
    source = np.arange(2.0 * N)
    first = recycler.copy(source)
    where, part = address(first), first[5:10]
    del first
    second = recycler.copy(source + 1)
    assert address(second) != where
    np.testing.assert_array_equal(part, source[5:10])
    assert recycler.nbytes == 0
    del part
    assert recycler.nbytes > 0
    third = recycler.copy(source + 2)
    assert address(third) == where
    np.testing.assert_array_equal(second, source + 1)


def test_what_is_kept_is_limited() -> None:
    recycler = Recycler(limit=8 * SMALLEST)
    kept = [recycler.copy(np.zeros(3 * N)) for _ in range(6)]
    kept.clear()
    assert 0 < recycler.nbytes <= 8 * SMALLEST
    # Neither a small array nor one beyond the limit is of its blocks.
    before = recycler.nbytes
    recycler.copy(np.zeros(10))
    recycler.copy(np.zeros(9 * N))
    assert recycler.nbytes == before
    # A block that is much too large stays for others.
    tiny = recycler.copy(np.zeros(N))
    assert recycler.nbytes == before
    del tiny


def test_threads_never_share() -> None:
    recycler = Recycler()
    failures: list[int] = []

    def work(value: int) -> None:
        source = np.full(N, float(value))
        for _ in range(100):
            found = recycler.copy(source)
            if not (found == value).all():
                failures.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_a_forked_child_has_its_own() -> None:
    array = Recycler().copy(np.zeros(SMALLEST, np.uint8))
    pid = os.fork()
    if pid == 0:
        array[:] = 1
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert not array.any()
