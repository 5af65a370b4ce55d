# SPDX-License-Identifier: BSD-3-Clause
"""The whole way: server, GPU worker, scikit-learn on array_api_strict in it, and the CPU behind both."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gsb_server.backends import hardware, registry
from sklearn.decomposition import PCA

TESTS = Path(__file__).parents[1]
X = np.random.default_rng(9).standard_normal((3000, 5))


def _path_of_the_worker(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    path = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setattr(hardware, "missing", lambda: "")


@pytest.fixture
def client(make_server: Any, make_peer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of a server whose worker has scikit-learn on array_api_strict's device."""
    pytest.importorskip("array_api_strict")
    _path_of_the_worker(monkeypatch, TESTS)
    monkeypatch.setattr(registry, "_DEVICE", "helpers.devices:StrictDevice")
    peer = make_peer(make_server(backend="array_api"))
    assert peer.server.service.choice.names == ("array_api", "sklearn"), peer.server.service.choice.reason
    return peer


@pytest.fixture
def cuml_client(make_server: Any, make_peer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of a server whose worker has the stand-ins for CuPy and cuML."""
    _path_of_the_worker(monkeypatch, TESTS / "standins" / "fake")
    # By its whole name: the server looks whether "cupy" is installed, and the stand-in is the worker's alone.
    monkeypatch.setattr(registry, "_DEVICE", "gsb_server.gpu.device:CupyDevice")
    peer = make_peer(make_server())
    choice = peer.server.service.choice
    assert choice.names == ("cuml", "sklearn"), choice.reason
    assert not choice.probes["array_api"].available, "the stand-in for CuPy is no array library"
    return peer


def test_jobs_go_to_the_worker_and_what_it_refuses_to_the_cpu(client: Any) -> None:
    fitted = client.ok("decomposition.PCA", "fit", X, params={"n_components": 2})
    assert (fitted["backend"], fitted["device"]) == ("array_api", "array_api_strict device1")
    plain = PCA(2).fit(X)
    found = {name: client.decode(value) for name, value in fitted["summary"]["attrs"].items()}
    for name, value in vars(plain).items():
        if name not in plain.get_params():
            assert type(found[name]) is type(value)
            if isinstance(value, (np.ndarray, float)):
                np.testing.assert_allclose(found[name], value, atol=1e-9, err_msg=name)
            else:
                assert found[name] == value
    done = client.ok("decomposition.PCA", "transform", X, model=fitted["model"])
    np.testing.assert_allclose(client.decode(done["result"]), plain.transform(X))

    params = {"n_components": 2, "svd_solver": "arpack", "random_state": 0}
    refused = client.ok("decomposition.PCA", "fit", X, params=params)
    assert refused["backend"] == "sklearn"
    assert refused["reason"].startswith("array_api: svd_solver='arpack' is not possible on device arrays")
    assert refused["device"].startswith("cpu")
    strict = client.call("decomposition.PCA", "fit", X, params=params, strict=True)
    assert strict.code == "gpu_refused"
    assert "svd_solver='arpack'" in strict.json["error"]["message"]
    strict = client.ok("preprocessing.StandardScaler", "fit_transform", X, strict=True)
    assert strict["backend"] == "array_api"
    np.testing.assert_allclose(client.decode(strict["result"]), (X - X.mean(0)) / X.std(0))


def test_a_model_of_the_worker_is_given_back_and_handed_on(client: Any) -> None:
    y = X @ np.arange(5.0)
    fitted = client.ok("linear_model.Ridge", "fit", X, y)
    assert fitted["backend"] == "array_api"
    state = client.server.request("POST", "/v1/state", {"session": client.session, "model": fitted["model"]})
    plain = pickle.loads(
        bytes(client.decode(state.json["pickle"])), buffers=[client.decode(b) for b in state.json["buffers"]]
    )
    assert type(plain).__module__ == "sklearn.linear_model._ridge"
    # A list is not for the worker; the model goes to the CPU for it, once.
    for _ in range(2):
        listed = client.ok("linear_model.Ridge", "predict", X[:5].tolist(), model=fitted["model"])
        assert (listed["backend"], "X is a list" in listed["reason"]) == ("sklearn", True)
        np.testing.assert_allclose(client.decode(listed["result"]), plain.predict(X[:5]))
    again = client.ok("linear_model.Ridge", "predict", X, model=fitted["model"])
    assert again["backend"] == "array_api"
    np.testing.assert_allclose(client.decode(again["result"]), plain.predict(X))


def test_errors_of_the_estimator_come_back_as_they_are(client: Any) -> None:
    answer = client.call("decomposition.PCA", "fit", np.full((5, 2), np.nan))
    assert (answer.status, answer.code) == (422, "estimator_error")
    assert answer.json["error"]["exception"]["type"] == "builtins.ValueError"
    assert "Input X contains NaN" in answer.json["error"]["message"]


def test_cuml_comes_first_and_its_words_are_in_the_report(cuml_client: Any) -> None:
    client = cuml_client
    fitted = client.ok("decomposition.PCA", "fit", X, params={"n_components": 2})
    assert fitted["backend"] == "cuml"
    done = client.ok("decomposition.PCA", "transform", X, model=fitted["model"])
    np.testing.assert_allclose(client.decode(done["result"]), PCA(2).fit_transform(X), atol=1e-9)
    refused = client.ok("decomposition.PCA", "fit", X, params={"n_components": "mle"})
    assert (refused["backend"], refused["reason"]) == ("sklearn", "cuml: `n_components='mle'` is not supported")
    strict = client.call("preprocessing.StandardScaler", "fit", X, strict=True)
    assert strict.code == "gpu_refused"
    assert "cuML has no StandardScaler" in strict.json["error"]["message"]
    assert "array_api: " in strict.json["error"]["message"], "it also says why the other one is not there"


def test_dear_attributes_are_fetched_when_asked_for(cuml_client: Any) -> None:
    client = cuml_client
    fitted = client.ok("neighbors.NearestNeighbors", "fit", X)
    assert fitted["backend"] == "cuml"
    assert fitted["summary"]["large"] == ["_fit_X"]
    body = {"session": client.session, "model": fitted["model"], "names": ["_fit_X"]}
    answer = client.server.request("POST", "/v1/attrs", body)
    assert answer.status == 200, answer
    np.testing.assert_allclose(client.decode(answer.json["attrs"]["_fit_X"]), X, rtol=1e-6)
    near = client.ok("neighbors.NearestNeighbors", "radius_neighbors_graph", X[:50], model=fitted["model"])
    assert (near["backend"], "Method is not implemented in cuml" in near["reason"]) == ("sklearn", True)
    client.decode(near["result"])
    forest = client.ok("ensemble.RandomForestClassifier", "fit", X, X[:, 0] > 0, params={"n_estimators": 3})
    assert forest["backend"] == "cuml"
    assert {"estimators_", "estimator_"} <= set(forest["summary"]["opaque"])
    predicted = client.ok("ensemble.RandomForestClassifier", "predict", X, model=forest["model"])
    assert client.decode(predicted["result"]).dtype == bool
