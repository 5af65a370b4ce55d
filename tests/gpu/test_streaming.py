# SPDX-License-Identifier: BSD-3-Clause
"""Arrays in parts to the device: larger than the pool, uploaded while the client copies, gone with their worker."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import numpy as np
import pytest
from gsb_server.backends.base import Job, StreamedArray, StreamSpec
from gsb_server.backends.chain import ChainBackend
from gsb_server.backends.sklearn import SklearnBackend
from gsb_server.errors import ServerError
from helpers.processes import DEADLINE, eventually

PART = 1 << 20
_keys = itertools.count()


def _spec(array: np.ndarray) -> StreamSpec:
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    return StreamSpec(f"key {next(_keys)}", array.shape, array.dtype.str, "F" if fortran else "C")


def _parts(array: np.ndarray) -> list[tuple[int, np.ndarray]]:
    flat = np.ravel(array, order="K").view(np.uint8)
    return [(offset, flat[offset : offset + PART]) for offset in range(0, flat.size, PART)]


def _send(bench: Any, array: np.ndarray, spec: StreamSpec, timeout: float | None = DEADLINE) -> None:
    """As a client does: the slot is freed, and taken by the next part, as soon as the server has answered."""
    for offset, data in _parts(array):
        handle = bench.client.put(data, timeout=DEADLINE)
        try:
            bench.backend.stream(spec, offset, handle, timeout)
        finally:
            bench.client.free(handle)


def _job(bench: Any, method: str, spec: StreamSpec) -> Job:
    return bench.job(method, StreamedArray(spec, bench.backend.fetch))


@pytest.mark.parametrize("order", ["C", "F"])
def test_larger_than_the_pool(trial: Any, order: Any) -> None:
    array = np.asarray(np.random.default_rng(4).standard_normal((30_000, 100)), order=order)
    assert array.nbytes > trial.pool.nbytes
    spec = _spec(array)
    _send(trial, array, spec)
    pca = Job(
        "sklearn.decomposition.PCA",
        {"n_components": 2, "svd_solver": "covariance_eigh"},
        None,
        "fit",
        (StreamedArray(spec, trial.backend.fetch),),
        {},
        {},
        timeout=DEADLINE,
    )
    outcome = trial.backend.run(pca)
    assert outcome.attributes["n_samples_"] == 30_000
    assert np.allclose(outcome.attributes["mean_"], array.mean(axis=0))
    # Whoever has no device gets it back whole.
    assert np.array_equal(trial.backend.fetch(spec), array)
    assert trial.backend.fetch(spec).flags.f_contiguous == (order == "F")
    trial.backend.drop([spec.key])
    with pytest.raises(ServerError) as caught:
        trial.backend.run(_job(trial, "host", spec))
    assert caught.value.code == "stale_handle"
    assert trial.backend.status()["streams"] == 0
    assert trial.backend._gate.taken == 0


def test_a_part_is_taken_while_the_device_computes(trial: Any) -> None:
    busy = threading.Thread(target=lambda: trial.run("sleep", 1.0))
    busy.start()
    eventually(lambda: trial.backend._turn.taken == 1, "the job is with the worker")
    array = np.arange(3.0 * PART / 8)
    spec = _spec(array)
    begun = time.monotonic()
    _send(trial, array, spec)
    assert time.monotonic() - begun < 0.8  # only pinned; the upload comes after the job
    busy.join(DEADLINE)
    assert np.array_equal(trial.backend.fetch(spec), array)
    trial.backend.drop([spec.key])


def test_the_cpu_gets_what_the_device_refuses(trial: Any) -> None:
    chain = ChainBackend((trial.backend, SklearnBackend()))
    array = np.random.default_rng(6).standard_normal((4000, 50))
    spec = _spec(array)
    _send(trial, array, spec)
    params = {"n_clusters": 2, "n_init": 1, "random_state": 0}
    job = Job("sklearn.cluster.KMeans", params, None, "fit", (StreamedArray(spec, trial.backend.fetch),), {}, {})
    outcome = chain.run(job)
    assert outcome.backend == "sklearn"
    assert "trial does no KMeans" in outcome.reason
    assert outcome.attributes["cluster_centers_"].shape == (2, 50)
    trial.backend.drop([spec.key])


def test_streams_of_a_dead_worker_are_gone_and_what_they_were_admitted_for(trial: Any) -> None:
    array = np.arange(2.0 * PART / 8)
    spec, whole = _spec(array), _spec(array)
    _send(trial, array, whole)
    (first, data), (second, rest) = _parts(array)
    handle = trial.client.put(data)
    trial.backend.stream(spec, first, handle, DEADLINE)
    with pytest.raises(ServerError):
        trial.run("die")
    trial.client.free(handle)
    handle = trial.client.put(rest)
    for call in (
        lambda: trial.backend.stream(spec, second, handle, DEADLINE),
        lambda: trial.backend.run(_job(trial, "host", whole)),
        lambda: trial.backend.fetch(whole),
    ):
        with pytest.raises(ServerError) as caught:
            call()
        assert caught.value.code == "stale_handle"
    trial.client.free(handle)
    assert trial.backend._gate.taken == 0


def test_streams_queue_for_memory_and_jobs_pass_them(make_bench: Any) -> None:
    """Four clients stream most of the device each, while jobs on other arrays come in between."""
    bench = make_bench(environment={"FAKE_CUPY_TOTAL": str(40 << 20)}, gpu_resident_nbytes=0)
    failures: list[BaseException] = []

    def stream(number: int) -> None:
        array = np.full(3 * PART // 8, float(number))
        spec = _spec(array)
        try:
            _send(bench, array, spec)
            outcome = bench.backend.run(_job(bench, "echo", spec))
            assert np.array_equal(outcome.result, array)
            del outcome
        except BaseException as error:
            failures.append(error)
        finally:
            bench.backend.drop([spec.key])

    def jobs() -> None:
        try:
            for number in range(20):
                assert bench.run("host", np.full(100, float(number)))["sum"] == 100.0 * number
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(4)]
    threads.append(threading.Thread(target=jobs))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert failures == []
    assert bench.backend._gate.taken == 0
    assert bench.run("used") < PART


def test_an_array_that_does_not_fit_fails_its_call_and_leaves_nothing(make_bench: Any) -> None:
    bench = make_bench(environment={"FAKE_CUPY_TOTAL": str(16 << 20)}, gpu_resident_nbytes=0)
    array = np.zeros(20 * PART // 8)
    spec = _spec(array)
    _send(bench, array, spec)
    with pytest.raises(ServerError) as caught:
        bench.backend.run(_job(bench, "echo", spec))
    assert caught.value.code == "out_of_memory"
    bench.backend.drop([spec.key])
    assert bench.run("used") < PART
    assert np.array_equal(bench.run("echo", np.arange(5000.0)), np.arange(5000.0))
