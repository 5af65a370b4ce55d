# SPDX-License-Identifier: BSD-3-Clause
"""Every row of the table, on each array library, against scikit-learn on the CPU."""

from __future__ import annotations

import copy
import threading
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse
import sklearn
from gsb_server.backends.array_api import ArrayApiBackend
from gsb_server.backends.array_api_table import ROWS, Limit, refuses_params
from gsb_server.backends.base import Job, RefusedByBackend
from gsb_server.backends.chain import ChainBackend
from gsb_server.backends.sklearn import SklearnBackend, estimator_class

N = 60
GENERATOR = np.random.default_rng(11)
X = GENERATOR.standard_normal((N, 5)) * [1, 2, 0.5, 1, 3] + [0, 1, 0, -1, 2]
TWO = (X[:, 0] + 0.4 * GENERATOR.standard_normal(N) > 0).astype(np.int64)
THREE = np.digitize(X[:, 0] + 0.3 * GENERATOR.standard_normal(N), [-0.5, 0.5])
NUMBERS = X @ np.arange(1.0, 6.0) + 0.1 * GENERATOR.standard_normal(N)
TWO_NUMBERS = np.c_[NUMBERS, 1 - 2 * NUMBERS]
COUNTS = np.abs(NUMBERS) / 5
WEIGHTS = GENERATOR.uniform(0.5, 2, N)


class Case(NamedTuple):
    name: str
    params: dict[str, Any]
    y: Any = None
    kwargs: dict[str, Any] = {}


def _short(name: str) -> str:
    return next(path for path in ROWS if path.endswith(f".{name}"))


def _cases() -> list[Case]:
    cases = [
        *[
            Case("PCA", {"n_components": n, "svd_solver": s})
            for n, s in ((2, "full"), (2, "covariance_eigh"), (0.9, "full"))
        ],
        Case("PCA", {}),
        Case("PCA", {"n_components": "mle"}),
        Case("PCA", {"n_components": 3, "whiten": True}),
        Case("PCA", {"n_components": 3, "copy": False}),
        Case("PCA", {"n_components": 2, "svd_solver": "randomized", "random_state": 0}),
        Case("LinearDiscriminantAnalysis", {}, THREE),
        Case("LinearDiscriminantAnalysis", {"n_components": 1, "tol": 1e-3}, THREE),
        Case("LinearDiscriminantAnalysis", {}, TWO == 1),
        *[
            Case("Nystroem", {"kernel": kernel, "n_components": 4, "random_state": 0})
            for kernel in ("rbf", "linear", "poly", "polynomial", "sigmoid", "cosine")
        ],
        Case("Nystroem", {"kernel": "rbf", "gamma": 0.1, "n_components": 4, "random_state": np.random.RandomState(5)}),
        Case("LogisticRegression", {}, TWO),
        Case("LogisticRegression", {}, THREE),
        Case("LogisticRegression", {"class_weight": "balanced", "fit_intercept": False}, THREE),
        Case("LogisticRegression", {"class_weight": {0: 1.0, 1: 2.0}}, TWO),
        Case("LogisticRegression", {"C": np.inf}, TWO),
        Case("LogisticRegression", {}, TWO, {"sample_weight": WEIGHTS}),
        Case("LogisticRegression", {}, TWO == 1),
        Case("LogisticRegression", {}, np.where(TWO, "yes", "no")),
        Case("LogisticRegression", {}, np.where(TWO, "yes", "no").astype(object)),
        Case("LogisticRegression", {}, TWO.astype(np.float64)),
        Case("LogisticRegression", {}, TWO.tolist()),
        Case("PoissonRegressor", {}, COUNTS),
        Case("PoissonRegressor", {"fit_intercept": False, "alpha": 0.1}, COUNTS, {"sample_weight": WEIGHTS}),
        Case("Ridge", {}, NUMBERS),
        Case("Ridge", {"solver": "svd", "alpha": 0.0}, NUMBERS),
        Case("Ridge", {"fit_intercept": False}, NUMBERS, {"sample_weight": WEIGHTS}),
        Case("Ridge", {"copy_X": False}, NUMBERS),
        Case("Ridge", {"alpha": np.array([1.0, 2.0])}, TWO_NUMBERS),
        Case("Ridge", {}, (NUMBERS * 3).astype(np.int64)),
        Case("RidgeCV", {}, NUMBERS),
        Case("RidgeCV", {"alphas": np.array([0.1, 1.0]), "gcv_mode": "svd"}, NUMBERS),
        Case("RidgeCV", {"alphas": (0.1, 1.0), "gcv_mode": "eigen", "store_cv_results": True}, NUMBERS),
        Case("RidgeCV", {"cv": 3}, NUMBERS),
        Case("RidgeCV", {"scoring": "r2", "fit_intercept": False}, NUMBERS),
        Case("RidgeCV", {}, TWO_NUMBERS, {"sample_weight": WEIGHTS}),
        Case("RidgeClassifier", {}, TWO),
        Case("RidgeClassifier", {"solver": "svd"}, THREE, {"sample_weight": WEIGHTS}),
        Case("RidgeClassifier", {}, np.where(TWO, "yes", "no")),
        Case("RidgeClassifier", {}, np.c_[TWO, 1 - TWO]),
        Case("RidgeClassifierCV", {}, TWO),
        Case("RidgeClassifierCV", {"cv": 3}, THREE),
        Case("RidgeClassifierCV", {"store_cv_results": True}, np.where(TWO, "yes", "no")),
        Case("RidgeClassifierCV", {}, np.c_[TWO, 1 - TWO]),
        *[
            Case(
                "GaussianMixture", {"n_components": 2, "init_params": init, "random_state": 0, "covariance_type": kind}
            )
            for init in ("random", "random_from_data")
            for kind in ("full", "tied", "diag", "spherical")
        ],
        Case(
            "GaussianMixture",
            {"n_components": 2, "init_params": "random", "n_init": 2, "random_state": np.random.RandomState(3)},
        ),
        Case("GaussianNB", {}, TWO),
        Case("GaussianNB", {"var_smoothing": 1e-6}, THREE, {"sample_weight": WEIGHTS}),
        Case("GaussianNB", {"priors": [0.3, 0.3, 0.4]}, THREE),
        Case("GaussianNB", {"priors": np.array([0.3, 0.3, 0.4])}, THREE),
        Case("GaussianNB", {}, np.where(TWO, "yes", "no")),
        Case("Binarizer", {}),
        Case("Binarizer", {"threshold": 0.5, "copy": False}),
        Case("KernelCenterer", {}),
        Case("LabelBinarizer", {}, TWO),
        Case("LabelBinarizer", {"neg_label": -1}, THREE),
        Case("LabelEncoder", {}, THREE * 7),
        Case("MaxAbsScaler", {}),
        Case("MaxAbsScaler", {"clip": True, "copy": False}),
        Case("MinMaxScaler", {}),
        Case("MinMaxScaler", {"feature_range": (-1, 2), "clip": True}),
        Case("MinMaxScaler", {"copy": False}),
        *[Case("Normalizer", {"norm": norm}) for norm in ("l1", "l2", "max")],
        Case("Normalizer", {"copy": False}),
        Case("PolynomialFeatures", {}),
        Case("PolynomialFeatures", {"degree": (2, 3), "include_bias": False}),
        Case("PolynomialFeatures", {"degree": 3, "interaction_only": True}),
        Case("StandardScaler", {}),
        Case("StandardScaler", {"with_mean": False, "copy": False}),
        Case("StandardScaler", {"with_std": False}),
        Case("StandardScaler", {}, None, {"sample_weight": WEIGHTS}),
    ]
    return [case._replace(name=_short(case.name)) for case in cases]


CASES = _cases()


IDS = [f"{index}-{case.name.rpartition('.')[2]}" for index, case in enumerate(CASES)]


def test_every_row_has_a_case() -> None:
    assert {case.name for case in CASES} == set(ROWS)


def _data(case: Case, dtype: str) -> np.ndarray:
    if ROWS[case.name].target == "labels":
        return np.asarray(case.y)
    data = X @ X.T if case.name.endswith("KernelCenterer") else X
    if case.name.endswith("GaussianMixture"):
        data = X + 8 * TWO[:, None]  # one optimum: rounding must not decide between two
    return (data * 4).round().astype(dtype) if dtype == "int64" else data.astype(dtype)


def _fit_args(case: Case, data: np.ndarray) -> tuple[Any, ...]:
    return (data,) if case.y is None or ROWS[case.name].target == "labels" else (data, case.y)


def _same(found: Any, expected: Any, name: str, dtype: str, up_to_sign: bool = False) -> None:
    assert type(found) is type(expected), f"{name}: {type(found)}, not {type(expected)}"
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), name
        for one, other in zip(found, expected, strict=True):
            _same(one, other, name, dtype)
        return
    if not isinstance(expected, (np.ndarray, np.generic, float)):
        if isinstance(expected, (int, str, bool, type(None))):
            assert found == expected, name
        return
    first, second = np.asarray(found), np.asarray(expected)
    assert (first.dtype, first.shape) == (second.dtype, second.shape), name
    if second.dtype.kind not in "fc":
        np.testing.assert_array_equal(first, second, err_msg=name)
        return
    if up_to_sign:
        first, second = np.abs(first), np.abs(second)
    rtol = 1e-6 if dtype != "float32" else 5e-3
    np.testing.assert_allclose(
        first, second, rtol=rtol, atol=rtol * max(1.0, float(np.abs(second).max())), err_msg=name
    )


# The SVD gives singular vectors up to their sign, and scikit-learn does not fix it here.
_SIGNS = {"LinearDiscriminantAnalysis": {"scalings_", "transform", "fit_transform"}}


def _job(case: Case, method: str, model: Any, *args: Any, **kwargs: Any) -> Job:
    return Job(case.name, {} if model is not None else copy.deepcopy(case.params), model, method, args, kwargs, {})


def _calls(case: Case, data: np.ndarray, plain: Any) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Return the calls that a fitted model is asked for."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for method in sorted(ROWS[case.name].methods - {"fit", "fit_transform", "fit_predict", "partial_fit"}):
        if method == "score":
            calls.append((method, _fit_args(case, data), {}))
        elif method == "inverse_transform":
            calls.append((method, (plain.transform(data),), {}))
        else:
            calls.append((method, (data,), {}))
    return calls


# Every case with float64, the first of each row with the other dtypes as well.
_FIRST = {case.name: index for index, case in reversed(list(enumerate(CASES)))}
_RUNS = [(index, "float64") for index in range(len(CASES))]
_RUNS += [(index, dtype) for index in sorted(_FIRST.values()) for dtype in ("float32", "int64")]


@pytest.mark.parametrize(("index", "dtype"), _RUNS, ids=[f"{IDS[index]}-{dtype}" for index, dtype in _RUNS])
def test_a_row_does_what_the_cpu_does(device: Any, index: int, dtype: str) -> None:
    case = CASES[index]
    backend, data = ArrayApiBackend(device), _data(case, dtype)
    cls: Any = estimator_class(case.name)
    short = case.name.rpartition(".")[2]
    signs = _SIGNS.get(short, set())
    args = _fit_args(case, data)
    if dtype == "int64" and ROWS[case.name].integers == "refused":
        with pytest.raises(RefusedByBackend, match="X has the dtype int64, not floats"):
            backend.run(_job(case, "fit", None, *args))
        return
    plain = cls(**copy.deepcopy(case.params)).fit(*copy.deepcopy(args), **case.kwargs)
    outcome = backend.run(_job(case, "fit", None, *args, **case.kwargs))
    assert outcome.is_self
    assert outcome.state_changed
    assert outcome.nbytes >= 0
    assert [w for w in outcome.warnings if "Array API" in w.message] == []
    expected = SklearnBackend().attributes(plain)
    assert set(outcome.attributes) == set(expected)
    for name, value in expected.items():
        if name in ("n_iter_", "solver_"):
            # The way there may differ: another solver, another rounding.
            assert type(outcome.attributes[name]) is type(value)
        else:
            _same(outcome.attributes[name], value, name, dtype, name in signs)
    for name, value in outcome.random_states.items():
        mine, theirs = value.get_state(), getattr(plain, name).get_state()
        np.testing.assert_array_equal(mine[1], theirs[1])
        assert mine[2] == theirs[2]

    models = [outcome.model]
    if ROWS[case.name].adopts:
        models.append(backend.adopt(case.name, copy.deepcopy(plain))[0])
    else:
        with pytest.raises(RefusedByBackend, match="cannot be moved to the device"):
            backend.adopt(case.name, plain)
    exported = backend.export(outcome.model)
    assert type(exported) is cls
    for name, value in plain.get_params().items():
        if not isinstance(value, np.random.RandomState):
            assert repr(getattr(exported, name)) == repr(value)
    for method, given, kwargs in _calls(case, data, plain):
        wanted = getattr(plain, method)(*copy.deepcopy(given), **kwargs)
        for model in models:
            again = backend.run(_job(case, method, model, *given, **kwargs))
            assert not again.state_changed
            found = device.host(again.result)
            if isinstance(wanted, float):
                found = type(wanted)(found)
            _same(found, wanted, method, dtype, method in signs)
        _same(getattr(exported, method)(*copy.deepcopy(given)), wanted, f"exported {method}", dtype, method in signs)
    for method in ("fit_transform", "fit_predict"):
        if method in ROWS[case.name].methods:
            fresh = cls(**copy.deepcopy(case.params))
            wanted = getattr(fresh, method)(*copy.deepcopy(args), **case.kwargs)
            found = device.host(backend.run(_job(case, method, None, *args, **case.kwargs)).result)
            _same(found, wanted, method, dtype, method in signs)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if "partial_fit" in row.methods])
@pytest.mark.parametrize("classes", [[0, 1, 2], np.array([0, 1, 2])], ids=["list", "array"])
def test_partial_fit_goes_on(device: Any, name: str, classes: Any) -> None:
    backend, cls = ArrayApiBackend(device), estimator_class(name)
    targets = ROWS[name].target == "classes"
    halves = [(X[:30], THREE[:30]), (X[30:], THREE[30:])] if targets else [(X[:30],), (X[30:],)]
    kwargs = {"classes": classes} if targets else {}
    plain: Any = cls()
    plain.partial_fit(*halves[0], **kwargs).partial_fit(*halves[1])
    first = backend.run(Job(name, {}, None, "partial_fit", halves[0], kwargs, {}))
    second = backend.run(Job(name, {}, first.model, "partial_fit", halves[1], {}, {}))
    for attribute, value in SklearnBackend().attributes(plain).items():
        _same(second.attributes[attribute], value, attribute, "float64")


@pytest.mark.parametrize(("name", "limit"), [(n, p) for n, row in ROWS.items() for p in row.limits])
def test_a_parameter_outside_the_table_is_refused_by_name(device: Any, name: str, limit: str) -> None:
    value = np.ones(3) if ROWS[name].limits[limit].values == (None,) else "something else"
    good = {"init_params": "random"} if "init_params" in ROWS[name].limits else {}
    job = Job(name, {**good, limit: value}, None, "fit", (X, TWO), {}, {})
    with pytest.raises(RefusedByBackend, match=f"^{limit}=.* is not possible on device arrays, only `{limit}` "):
        ArrayApiBackend(device).run(job)
    assert device.uploads == 0


def test_limits_compare_types_too() -> None:
    assert Limit((False,)).allows(False)
    assert not Limit((False,)).allows(0)
    assert Limit((None,), (int,)).allows(5)
    assert not Limit((None,), (int,)).allows(True)
    assert not Limit(("svd",)).allows(np.array(["svd"]))
    assert refuses_params(ROWS["sklearn.linear_model.RidgeCV"], {"cv": object()}).startswith("cv=a object is not")


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "reason"),
    [
        ("cluster.KMeans", (X,), {}, "KMeans does not work on device arrays"),
        ("decomposition.PCA", (scipy.sparse.csr_matrix(X),), {}, "X is sparse, not a dense array"),
        ("decomposition.PCA", (X.tolist(),), {}, "X is a list"),
        ("decomposition.PCA", (X.astype(object),), {}, "X has the dtype object"),
        ("decomposition.PCA", (X.astype(np.float16),), {}, "X has the dtype float16"),
        ("decomposition.PCA", (X.astype(complex),), {}, "X has the dtype complex128"),
        ("decomposition.PCA", (X.astype(">f8"),), {}, "X has the dtype >f8"),
        ("decomposition.PCA", (X[0],), {}, "X has 1 dimensions, not 2"),
        ("decomposition.PCA", (X[:0],), {}, "X is empty"),
        ("decomposition.PCA", (X, None, 3), {}, "the arguments do not fit"),
        ("decomposition.PCA", (X,), {"nope": X}, "the arguments do not fit"),
        ("linear_model.LogisticRegression", (X, TWO), {"sample_weight": 2.0}, "sample_weight is a number"),
        ("linear_model.LogisticRegression", (X, TWO[:, None]), {}, r"y has the shape \(60, 1\)"),
        ("linear_model.LogisticRegression", (X, scipy.sparse.csr_matrix(np.c_[TWO, TWO])), {}, "y is sparse"),
        ("linear_model.RidgeClassifier", (X, TWO == 1), {}, "y is boolean"),
        ("naive_bayes.GaussianNB", (X, np.array(["a", "b"] * 30, dtype=object)), {}, "labels of dtype object"),
        ("discriminant_analysis.LinearDiscriminantAnalysis", (X, np.array(["a", "b"] * 30)), {}, "labels of dtype <U1"),
        ("preprocessing.LabelEncoder", (np.array(["a", "b"]),), {}, "y has the dtype <U1"),
        ("preprocessing.LabelEncoder", (np.array([0.5, 1]),), {}, "labels of dtype float64"),
    ],
)
def test_arguments_outside_the_table_are_refused_before_any_upload(
    device: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RefusedByBackend, match=reason):
        ArrayApiBackend(device).run(Job(f"sklearn.{name}", {}, None, "fit", args, kwargs, {}))
    assert device.uploads == 0


def test_a_method_outside_the_table_is_refused(device: Any) -> None:
    backend = ArrayApiBackend(device)
    model = backend.run(Job("sklearn.decomposition.PCA", {}, None, "fit", (X,), {}, {})).model
    with pytest.raises(RefusedByBackend, match=r"PCA\.get_covariance is not possible"):
        backend.run(Job("sklearn.decomposition.PCA", {}, model, "get_covariance", (), {}, {}))


def test_another_dtype_than_that_of_the_fit(device: Any) -> None:
    backend = ArrayApiBackend(device)
    name = "sklearn.preprocessing.MinMaxScaler"
    model = backend.run(Job(name, {}, None, "fit", (X,), {}, {})).model
    with pytest.raises(RefusedByBackend, match="X is float32, and the fit was on float64"):
        backend.run(Job(name, {}, model, "transform", (X.astype(np.float32),), {}, {}))
    adopted, _ = backend.adopt(name, backend.export(model))
    with pytest.raises(RefusedByBackend, match="X is float32"):
        backend.run(Job(name, {}, adopted, "transform", (X.astype(np.float32),), {}, {}))


def test_wrong_input_raises_scikit_learns_own_words(device: Any) -> None:
    backend = ArrayApiBackend(device)
    name = "sklearn.decomposition.PCA"
    holes = X.copy()
    holes[3, 2] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        backend.run(Job(name, {}, None, "fit", (holes,), {}, {}))
    model = backend.run(Job(name, {}, None, "fit", (X,), {}, {})).model
    with pytest.raises(ValueError, match="X has 3 features, but PCA is expecting 5 features as input"):
        backend.run(Job(name, {}, model, "transform", (X[:, :3].copy(),), {}, {}))
    backend.run(Job(name, {}, None, "fit", (X,), {}, {"assume_finite": True}))


def test_warnings_are_the_estimators_not_the_dispatchs(device: Any) -> None:
    backend = ArrayApiBackend(device)
    params = {"max_iter": 1}
    early = backend.run(Job("sklearn.linear_model.LogisticRegression", params, None, "fit", (X, THREE), {}, {}))
    assert [w.category for w in early.warnings] == ["sklearn.exceptions.ConvergenceWarning"]
    for name in ("Ridge", "RidgeClassifier"):
        found = backend.run(Job(f"sklearn.linear_model.{name}", {}, None, "fit", (X, TWO), {}, {}))
        assert found.warnings == [], "that another solver runs on devices is in the documentation"


def test_device_arrays_are_taken_and_only_read(device: Any) -> None:
    # What is larger than the pool comes as a device array that others may read as well.
    backend = ArrayApiBackend(device)
    resident = device.upload(X, shared=True)
    for params in ({"copy": False}, {}):
        model = backend.run(Job("sklearn.decomposition.PCA", params, None, "fit", (resident,), {}, {})).model
        backend.run(Job("sklearn.decomposition.PCA", {}, model, "transform", (resident,), {}, {}))
        name = "sklearn.preprocessing.StandardScaler"
        backend.run(Job(name, params, None, "fit_transform", (resident,), {}, {}))
    assert device.uploads == 1


def test_parameters_changed_since_the_fit_do_not_change_the_model(device: Any) -> None:
    backend, name = ArrayApiBackend(device), "sklearn.preprocessing.MinMaxScaler"
    model = backend.run(Job(name, {}, None, "fit", (X,), {}, {})).model
    beyond = X * 3
    changed = backend.run(Job(name, {"clip": True}, model, "transform", (beyond,), {}, {}))
    clipped = device.host(changed.result)
    assert changed.state_changed
    later = backend.run(Job(name, {}, changed.model, "transform", (beyond,), {}, {}))
    assert not later.state_changed
    np.testing.assert_array_equal(device.host(later.result), clipped)
    free = device.host(backend.run(Job(name, {}, model, "transform", (beyond,), {}, {})).result)
    assert clipped.max() == 1.0
    assert free.max() > 1.0


def test_the_dispatch_is_off_outside_of_jobs_and_on_in_any_thread(device: Any) -> None:
    backend = ArrayApiBackend(device)
    found: list[Any] = []

    def work() -> None:
        found.append(backend.run(Job("sklearn.decomposition.PCA", {}, None, "fit", (X,), {}, {})))
        found.append(sklearn.get_config()["array_api_dispatch"])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert found[0].state_changed
    assert found[1] is False
    assert sklearn.get_config()["array_api_dispatch"] is False


def test_a_gap_in_scikit_learn_is_a_refusal_and_draws_nothing(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.mixture import GaussianMixture

    def stumble(self: Any, data: Any, y: Any = None) -> None:
        self.random_state.uniform(size=7)
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    monkeypatch.setattr(GaussianMixture, "fit", stumble)
    state = np.random.RandomState(1)
    before = state.get_state()[2]
    params = {"init_params": "random", "random_state": state}
    with pytest.raises(RefusedByBackend, match="scikit-learn raised TypeError on device arrays: Implicit"):
        ArrayApiBackend(device).run(Job("sklearn.mixture.GaussianMixture", params, None, "fit", (X,), {}, {}))
    assert state.get_state()[2] == before


def test_in_a_chain_the_cpu_does_the_rest(device: Any) -> None:
    chain = ChainBackend((ArrayApiBackend(device), SklearnBackend()))
    assert chain.probe().available
    mixture = chain.run(Job("sklearn.mixture.GaussianMixture", {"n_components": 2}, None, "fit", (X,), {}, {}))
    assert mixture.backend == "sklearn"
    assert mixture.reason.startswith("array_api: init_params='kmeans' is not possible") or mixture.reason == ""
    ridge = chain.run(Job("sklearn.linear_model.Ridge", {}, None, "fit", (X, NUMBERS), {}, {}))
    assert (ridge.backend, ridge.device, ridge.reason) == ("array_api", device.name, "")
    sparse = chain.run(
        Job("sklearn.linear_model.Ridge", {}, ridge.model, "predict", (scipy.sparse.csr_matrix(X),), {}, {})
    )
    assert (sparse.backend, sparse.reason) == ("sklearn", "array_api: X is sparse, not a dense array")
    np.testing.assert_allclose(sparse.result, NUMBERS, atol=2)
    state = chain.attributes(ridge.model)
    loaded, nbytes = chain.load("sklearn.linear_model.Ridge", {}, state)
    again = chain.run(Job("sklearn.linear_model.Ridge", {}, loaded, "predict", (X,), {}, {}))
    assert (again.backend, nbytes > 0) == ("array_api", True)
    np.testing.assert_allclose(device.host(again.result), sparse.result)


def test_the_probe_tries_the_device(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = ArrayApiBackend(device).probe()
    assert probe.available, probe.reason
    assert probe.device == device.name
    monkeypatch.setattr(type(device), "upload", lambda self, array, shared=False: array)
    monkeypatch.setattr(type(device), "synchronize", lambda self: 1 / 0)
    broken = ArrayApiBackend(device).probe()
    assert (broken.available, "ZeroDivisionError" in broken.reason) == (False, True)


@pytest.mark.parametrize("version", ["1.8.2"])
def test_an_old_scikit_learn_is_not_used(device: Any, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(sklearn, "__version__", version)
    assert "too old" in ArrayApiBackend(device).probe().reason


def test_without_the_variable_the_probe_says_so(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCIPY_ARRAY_API", "0")
    assert "SCIPY_ARRAY_API=1" in ArrayApiBackend(device).probe().reason
