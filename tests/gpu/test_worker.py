# SPDX-License-Identifier: BSD-3-Clause
"""Jobs through the worker: results, errors, models, slots; nothing goes wrong here."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from gsb_server.backends.base import Deferred, EstimatorRaisedError, RefusedByBackend
from gsb_server.errors import ServerError

X = np.random.default_rng(0).standard_normal((3000, 20)).astype(np.float32)


def test_arrays_go_by_slots_and_come_back_in_slots(trial: Any) -> None:
    for array in (X, np.asfortranarray(X), X.astype(np.float64), X[:, 0].copy(), np.arange(70000)):
        handle = trial.put(array)
        outcome = trial.backend.run(trial.job_on("echo", handle))
        trial.client.free(handle)
        assert np.array_equal(outcome.result, array)
        assert outcome.result.flags.f_contiguous == array.flags.f_contiguous
        assert trial.pool.owner(trial.pool.handle_of(outcome.result)) == trial.pool.client
        assert outcome.device == trial.backend.status()["device"]
        assert outcome.detail["upload"] >= 0
        del outcome
        trial.check()
    # Direct: the slots are pinned.
    assert {(kind, direct) for kind, _, direct in trial.run("copies")} == {(1, True), (2, True)}


def test_small_and_odd_values_travel_in_the_message(trial: Any) -> None:
    found = trial.run("host", np.arange(5.0))
    assert np.array_equal(found["copy"], np.arange(5.0))
    assert found["sum"] == 10.0
    assert trial.run("echo", np.empty((0, 3))).shape == (0, 3)
    large = np.arange(100_000.0)
    assert np.array_equal(trial.run("host", large)["copy"], large)


def test_an_answer_of_several_arrays(trial: Any) -> None:
    arrays = [X, X[:1000].copy(), X[:500].copy(), X[:400].copy(), X[:300].copy(), X[:2].copy()]
    handles = [trial.put(array) for array in arrays[:3]]
    found = trial.run_on("several", *handles)
    for array, back in zip(arrays, found, strict=False):
        assert np.array_equal(array, back)
    # More than there are slots: the rest is in the message.
    found = trial.run("several", *arrays)
    for array, back in zip(arrays, found, strict=True):
        assert np.array_equal(array, back)
    for handle in handles:
        trial.client.free(handle)


def test_a_full_output_region_is_waited_for_and_then_refused(make_bench: Any) -> None:
    bench = make_bench(output_timeout=0.2)
    taken = [bench.client.put(X, region="output") for _ in range(4)]
    with pytest.raises(ServerError) as caught:
        bench.run("echo", X)
    assert caught.value.code == "pool_full"
    for handle in taken:
        bench.client.free(handle)
    assert np.array_equal(bench.run("echo", X), X)


def test_estimator_errors_keep_class_and_text(trial: Any) -> None:
    with pytest.raises(EstimatorRaisedError) as caught:
        trial.run("raise", "ValueError", "no such thing: ä")
    assert caught.value.description == {
        "type": "builtins.ValueError",
        "message": "no such thing: ä",
        "args": ["no such thing: ä"],
    }
    with pytest.raises(EstimatorRaisedError) as caught:
        trial.backend.run(trial.sklearn("decomposition.PCA", "fit", np.full((5, 5), np.nan), params={}))
    assert caught.value.description["type"] == "builtins.ValueError"


def test_refusals_say_why(trial: Any) -> None:
    with pytest.raises(RefusedByBackend, match="trial does not do that"):
        trial.run("refuse")
    with pytest.raises(RefusedByBackend, match="has no form on the device"):
        trial.run("echo", np.array(["a", "b"]))


def test_models_live_in_the_worker(trial: Any) -> None:
    from sklearn.decomposition import PCA

    plain = PCA(3, random_state=0).fit(X)
    outcome = trial.backend.run(
        trial.sklearn("decomposition.PCA", "fit", X, params={"n_components": 3, "random_state": 0})
    )
    model = outcome.model
    assert outcome.is_self
    assert np.allclose(outcome.attributes["explained_variance_"], plain.explained_variance_)
    used = trial.backend.run(trial.sklearn("decomposition.PCA", "transform", X, model=model))
    assert used.model is model
    assert not used.state_changed
    assert np.allclose(trial.finish(used), plain.transform(X), atol=1e-4)
    attributes = trial.backend.attributes(model)
    assert np.allclose(attributes["components_"], plain.components_, atol=1e-5)
    assert "nothing_" not in attributes
    exported = trial.backend.export(model)
    assert type(exported) is PCA
    assert exported.components_.flags.writeable
    assert np.allclose(exported.transform(X), plain.transform(X), atol=1e-4)


def test_large_attributes_stay_where_they_are(trial: Any) -> None:
    outcome = trial.backend.run(trial.sklearn("neighbors.NearestNeighbors", "fit", X, params={}))
    assert outcome.attributes["_fit_X"] == Deferred("large")
    assert outcome.attributes["n_features_in_"] == 20
    exported = trial.backend.export(outcome.model)
    assert np.array_equal(exported._fit_X, X)
    assert exported._fit_X.flags.writeable


def test_models_are_forgotten_in_the_worker(trial: Any) -> None:
    outcome = trial.backend.run(trial.sklearn("decomposition.PCA", "fit", X, params={"n_components": 2}))
    number = outcome.model.number
    incarnation = outcome.model.incarnation
    del outcome
    gc.collect()
    trial.run("pid")  # the message that takes the news along
    from gsb_server.gpu.supervisor import RemoteModel

    with pytest.raises(EstimatorRaisedError, match=str(number)):
        trial.backend.export(RemoteModel(incarnation, number))


def test_a_state_is_loaded_and_a_plain_model_adopted(trial: Any) -> None:
    from sklearn.preprocessing import StandardScaler

    plain = StandardScaler().fit(X)
    model, nbytes = trial.backend.load("sklearn.preprocessing.StandardScaler", {}, dict(vars(plain), copy=True) | {})
    assert nbytes > 0
    model, _ = trial.backend.adopt("sklearn.preprocessing.StandardScaler", plain)
    used = trial.backend.run(trial.sklearn("preprocessing.StandardScaler", "transform", X, model=model))
    assert np.allclose(trial.finish(used), plain.transform(X), atol=1e-5)


def test_a_random_state_comes_back_advanced(trial: Any) -> None:
    state = np.random.RandomState(3)
    params = {"n_components": 2, "svd_solver": "randomized", "random_state": state}
    outcome = trial.backend.run(trial.sklearn("decomposition.PCA", "fit", X, params=params))
    assert outcome.random_states["random_state"].random_sample() != np.random.RandomState(3).random_sample()


def test_what_libraries_print_does_not_disturb(trial: Any) -> None:
    assert trial.run("print", "gsbW and more") == "gsbW and more"
    assert trial.run("pid") > 0


def test_the_worker_has_the_variable_that_scipy_wants_and_the_server_has_not(trial: Any) -> None:
    import os

    assert trial.run("environment", "SCIPY_ARRAY_API") == "1"
    if not os.environ.get("GSB_TEST_GPU"):  # make test-gpu sets it for tests of its own
        assert "SCIPY_ARRAY_API" not in os.environ


def test_a_stale_handle_is_the_callers_error(trial: Any) -> None:
    handle = trial.put(X)
    job = trial.job_on("echo", handle)
    trial.client.free(handle)  # still pinned by the job's view, but nobody else may pin it
    with pytest.raises(ServerError) as caught:
        trial.backend.run(job)
    assert caught.value.code == "stale_handle"


def test_status_and_probe_say_how_it_is(trial: Any) -> None:
    probe = trial.backend.probe()
    assert probe.device
    assert "cuda driver" in probe.versions
    status = trial.backend.status()
    assert status["running"]
    assert status["device"] == probe.device
    assert status["pid"] == trial.run("pid")
    assert (status["host_path"], status["pinned_nbytes"]) in (("pinned", 8 << 20), ("ring", 0), ("pageable", 0))


def test_slots_are_pinned_where_the_system_allows_it(trial: Any) -> None:
    assert "pinned: DMA from the slot" in trial.backend.probe().reason, trial.backend.probe().reason
