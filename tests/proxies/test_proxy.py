# SPDX-License-Identifier: BSD-3-Clause
"""A proxy is a scikit-learn estimator: same results, same manners."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import subprocess
import sys
import threading
import warnings
from typing import Any

import gsb
import numpy as np
import pandas as pd
import pytest
import sklearn
from gsb._client import Client
from gsb._remote_exceptions import warning_class
from gsb.cluster import DBSCAN, KMeans
from gsb.decomposition import PCA, TruncatedSVD
from gsb.ensemble import RandomForestClassifier
from gsb.errors import UnsupportedEstimatorError
from gsb.linear_model import Lasso, LinearRegression, LogisticRegression
from gsb.neighbors import KNeighborsClassifier, NearestNeighbors
from gsb.preprocessing import MinMaxScaler, StandardScaler
from gsb.protocol.registry import estimator_paths, is_composition, resolve
from gsb.svm import SVC
from helpers.estimators import usual_proxies
from scipy.linalg import LinAlgWarning
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning, InconsistentVersionWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils._param_validation import InvalidParameterError

pytestmark = pytest.mark.usefixtures("server")

rng = np.random.default_rng(0)
X = rng.standard_normal((300, 8))
y = (X[:, 0] + 0.1 * rng.standard_normal(300) > 0).astype(int)


def plain(estimator: Any) -> Any:
    """The same estimator of scikit-learn itself, unfitted."""
    return estimator._gsb_base(**estimator.get_params(deep=False))


# --------------------------------------------------------------------------------- the same results
@pytest.mark.parametrize("proxy", usual_proxies(), ids=lambda proxy: proxy.__name__)
def test_bit_identical_to_scikit_learn(proxy: type[Any]) -> None:
    estimator = proxy()
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=0)
    if "n_estimators" in estimator.get_params():
        estimator.set_params(n_estimators=10)
    local = plain(estimator)
    assert estimator.fit(X, y) is estimator
    assert estimator.gsb_report_.backend == "sklearn"
    local.fit(X, y)
    for method in ("predict", "transform", "predict_proba", "decision_function"):
        if hasattr(local, method):
            np.testing.assert_array_equal(getattr(estimator, method)(X), getattr(local, method)(X), strict=True)
            assert estimator.gsb_report_.backend == "sklearn"
    for name, value in vars(local).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(estimator, name), value, strict=True)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "u1", ">f8", "f2", "?"])
@pytest.mark.parametrize("n", [20, 5000], ids=["inline", "pool"])
def test_every_dtype(dtype: str, n: int) -> None:
    data = (rng.standard_normal((n, 4)) * 10 + 20).astype(dtype)
    data[0] = 0
    np.testing.assert_array_equal(
        StandardScaler().fit_transform(data), plain(StandardScaler()).fit_transform(data), strict=True
    )


@pytest.mark.parametrize("n", [20, 5000], ids=["inline", "pool"])
@pytest.mark.parametrize(
    "make",
    [
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: a[::-1],
        lambda a: a.T.copy().T,
        lambda a: np.broadcast_to(a[:1], a.shape),
        lambda a: a.astype(">f8"),
    ],
    ids=["fortran", "rows", "columns", "reversed", "transposed", "broadcast", "swapped"],
)
def test_every_layout(make: Any, n: int) -> None:
    data = make(rng.standard_normal((n, 4)))
    before = data.copy()
    estimator = PCA(n_components=2, random_state=0)
    # Arrays travel without gaps. Sums over memory with gaps differ in the last bits, also locally.
    compact = np.array(data, order="A")
    expected = plain(estimator).fit_transform(compact)
    np.testing.assert_array_equal(estimator.fit_transform(data), expected, strict=True)
    np.testing.assert_array_equal(data, before)


def test_read_only_input() -> None:
    data = rng.standard_normal((5000, 4))
    data.flags.writeable = False
    assert StandardScaler(copy=False).fit_transform(data).shape == data.shape


def test_input_is_never_modified() -> None:
    data = rng.standard_normal((5000, 8))
    before = data.copy()
    PCA(copy=False).fit(data)
    KMeans(2, copy_x=False, n_init=1).fit(data)
    np.testing.assert_array_equal(data, before)


def test_what_is_promised_to_change_in_place_does() -> None:
    data = rng.standard_normal((5000, 8))
    scaler = StandardScaler(copy=False).fit(data)
    assert scaler.gsb_report_.reason == "copy=False changes the caller's array"
    assert scaler.transform(data) is data


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty_input_is_the_same_error(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError) as local:
        plain(PCA()).fit(np.empty(shape))
    with pytest.raises(ValueError) as remote:
        PCA().fit(np.empty(shape))
    assert str(remote.value) == str(local.value)
    assert type(remote.value) is type(local.value)


@pytest.mark.parametrize(
    "data",
    [np.array([[1.0, np.nan]]), np.array([1.0, 2.0]), [[1, 2], [3]], "text", None, np.array([["a", "b"]]), [[{}]]],
    ids=repr,
)
def test_invalid_input_is_the_same_error(data: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as local:
        plain(PCA()).fit(data)
    with pytest.raises((ValueError, TypeError)) as remote:
        PCA().fit(data)
    assert type(remote.value) is type(local.value)
    assert str(remote.value) == str(local.value)


def test_results_are_private_and_writable() -> None:
    data = rng.standard_normal((5000, 4))
    first, second = (StandardScaler().fit_transform(data) for _ in range(2))
    first += 1
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, second + 1)


def test_zero_copy_gives_views_that_keep_their_slot() -> None:
    data = rng.standard_normal((5000, 4))
    with gsb.config(zero_copy=True):
        first = StandardScaler().fit_transform(data)
    kept = first.copy()
    assert not first.flags.writeable
    for _ in range(20):
        StandardScaler().fit_transform(data + 1)
    np.testing.assert_array_equal(first, kept)


def test_larger_than_a_slot() -> None:
    data = rng.standard_normal((200_000, 4))  # 6.4 MB over slots of 4 MB
    np.testing.assert_array_equal(StandardScaler().fit_transform(data), plain(StandardScaler()).fit_transform(data))


def test_neighbors_return_tuples_and_sparse() -> None:
    estimator = NearestNeighbors(n_neighbors=3).fit(X)
    local = plain(estimator).fit(X)
    for left, right in zip(estimator.kneighbors(X), local.kneighbors(X), strict=True):
        np.testing.assert_array_equal(left, right, strict=True)
    assert (estimator.kneighbors_graph(X) != local.kneighbors_graph(X)).nnz == 0
    np.testing.assert_array_equal(estimator.kneighbors(), local.kneighbors())


def test_text_labels() -> None:
    labels = np.array(["no", "yes"])[y]
    for form in (labels, labels.astype(object), labels.tolist(), pd.Series(labels)):
        estimator = KNeighborsClassifier().fit(X, form)
        assert estimator.gsb_report_.backend == "sklearn"
        found = estimator.predict(X)
        np.testing.assert_array_equal(found, plain(estimator).fit(X, form).predict(X), strict=True)


def test_random_forest_state() -> None:
    estimator = RandomForestClassifier(5, random_state=0).fit(X, y)
    local = plain(estimator).fit(X, y)
    assert len(estimator.estimators_) == len(estimator) == 5
    np.testing.assert_array_equal(estimator.feature_importances_, local.feature_importances_)
    np.testing.assert_array_equal(estimator.apply(X), local.apply(X))
    left, right = estimator.decision_path(X), local.decision_path(X)
    assert (left[0] != right[0]).nnz == 0
    np.testing.assert_array_equal(left[1], right[1])


# --------------------------------------------------------------------------------- random numbers
def test_random_state_instance_advances_as_locally() -> None:
    remote, local = np.random.RandomState(5), np.random.RandomState(5)
    KMeans(3, n_init=2, random_state=remote).fit(X)
    plain(KMeans(3, n_init=2, random_state=local)).fit(X)
    assert remote.randint(2**31) == local.randint(2**31)


def test_global_seed_counts() -> None:
    np.random.seed(7)
    first = KMeans(3, n_init=2, init="random").fit(X)
    after = np.random.randint(2**31)
    np.random.seed(7)
    second = plain(first).fit(X)
    assert after == np.random.randint(2**31)
    np.testing.assert_array_equal(first.cluster_centers_, second.cluster_centers_)


# --------------------------------------------------------------------------------- manners
@pytest.mark.parametrize("proxy", usual_proxies(), ids=lambda proxy: proxy.__name__)
def test_is_the_scikit_learn_class(proxy: type[Any]) -> None:
    base = proxy._gsb_base
    assert issubclass(proxy, base)
    assert inspect.signature(proxy) == inspect.signature(base)
    assert proxy.__name__ == base.__name__
    assert proxy.__module__ == base.__module__.replace("sklearn.", "gsb.").rpartition("._")[0]
    assert repr(proxy()) == repr(base())
    assert clone(proxy()).get_params() == base().get_params()
    for name in dir(base):
        found = inspect.getattr_static(base, name)
        if inspect.isfunction(found) and not name.startswith("_"):
            assert inspect.signature(getattr(proxy, name)) == inspect.signature(getattr(base, name)), name


def test_modules_mirror_all_of_scikit_learn() -> None:
    for path in estimator_paths():
        source, _, name = path.rpartition(".")
        module = importlib.import_module(f"gsb.{source.partition('.')[2]}")
        assert name in dir(module)
        found = getattr(module, name)
        if is_composition(resolve(path)):
            assert found is resolve(path)
        else:
            assert found is gsb.remote(resolve(path))
            assert found._gsb_path == path
            assert found.__module__ == module.__name__


def test_a_mirrored_module_has_the_rest_as_it_is() -> None:
    assert importlib.import_module("gsb.svm").l1_min_c is importlib.import_module("sklearn.svm").l1_min_c
    assert importlib.import_module("gsb.pipeline").make_pipeline is make_pipeline
    assert importlib.import_module("gsb.feature_extraction").text.__name__ == "gsb.feature_extraction.text"
    with pytest.raises(AttributeError, match=r"nor has sklearn\.svm"):
        importlib.import_module("gsb.svm").XSVC  # noqa: B018


def test_remote_takes_public_estimators_only() -> None:
    class Mine(PCA._gsb_base):
        pass

    assert gsb.remote(PCA._gsb_base) is PCA
    assert gsb.remote(PCA) is PCA
    assert gsb.proxy_for(Pipeline) is None
    with pytest.raises(UnsupportedEstimatorError, match="organises"):
        gsb.remote(Pipeline)
    for bad in (Mine, type("P", (PCA,), {}), dict, PCA._gsb_base()):
        with pytest.raises(UnsupportedEstimatorError):
            gsb.remote(bad)


def test_bad_parameter_fails_before_anything_is_sent(client: Client) -> None:
    before = client.status()["metrics"]["errors"]
    with pytest.raises(InvalidParameterError, match="n_components"):
        PCA(n_components="many").fit(X)
    assert client.status()["metrics"]["errors"] == before


def test_unfitted() -> None:
    with pytest.raises(NotFittedError):
        PCA().transform(X)
    with pytest.raises(AttributeError, match="components_"):
        PCA().components_  # noqa: B018
    with pytest.raises(AttributeError, match="gsb_report_"):
        PCA().gsb_report_  # noqa: B018


def test_attributes_arrive_lazily(client: Client) -> None:
    data = rng.standard_normal((3000, 4))
    estimator = NearestNeighbors().fit(data)
    assert "_fit_X" not in estimator._gsb._attrs
    assert estimator.n_features_in_ == 4
    np.testing.assert_array_equal(estimator._fit_X, data)
    assert estimator._fit_X is estimator._fit_X
    assert "_fit_X" in dir(estimator)


def test_predict_leaves_the_instance_as_it_was() -> None:
    estimator = KMeans(2, n_init=1, random_state=0).fit(X)
    before = dict(vars(estimator))
    estimator.predict(X)
    estimator.cluster_centers_  # noqa: B018
    assert vars(estimator) == before


def test_conditional_methods_keep_their_condition() -> None:
    assert not hasattr(SVC(kernel="rbf").fit(X, y), "coef_")
    with pytest.raises(AttributeError, match="linear kernel"):
        SVC(kernel="rbf").fit(X, y).coef_  # noqa: B018
    assert SVC(kernel="linear").fit(X, y).coef_.shape == (1, 8)
    assert not hasattr(SVC(probability=False), "predict_proba")


def test_feature_names() -> None:
    frame = pd.DataFrame(X, columns=list("abcdefgh"))
    estimator = StandardScaler().fit(frame)
    assert estimator.feature_names_in_.tolist() == list("abcdefgh")
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        estimator.transform(X)
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.transform(frame[list("bacdefgh")])
    assert estimator.get_feature_names_out().tolist() == list("abcdefgh")
    assert estimator.to_sklearn().feature_names_in_.tolist() == list("abcdefgh")
    assert not hasattr(estimator.fit(X), "feature_names_in_")


def test_frames_of_several_types() -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "c": [True, False, True]})
    estimator = MinMaxScaler()
    found = estimator.fit_transform(frame)
    assert estimator.gsb_report_.backend == "sklearn"
    np.testing.assert_array_equal(found, plain(estimator).fit_transform(frame), strict=True)


def test_set_output() -> None:
    frame = pd.DataFrame(X, index=np.arange(300) * 2)
    frame.columns = list("abcdefgh")
    estimator = PCA(2, random_state=0).set_output(transform="pandas")
    found = estimator.fit_transform(frame)
    pd.testing.assert_frame_equal(found, plain(estimator).set_output(transform="pandas").fit_transform(frame))
    with sklearn.config_context(transform_output="pandas"):
        assert isinstance(PCA(2).fit_transform(X), pd.DataFrame)


def test_settings_of_scikit_learn_count() -> None:
    data = X.copy()
    data[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        NearestNeighbors(algorithm="brute").fit(data)
    with sklearn.config_context(assume_finite=True):
        NearestNeighbors(algorithm="brute").fit(data)
    unchecked = LinearRegression(positive="yes")
    with pytest.raises(InvalidParameterError):
        unchecked.fit(X, y)
    with sklearn.config_context(skip_parameter_validation=True):
        assert unchecked.fit(X, y).gsb_report_.backend == "sklearn"


def test_warnings_of_the_estimator_arrive() -> None:
    with pytest.warns(ConvergenceWarning) as remote:
        Lasso(max_iter=1, alpha=1e-9).fit(X, y)
    with pytest.warns(ConvergenceWarning) as local:
        plain(Lasso(max_iter=1, alpha=1e-9)).fit(X, y)
    assert [str(item.message) for item in remote] == [str(item.message) for item in local]
    assert remote[0].filename == __file__


def test_partial_fit_goes_on() -> None:
    estimator, local = StandardScaler(), plain(StandardScaler())
    for part in np.array_split(X, 3):
        estimator.partial_fit(part)
        local.partial_fit(part)
    assert estimator.gsb_report_.backend == "sklearn"
    assert estimator.n_samples_seen_ == 300
    np.testing.assert_array_equal(estimator.mean_, local.mean_)


def test_warm_start_goes_on() -> None:
    estimator = RandomForestClassifier(3, warm_start=True, random_state=0).fit(X, y)
    estimator.set_params(n_estimators=6).fit(X, y)
    local = plain(estimator).set_params(n_estimators=3).fit(X, y)
    local.set_params(n_estimators=6).fit(X, y)
    assert len(estimator.estimators_) == 6
    np.testing.assert_array_equal(estimator.predict_proba(X), local.predict_proba(X))


def test_parameters_changed_after_fit_count() -> None:
    estimator = KNeighborsClassifier(n_neighbors=1).fit(X, y)
    local = plain(estimator).fit(X, y)
    for n in (5, 7):
        estimator.set_params(n_neighbors=n)
        local.set_params(n_neighbors=n)
        np.testing.assert_array_equal(estimator.predict_proba(X), local.predict_proba(X))


def test_attributes_changed_by_hand_count() -> None:
    estimator = LinearRegression().fit(X, y)
    estimator.coef_ = np.zeros(8)
    np.testing.assert_array_equal(estimator.predict(X), np.full(300, estimator.intercept_))
    assert estimator.gsb_report_.backend == "local"
    estimator.fit(X, y)
    assert estimator.gsb_report_.backend == "sklearn"
    assert estimator.coef_.any()


def test_methods_that_change_the_estimator_here() -> None:
    estimator = LogisticRegression().fit(X, y)
    expected = estimator.predict(X)
    estimator.sparsify()
    np.testing.assert_array_equal(estimator.predict(X), expected)


def test_fit_after_a_failed_fit() -> None:
    estimator = PCA(2).fit(X)
    with pytest.raises(ValueError, match="NaN"):
        estimator.fit(np.full((3, 3), np.nan))
    assert estimator.fit(X[:, :4]).n_features_in_ == 4


def test_a_callable_parameter_runs_here_and_says_so() -> None:
    estimator = DBSCAN(metric=lambda a, b: abs(a - b).sum(), eps=1.0)
    estimator.fit(X[:30])
    report = gsb.last_report()
    assert report is not None
    assert report == estimator.gsb_report_
    assert report.backend == "local"
    assert "function" in report.reason


class Mine(StandardScaler):
    def transform(self, X: Any, copy: Any = None) -> Any:
        return super().transform(X) + 1


def test_a_users_subclass_runs_here() -> None:
    estimator = Mine().fit(X)
    assert estimator.gsb_report_.backend == "local"
    np.testing.assert_array_equal(estimator.fit_transform(X), plain(StandardScaler()).fit_transform(X) + 1)


def test_in_pipelines_and_searches() -> None:
    pipeline = make_pipeline(StandardScaler(), PCA(3, random_state=0), LogisticRegression())
    search = GridSearchCV(pipeline, {"pca__n_components": [2, 3]}, cv=3)
    search.fit(X, y)
    local = make_pipeline(*(plain(step) for _, step in pipeline.steps))
    reference = GridSearchCV(local, {"pca__n_components": [2, 3]}, cv=3).fit(X, y)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], reference.cv_results_["mean_test_score"])
    assert search.score(X, y) == reference.score(X, y)


# --------------------------------------------------------------------------------- leaving the server
def fitted(proxy: type[Any]) -> Any:
    estimator = proxy()
    if "n_estimators" in estimator.get_params():
        estimator.set_params(n_estimators=5)
    return estimator.fit(X, y)


@pytest.mark.parametrize("proxy", usual_proxies(), ids=lambda proxy: proxy.__name__)
def test_to_sklearn(proxy: type[Any]) -> None:
    estimator = fitted(proxy)
    found = estimator.to_sklearn()
    assert type(found) is proxy._gsb_base
    assert found.get_params() == estimator.get_params()
    for method in ("predict", "transform"):
        if hasattr(found, method):
            np.testing.assert_array_equal(getattr(found, method)(X), getattr(estimator, method)(X))
    assert "gsb" not in pickle.dumps(found).decode("latin-1")
    assert not [name for name in vars(found) if name.startswith("_gsb")]


def test_to_sklearn_is_independent() -> None:
    estimator = LinearRegression().fit(X, y)
    estimator.to_sklearn().coef_[:] = 0
    assert estimator.coef_.any()
    assert type(PCA(3).to_sklearn()) is PCA._gsb_base


@pytest.mark.parametrize("make", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy, copy.copy])
@pytest.mark.parametrize("proxy", usual_proxies(), ids=lambda proxy: proxy.__name__)
def test_copies_are_whole(proxy: type[Any], make: Any) -> None:
    estimator = fitted(proxy)
    found = make(estimator)
    assert type(found) is type(estimator)
    for method in ("predict", "transform"):
        if hasattr(estimator, method):
            np.testing.assert_array_equal(getattr(found, method)(X), getattr(estimator, method)(X))


PREDICT = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    estimator, X, expected = pickle.load(file)
assert (estimator.transform(X) == expected).all()
assert estimator.gsb_report_.backend == "local"
"""


def test_a_pickle_needs_no_server(tmp_path: Any) -> None:
    estimator = TruncatedSVD(2, random_state=0).fit(X)
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps((estimator, X, estimator.transform(X))))
    environment = {"GSB_RUNTIME_DIR": str(tmp_path / "nothing"), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", PREDICT, str(path)], check=True, timeout=60, env=environment)


def test_a_pickle_of_another_version_warns() -> None:
    state = PCA(2).fit(X).__getstate__()
    state["_sklearn_version"] = "1.0"
    with pytest.warns(InconsistentVersionWarning):
        PCA.__new__(PCA).__setstate__(state)


# --------------------------------------------------------------------------------- threads
def test_threads_do_not_mix() -> None:
    failures: list[BaseException] = []
    shared = PCA(2, random_state=0).fit(X)
    barrier = threading.Barrier(8)

    def work(seed: int) -> None:
        try:
            own = np.random.default_rng(seed)
            barrier.wait(30)
            for _ in range(15):
                data = own.standard_normal((own.integers(10, 5000), 4)) + seed
                expected = plain(StandardScaler()).fit_transform(data)
                np.testing.assert_array_equal(StandardScaler().fit_transform(data), expected)
                assert gsb.last_report().method == "fit_transform"  # type: ignore[union-attr]
                part = X[: own.integers(1, 300)]
                np.testing.assert_allclose(shared.transform(part), (part - shared.mean_) @ shared.components_.T)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not [thread for thread in threads if thread.is_alive()]
    assert not failures


def test_nothing_is_left_in_the_pool(client: Client) -> None:
    pool = client.connect().transport.pool
    data = rng.standard_normal((5000, 4))
    for _ in range(5):
        estimator = NearestNeighbors().fit(data)
        estimator.kneighbors(data)
        estimator.to_sklearn()
    stat = pool.stat()
    assert [slot for slot in stat.slots if slot.state != "free"] == []


def test_forgotten_models_go(client: Client) -> None:
    before = client.status()["models"]["count"]
    for _ in range(20):
        estimator = PCA(2).fit(X)
    del estimator
    with warnings.catch_warnings():
        client.flush_forgotten()
    assert client.status()["models"]["count"] <= before


def test_estimators_are_scikit_learns() -> None:
    assert isinstance(PCA(), BaseEstimator)


def test_an_attribute_written_to_counts() -> None:
    estimator = LogisticRegression().fit(X, y)
    estimator.predict(X)
    estimator.coef_[:] = 0
    estimator.intercept_[:] = 1
    assert (estimator.predict(X) == 1).all()
    assert estimator.gsb_report_.reason == "a fitted attribute was written to in this process"


def test_warnings_of_private_modules_keep_their_class() -> None:
    assert warning_class("scipy.linalg._misc.LinAlgWarning") is LinAlgWarning
    assert warning_class("os._private.Anything") is UserWarning
