# SPDX-License-Identifier: BSD-3-Clause
"""What goes in comes out: every dtype, every memory layout, every size; and what is refused."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from helpers.pools import SLOT, check_all_free, small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shmpool
from shmpool import Pool, dtypes

RNG = np.random.default_rng(7)

PLAIN = [
    *np.typecodes["AllInteger"],
    *np.typecodes["AllFloat"],
    "?", ">i2", ">u8", ">f4", ">c16", "<U5", ">U5", "S7", "V9", "M8[ns]", "m8[us]",
    ">M8[D]", "M8[25s]", "M8[D/4]", "M8",
]  # fmt: skip

LONG = np.dtype([(f"field_with_a_long_name_{number:03d}", "f8", (number % 3 + 1,)) for number in range(60)])

STRUCTURED = {
    "packed": np.dtype([("a", "u1"), ("b", "<f8"), ("c", ">i2", (2, 3))]),
    "aligned": np.dtype([("a", "u1"), ("b", "<f8")], align=True),
    "padding": np.dtype({"names": ["a", "b"], "formats": ["i4", "u1"], "offsets": [3, 12], "itemsize": 20}),
    "overlap": np.dtype({"names": ["whole", "low"], "formats": ["<u4", "<u2"], "offsets": [0, 0]}),
    "disordered": np.dtype({"names": ["b", "a"], "formats": ["i4", "i4"], "offsets": [4, 0]}),
    "titles": np.dtype([(("Title of a", "a"), "i4"), ("b", "f4")]),
    "nested": np.dtype([("outer", [("inner", "i2", (2,)), ("s", "S3")], (2,)), ("t", "M8[s]")]),
    "unicode": np.dtype([("größe", "f4"), ("名前", "U3")]),
    "empty_field": np.dtype([("a", "U0"), ("b", "i4")]),
    "no_fields": np.dtype([]),
    "only_padding": np.dtype({"names": [], "formats": [], "itemsize": 8}),
    "long": LONG,
}


def filled(dtype: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """An array of random bytes that are a value of the dtype."""
    dtype = np.dtype(dtype)
    array = np.zeros(shape, dtype)
    if dtype.kind == "U":
        array[...] = np.char.mod("%d", RNG.integers(0, 9999, shape))
        return array
    if dtype.kind == "b":
        return RNG.integers(0, 2, shape).astype(bool)
    if dtype.kind in "fc":
        return RNG.standard_normal(shape).astype(dtype)
    if dtype.names is not None:
        for name in dtype.names:
            if array[name].size and array[name].dtype.itemsize:
                array[name] = filled(array.dtype[name].base, array[name].shape)
        return array
    if dtype.itemsize:
        raw = np.frombuffer(RNG.bytes(array.nbytes), "u1").copy()
        array = np.ndarray(shape, dtype, raw.data)
    return array


def check_round_trip(pool: Pool, array: np.ndarray[Any, Any], region: str = "input") -> None:
    """Put, get as view and as copy, compare bit by bit, free."""
    handle = pool.put(array, region)  # type: ignore[arg-type]
    assert handle.nbytes == array.nbytes
    view = pool.get(handle)
    copy = pool.get(handle, copy=True)
    auto = pool.get(handle, copy="auto")
    for got in (view, copy, auto):
        assert type(got) is np.ndarray
        assert got.dtype == array.dtype
        assert got.dtype.str == array.dtype.str
        assert got.shape == array.shape
        if array.flags.f_contiguous:
            assert got.flags.f_contiguous
        else:
            assert got.flags.c_contiguous
        assert same_fields(got, array)
    assert not view.flags.writeable
    assert not view.flags.owndata
    assert copy.flags.writeable
    assert copy.base is None
    assert view.flags.aligned
    del view, got, auto
    pool.free(handle)
    check_all_free(pool)


def same_fields(one: np.ndarray[Any, Any], two: np.ndarray[Any, Any]) -> bool:
    """Bitwise, field by field: NaN equals NaN, and padding does not count."""
    if one.dtype.names is None:
        return one.tobytes() == two.tobytes()
    return all(same_fields(one[name], two[name]) for name in one.dtype.names)


@pytest.mark.parametrize("dtype", PLAIN)
def test_plain_dtypes(small_pool: Pool, dtype: str) -> None:
    for shape in ((), (1,), (7,), (3, 4), (0,), (3, 0, 2), (2, 3, 4)):
        check_round_trip(small_pool, filled(dtype, shape))


@pytest.mark.parametrize("name", STRUCTURED)
def test_structured_dtypes(small_pool: Pool, name: str) -> None:
    dtype = STRUCTURED[name]
    for shape in ((), (5,), (0,), (2, 3)):
        array = filled(dtype, shape)
        check_round_trip(small_pool, array)
        handle = small_pool.put(array)
        got = small_pool.get(handle).dtype
        assert got.fields == dtype.fields
        assert got.names == dtype.names
        assert got.itemsize == dtype.itemsize
        small_pool.free(handle)
        gc.collect()


def test_alignment_flag_does_not_depend_on_what_came_before(small_pool: Pool) -> None:
    """Two equal dtypes, one of which calls itself aligned."""
    plain = np.dtype([("a", "i4"), ("b", "f4")])
    aligned = np.dtype([("a", "i4"), ("b", "f4")], align=True)
    assert plain == aligned
    for dtype in (plain, aligned, plain):
        got = small_pool.get(small_pool.put(np.zeros(2, dtype))).dtype
        assert got == dtype


@pytest.mark.parametrize("nbytes", [0, 1, 64, 65])
def test_long_descriptions(pool_path: Path, nbytes: int) -> None:
    """A dtype text longer than its place in the record lies behind the data, also when there is none."""
    with small(pool_path) as pool:
        assert len(dtypes.dtype_to_text(LONG)) > 280
        before = [slot.generation for slot in pool.stat().slots]
        array = filled(LONG, (min(nbytes, 40),))
        handle = pool.put(array)
        after = pool.stat().slots
        assert [slot.generation for slot in after][handle.span :] == before[handle.span :]
        assert all(slot.state == "free" for slot in after[handle.span :])
        got = pool.get(handle)
        assert got.dtype == LONG
        assert same_fields(got, array)


def test_long_description_may_need_one_more_slot(small_pool: Pool) -> None:
    dtype = np.dtype([(f"field_with_a_long_name_{number:03d}", "u1") for number in range(64)])
    array = filled(dtype, (SLOT // 64,))
    assert array.nbytes == SLOT
    handle = small_pool.put(array)
    assert (handle.span, handle.nbytes) == (2, SLOT)
    assert np.array_equal(small_pool.get(handle), array)


def test_endless_description_is_refused(small_pool: Pool) -> None:
    dtype = np.dtype([(f"{number:0100d}", "u1") for number in range(700)])
    for call in (lambda: small_pool.put(np.zeros(1, dtype)), lambda: small_pool.loan(1, dtype)):
        with pytest.raises(shmpool.UnsupportedDtypeError, match="65535"):
            call()
    check_all_free(small_pool)


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "c": lambda a: a,
    "fortran": np.asfortranarray,
    "transposed": lambda a: a.T,
    "strided": lambda a: a[::2, ::3],
    "negative": lambda a: a[::-1, ::-1],
    "one_negative": lambda a: a[:, ::-1],
    "broadcast": lambda a: np.broadcast_to(a[0, 0], (4, 5)),
    "stride_zero": lambda a: np.lib.stride_tricks.as_strided(a, (3, 3), (0, a.itemsize)),
    "overlapping": lambda a: np.lib.stride_tricks.sliding_window_view(a[0], 3),
    "permuted": lambda a: a.reshape(2, 3, 10).transpose(1, 2, 0),
    "row": lambda a: a[2],
    "column": lambda a: a[:, 2],
    "scalar_like": lambda a: a[1:2, 1:2],
    "zero_d": lambda a: a[1, 1, ...],
    "empty_slice": lambda a: a[3:3, ::-1],
    "new_axes": lambda a: a[None, :, None, :],
    "read_only": lambda a: _locked(a),
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
}


def _locked(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f8", ">i2", "c8", "S3", "M8[s]", [("a", "u1"), ("b", "f8")]])
def test_layouts(small_pool: Pool, layout: str, dtype: Any) -> None:
    array = LAYOUTS[layout](filled(dtype, (6, 10)))
    expected = array.copy()
    check_round_trip(small_pool, array)
    assert same_fields(array, expected), "the source was changed"


def test_order_is_kept(small_pool: Pool) -> None:
    array = filled("f4", (5, 7, 3))
    for order, source in (
        ("F", np.asfortranarray(array)),
        ("C", array),
        ("C", array[:, ::2]),
        ("C", array.transpose(1, 0, 2)),
    ):
        handle = small_pool.put(source)
        for got in (small_pool.get(handle), small_pool.get(handle, copy=True)):
            assert got.flags["C_CONTIGUOUS" if order == "C" else "F_CONTIGUOUS"]
            assert np.array_equal(got, source)
        small_pool.free(handle)
        del got


def test_dimensions(small_pool: Pool) -> None:
    array = np.arange(2).reshape((1,) * 63 + (2,))
    check_round_trip(small_pool, array)
    with pytest.raises(ValueError, match="65 dimensions"):
        small_pool.loan((1,) * 65)


@pytest.mark.parametrize("nbytes", [1, 65535, 65536, 65537, 2 * SLOT - 1, 3 * SLOT, 8 * SLOT])
def test_sizes(small_pool: Pool, nbytes: int) -> None:
    check_round_trip(small_pool, RNG.integers(0, 256, nbytes, "u1"), "scratch")


@pytest.mark.big
def test_large_arrays(pool_path: Path) -> None:
    """The engines for large copies, across slot borders and from strided sources."""
    with Pool.open(pool_path, slot_nbytes=16 * 2**20, input_slots=4, output_slots=1, scratch_slots=1) as pool:
        for array in (
            RNG.integers(0, 2**32, 9 * 2**20 + 3, "u4"),
            np.asfortranarray(RNG.random((1000, 3000))),
            RNG.random((2000, 3000))[::2],
        ):
            handle = pool.put(array)
            assert np.array_equal(pool.get(handle), array)
            assert np.array_equal(pool.get(handle, copy=True), array)
            pool.free(handle)


class Marked(np.ndarray):
    """A subclass with state, which does not travel."""


def test_subclasses_arrive_as_arrays(small_pool: Pool) -> None:
    array = np.arange(6.0).reshape(2, 3)
    record = np.rec.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i4"), ("b", "f8")])
    for source in (array.view(Marked), np.asfortranarray(array).view(Marked), record):
        got = small_pool.get(small_pool.put(source))
        assert type(got) is np.ndarray
        assert got.tolist() == np.asarray(source).tolist()
    mapped = np.memmap("/dev/zero", "u1", "r", shape=(10,))
    assert small_pool.get(small_pool.put(mapped)).tolist() == [0] * 10


def test_array_likes(small_pool: Pool) -> None:
    for source in (
        [1, 2, 3],
        [[1.5], [2.5]],
        (True, False),
        7,
        2.5,
        1j,
        "text",
        b"bytes",
        np.float32(3),
        range(4),
        memoryview(b"ab"),
    ):
        expected = np.asarray(source)
        handle = small_pool.put(source)
        got = small_pool.get(handle)
        assert got.dtype == expected.dtype
        assert got.tolist() == expected.tolist()
        small_pool.free(handle)
        del got


@pytest.mark.parametrize(
    "given",
    [
        np.array([object()]),
        np.array([1, "a"], dtype=object),
        np.zeros(2, [("a", "i4"), ("b", "O")]),
        np.zeros(2, [("a", [("b", "O", (2,))])]),
        np.array(["a", "bc"], np.dtypes.StringDType()),
        np.ma.masked_array([1, 2], [True, False]),
        np.ma.masked_array([1, 2]),
        [None],
        {"a": 1},
        object(),
    ],
    ids=lambda given: getattr(given, "dtype", type(given)).__class__.__name__,
)
def test_references_are_refused(small_pool: Pool, given: Any) -> None:
    with pytest.raises(shmpool.UnsupportedDtypeError) as caught:
        small_pool.put(given)
    assert isinstance(caught.value, TypeError)
    assert caught.value.hint
    assert small_pool.counters == {"input": 0, "output": 0, "scratch": 0}


@pytest.mark.parametrize("dtype", ["O", [("a", "O")], np.dtypes.StringDType()])
def test_references_are_refused_as_loans(small_pool: Pool, dtype: Any) -> None:
    with pytest.raises(shmpool.UnsupportedDtypeError):
        small_pool.loan(3, dtype)
    check_all_free(small_pool)


def test_extension_dtypes_are_refused(small_pool: Pool) -> None:
    rational = pytest.importorskip("numpy._core._rational_tests").rational
    with pytest.raises(shmpool.UnsupportedDtypeError, match="extension"):
        small_pool.put(np.array([rational(1, 2)]))
    check_all_free(small_pool)


def test_nothing_of_an_earlier_array_shows(small_pool: Pool) -> None:
    """Not even in a loan that was filled in part only: its bytes belong to whoever fills it."""
    for _ in range(4):
        small_pool.free(small_pool.put(np.full(SLOT, 0xEE, "u1")))
    for array in (np.zeros(0, "u1"), np.zeros(3, "u1"), np.zeros((), "f8"), np.zeros(5, "U0"), np.zeros(2, "V0")):
        handle = small_pool.put(array)
        assert 0xEE not in small_pool.get(handle).tobytes()
        small_pool.free(handle)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_array(small_pool: Pool, data: st.DataObject) -> None:
    dtype = data.draw(
        hnp.nested_dtypes(max_itemsize=400, subtype_strategy=hnp.scalar_dtypes() | hnp.unicode_string_dtypes(max_len=5))
    )
    if dtype.subdtype is not None:
        dtype = dtype.base
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=5)))
    if array.ndim:
        steps = data.draw(st.tuples(*[st.sampled_from([1, 1, 2, -1])] * array.ndim))
        array = array[tuple(slice(None, None, step) for step in steps)]
        array = array.transpose(data.draw(st.permutations(range(array.ndim))))
    handle = small_pool.put(array)
    got = small_pool.get(handle)
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert same_fields(got, array)
    del got
    small_pool.free(handle)
    check_all_free(small_pool)


@settings(deadline=None, max_examples=150)
@given(dtype=hnp.nested_dtypes(max_itemsize=2000))
def test_dtype_text_round_trips(dtype: np.dtype[Any]) -> None:
    text = dtypes.dtype_to_text(dtype)
    assert text.isascii()
    back = dtypes.text_to_dtype(text)
    assert back == dtype
    assert back.isalignedstruct == dtype.isalignedstruct


@settings(deadline=None, max_examples=300)
@given(
    text=st.binary(max_size=40)
    | st.text(max_size=30).map(lambda text: text.encode())
    | st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.sampled_from(["<f4", "O", "T", "U99999999999", "M8[x]", "", "f4,i2"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.fixed_dictionaries(
                {},
                optional=dict.fromkeys(
                    ("names", "formats", "offsets", "itemsize", "titles", "aligned", "base", "shape"), inner
                ),
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_dtype_text_is_a_dtype_or_corrupt(text: bytes) -> None:
    try:
        dtype = dtypes.text_to_dtype(text)
    except shmpool.PoolCorruptedError:
        return
    assert isinstance(dtype, np.dtype)
    assert not dtype.hasobject


@pytest.mark.parametrize(
    "text", [b"[" * 100000, b"{" * 100000, b'{"base":' * 3000 + b'"f4"', b"\xff", b'{"names":["a"]}', b"O", b"T"]
)
def test_hostile_dtype_texts(text: bytes) -> None:
    with pytest.raises(shmpool.PoolCorruptedError):
        dtypes.text_to_dtype(text)
