# SPDX-License-Identifier: BSD-3-Clause
"""Values on the wire: what goes in comes out, and nothing malformed gets through."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from gsb.decomposition import PCA
from gsb.errors import ProtocolError, UnsupportedValueError
from gsb.protocol import INLINE_LIMIT, decode_value, encode_value
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier


class Store:
    """Stands for the pool."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def write(self, array: np.ndarray) -> dict[str, Any]:
        self.arrays.append(array.copy(order="K"))
        return {"$": "slot", "handle": {"slot": len(self.arrays) - 1}}

    def read(self, wire: dict[str, Any]) -> np.ndarray:
        return self.arrays[wire["handle"]["slot"]]


def through(value: Any) -> Any:
    store = Store()
    text = json.dumps(encode_value(value, store.write), allow_nan=False)
    return decode_value(json.loads(text), store.read)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        # As bytes: two NaNs of one bit pattern are the same here.
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, float) and math.isnan(left):
        return isinstance(right, float) and math.isnan(right)
    return type(left) is type(right) and left == right


@given(
    hnp.arrays(
        st.one_of(
            hnp.boolean_dtypes(),
            hnp.integer_dtypes(endianness="?"),
            hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
            hnp.complex_number_dtypes(sizes=(64, 128)),
            hnp.unicode_string_dtypes(max_len=5),
            hnp.byte_string_dtypes(max_len=5),
        ),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    )
)
def test_arrays_come_back_bit_for_bit(array: np.ndarray) -> None:
    back = through(array)
    assert same(array, back)
    assert back.flags.writeable


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_plain_values_come_back(value: Any) -> None:
    # repr tells 1 from True and 1.0, and NaN is like NaN
    assert repr(through(value)) == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        {1, "a", None},
        frozenset({2}),
        range(3, 9, 2),
        b"bytes",
        1 - 2.5j,
        np.dtype("<f4"),
        np.dtype(object),
        np.float32,
        float,
        object,
        slice(None),
        slice(1, 10, -1),
        np.float32(1.5),
        np.int64(-3),
        np.bool_(True),
        np.str_("x"),
        math.inf,
        -math.inf,
    ],
)
def test_other_values_come_back(value: Any) -> None:
    assert same(value, through(value))


def test_objects_of_scikit_learn_come_back_as_they_were_made() -> None:
    for value in (
        DecisionTreeClassifier(max_depth=3),
        make_pipeline(StandardScaler(), Ridge(alpha=2)),
        1.0 * RBF(length_scale=[1.0, 2.0]) + WhiteKernel(),
        KFold(3, shuffle=True, random_state=5),
    ):
        back = through(value)
        assert type(back) is type(value)
        assert repr(back) == repr(value)
    assert type(through(PCA(2))) is PCA._gsb_base


def test_object_arrays_hold_whatever_travels() -> None:
    array = np.empty(3, dtype=object)
    array[:] = [np.arange(2), "a", (1, None)]
    back = through(array)
    assert back.dtype == object
    np.testing.assert_array_equal(back[0], array[0])
    assert list(back[1:]) == ["a", (1, None)]


def test_widths_of_sparse_indices_are_kept() -> None:
    for make in (sparse.csr_matrix, sparse.csc_array):
        matrix = make(np.eye(3))
        for name in ("indices", "indptr"):
            setattr(matrix, name, getattr(matrix, name).astype(np.int64))
        back = through(matrix)
        assert type(back) is type(matrix)
        assert back.indices.dtype == back.indptr.dtype == np.int64
        np.testing.assert_array_equal(back.toarray(), np.eye(3))


def test_order_is_kept() -> None:
    for make in (np.ascontiguousarray, np.asfortranarray):
        array = make(np.arange(12.0).reshape(3, 4))
        back = through(array)
        assert back.flags.c_contiguous == array.flags.c_contiguous
        np.testing.assert_array_equal(back, array)


def test_strided_arrays_come_back() -> None:
    array = np.arange(60).reshape(6, 10)[::2, ::-3]
    np.testing.assert_array_equal(through(array), array)


def test_the_limit_decides_who_carries_it() -> None:
    for nbytes, stored in ((INLINE_LIMIT - 1, 0), (INLINE_LIMIT, 1)):
        store = Store()
        encode_value(np.zeros(nbytes, np.uint8), store.write)
        assert len(store.arrays) == stored


def test_object_arrays_of_text_and_numbers() -> None:
    array = np.array([["a", None], [1.5, math.inf], [True, "\N{GREEK SMALL LETTER BETA}"]], dtype=object)
    back = through(array)
    assert back.dtype == object
    assert back.tolist() == array.tolist()


@pytest.mark.parametrize("format", ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"])
@pytest.mark.parametrize("kind", ["array", "matrix"])
def test_sparse(format: str, kind: str) -> None:
    dense = np.array([[0, 1.5, 0], [2, 0, 0]])
    value = getattr(sparse, f"{format}_{kind}")(dense)
    back = through(value)
    assert back.format == (format if format not in ("lil", "dok") else "csr")
    assert type(back).__name__.endswith(kind)
    np.testing.assert_array_equal(back.toarray(), dense)


def test_random_state_goes_on_where_it_was() -> None:
    generator = np.random.RandomState(3)
    generator.normal()
    back = through(generator)
    np.testing.assert_array_equal(back.normal(size=5), generator.normal(size=5))


@pytest.mark.parametrize(
    "value",
    [
        object(),
        print,
        np.array([object()], dtype=object),
        np.array([print], dtype=object),
        np.zeros(2, [("a", "i4")]),
        Exception,
        PCA._gsb_base().fit(np.eye(3)),
        KFold(2, shuffle=True, random_state=np.random.RandomState(0)),
        np.random.default_rng(0),
    ],
)
def test_what_cannot_travel_says_so(value: Any) -> None:
    with pytest.raises(UnsupportedValueError, match="cannot travel"):
        encode_value(value, Store().write)


def test_depth_is_limited() -> None:
    value: Any = 1
    for _ in range(100):
        value = [value]
    with pytest.raises(UnsupportedValueError, match="nested"):
        encode_value(value, Store().write)
    with pytest.raises(ProtocolError, match="nested"):
        decode_value(value, Store().read)


@pytest.mark.parametrize(
    "wire",
    [
        {"$": "pickle", "data": ""},
        {"$": 7},
        {"$": []},
        {"$": "array"},
        {"$": "array", "dtype": "|O", "shape": [1], "data": "AAAAAAAAAAA="},
        {"$": "array", "dtype": "O", "shape": [1], "data": ""},
        {"$": "array", "dtype": "f8,f8", "shape": [1], "data": ""},
        {"$": "array", "dtype": ["<f8"], "shape": [1], "data": ""},
        {"$": "array", "dtype": "<f8", "shape": [2], "data": "AAAAAAAAAAA="},
        {"$": "array", "dtype": "<f8", "shape": [-1], "data": "AAAAAAAAAAA="},
        {"$": "array", "dtype": "<f8", "shape": [True], "data": "AAAAAAAAAAA="},
        {"$": "array", "dtype": "<f8", "shape": 1, "data": "AAAAAAAAAAA="},
        {"$": "array", "dtype": "<f8", "shape": [2**62, 4], "data": ""},
        {"$": "array", "dtype": "<f8", "shape": [1], "data": "!!!!"},
        {"$": "array", "dtype": "<f8", "shape": [1], "order": "K", "data": "AAAAAAAAAAA="},
        {"$": "array", "dtype": "<f8", "shape": [1], "data": None},
        {"$": "objects", "shape": [2], "items": ["a"]},
        {"$": "objects", "shape": [1], "items": [{"$": "nope"}]},
        {"$": "set", "items": [[1]]},
        {"$": "range", "items": [1, 2]},
        {"$": "range", "items": ["a", 2, 1]},
        {"$": "bytes", "data": "*"},
        {"$": "complex", "v": "i"},
        {"$": "dtype", "v": "|V8"},
        {"$": "type", "v": "numpy.save"},
        {"$": "type", "v": "os.PathLike"},
        {"$": "type", "v": 1},
        {"$": "sklearn", "path": "sklearn.tree.DecisionTreeClassifier", "params": {"nope": 1}},
        {"$": "sklearn", "path": "sklearn.utils.Bunch", "params": {}},
        {"$": "sklearn", "path": "subprocess.Popen", "params": {}},
        {"$": "sklearn", "path": "sklearn.pipeline.Pipeline", "params": {"steps": [], "memory": "/tmp"}},
        {"$": "objects", "shape": [1], "items": [{"$": "array"}]},
        {"$": "float", "v": "1e5"},
        {"$": "tuple"},
        {"$": "tuple", "items": 3},
        {"$": "slice", "items": [1]},
        {"$": "dict", "items": [[1]]},
        {"$": "dict", "items": [[[], 1]]},
        {"$": "scalar", "dtype": "<f8", "data": ""},
        {"$": "random_state", "key": {}, "pos": 0, "has_gauss": 0, "gauss": 0.0},
        {"$": "sparse", "format": "csr", "shape": [2, 2], "parts": {}},
        {"$": "sparse", "format": "nonsense", "shape": [2, 2], "parts": {}},
    ],
    ids=repr,
)
def test_malformed_values_are_refused(wire: Any) -> None:
    with pytest.raises(ProtocolError):
        decode_value(wire, Store().read)


@pytest.mark.parametrize("indices", [[5], [-1]])
def test_sparse_indices_are_checked(indices: list[int]) -> None:
    def wire(values: Any) -> Any:
        return encode_value(np.asarray(values), Store().write)

    parts = {"data": wire([1.0]), "indices": wire(np.array(indices, "i4")), "indptr": wire(np.array([0, 1], "i4"))}
    with pytest.raises(ProtocolError):
        decode_value({"$": "sparse", "format": "csr", "shape": [1, 2], "parts": parts}, Store().read)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["$", "items", "shape", "data", "dtype", "key", "v", "parts"]), inner, max_size=4
        )
        | st.fixed_dictionaries(
            {
                "$": st.sampled_from(
                    [
                        "array",
                        "objects",
                        "tuple",
                        "slice",
                        "dict",
                        "float",
                        "scalar",
                        "random_state",
                        "sparse",
                        "set",
                        "range",
                        "bytes",
                        "complex",
                        "dtype",
                        "type",
                        "sklearn",
                    ]
                )
            },
            optional={
                "items": inner,
                "shape": inner,
                "data": inner,
                "dtype": inner,
                "v": inner,
                "parts": inner,
                "format": inner,
            },
        )
    ),
    max_leaves=10,
)


@given(JSON)
def test_any_json_is_decoded_or_refused(wire: Any) -> None:
    with contextlib.suppress(ProtocolError):
        decode_value(wire, Store().read)
