# SPDX-License-Identifier: BSD-3-Clause
"""Calls: results equal scikit-learn's, slots are given and freed, inputs stay as they are."""

from __future__ import annotations

import importlib
import io
import pickle
import threading
import time
import warnings
from typing import Any

import numpy as np
import pytest
import sklearn
from gsb_server.backends.sklearn import SklearnBackend
from helpers.estimators import PATHS
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning

import shmpool

N = 400
GENERATOR = np.random.default_rng(7)
X = GENERATOR.standard_normal((N, 6))
Y = (X[:, 0] + 0.1 * X[:, 1] > 0).astype(np.int64)
BIG = GENERATOR.standard_normal((20_000, 4))  # through the pool both ways


def _class(path: str) -> type:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _params(path: str) -> dict[str, Any]:
    given = {"n_estimators": 5, "random_state": 0}
    return {name: value for name, value in given.items() if name in _class(path)().get_params()}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_estimator_fits_and_keeps_no_slot(peer: Any, path: str, dtype: type) -> None:
    # Both arrays travel through the pool; if the model kept one of them, its slot would stay taken.
    inputs = np.repeat(X, 8, axis=0).astype(dtype), np.repeat(Y, 8)
    short = path.removeprefix("sklearn.")
    first = peer.ok(short, "fit", *inputs, params=_params(path))
    assert first["result"] is None
    plain = _class(path)(**_params(path)).fit(*inputs)
    found = {name: peer.decode(value) for name, value in first["summary"]["attrs"].items()}
    for name, value in vars(plain).items():
        if isinstance(found.get(name), sklearn.base.BaseEstimator):
            assert repr(found[name]) == repr(value)
        elif name in found:
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        elif name not in plain.get_params():
            assert name in [*first["summary"]["large"], *first["summary"]["opaque"]]
    for method in ("predict", "transform"):
        if hasattr(plain, method):
            again = peer.ok(short, method, inputs[0], model=first["model"])
            np.testing.assert_array_equal(peer.decode(again["result"]), getattr(plain, method)(inputs[0]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_inputs_are_never_modified(peer: Any, path: str, order: str) -> None:
    array = np.asarray(np.repeat(X, 8, axis=0), order=order)
    wire, target = peer.put(array), peer.put(np.repeat(Y, 8))
    short = path.removeprefix("sklearn.")
    cls = _class(path)
    flags = [name for name in ("copy", "copy_X", "copy_x") if name in cls().get_params()]
    for values in ({}, *({flag: False} for flag in flags)):
        message = peer.message(short, "fit", params={**_params(path), **values})
        message["args"] = [wire, target]
        answer = peer.server.request("POST", "/v1/call", message)
        assert answer.status == 200, answer
        model = answer.json["model"]
        for method in ("fit_transform", "transform", "predict", "kneighbors"):
            if hasattr(cls, method):
                again = peer.message(short, method, params={**_params(path), **values}, model=model)
                again["args"] = [wire]
                answer = peer.server.request("POST", "/v1/call", again)
                assert answer.status == 200, answer
                peer.decode(answer.json["result"])
    handles = [shmpool.Handle.from_dict(item["handle"]) for item in (wire, target)]
    np.testing.assert_array_equal(peer.pool.get(handles[0], copy=True), array)
    np.testing.assert_array_equal(peer.pool.get(handles[1], copy=True), np.repeat(Y, 8))
    for handle in handles:
        peer.pool.free(handle)


def test_pca_reads_the_slot_without_a_copy(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []
    original = PCA._fit

    def spy(self: Any, array: np.ndarray) -> Any:
        seen.append((array.flags.writeable, array.flags.owndata))
        return original(self, array)

    monkeypatch.setattr(PCA, "_fit", spy)
    peer.ok("decomposition.PCA", "fit", BIG, params={"svd_solver": "covariance_eigh"})
    peer.ok("decomposition.PCA", "fit", BIG, params={"svd_solver": "full", "copy": False})
    assert seen == [(True, False), (True, True)]


@pytest.mark.parametrize("solver", ["auto", "full", "covariance_eigh", "arpack", "randomized"])
@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pca_does_not_write_to_the_view_it_is_given(peer: Any, solver: str, whiten: bool, order: str) -> None:
    array = np.asarray(BIG, order=order)
    wire = peer.put(array)
    params = {"n_components": 2, "svd_solver": solver, "whiten": whiten, "random_state": 0}
    for method in ("fit", "fit_transform"):
        message = {**peer.message("decomposition.PCA", method, params=params), "args": [wire]}
        answer = peer.server.request("POST", "/v1/call", message)
        assert answer.status == 200, answer
        peer.decode(answer.json["result"])
    np.testing.assert_array_equal(peer.pool.get(shmpool.Handle.from_dict(wire["handle"]), copy=True), array)
    peer.free(wire)


def test_a_read_only_complaint_is_answered_with_a_copy(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.preprocessing import MinMaxScaler

    attempts: list[bool] = []
    original = MinMaxScaler.fit

    def fussy(self: Any, X: np.ndarray, y: Any = None) -> Any:
        attempts.append(X.flags.writeable)
        if not X.flags.writeable:
            raise ValueError("buffer source array is read-only")
        return original(self, X, y)

    monkeypatch.setattr(MinMaxScaler, "fit", fussy)
    for _ in range(2):
        peer.ok("preprocessing.MinMaxScaler", "fit", BIG, params={})
    # Tried once; from then on it starts with a copy.
    assert attempts == [False, True, True]


def test_large_results_are_given_to_the_client(peer: Any) -> None:
    answer = peer.ok("preprocessing.StandardScaler", "fit_transform", BIG, params={})
    assert answer["result"]["$"] == "slot"
    expected = (BIG - BIG.mean(0)) / BIG.std(0)
    np.testing.assert_allclose(peer.decode(answer["result"]), expected)


def test_stages_add_up(peer: Any) -> None:
    begun = time.perf_counter()
    answer = peer.ok("preprocessing.StandardScaler", "fit_transform", BIG, params={})
    elapsed = time.perf_counter() - begun
    peer.decode(answer["result"])
    assert set(answer["stages"]) == {"server_decode", "compute", "server_encode"}
    assert all(seconds >= 0 for seconds in answer["stages"].values())
    assert 0 < sum(answer["stages"].values()) + answer["queue"] < elapsed
    assert (answer["backend"], answer["device"].split()[0]) == ("sklearn", "cpu")
    assert answer["reason"]


def test_estimator_errors_travel_with_their_class(peer: Any) -> None:
    answer = peer.call("decomposition.PCA", "fit", X, params={"n_components": -1})
    assert (answer.status, answer.code) == (422, "estimator_error")
    error = answer.json["error"]["exception"]
    assert error["type"] == "sklearn.utils._param_validation.InvalidParameterError"
    with pytest.raises(ValueError, match="n_components") as local:
        PCA(n_components=-1).fit(X)
    assert error["message"] == str(local.value)


def test_an_error_after_a_big_input_frees_it(peer: Any) -> None:
    broken = BIG.copy()
    broken[5, 1] = np.nan
    answer = peer.call("decomposition.PCA", "fit", broken, params={})
    assert answer.code == "estimator_error"
    assert "NaN" in answer.json["error"]["message"]


def test_warnings_belong_to_their_own_call(server: Any, make_peer: Any) -> None:
    """Calls that warn and calls that do not, at once: nobody hears another's warnings, none is lost."""
    wrong: list[Any] = []

    def work(noisy: bool) -> None:
        peer = make_peer(server)
        for _ in range(15):
            params = {"max_iter": 1 if noisy else 1000}
            said = peer.ok("linear_model.LogisticRegression", "fit", X, Y, params=params).get("warnings", [])
            names = [item["category"] for item in said]
            if names != (["sklearn.exceptions.ConvergenceWarning"] if noisy else []):
                wrong.append((noisy, said))

    threads = [threading.Thread(target=work, args=(index % 2 == 0,)) for index in range(4)]
    before = list(warnings.filters)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert list(warnings.filters) == before


def test_warnings_from_threads_of_joblib_arrive(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.ensemble import _forest

    original = _forest._parallel_build_trees

    def loud(*args: Any, **kwargs: Any) -> Any:
        warnings.warn("from a thread", ConvergenceWarning, stacklevel=1)
        return original(*args, **kwargs)

    monkeypatch.setattr(_forest, "_parallel_build_trees", loud)
    params = {"n_estimators": 4, "n_jobs": 2}
    said = peer.ok("ensemble.RandomForestClassifier", "fit", X, Y, params=params)["warnings"]
    assert [item["message"] for item in said] == ["from a thread"] * 4


def test_random_states_come_back_advanced(peer: Any) -> None:
    mine, theirs = np.random.RandomState(3), np.random.RandomState(3)
    answer = peer.ok("cluster.KMeans", "fit", X, params={"random_state": mine, "n_clusters": 3, "n_init": 2})
    _class("sklearn.cluster.KMeans")(random_state=theirs, n_clusters=3, n_init=2).fit(X)
    back = peer.decode(answer["random_state"]["random_state"])
    np.testing.assert_array_equal(back.get_state()[1], theirs.get_state()[1])
    assert back.randint(1 << 30) == theirs.randint(1 << 30)


def test_configuration_reaches_the_thread_that_computes(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = PCA._fit

    def spy(self: Any, array: np.ndarray) -> Any:
        seen.append(sklearn.get_config()["assume_finite"])
        return original(self, array)

    monkeypatch.setattr(PCA, "_fit", spy)
    peer.ok("decomposition.PCA", "fit", X, params={}, config={"assume_finite": True})
    peer.ok("decomposition.PCA", "fit", X, params={})
    assert seen == [True, False]


def test_partial_fit_and_warm_start_go_on_with_the_model(peer: Any) -> None:
    first = peer.ok("preprocessing.StandardScaler", "partial_fit", X[:100], params={})
    second = peer.ok("preprocessing.StandardScaler", "partial_fit", X[100:], params={}, model=first["model"])
    assert second["model"] == first["model"]
    np.testing.assert_allclose(peer.decode(second["summary"]["attrs"]["mean_"]), X.mean(0))
    params = {"n_estimators": 2, "warm_start": True, "random_state": 0}
    forest = peer.ok("ensemble.RandomForestClassifier", "fit", X, Y, params=params)
    grown = peer.ok(
        "ensemble.RandomForestClassifier", "fit", X, Y, params={**params, "n_estimators": 5}, model=forest["model"]
    )
    assert grown["model"] == forest["model"]
    proba = peer.ok("ensemble.RandomForestClassifier", "predict_proba", X, model=forest["model"])
    expected = _class("sklearn.ensemble.RandomForestClassifier")(**{**params, "n_estimators": 2}).fit(X, Y)
    expected.set_params(n_estimators=5).fit(X, Y)
    np.testing.assert_array_equal(peer.decode(proba["result"]), expected.predict_proba(X))


def test_a_fit_from_the_start_makes_a_new_model(peer: Any) -> None:
    first = peer.ok("decomposition.PCA", "fit", X, params={})
    second = peer.ok("decomposition.PCA", "fit", X[:, :3], params={}, model=first["model"])
    assert second["model"] != first["model"]
    old = peer.ok("decomposition.PCA", "transform", X, model=first["model"])
    assert peer.decode(old["result"]).shape == (N, 6)


def test_changed_parameters_are_set_before_a_call(peer: Any) -> None:
    fitted = peer.ok("neighbors.KNeighborsClassifier", "fit", X, Y, params={"n_neighbors": 5})
    answer = peer.ok(
        "neighbors.KNeighborsClassifier", "predict_proba", X[:9], model=fitted["model"], params={"n_neighbors": 1}
    )
    assert set(np.unique(peer.decode(answer["result"]))) <= {0.0, 1.0}


def test_sparse_results(peer: Any) -> None:
    from sklearn.neighbors import NearestNeighbors

    fitted = peer.ok("neighbors.NearestNeighbors", "fit", X, params={})
    answer = peer.ok("neighbors.NearestNeighbors", "kneighbors_graph", X, model=fitted["model"])
    graph = peer.decode(answer["result"])
    assert (graph != NearestNeighbors().fit(X).kneighbors_graph(X)).nnz == 0


def test_sparse_input_of_compiled_loops_that_ask_for_writable_buffers(peer: Any) -> None:
    from sklearn.cluster import KMeans

    params = {"n_clusters": 3, "n_init": 1, "random_state": 0}
    data = sparse.csr_matrix(np.random.default_rng(0).standard_normal((3000, 4)))
    fitted = peer.ok("cluster.KMeans", "fit", data, params=params)
    labels = peer.decode(peer.ok("cluster.KMeans", "predict", data, model=fitted["model"])["result"])
    np.testing.assert_array_equal(labels, KMeans(**params).fit(data).predict(data))


def test_several_large_arrays_in_one_answer(make_server: Any, make_peer: Any, busy: Any) -> None:
    server = make_server(output_slots=1)
    peer = make_peer(server)
    fitted = peer.ok("neighbors.NearestNeighbors", "fit", BIG, params={})
    answer = peer.ok("neighbors.NearestNeighbors", "kneighbors", BIG[:3000], model=fitted["model"])
    # One slot in the region: the other array goes inline rather than waiting for ever.
    kinds = sorted(item["$"] for item in answer["result"]["items"])
    assert kinds == ["array", "slot"]
    distances, indices = peer.decode(answer["result"])
    assert (distances[:, 0] == 0).all()
    assert (indices[:, 0] == np.arange(3000)).all()
    assert busy(peer.pool) == []


def test_state_comes_as_a_pickle_of_the_plain_estimator(peer: Any) -> None:
    fitted = peer.ok("ensemble.RandomForestClassifier", "fit", X, Y, params={"n_estimators": 30, "random_state": 1})
    assert "estimators_" in fitted["summary"]["opaque"]
    answer = peer.server.request("POST", "/v1/state", {"session": peer.session, "model": fitted["model"]})
    wire = answer.json
    stream = peer.decode(wire["pickle"]).tobytes()
    buffers = [peer.decode(item) for item in wire["buffers"]]
    model = pickle.loads(stream, buffers=buffers)
    assert type(model) is _class("sklearn.ensemble.RandomForestClassifier")
    expected = _class("sklearn.ensemble.RandomForestClassifier")(n_estimators=30, random_state=1).fit(X, Y)
    np.testing.assert_array_equal(model.predict_proba(X), expected.predict_proba(X))


def test_large_buffers_of_a_state_go_out_of_band(make_server: Any, make_peer: Any, busy: Any) -> None:
    server = make_server(slot_nbytes=8 << 20)
    peer = make_peer(server)
    data = GENERATOR.standard_normal((100_000, 4))
    fitted = peer.ok("neighbors.NearestNeighbors", "fit", data, params={"algorithm": "brute"})
    assert fitted["summary"]["large"] == ["_fit_X"]
    wire = peer.server.request("POST", "/v1/state", {"session": peer.session, "model": fitted["model"]}).json
    assert len(wire["buffers"]) == 1
    model = pickle.loads(peer.decode(wire["pickle"]).tobytes(), buffers=[peer.decode(b) for b in wire["buffers"]])
    np.testing.assert_array_equal(model._fit_X, data)
    answer = peer.server.request(
        "POST", "/v1/attrs", {"session": peer.session, "model": fitted["model"], "names": ["_fit_X"]}
    )
    np.testing.assert_array_equal(peer.decode(answer.json["attrs"]["_fit_X"]), data)
    assert busy(peer.pool) == []


def test_a_model_can_be_sent_back(peer: Any) -> None:
    plain = PCA(n_components=2).fit(X)
    attrs = {name: peer.encode(value) for name, value in vars(plain).items() if name not in plain.get_params()}
    body = {"session": peer.session, "estimator": "sklearn.decomposition.PCA", "params": {"n_components": 2}}
    answer = peer.server.request("POST", "/v1/model", {**body, "attrs": attrs})
    assert answer.status == 200, answer
    back = peer.ok("decomposition.PCA", "transform", X, model=answer.json["model"])
    np.testing.assert_array_equal(peer.decode(back["result"]), plain.transform(X))


@pytest.mark.parametrize(
    ("estimator", "attrs", "code"),
    [
        ("sklearn.svm.SVC", {"n_features_in_": 6}, "unsupported_value"),
        ("sklearn.nope.PCA", {}, "unknown_estimator"),
        ("sklearn.decomposition.PCA", {}, "bad_parameter"),
        ("sklearn.decomposition.PCA", {"n_features_in_": 0}, "bad_parameter"),
        ("sklearn.decomposition.PCA", {"n_features_in_": 6, "fit": 1}, "bad_parameter"),
        ("sklearn.decomposition.PCA", {"n_features_in_": 6, "__class__": 1}, "bad_parameter"),
        ("sklearn.decomposition.PCA", {"n_features_in_": 6, "a b": 1}, "bad_parameter"),
        ("sklearn.cluster.KMeans", {"n_features_in_": 6, "cluster_centers_": np.zeros((2, 5))}, "bad_parameter"),
        ("sklearn.cluster.KMeans", {"n_features_in_": 6, "_n_threads": 1 << 40}, "bad_parameter"),
    ],
)
def test_a_state_that_no_fit_makes_is_refused(peer: Any, estimator: str, attrs: dict[str, Any], code: str) -> None:
    encoded = {name: peer.encode(value) for name, value in attrs.items()}
    body = {"session": peer.session, "estimator": estimator, "params": {}, "attrs": encoded}
    assert peer.server.request("POST", "/v1/model", body).code == code


def test_progress_names_the_stage(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, inside = threading.Event(), threading.Event()
    original = PCA._fit

    def slow(self: Any, array: np.ndarray) -> Any:
        inside.set()
        assert gate.wait(60)
        return original(self, array)

    monkeypatch.setattr(PCA, "_fit", slow)
    message = peer.message("decomposition.PCA", "fit", X, params={})
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(peer.server.request("POST", "/v1/call", message)))
    thread.start()
    path = f"/v1/call/{message['call']}?session={peer.session}"
    try:
        assert inside.wait(60)
        said = peer.server.request("GET", path).json
        assert said["stage"] == "compute"
        assert said["elapsed"] > 0
        # The loop is free while a worker computes.
        assert peer.server.request("GET", "/v1/health").json == {"status": "ok"}
    finally:
        gate.set()
        thread.join(60)
    assert done[0].status == 200
    peer.free(message)
    assert peer.server.request("GET", path).json["stage"] == "done"
    assert peer.server.request("GET", path.replace(peer.session, "x")).code == "session_lost"
    assert peer.server.request("GET", f"/v1/call/none?session={peer.session}").code == "not_found"


def test_status_tells(peer: Any) -> None:
    peer.ok("decomposition.PCA", "fit", BIG, params={})
    found = peer.server.request("GET", "/v1/status").json
    assert found["metrics"]["calls"] == 1
    assert found["metrics"]["methods"] == {"PCA.fit": 1}
    assert found["metrics"]["bytes_in"] == BIG.nbytes
    assert found["models"]["count"] == 1
    assert [session["label"] for session in found["sessions"]] == ["test"]
    assert found["backend"]["name"] == "sklearn"


def test_the_backend_works_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """A backend needs neither server nor pool."""
    from gsb_server.backends.base import Job

    backend = SklearnBackend()
    assert backend.probe().available
    outcome = backend.run(Job("sklearn.decomposition.PCA", {}, None, "fit", (X,), {}, {}))
    assert outcome.is_self
    assert outcome.nbytes > 0
    assert pickle.load(io.BytesIO(pickle.dumps(backend.export(outcome.model)))).n_features_in_ == 6
