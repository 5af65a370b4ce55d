# SPDX-License-Identifier: BSD-3-Clause
"""Every proxy against its original: with a fixed seed, results and fitted state are the same bit for bit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import gsb
import numpy as np
import pytest
from scipy import sparse
from sklearn.base import is_classifier, is_regressor
from sklearn.utils import get_tags
from sklearn.utils._test_common.instance_generator import INIT_PARAMS
from sklearn.utils.estimator_checks import _enforce_estimator_tags_X, _enforce_estimator_tags_y

GENERATOR = np.random.default_rng(11)
X = GENERATOR.standard_normal((40, 4))
# Classes that a few iterations tell apart.
CLASSES = np.repeat([0, 1], 20)
X[20:] += 1.5
TARGET = X @ [1.0, -2.0, 0.5, 0.0] + 0.1 * GENERATOR.standard_normal(40)
TEXTS = ["the cat sat on the mat", "a dog and a cat", "the mat was red", "dogs run"] * 5
RECORDS = [{"height": 1.5, "colour": "red"}, {"height": 2.0, "colour": "blue"}, {"width": 3.0}]

# What does not take a table of numbers.
INPUTS: dict[str, tuple[Any, ...]] = {
    "CountVectorizer": (TEXTS,),
    "DictVectorizer": (RECORDS,),
    "FeatureHasher": ([{"a": 1, "b": 2}, {"c": 3}],),
    "HashingVectorizer": (TEXTS,),
    "IsotonicRegression": (X[:, 0], TARGET),
    "LabelBinarizer": (["a", "b", "c", "a"],),
    "LabelEncoder": (["a", "b", "c", "a"],),
    "MultiLabelBinarizer": ([["a", "b"], ["c"], []],),
    "PatchExtractor": (GENERATOR.standard_normal((3, 12, 12)),),
    "TfidfVectorizer": (TEXTS,),
}
PARAMS: dict[str, dict[str, Any]] = {
    "SparseCoder": {"dictionary": GENERATOR.standard_normal((3, 4))},
    "PatchExtractor": {"patch_size": (5, 5)},
}
# Their input or a default parameter is an object of this process.
AT_HOME = frozenset(
    {
        "sklearn.cluster.FeatureAgglomeration",
        "sklearn.feature_extraction.DictVectorizer",
        "sklearn.feature_extraction.FeatureHasher",
        "sklearn.feature_selection.GenericUnivariateSelect",
        "sklearn.feature_selection.SelectFdr",
        "sklearn.feature_selection.SelectFpr",
        "sklearn.feature_selection.SelectFwe",
        "sklearn.feature_selection.SelectKBest",
        "sklearn.feature_selection.SelectPercentile",
    }
)
METHODS = (
    *("transform", "predict", "predict_proba", "predict_log_proba", "decision_function", "score_samples", "apply"),
    *("kneighbors", "inverse_transform"),
)
AGAIN = ("fit_predict", "fit_transform")


def pair(proxy: type[Any]) -> tuple[Any, Any]:
    """A proxy and its original, configured to be quick."""
    base = proxy._gsb_base
    given = INIT_PARAMS.get(base, {})
    params = dict(given[0] if isinstance(given, list) else given) | PARAMS.get(proxy.__name__, {})
    if "random_state" in proxy._get_param_names():
        params["random_state"] = 0
    return proxy(**params), base(**params)


def inputs_of(estimator: Any) -> tuple[Any, ...]:
    special = INPUTS.get(type(estimator).__name__)
    if special is not None:
        return special
    y = CLASSES if is_classifier(estimator) or not is_regressor(estimator) else TARGET
    if get_tags(estimator).input_tags.categorical and not get_tags(estimator).input_tags.allow_nan:
        return np.abs(X).astype(np.int64), y
    if type(estimator).__name__ in ("CCA", "PLSCanonical", "PLSRegression", "PLSSVD"):
        return X, np.column_stack([TARGET, X[:, 1]])
    return _enforce_estimator_tags_X(estimator, X), _enforce_estimator_tags_y(estimator, y)


def differences(found: Any, expected: Any, where: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Name the places where two values differ."""
    if found is expected or (id(found), id(expected)) in seen:
        return
    seen.add((id(found), id(expected)))
    if isinstance(expected, np.random.RandomState):
        found, expected = found.get_state(), expected.get_state()
    if type(found) is not type(expected) and not hasattr(type(found), "_gsb_base"):
        yield f"{where}: {type(found)} is not {type(expected)}"
    elif isinstance(expected, np.ndarray):
        if found.dtype != expected.dtype or found.shape != expected.shape:
            yield f"{where}: {found.dtype}{found.shape} is not {expected.dtype}{expected.shape}"
        elif expected.dtype.names:
            for name in expected.dtype.names:  # between the fields is padding
                yield from differences(found[name], expected[name], f"{where}.{name}", seen)
        elif expected.dtype.hasobject:
            yield from differences(found.ravel().tolist(), expected.ravel().tolist(), where, seen)
        elif found.tobytes() != expected.tobytes():
            yield f"{where}: other bits"
    elif isinstance(expected, dict):
        if found.keys() != expected.keys():
            yield f"{where}: keys differ in {sorted(map(str, found.keys() ^ expected.keys()))}"
        # In order, for the same words each time; one of the names holds an address.
        for key in [key for key in expected if key in found and key != "_stop_words_id"]:
            yield from differences(found[key], expected[key], f"{where}[{key!r}]", seen)
    elif isinstance(expected, (list, tuple)):
        if len(found) != len(expected):
            yield f"{where}: {len(found)} items are not {len(expected)}"
        for number, items in enumerate(zip(found, expected, strict=False)):
            yield from differences(*items, f"{where}[{number}]", seen)
    elif isinstance(expected, (set, frozenset, str, bytes, int, complex)) or expected is None:
        if found != expected:
            yield f"{where}: {found!r} is not {expected!r}"
    elif isinstance(expected, (float, np.generic)):
        if np.asarray(found).tobytes() != np.asarray(expected).tobytes():
            yield f"{where}: {found!r} is not {expected!r}"
    elif callable(expected) and not hasattr(expected, "__dict__"):
        if found != expected:
            yield f"{where}: {found!r} is not {expected!r}"
    elif sparse.issparse(expected):
        for name in ("data", "indices", "indptr", "row", "col"):
            if hasattr(expected, name):
                yield from differences(getattr(found, name), getattr(expected, name), f"{where}.{name}", seen)
    else:
        reduced = [value.__reduce_ex__(4) for value in (found, expected)]
        if hasattr(expected, "__dict__") and vars(expected):
            reduced = [vars(value) for value in (found, expected)]
        yield from differences(*reduced, where, seen)


def check_same(found: Any, expected: Any, where: str) -> None:
    assert list(differences(found, expected, where, set())) == []


def outcome(estimator: Any, method: str, *args: Any) -> Any:
    """What a method gives or raises."""
    try:
        return getattr(estimator, method)(*args)
    except Exception as error:
        return type(error), str(error)


@pytest.mark.usefixtures("server")
@pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
@pytest.mark.parametrize("proxy", gsb.all_proxies(), ids=lambda proxy: proxy.__name__)
def test_bit_identical_to_scikit_learn(proxy: type[Any]) -> None:
    remote, plain = pair(proxy)
    inputs = inputs_of(plain)
    plain.fit(*inputs)
    remote.fit(*inputs)
    assert remote.gsb_report_.backend == "sklearn" or remote._gsb_path in AT_HOME, remote.gsb_report_
    check_same(vars(remote.to_sklearn()), vars(plain), "state")
    sent = 0
    for method in METHODS:
        assert hasattr(remote, method) == hasattr(plain, method), method
        if not hasattr(plain, method):
            continue
        # Not the very object that was fitted: some estimators keep it, and distances of an array to itself are exact.
        argument = copy.deepcopy(plain.transform(inputs[0]) if method == "inverse_transform" else inputs[0])
        check_same(outcome(remote, method, argument), outcome(plain, method, argument), method)
        sent += remote.gsb_report_.backend == "sklearn"
    for method in AGAIN:
        if hasattr(plain, method):
            remote, plain = pair(proxy)
            check_same(outcome(remote, method, *inputs), outcome(plain, method, *inputs), method)


def test_differences_are_found() -> None:
    one = {"a": [np.arange(3.0), "x"], "b": sparse.eye(3, format="csr")}
    two = pickle.loads(pickle.dumps(one))
    check_same(two, one, "")
    two["a"][0][1] = np.nextafter(1.0, 2)
    two["b"].data[0] = 2
    assert list(differences(two, one, "", set())) == ["['a'][0]: other bits", "['b'].data: other bits"]
    assert list(differences(0.0, -0.0, "", set())) == [": 0.0 is not -0.0"]
