# SPDX-License-Identifier: BSD-3-Clause
"""The cuML backend: on the real package where there is a GPU, on a stand-in for it everywhere else.

What is compared with scikit-learn is what both must agree on (a score, an inertia, a spectrum), since cuML's algorithms
are others. The contract with cuML's classes is checked wherever the real package can be imported, GPU or not.
"""

from __future__ import annotations

import importlib
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse
from gsb_server.backends import hardware
from gsb_server.backends.base import Deferred, Job, RefusedByBackend
from gsb_server.backends.chain import ChainBackend
from gsb_server.backends.cuml import CumlBackend
from gsb_server.backends.cuml_table import ROWS
from gsb_server.backends.sklearn import SklearnBackend, estimator_class

cuml = pytest.importorskip("cuml")

N = 240
GENERATOR = np.random.default_rng(5)
CENTRES = np.array([[0.0, 0, 0, 0], [6, 6, 0, 0], [0, 6, 6, 6]])
GROUPS = GENERATOR.integers(0, 3, N)
X = CENTRES[GROUPS] + GENERATOR.standard_normal((N, 4))
TWO = (GROUPS == 1).astype(np.int64)
NUMBERS = X @ np.array([1.0, -2.0, 0.5, 3.0]) + 0.1 * GENERATOR.standard_normal(N)
CODES = GENERATOR.integers(0, 3, (N, 2))


@pytest.fixture(scope="module", params=["fake", pytest.param("cupy", marks=pytest.mark.gpu)])
def any_device(request: pytest.FixtureRequest) -> Any:
    from helpers.devices import make

    return make(request.param)


@pytest.fixture
def device(any_device: Any) -> Iterator[Any]:
    any_device.uploads = 0
    yield any_device
    any_device.check_untouched()


@pytest.fixture
def backend(device: Any) -> CumlBackend:
    return CumlBackend(device)


def _score(plain: Any, *args: Any) -> float:
    return float(plain.score(*args))


def _spectrum(plain: Any, *args: Any) -> float:
    return float(plain.explained_variance_[0])


def _inertia(plain: Any, *args: Any) -> float:
    return float(plain.inertia_)


def _clusters(plain: Any, *args: Any) -> float:
    return float(len(set(plain.labels_) - {-1}))


class Case(NamedTuple):
    name: str
    params: dict[str, Any] = {}
    y: Any = None
    measure: Callable[..., float] | None = None
    X: Any = X


CASES = [
    Case("cluster.DBSCAN", {"eps": 1.5}, None, _clusters),
    Case("cluster.HDBSCAN", {"copy": True}, None, _clusters),
    Case("cluster.KMeans", {"n_clusters": 3, "n_init": 3, "random_state": 0}, None, _inertia),
    Case("cluster.SpectralClustering", {"affinity": "nearest_neighbors", "n_clusters": 3, "random_state": 0}),
    Case("covariance.EmpiricalCovariance", {}, None, _score),
    Case("covariance.LedoitWolf", {}, None, _score),
    Case("decomposition.IncrementalPCA", {"n_components": 2}, None, _spectrum),
    Case("decomposition.PCA", {"n_components": 2}, None, _spectrum),
    Case("decomposition.PCA", {"n_components": 2}, None, _spectrum, np.asfortranarray(X)),
    Case("decomposition.PCA", {"n_components": 2, "whiten": True}, None, _spectrum, X.astype(np.float32)),
    Case("decomposition.TruncatedSVD", {"n_components": 2}, None, _spectrum),
    Case("ensemble.IsolationForest", {"n_estimators": 8, "random_state": 0}),
    Case("ensemble.RandomForestClassifier", {"n_estimators": 8, "random_state": 0}, GROUPS, _score),
    Case("ensemble.RandomForestClassifier", {"n_estimators": 40, "oob_score": True, "random_state": 0}, TWO, _score),
    Case("ensemble.RandomForestRegressor", {"n_estimators": 8, "random_state": 0}, NUMBERS, _score),
    Case("kernel_ridge.KernelRidge", {"alpha": 1.0}, NUMBERS, _score),
    Case("linear_model.ElasticNet", {"alpha": 0.1}, NUMBERS, _score),
    Case("linear_model.Lasso", {"alpha": 0.1}, NUMBERS, _score),
    Case("linear_model.LinearRegression", {}, NUMBERS, _score),
    Case("linear_model.LogisticRegression", {}, GROUPS, _score),
    Case("linear_model.Ridge", {}, NUMBERS, _score),
    Case("manifold.SpectralEmbedding", {"random_state": 0}),
    Case("manifold.TSNE", {"perplexity": 10.0, "random_state": 0}),
    Case("neighbors.KernelDensity", {}, None, _score),
    Case("neighbors.KNeighborsClassifier", {}, GROUPS, _score),
    Case("neighbors.KNeighborsRegressor", {}, NUMBERS, _score),
    Case("neighbors.NearestNeighbors", {}),
    Case("preprocessing.LabelBinarizer", {}, None, None, GROUPS),
    Case("preprocessing.LabelEncoder", {}, None, None, GROUPS),
    Case("preprocessing.OneHotEncoder", {}, None, None, CODES),
    Case("preprocessing.TargetEncoder", {"random_state": 0}, TWO, None, CODES),
    Case("svm.LinearSVC", {}, TWO, _score),
    Case("svm.LinearSVR", {"max_iter": 100_000}, NUMBERS, _score),
    Case("svm.SVC", {}, TWO, _score),
    Case("svm.SVR", {}, NUMBERS, _score),
]
IDS = [f"{index}-{case.name.rpartition('.')[2]}" for index, case in enumerate(CASES)]


def test_every_row_has_a_case() -> None:
    assert {f"sklearn.{case.name}" for case in CASES} == set(ROWS)


def job(
    name: str, method: str, *args: Any, params: dict[str, Any] | None = None, model: Any = None, **kwargs: Any
) -> Job:
    return Job(f"sklearn.{name}", params or {}, model, method, args, kwargs, {})


def _args(case: Case) -> tuple[Any, ...]:
    return (case.X,) if case.y is None else (case.X, case.y)


def _is_host(value: Any) -> bool:
    return not type(value).__module__.startswith(("cupy", "cuml"))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_an_estimator_is_fitted_given_back_and_used(device: Any, backend: CumlBackend, case: Case) -> None:
    row, cls = ROWS[f"sklearn.{case.name}"], estimator_class(f"sklearn.{case.name}")
    make: Any = cls
    outcome = backend.run(job(case.name, "fit", *_args(case), params=case.params))
    assert (outcome.is_self, outcome.state_changed) == (True, True)
    assert outcome.nbytes > 0 or row.opaque or case.X is not X
    everything = backend.attributes(outcome.model)
    assert set(outcome.attributes) == set(everything)
    for name, value in outcome.attributes.items():
        if isinstance(value, Deferred):
            assert name in row.large or name in row.opaque
        else:
            assert _is_host(value), name
            if not hasattr(value, "get_params"):
                np.testing.assert_equal(value, everything[name], err_msg=name)
    assert all(_is_host(value) for value in everything.values())

    plain = backend.export(outcome.model)
    assert type(plain) is cls
    assert plain is not outcome.model.proxy._cpu
    for name, value in case.params.items():
        assert getattr(plain, name) == value
    again = pickle.loads(pickle.dumps(plain))
    if case.measure is not None:
        expected = case.measure(make(**case.params).fit(*_args(case)), *_args(case))
        assert case.measure(again, *_args(case)) == pytest.approx(expected, rel=0.1, abs=0.05)

    for method in ("transform", "predict", "predict_proba", "decision_function", "kneighbors"):
        if hasattr(again, method) and hasattr(outcome.model.proxy._gpu, method):
            found = backend.run(job(case.name, method, case.X, model=outcome.model))
            assert not found.state_changed
            wanted = getattr(again, method)(case.X)
            if method == "transform" and not scipy.sparse.issparse(wanted):
                assert device.owns(found.result)
            result = device.host(found.result)
            if scipy.sparse.issparse(wanted):
                assert (result != wanted).nnz == 0
            else:
                first, second = (result[0], wanted[0]) if method == "kneighbors" else (result, wanted)
                assert first.shape == second.shape
                if case.name != "svm.SVC":
                    np.testing.assert_allclose(first, second, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].deferred])
def test_dear_attributes_are_only_named(backend: CumlBackend, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if f"sklearn.{case.name}" == name)

    def no(self: Any, model: Any) -> Any:
        raise AssertionError("a fit must not convert the whole model")

    monkeypatch.setattr(CumlBackend, "export", no)
    found = backend.run(job(case.name, "fit", *_args(case), params=case.params)).attributes
    assert any(isinstance(value, Deferred) for value in found.values())
    assert found["n_features_in_"] == case.X.shape[1]


#: Estimator, parameters, cuML's own words.
REFUSED = [
    ("cluster.DBSCAN", {"algorithm": "kd_tree"}, "`algorithm='kd_tree'` is not supported"),
    ("cluster.SpectralClustering", {}, "`affinity='rbf'` is not supported"),
    ("decomposition.PCA", {"n_components": "mle"}, "`n_components='mle'` is not supported"),
    ("decomposition.PCA", {"n_components": 0}, "`n_components=0` is not supported"),
    ("ensemble.RandomForestClassifier", {"warm_start": True}, "`warm_start=True` is not supported"),
    ("ensemble.RandomForestClassifier", {"ccp_alpha": 0.5}, "`ccp_alpha=0.5` is not supported"),
    ("ensemble.RandomForestRegressor", {"max_samples": 10}, "`int` values for `max_samples` are not supported"),
    ("linear_model.ElasticNet", {"positive": True}, "`positive=True` is not supported"),
    ("linear_model.Lasso", {"precompute": True}, "`precompute` is not supported"),
    ("linear_model.Lasso", {"warm_start": True}, "`warm_start=True` is not supported"),
    ("linear_model.LinearRegression", {"positive": True}, "`positive=True` is not supported"),
    ("linear_model.LogisticRegression", {"warm_start": True}, "`warm_start=True` is not supported"),
    ("linear_model.LogisticRegression", {"intercept_scaling": 2}, "`intercept_scaling=2` is not supported"),
    ("linear_model.Ridge", {"positive": True}, "`positive=True` is not supported"),
    ("manifold.TSNE", {"n_components": 3}, "Only `n_components=2` is supported"),
]


#: What the documentation says besides.
NOTED: list[tuple[str, dict[str, Any]]] = [
    ("cluster.DBSCAN", {"metric": "manhattan"}),
    ("cluster.HDBSCAN", {"metric": "manhattan"}),
    ("cluster.HDBSCAN", {"metric_params": {"a": 1}}),
    ("cluster.HDBSCAN", {"store_centers": "both"}),
    ("cluster.KMeans", {"init": len}),
    ("cluster.SpectralClustering", {"affinity": "nearest_neighbors", "assign_labels": "discretize"}),
    ("ensemble.IsolationForest", {"warm_start": True}),
    ("ensemble.RandomForestClassifier", {"criterion": "log_loss"}),
    ("ensemble.RandomForestClassifier", {"class_weight": "balanced_subsample"}),
    ("ensemble.RandomForestClassifier", {"monotonic_cst": [1, 0]}),
    ("ensemble.RandomForestClassifier", {"min_weight_fraction_leaf": 0.1}),
    ("ensemble.RandomForestRegressor", {"criterion": "absolute_error"}),
    ("kernel_ridge.KernelRidge", {"kernel": len}),
    ("linear_model.Ridge", {"solver": "lbfgs"}),
    ("manifold.SpectralEmbedding", {"affinity": "rbf"}),
    ("manifold.TSNE", {"init": np.zeros((3, 2))}),
    ("neighbors.KNeighborsClassifier", {"weights": len}),
    ("neighbors.KNeighborsRegressor", {"metric": len}),
    ("neighbors.KernelDensity", {"metric": "haversine"}),
    ("preprocessing.OneHotEncoder", {"drop": "if_binary"}),
    ("preprocessing.OneHotEncoder", {"min_frequency": 2}),
    ("preprocessing.OneHotEncoder", {"dtype": np.int64}),
    ("preprocessing.TargetEncoder", {"categories": [[1]], "random_state": 0}),
    ("preprocessing.TargetEncoder", {"random_state": np.random.RandomState(0)}),
    ("svm.LinearSVC", {"intercept_scaling": 2.0}),
    ("svm.LinearSVC", {"multi_class": "crammer_singer"}),
    ("svm.LinearSVR", {"intercept_scaling": 2.0}),
    ("svm.SVC", {"kernel": len}),
    ("svm.SVC", {"probability": True}),
    ("svm.SVR", {"kernel": len}),
]


@pytest.mark.parametrize(("name", "params"), NOTED, ids=[f"{name}-{next(iter(params))}" for name, params in NOTED])
def test_what_the_documentation_says_of_cuml(name: str, params: dict[str, Any]) -> None:
    from cuml.internals.interop import UnsupportedOnGPU

    if "fake" in cuml.__version__:
        pytest.skip("cuml is the stand-in, which refuses less")
    cls = _stand_in(f"sklearn.{name}")
    with pytest.raises(UnsupportedOnGPU):
        cls._gpu_class._params_from_cpu(cls._cpu_class(**params))


def _stand_in(name: str) -> Any:
    package, _, cls = name.rpartition(".")
    return getattr(importlib.import_module(f"cuml.accel._overrides.{package}"), cls)


@pytest.mark.parametrize("name", ROWS)
def test_the_contract_with_cumls_classes(name: str) -> None:
    # Needs no GPU: the real package, or the stand-in, whichever is imported here.
    cls = _stand_in(name)
    assert cls._cpu_class is estimator_class(name)
    for attribute in ("_validate_params", "_call_gpu_method"):
        assert callable(getattr(cls, attribute))
    for attribute in ("_params_from_cpu", "from_sklearn", "_sync_attrs_to_cpu", "set_params"):
        assert callable(getattr(cls._gpu_class, attribute))
    made = cls()
    assert made._gpu is None
    assert type(made._cpu) is estimator_class(name)
    params = {"sklearn.cluster.SpectralClustering": {"affinity": "nearest_neighbors"}}.get(name, {})
    if name == "sklearn.preprocessing.TargetEncoder":
        params = {"random_state": 0}
    gpu = cls._gpu_class(**cls._gpu_class._params_from_cpu(cls._cpu_class(**params)))
    assert "2darray" in gpu.__sklearn_tags__().X_types_gpu


@pytest.mark.parametrize(("name", "params", "reason"), REFUSED, ids=[f"{n}-{next(iter(p), '')}" for n, p, _ in REFUSED])
def test_the_words_of_a_refusal_are_cumls(name: str, params: dict[str, Any], reason: str) -> None:
    from cuml.internals.interop import UnsupportedOnGPU

    cls = _stand_in(f"sklearn.{name}")
    with pytest.raises(UnsupportedOnGPU) as caught:
        cls._gpu_class._params_from_cpu(cls._cpu_class(**params))
    assert str(caught.value) == reason


@pytest.mark.parametrize(("name", "params", "reason"), REFUSED, ids=[f"{n}-{next(iter(p), '')}" for n, p, _ in REFUSED])
def test_a_refusal_comes_before_any_upload(
    device: Any, backend: CumlBackend, name: str, params: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RefusedByBackend) as caught:
        backend.run(job(name, "fit", X, NUMBERS, params=params))
    assert str(caught.value) == reason
    assert device.uploads == 0


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("naive_bayes.GaussianNB", (X, TWO), "cuML has no GaussianNB that scikit-learn could take back"),
        ("preprocessing.StandardScaler", (X,), "cuML has no StandardScaler"),
        ("cluster.KMeans", (scipy.sparse.csr_matrix(X),), "Sparse inputs are not supported"),
        ("svm.SVC", (X, GROUPS), "Multiclass `y` is not supported"),
        ("ensemble.RandomForestRegressor", (np.where(X > 6, np.nan, X), NUMBERS), "Missing values are not supported"),
        ("decomposition.PCA", (X, None, 1), "fit takes 2 arguments, not 3"),
    ],
)
def test_what_cuml_cannot_do_is_refused(backend: CumlBackend, name: str, args: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(RefusedByBackend, match=reason):
        backend.run(job(name, "fit", *args))


def test_the_data_may_come_by_name_and_y_is_left_where_it_is_ignored(device: Any, backend: CumlBackend) -> None:
    name = "sklearn.decomposition.PCA"
    model = backend.run(Job(name, {"n_components": 2}, None, "fit", (), {"X": X, "y": NUMBERS}, {})).model
    found = backend.run(Job(name, {}, model, "transform", (), {"X": X}, {})).result
    assert found.shape == (N, 2)
    assert device.uploads == 2, "X twice, y never"


def test_a_method_that_cuml_lacks(backend: CumlBackend) -> None:
    model = backend.run(job("neighbors.NearestNeighbors", "fit", X)).model
    with pytest.raises(RefusedByBackend, match="Method is not implemented in cuml"):
        backend.run(job("neighbors.NearestNeighbors", "radius_neighbors", X, model=model))


def test_a_method_that_nobody_has_is_for_the_cpu_to_complain_about(device: Any) -> None:
    chain = ChainBackend((CumlBackend(device), SklearnBackend()))
    model = chain.run(job("cluster.KMeans", "fit", X, params={"n_clusters": 2, "n_init": 1})).model
    with pytest.raises(AttributeError, match="'KMeans' object has no attribute 'decision_function'"):
        chain.run(job("cluster.KMeans", "decision_function", X, model=model))


def test_wrong_parameters_raise_scikit_learns_own_words(backend: CumlBackend) -> None:
    with pytest.raises(ValueError, match="The 'n_clusters' parameter of KMeans must be an int"):
        backend.run(job("cluster.KMeans", "fit", X, params={"n_clusters": "many"}))


def test_a_gap_is_a_refusal_unless_a_model_may_have_changed(
    backend: CumlBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = backend.run(job("decomposition.IncrementalPCA", "fit", X, params={"n_components": 2})).model
    stand_in = _stand_in("sklearn.decomposition.IncrementalPCA")

    def stumble(self: Any, method: str, *args: Any, **kwargs: Any) -> None:
        raise TypeError("unexpected keyword argument")

    monkeypatch.setattr(stand_in, "_call_gpu_method", stumble)
    with pytest.raises(RefusedByBackend, match="cuML raised TypeError: unexpected keyword"):
        backend.run(job("decomposition.IncrementalPCA", "transform", X, model=model))
    with pytest.raises(TypeError, match="unexpected keyword"):
        backend.run(job("decomposition.IncrementalPCA", "partial_fit", X, model=model))


def test_arrays_that_came_on_the_device_are_only_read(device: Any, backend: CumlBackend) -> None:
    for order in ("C", "F"):
        resident = device.upload(np.asarray(X, order=order), shared=True)
        for name in ("decomposition.PCA", "cluster.KMeans"):
            params = {"n_components": 2} if "PCA" in name else {"n_clusters": 2, "n_init": 1, "random_state": 0}
            model = backend.run(job(name, "fit", resident, params=params)).model
            backend.run(job(name, "transform", resident, model=model))
    assert device.uploads == 2


def test_partial_fit_goes_on(backend: CumlBackend) -> None:
    name, params = "decomposition.IncrementalPCA", {"n_components": 2}
    first = backend.run(job(name, "partial_fit", X[:100], params=params))
    second = backend.run(job(name, "partial_fit", X[100:], model=first.model))
    cls: Any = estimator_class(f"sklearn.{name}")
    expected = cls(**params).partial_fit(X[:100]).partial_fit(X[100:])
    assert second.attributes["n_samples_seen_"] == N
    np.testing.assert_allclose(second.attributes["singular_values_"], expected.singular_values_, rtol=1e-2)


def test_random_states_advance_and_a_refusal_draws_nothing(backend: CumlBackend) -> None:
    params = {"n_clusters": 2, "n_init": 1, "random_state": np.random.RandomState(3)}
    before = params["random_state"].get_state()
    outcome = backend.run(job("cluster.KMeans", "fit", X, params=params))
    after = outcome.random_states["random_state"].get_state()
    assert (after[2], after[1].tolist()) != (before[2], before[1].tolist())
    assert params["random_state"].get_state()[2] == before[2]
    with pytest.raises(RefusedByBackend):
        backend.run(job("cluster.KMeans", "fit", scipy.sparse.csr_matrix(X), params=params))
    assert params["random_state"].get_state()[2] == before[2]


def test_parameters_changed_since_the_fit(backend: CumlBackend) -> None:
    model = backend.run(job("neighbors.NearestNeighbors", "fit", X)).model
    changed = backend.run(job("neighbors.NearestNeighbors", "kneighbors", X, params={"n_neighbors": 3}, model=model))
    assert changed.result[0].shape == (N, 3)
    assert backend.run(job("neighbors.NearestNeighbors", "kneighbors", X, model=model)).result[0].shape == (N, 3)
    assert backend.export(model).n_neighbors == 3
    with pytest.raises(RefusedByBackend, match="metric"):
        backend.run(job("neighbors.NearestNeighbors", "kneighbors", X, params={"metric": len}, model=model))


def test_settings_are_those_of_the_thread_and_of_the_job(backend: CumlBackend) -> None:
    found: list[Any] = []

    def work() -> None:
        # A setting that something has left behind in this thread must not reach the job.
        cuml.global_settings.output_type = "numpy"
        outcome = backend.run(job("decomposition.PCA", "fit_transform", X, params={"n_components": 2}))
        found.extend([outcome.result, cuml.global_settings.output_type])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert backend.device.owns(found[0])
    assert found[1] == "numpy"
    assert cuml.global_settings.output_type is None


def test_a_model_comes_from_the_cpu_and_goes_back(device: Any, backend: CumlBackend) -> None:
    cls: Any = estimator_class("sklearn.decomposition.PCA")
    plain = cls(n_components=2).fit(X)
    model, nbytes = backend.adopt("sklearn.decomposition.PCA", plain)
    assert nbytes >= plain.components_.nbytes
    found = backend.run(job("decomposition.PCA", "transform", X, model=model)).result
    assert device.owns(found)
    np.testing.assert_allclose(np.abs(device.host(found)), np.abs(plain.transform(X)), rtol=1e-3, atol=1e-4)
    state = SklearnBackend().attributes(plain)
    loaded, _ = backend.load("sklearn.decomposition.PCA", {"n_components": 2}, state)
    np.testing.assert_allclose(backend.export(loaded).mean_, plain.mean_)
    forest: Any = estimator_class("sklearn.ensemble.IsolationForest")
    with pytest.raises(RefusedByBackend, match="Conversion of a fitted sklearn IsolationForest is not supported"):
        backend.adopt("sklearn.ensemble.IsolationForest", forest(n_estimators=3, random_state=0).fit(X))
    with pytest.raises(RefusedByBackend, match="cuML has no GaussianNB"):
        backend.load("sklearn.naive_bayes.GaussianNB", {}, {})


def test_in_a_chain_the_cpu_does_the_rest_with_the_reason(device: Any) -> None:
    chain = ChainBackend((CumlBackend(device), SklearnBackend()))
    assert chain.probe().device == device.name
    refused = chain.run(job("decomposition.PCA", "fit", X, params={"n_components": "mle"}))
    assert (refused.backend, refused.reason) == ("sklearn", "cuml: `n_components='mle'` is not supported")
    fitted = chain.run(job("neighbors.NearestNeighbors", "fit", X))
    assert (fitted.backend, fitted.reason) == ("cuml", "")
    rest = chain.run(job("neighbors.NearestNeighbors", "radius_neighbors", X, model=fitted.model))
    assert (rest.backend, rest.reason) == ("sklearn", "cuml: Method is not implemented in cuml")


# ---------------------------------------------------------------------------------- the probe


def test_the_probe_tries_the_device(backend: CumlBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    good = backend.probe()
    assert good.available, good.reason
    assert good.versions["cuml"] == cuml.__version__
    monkeypatch.setattr(type(backend.device), "synchronize", lambda self: 1 / 0)
    bad = backend.probe()
    assert (bad.available, "PCA.fit with cuML" in bad.reason, "ZeroDivisionError" in bad.reason) == (False, True, True)


def test_a_wrong_result_is_not_trusted(backend: CumlBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.decomposition import PCA

    monkeypatch.setattr(CumlBackend, "export", lambda self, model: PCA(2).fit(X))
    assert "is not what NumPy gives" in backend.probe().reason


def test_an_old_cuml_is_not_used(backend: CumlBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuml, "__version__", "25.12.00")
    assert backend.probe().reason == "cuML 25.12.00 is too old: 26.10 or later is needed"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ModuleNotFoundError("No module named 'cuml'", name="cuml"), "cuML is not installed: pip install"),
        (ModuleNotFoundError("No module named 'cudf'", name="cudf"), "cannot be imported: No module named 'cudf'"),
        (RuntimeError("libcuml.so: cannot open"), "cannot be imported: RuntimeError: libcuml.so"),
    ],
)
def test_what_keeps_cuml_from_being_imported_is_said(
    backend: CumlBackend, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    import builtins

    real = builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cuml":
            raise error
        return real(name, *args, **kwargs)

    monkeypatch.setattr(hardware, "driver_cuda_version", lambda: (13, 0))
    monkeypatch.setattr(hardware.sys, "platform", "linux")
    monkeypatch.setattr(builtins, "__import__", fail)
    probe = backend.probe()
    monkeypatch.undo()
    assert not probe.available
    assert expected in probe.reason


def test_other_devices_are_not_for_cuml() -> None:
    class Torch:
        kind, name = "torch", "torch cpu"

    assert "needs CuPy's arrays" in CumlBackend(Torch()).probe().reason  # type: ignore[arg-type]


def test_the_command_that_doctor_asks(
    device: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    from gsb_server.backends import __main__ as command

    monkeypatch.setattr(hardware, "missing", lambda: "")
    assert command.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["names"][0] == "cuml"
    assert found["names"][-1] == "sklearn"
    assert found["probes"]["cuml"]["versions"]["cuml"] == cuml.__version__
    if "fake" in cuml.__version__:
        assert "StandardScaler.fit" in found["probes"]["array_api"]["reason"]
    monkeypatch.setattr(hardware, "missing", lambda: "there is no NVIDIA driver")
    assert {name: probe.reason for name, probe in command._on_the_gpu().items()} == {
        "cuml": "there is no NVIDIA driver",
        "array_api": "there is no NVIDIA driver",
    }
