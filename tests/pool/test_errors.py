# SPDX-License-Identifier: BSD-3-Clause
"""Every error: in the tree that the documentation shows, also a builtin, with a hint, picklable."""

from __future__ import annotations

import builtins
import copy
import errno
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pools import SLOT, small

import shmpool
from shmpool import Pool, errors

ALL = [getattr(errors, name) for name in errors.__all__]
CONCRETE = [error for error in ALL if error is not shmpool.ShmPoolError]


def documented_tree() -> dict[str, tuple[str, str | None]]:
    """Name -> (parent in the tree, builtin in brackets) from the module's docstring."""
    assert errors.__doc__ is not None
    tree: dict[str, tuple[str, str | None]] = {}
    path: list[str] = ["ShmPoolError"]
    for line in errors.__doc__.splitlines():
        found = re.match(r"^    ((?:│   |    )*)[├└]── (\w+)(?: +\((\w+)[^)]*\))?", line)
        if found:
            depth = len(found[1]) // 4 + 1
            path = [*path[:depth], found[2]]
            tree[found[2]] = (path[depth - 1], found[3])
    return tree


def test_the_tree_in_the_docstring_is_the_truth() -> None:
    tree = documented_tree()
    assert set(tree) == {error.__name__ for error in CONCRETE}
    for name, (parent, builtin) in tree.items():
        error = getattr(errors, name)
        assert getattr(errors, parent) in error.__bases__
        if builtin is not None:
            assert getattr(builtins, builtin) in error.__bases__


def test_all_errors_are_exported() -> None:
    defined = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert defined == set(ALL)
    for error in ALL:
        assert getattr(shmpool, error.__name__) is error
        assert error.__name__ in shmpool.__all__
        assert error.__doc__


@pytest.mark.parametrize("error", CONCRETE)
def test_each_is_also_a_builtin(error: type[shmpool.ShmPoolError]) -> None:
    assert issubclass(error, shmpool.ShmPoolError)
    others = [base for base in error.__mro__ if base.__module__ == "builtins"]
    assert set(others) - {Exception, BaseException, object}


@pytest.mark.parametrize("error", ALL)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles(error: type[shmpool.ShmPoolError], protocol: int) -> None:
    original: Any = error("what was wrong", hint="what to do", needed=5, holders=("a",))
    for again in (pickle.loads(pickle.dumps(original, protocol)), copy.copy(original), copy.deepcopy(original)):
        assert type(again) is error
        assert again.hint == "what to do"
        assert (vars(again)["needed"], vars(again)["holders"]) == (5, ("a",))
        assert again.args == original.args
        assert str(again) == str(original) == "what was wrong Hint: what to do"


@pytest.mark.parametrize("error", ALL)
def test_hint_is_optional(error: type[shmpool.ShmPoolError]) -> None:
    assert error("what was wrong").hint == ""
    assert str(error("what was wrong")) == "what was wrong"
    assert pickle.loads(pickle.dumps(error("what was wrong"))).hint == ""


def test_space_error_is_enospc() -> None:
    error = shmpool.PoolSpaceError("full")
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC
    assert pickle.loads(pickle.dumps(error)).errno == errno.ENOSPC


def test_errors_of_a_real_pool_pickle(pool_path: Path) -> None:
    """With everything they carry: a pool in a worker process must be able to report home."""
    with small(pool_path, max_clients=1) as pool:
        handle = pool.put(np.arange(3))
        for _ in range(3):
            pool.put(np.arange(3))
        foreign = shmpool.Handle(pool="0" * 32, slot=0, span=1, generation=1, nbytes=1)
        calls: dict[type[shmpool.ShmPoolError], Any] = {
            shmpool.PoolFullError: lambda: pool.put(np.arange(3), timeout=0),
            shmpool.PayloadTooLargeError: lambda: pool.put(np.zeros(9 * SLOT, "u1")),
            shmpool.UnsupportedDtypeError: lambda: pool.put(np.array([None])),
            shmpool.HandleError: lambda: pool.get(foreign),
            shmpool.TooManyClientsError: lambda: Pool.attach(pool_path),
            shmpool.PoolExistsError: lambda: Pool.create(pool_path),
            shmpool.PoolNotFoundError: lambda: Pool.attach(pool_path.with_name("none.bin")),
            shmpool.ClientGoneError: lambda: pool.give(handle, shmpool.ClientId(0, 1)),
            shmpool.StaleHandleError: lambda: pool.get(handle),
        }
        for expected, call in calls.items():
            with pytest.raises(shmpool.ShmPoolError) as caught:
                call()
            assert type(caught.value) is expected
            again = pickle.loads(pickle.dumps(caught.value))
            assert str(again) == str(caught.value)
            # PoolFullError's holders and the like are values, so they come back equal
            assert vars(again) == vars(caught.value)
