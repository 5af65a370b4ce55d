# SPDX-License-Identifier: BSD-3-Clause
"""The whole server with a GPU worker over stand-ins: calls, parts, the death of the worker."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

STANDINS = Path(__file__).parent.parent / "standins"
ROOT = Path(__file__).parents[2]
X = np.random.default_rng(8).standard_normal((20_000, 10))


@pytest.fixture
def gpu_server(make_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    from gsb_server.backends import hardware, registry

    paths = [STANDINS, STANDINS / "fake", *(ROOT / part for part in ("src", "python", "server"))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.syspath_prepend(str(STANDINS / "fake"))
    monkeypatch.setattr(hardware, "missing", lambda: "")
    monkeypatch.setattr(registry, "_ON_THE_GPU", {"trial": "trial_backend:TrialBackend"})
    server = make_server(backend="auto", slot_nbytes=1 << 20)
    assert "cupy" not in sys.modules, "the server itself imports no CuPy"
    return server


def _gpu(peer: Any) -> dict[str, Any]:
    return dict(peer.server.request("GET", "/v1/status").json["gpu"])


def test_calls_go_to_the_worker_and_the_cpu_does_the_rest(
    gpu_server: Any, make_peer: Any, busy: Any, wait_until: Any
) -> None:
    from sklearn.decomposition import PCA

    peer = make_peer(gpu_server)
    params = {"n_components": 2, "svd_solver": "full"}
    found = peer.ok("decomposition.PCA", "fit_transform", X, params=params)
    assert (found["backend"], found["device"]) == ("trial", "Fake GPU")
    assert np.allclose(peer.decode(found["result"]), PCA(**params).fit_transform(X))
    assert set(found["detail"]) >= {"upload", "download", "device_wait", "worker"}
    again = peer.ok("decomposition.PCA", "transform", X, model=found["model"])
    assert np.allclose(peer.decode(again["result"]), PCA(**params).fit(X).transform(X))
    attrs = peer.server.request(
        "POST", "/v1/attrs", {"session": peer.session, "model": found["model"], "names": ["components_"]}
    )
    assert np.allclose(peer.decode(attrs.json["attrs"]["components_"]), PCA(**params).fit(X).components_)
    missing = {"session": peer.session, "model": found["model"], "names": ["nothing_"]}
    assert peer.server.request("POST", "/v1/attrs", missing).code == "not_found"
    # What no backend of the worker can do.
    found = peer.ok("cluster.KMeans", "fit", X, params={"n_clusters": 2, "n_init": 1})
    assert found["backend"] == "sklearn"
    assert "trial does no KMeans" in found["reason"]
    # The estimator's own errors.
    answer = peer.call("decomposition.PCA", "fit", X, params={"n_components": 1000})
    assert answer.code == "estimator_error"
    assert answer.json["error"]["exception"]["type"] == "builtins.ValueError"
    wait_until(lambda: busy(peer.pool) == [], "all slots are free")


def test_the_death_of_the_worker_loses_its_models_and_nothing_else(
    gpu_server: Any, make_peer: Any, busy: Any, wait_until: Any
) -> None:
    peer = make_peer(gpu_server)
    model = peer.ok("preprocessing.StandardScaler", "fit", X, params={})["model"]
    status = _gpu(peer)
    assert status["running"]
    assert status["host_path"] == "pinned"
    os.kill(status["pid"], signal.SIGKILL)
    wait_until(lambda: _gpu(peer)["restarts"] == 1 and _gpu(peer)["running"], "there is a new worker")
    answer = peer.call("preprocessing.StandardScaler", "transform", X, model=model)
    assert (answer.status, answer.code) == (410, "model_lost")
    found = peer.ok("preprocessing.StandardScaler", "fit_transform", X, params={})
    assert found["backend"] == "trial"
    assert abs(peer.decode(found["result"]).mean()) < 1e-6
    wait_until(lambda: busy(peer.pool) == [], "all slots are free")


def test_parts_go_to_the_device(gpu_server: Any, make_peer: Any, wait_until: Any) -> None:
    peer = make_peer(gpu_server)
    assert peer.greeting["parts"] == {"above": 2 << 20, "nbytes": 1 << 20}
    key, form = secrets.token_hex(16), {"dtype": "<f8", "shape": list(X.shape), "order": "C"}
    flat = X.reshape(-1).view(np.uint8)

    def send(key: str, upto: int) -> None:
        for offset in range(0, upto, 1 << 20):
            wire = peer.put(flat[offset : offset + (1 << 20)])
            body = {"session": peer.session, "array": key, "offset": offset, "part": wire, **form}
            assert gpu_server.request("POST", "/v1/part", body).status == 200
            peer.free(wire)

    send(key, flat.size)
    assert _gpu(peer)["streams"] == 1
    message = peer.message("preprocessing.StandardScaler", "fit", params={})
    message["args"] = [{"$": "parts", "array": key, **form}]
    answer = gpu_server.request("POST", "/v1/call", message)
    assert answer.json["backend"] == "trial"
    assert np.allclose(peer.decode(answer.json["summary"]["attrs"]["mean_"]), X.mean(axis=0))
    assert _gpu(peer)["streams"] == 0
    # A client that dies in the middle gives the memory back.
    send(secrets.token_hex(16), 1 << 20)
    assert _gpu(peer)["admitted_nbytes"] > X.nbytes
    peer.close()
    other = make_peer(gpu_server)
    wait_until(lambda: _gpu(other)["streams"] == 0 and _gpu(other)["admitted_nbytes"] == 0, "it is dropped")


def test_a_server_without_a_gpu_says_so_in_its_status(server: Any, peer: Any) -> None:
    assert server.request("GET", "/v1/status").json["gpu"] == {"running": False}
