# SPDX-License-Identifier: BSD-3-Clause
"""Malformed, forbidden and hostile requests: each gets a typed refusal, and the server goes on."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from gsb.protocol.wire import ERROR_STATUS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shmpool

X = np.random.default_rng(0).standard_normal((50, 3))
BIG = np.random.default_rng(1).standard_normal((2000, 3))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"1", b"\xff\xfe", b"[" * 100_000, b'{"session":' * 50_000],
)
def test_what_is_not_an_object_is_malformed(server: Any, body: bytes) -> None:
    answer = server.request("POST", "/v1/call", body)
    assert (answer.status, answer.code) == (400, "malformed")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"session": "nope"}, "session_lost"),
        ({"session": 5}, "session_lost"),
        ({"session": ["x"]}, "session_lost"),
        ({"call": ""}, "malformed"),
        ({"call": "x" * 65}, "malformed"),
        ({"call": 1}, "malformed"),
        ({"estimator": "os.system"}, "unknown_estimator"),
        ({"estimator": "sklearn.decomposition._pca.PCA"}, "unknown_estimator"),
        ({"estimator": "sklearn.pipeline.Pipeline"}, "unknown_estimator"),
        ({"estimator": None}, "malformed"),
        ({"method": "__class__"}, "unknown_method"),
        ({"method": "_validate_params"}, "unknown_method"),
        ({"method": "set_params"}, "unknown_method"),
        ({"method": "transform"}, "malformed"),
        ({"method": "transform", "model": "beef"}, "model_lost"),
        ({"method": "transform", "model": 7}, "malformed"),
        ({"args": {}}, "malformed"),
        ({"args": [{"$": "nope"}]}, "malformed"),
        ({"args": [{"$": "npy", "path": "/etc/passwd"}]}, "malformed"),
        ({"args": [{"$": "slot"}]}, "malformed"),
        ({"args": [{"$": "slot", "handle": 5}]}, "malformed"),
        ({"args": [{"$": "array", "dtype": "|O", "shape": [1], "data": ""}]}, "malformed"),
        ({"args": [{"$": "array", "dtype": "<f8", "shape": [1 << 62], "data": ""}]}, "malformed"),
        ({"kwargs": []}, "malformed"),
        ({"params": {"nope": 1}}, "bad_parameter"),
        ({"params": {"n_components": {"$": "slice", "items": [1, 2, 3]}}}, "estimator_error"),
        ({"params": {"memory": "/tmp"}}, "bad_parameter"),
        ({"params": {"n_components": {"$": "sklearn", "path": "sklearn.utils.Bunch", "params": {}}}}, "malformed"),
        ({"params": {"n_components": {"$": "sklearn", "path": "os.system", "params": {}}}}, "malformed"),
        ({"params": {"n_components": {"$": "type", "v": "numpy.save"}}}, "malformed"),
        ({"config": {"transform_output": "pandas"}}, "bad_parameter"),
        ({"config": {"array_api_dispatch": True}}, "bad_parameter"),
        ({"timeout": 0}, "malformed"),
        ({"timeout": "1"}, "malformed"),
        ({"timeout": True}, "malformed"),
        ({"forget": "abc"}, "malformed"),
        ({"forget": [1]}, "malformed"),
        ({"args": []}, "estimator_error"),
        ({"kwargs": {"nope": 1}}, "estimator_error"),
    ],
)
def test_each_field_is_checked(peer: Any, change: dict[str, Any], code: str) -> None:
    message = {**peer.message("decomposition.PCA", "fit", X, params={}), **change}
    answer = peer.server.request("POST", "/v1/call", message)
    assert answer.code == code
    assert answer.status == ERROR_STATUS[code]


def test_more_jobs_than_a_machine_has_are_refused(peer: Any) -> None:
    answer = peer.call("neighbors.NearestNeighbors", "fit", X, params={"n_jobs": 10**9})
    assert answer.code == "bad_parameter"


def test_a_call_is_not_done_twice(peer: Any) -> None:
    message = peer.message("decomposition.PCA", "fit", X, params={})
    assert peer.server.request("POST", "/v1/call", message).status == 200
    answer = peer.server.request("POST", "/v1/call", message)
    assert (answer.status, answer.code) == (409, "duplicate_call")


def test_a_model_of_another_class_is_refused(peer: Any) -> None:
    fitted = peer.ok("decomposition.PCA", "fit", X, params={})
    assert peer.call("cluster.KMeans", "predict", X, model=fitted["model"]).code == "malformed"


# ------------------------------------------------------------------ handles


def test_a_slot_of_another_client_is_refused(server: Any, peer: Any, make_peer: Any) -> None:
    stranger = make_peer(server)
    wire = stranger.put(BIG)
    message = peer.message("decomposition.PCA", "fit", params={})
    message["args"] = [wire]
    answer = peer.server.request("POST", "/v1/call", message)
    assert (answer.status, answer.code) == (403, "foreign_handle")
    stranger.free(wire)


def test_a_slot_of_the_server_itself_is_refused(server: Any, peer: Any) -> None:
    handle = server.service.pool.put(BIG)
    message = peer.message("decomposition.PCA", "fit", params={})
    message["args"] = [{"$": "slot", "handle": handle.to_dict()}]
    assert peer.server.request("POST", "/v1/call", message).code == "foreign_handle"
    server.service.pool.free(handle)


def test_a_freed_slot_is_stale(peer: Any) -> None:
    message = peer.message("decomposition.PCA", "fit", BIG, params={})
    peer.free(message)
    answer = peer.server.request("POST", "/v1/call", message)
    assert (answer.status, answer.code) == (410, "stale_handle")


_numbers = st.one_of(st.integers(-(2**70), 2**70), st.integers(-2, 40), st.none(), st.text(max_size=3), st.booleans())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=st.dictionaries(st.sampled_from(["slot", "span", "generation", "nbytes", "pool"]), _numbers, min_size=1))
def test_made_up_handles_are_refused(peer: Any, change: dict[str, Any]) -> None:
    handle = peer.pool.put(BIG)
    try:
        real = handle.to_dict()
        message = peer.message("decomposition.PCA", "fit", params={})
        message["args"] = [{"$": "slot", "handle": {**real, **change}}]
        answer = peer.server.request("POST", "/v1/call", message)
        if answer.status != 200:
            assert answer.code in {"malformed", "stale_handle", "foreign_handle"}
    finally:
        peer.pool.free(handle)


# ------------------------------------------------------------------ fuzz

_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=8), inner, max_size=4),
        st.fixed_dictionaries(
            {
                "$": st.sampled_from(
                    [
                        "array",
                        "slot",
                        "npy",
                        "objects",
                        "scalar",
                        "float",
                        "tuple",
                        "slice",
                        "dict",
                        "sparse",
                        "random_state",
                    ]
                )
            },
            optional={
                "items": inner,
                "dtype": st.sampled_from(["<f8", "<i4", "|O", "<U3", "|V8", "", "f8,f8"]),
                "shape": st.lists(st.integers(-1, 2**40), max_size=3),
                "data": st.sampled_from(["", "AAAA", "AAAAAAAAAAA=", "*", "é"]),
                "format": st.sampled_from(["csr", "coo", "dok", "x"]),
                "parts": inner,
                "handle": inner,
                "v": inner,
                "key": inner,
                "pos": inner,
            },
        ),
    ),
    max_leaves=12,
)
_fields = st.fixed_dictionaries(
    {},
    optional={
        "args": st.lists(_json, max_size=3) | _json,
        "kwargs": st.dictionaries(st.text(max_size=5), _json, max_size=2) | _json,
        "params": st.dictionaries(st.sampled_from(["n_components", "copy", "tol"]), _json, max_size=2) | _json,
        "config": st.dictionaries(st.sampled_from(["assume_finite", "working_memory"]), _json, max_size=2) | _json,
        "model": _json,
        "forget": _json,
        "timeout": _json,
        "estimator": st.sampled_from(["sklearn.decomposition.PCA", "sklearn.preprocessing.StandardScaler"]) | _json,
        "method": st.sampled_from(["fit", "fit_transform", "transform", "partial_fit"]) | _json,
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=_fields)
def test_a_fuzzed_call_is_answered_with_a_typed_error(peer: Any, change: dict[str, Any]) -> None:
    message = {**peer.message("decomposition.PCA", "fit", X, params={}), **change}
    answer = peer.server.request("POST", "/v1/call", message)
    if answer.status != 200:
        assert answer.code != "internal", answer
        assert answer.status == ERROR_STATUS[answer.code]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["attrs", "state", "model", "forget", "session", "hello"]), body=_json, known=st.booleans())
def test_fuzzed_bodies_elsewhere(peer: Any, path: str, body: Any, known: bool) -> None:
    if known and isinstance(body, dict):
        body["session"] = peer.session
    raw = json.dumps(body).encode()
    answer = peer.server.request("POST", f"/v1/{path}", raw)
    if answer.status not in (200, 204):
        assert answer.code != "internal", answer


# ------------------------------------------------------------------ back-pressure


def test_a_full_output_region_is_a_typed_error_and_not_a_deadlock(make_server: Any, make_peer: Any, busy: Any) -> None:
    server = make_server(output_slots=2, output_timeout=0.2)
    peer = make_peer(server)
    held = [peer.ok("preprocessing.StandardScaler", "fit_transform", BIG, params={})["result"] for _ in range(2)]
    answer = peer.call("preprocessing.StandardScaler", "fit_transform", BIG, params={})
    assert (answer.status, answer.code) == (503, "pool_full")
    # Small answers need no slot, and reading makes room.
    peer.ok("decomposition.PCA", "fit", X, params={})
    for wire in held:
        peer.decode(wire)
    peer.decode(peer.ok("preprocessing.StandardScaler", "fit_transform", BIG, params={})["result"])
    assert busy(peer.pool) == []


def test_an_array_larger_than_the_pool_is_a_typed_error(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.preprocessing import StandardScaler

    monkeypatch.setattr(StandardScaler, "transform", lambda self, X, copy=None: np.zeros(1 << 22))
    answer = peer.call("preprocessing.StandardScaler", "fit_transform", X, params={})
    assert answer.code in {"too_large", "pool_full"}


def test_a_result_that_cannot_travel_is_a_typed_error(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.preprocessing import StandardScaler

    monkeypatch.setattr(StandardScaler, "transform", lambda self, X, copy=None: object())
    answer = peer.call("preprocessing.StandardScaler", "fit_transform", X, params={})
    assert (answer.status, answer.code) == (422, "unsupported_value")


def test_running_out_of_memory_is_a_typed_error(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.decomposition import PCA

    def greedy(self: Any, X: Any) -> Any:
        raise MemoryError("Unable to allocate 1 EiB")

    monkeypatch.setattr(PCA, "_fit", greedy)
    answer = peer.call("decomposition.PCA", "fit", BIG, params={})
    assert (answer.status, answer.code) == (507, "out_of_memory")


def test_a_fault_of_the_server_hides_its_details(
    peer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(type(peer.server.service), "_model_for", broken)
    answer = peer.call("decomposition.PCA", "fit", BIG, params={})
    assert (answer.status, answer.code) == (500, "internal")
    assert "secret" not in answer.body.decode()
    assert answer.json["error"]["request_id"] in caplog.text
    assert "a secret path" in caplog.text


def test_a_closed_pool_means_shutting_down() -> None:
    from gsb_server.errors import from_exception

    assert from_exception(shmpool.PoolClosedError("closed")).code == "shutting_down"
