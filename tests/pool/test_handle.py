# SPDX-License-Identifier: BSD-3-Clause
"""Handles are frozen values, and whatever is not one is a HandleError and nothing else."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pools import check_all_free, small
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import shmpool
from shmpool import Handle, Pool

UUID = "00112233445566778899aabbccddeeff"
FIELDS: dict[str, Any] = {
    "pool": UUID,
    "slot": 3,
    "span": 2,
    "generation": 77,
    "nbytes": 100,
}

any_handle = st.builds(
    Handle,
    pool=st.binary(min_size=16, max_size=16).map(bytes.hex),
    slot=st.integers(0, 2**32 - 1),
    span=st.integers(1, 2**32 - 1),
    generation=st.integers(1, 2**48 - 1),
    nbytes=st.integers(0, 2**64 - 1),
)


def make(**changes: Any) -> Handle:
    return Handle(**{**FIELDS, **changes})


def test_fields() -> None:
    handle = make()
    assert {name: getattr(handle, name) for name in FIELDS} == FIELDS
    assert handle.to_dict() == FIELDS
    assert eval(repr(handle), {"Handle": Handle}) == handle


def test_frozen() -> None:
    handle = make()
    for name in FIELDS:
        with pytest.raises(AttributeError):
            setattr(handle, name, 1)
    with pytest.raises(AttributeError):
        handle.other = 1  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        handle.__init__(**FIELDS)
    with pytest.raises(TypeError):
        type("Sub", (Handle,), {})
    assert handle.to_dict() == FIELDS


def test_equality_and_hash() -> None:
    assert make() == make()
    assert hash(make()) == hash(make())
    assert len({make(), make(), make(slot=4)}) == 2
    for name, other in (("pool", "f" * 32), ("slot", 4), ("span", 1), ("generation", 78), ("nbytes", 0)):
        assert make(**{name: other}) != make()
    assert make() != FIELDS
    assert make() != None  # noqa: E711
    with pytest.raises(TypeError):
        make() < make()  # type: ignore[operator]  # noqa: B015


@settings(deadline=None)
@given(handle=any_handle)
def test_round_trips(handle: Handle) -> None:
    raw = handle.to_bytes()
    assert len(raw) == 44
    for form in (raw, bytearray(raw), memoryview(raw)):
        assert Handle.from_bytes(form) == handle
    assert Handle.from_dict(json.loads(json.dumps(handle.to_dict()))) == handle
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(handle, protocol))
        assert again == handle
        assert hash(again) == hash(handle)
    assert copy.copy(handle) == copy.deepcopy(handle) == handle


@pytest.mark.parametrize(
    "changes",
    [
        {"pool": ""},
        {"pool": "00" * 15},
        {"pool": "00" * 17},
        {"pool": "gg" * 16},
        {"pool": "é" * 32},
        {"slot": -1},
        {"slot": 2**32},
        {"slot": 1.0},
        {"slot": "3"},
        {"slot": True},
        {"slot": None},
        {"span": 0},
        {"span": 2**32},
        {"generation": 0},
        {"generation": 2**48},
        {"nbytes": -1},
        {"nbytes": 2**64},
        {"nbytes": float("nan")},
    ],
)
def test_values_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(shmpool.HandleError):
        make(**changes)
    with pytest.raises(shmpool.HandleError) as caught:
        Handle.from_dict({**FIELDS, **changes})
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "data", [None, [], "", 1, {}, FIELDS.items(), {**FIELDS, "x": 1}, {**FIELDS, "pool": 7}, {"pool": "x"}]
)
def test_not_a_handle_dict(data: Any) -> None:
    with pytest.raises(shmpool.HandleError):
        Handle.from_dict(data)


def test_not_handle_bytes() -> None:
    raw = make().to_bytes()
    for data in (b"", raw[:-1], raw + b"\0", b"SPH2" + raw[4:], raw[:20] + b"\0" * 24):
        with pytest.raises(shmpool.HandleError):
            Handle.from_bytes(data)
    for other in (None, 44, "text", [0] * 44, 10**13):
        with pytest.raises((shmpool.HandleError, TypeError)):
            Handle.from_bytes(other)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=60) | st.binary(min_size=40, max_size=40).map(b"SPH1".__add__))
@example(data=b"SPH1" + bytes(40))
def test_any_bytes(data: bytes) -> None:
    try:
        handle = Handle.from_bytes(data)
    except shmpool.HandleError:
        return
    assert handle.to_bytes() == data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40) | st.just(UUID),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=300)
@given(data=json_values | st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, json_values)))
def test_any_json(data: Any) -> None:
    try:
        handle = Handle.from_dict(data)
    except shmpool.HandleError:
        return
    assert handle.to_dict() == data | {"pool": handle.pool}


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_forged_handles_reach_nothing(small_pool: Pool, data: st.DataObject) -> None:
    """A handle of this pool with any other number is refused by every call, and leaves no trace."""
    real = small_pool.put(np.arange(10.0))
    try:
        near = st.integers(0, 9)
        forged = Handle(
            pool=small_pool.uuid,
            slot=data.draw(st.just(real.slot) | near | st.integers(0, 2**32 - 1)),
            span=data.draw(st.just(1) | st.integers(1, 9) | st.integers(1, 2**32 - 1)),
            generation=data.draw(st.just(real.generation) | st.integers(1, 2**48 - 1)),
            nbytes=data.draw(st.just(80) | st.integers(0, 2**64 - 1)),
        )
        if forged != real:
            for copy_ in (False, True):
                with pytest.raises((shmpool.HandleError, shmpool.StaleHandleError)):
                    small_pool.get(forged, copy=copy_)
        if (forged.slot, forged.generation) != (real.slot, real.generation):
            for call in (small_pool.free, small_pool.owner, small_pool.adopt):
                with pytest.raises((shmpool.HandleError, shmpool.StaleHandleError)):
                    call(forged)
        stat = small_pool.stat()
        assert stat.used_slots == 1
        assert stat.slots[real.slot].pins == {}
        assert small_pool.get(real).tolist() == list(range(10))
    finally:  # also when Hypothesis breaks an example off in the middle of a draw
        small_pool.free(real)


def test_handles_of_another_pool(pool_dir: Path) -> None:
    with small(pool_dir / "one.bin") as one, small(pool_dir / "two.bin") as two:
        handle = one.put(np.arange(3))
        two.put(np.arange(4))
        for call in (two.get, two.free, two.owner, two.adopt):
            with pytest.raises(shmpool.HandleError, match="names pool"):
                call(handle)
        check_all_free_but(two, 1)


def check_all_free_but(pool: Pool, n: int) -> None:
    stat = pool.stat()
    assert stat.used_slots == n
    assert all(not slot.pins for slot in stat.slots)


@pytest.mark.parametrize("handle", [None, 1, "handle", FIELDS, b"", object()])
def test_not_a_handle_at_all(small_pool: Pool, handle: Any) -> None:
    for call in (small_pool.get, small_pool.free, small_pool.owner, small_pool.adopt):
        with pytest.raises((TypeError, AttributeError)):
            call(handle)
    check_all_free(small_pool)
