# SPDX-License-Identifier: BSD-3-Clause
"""The worker with the real backend for arrays of another namespace, on a device that refuses what CuPy refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gsb_server.backends.base import EstimatorRaisedError, Job, RefusedByBackend, StreamedArray, StreamSpec
from gsb_server.gpu.supervisor import SupervisedBackend

import shmpool

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(0).standard_normal((5000, 20))


def _job(estimator: str, method: str, *args: Any, model: Any = None, **params: Any) -> Job:
    return Job(f"sklearn.{estimator}", params, model, method, args, {}, {}, timeout=60.0)


def test_array_api_strict_through_the_worker(pool_path: Path) -> None:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    pytest.importorskip("array_api_strict")
    paths = ":".join(str(ROOT / part) for part in ("tests", "src", "python", "server"))
    with (
        shmpool.Pool.open(pool_path, slot_nbytes=1 << 20, prefault_nbytes=0) as pool,
        shmpool.Pool.attach(pool_path, prefault_nbytes=0) as client,
    ):
        backend = SupervisedBackend(
            pool,
            device="helpers.devices:StrictDevice",
            backends=("gsb_server.backends.array_api:ArrayApiBackend",),
            environment={"PYTHONPATH": paths},
        )
        try:
            probe = backend.probe()
            assert probe.available, probe.reason
            assert backend.status()["host_path"] == "pageable"
            handle = client.put(X)
            view = pool.get(handle)
            plain = PCA(3, svd_solver="full").fit(X)
            fitted = backend.run(_job("decomposition.PCA", "fit_transform", view, n_components=3, svd_solver="full"))
            assert fitted.backend == "array_api"
            # It was on the device, and came down into a slot.
            assert pool.handle_of(fitted.result) is not None
            assert np.allclose(fitted.result, plain.transform(X))
            used = backend.run(_job("decomposition.PCA", "transform", view, model=fitted.model))
            assert np.allclose(used.result, plain.transform(X))
            assert np.allclose(backend.attributes(fitted.model)["components_"], plain.components_)
            assert type(backend.export(fitted.model)) is PCA
            adopted, _ = backend.adopt("sklearn.preprocessing.StandardScaler", StandardScaler().fit(X))
            scaled = backend.run(_job("preprocessing.StandardScaler", "transform", view, model=adopted))
            assert np.allclose(scaled.result.mean(axis=0), 0)
            with pytest.raises(RefusedByBackend, match=r"array_api: .*KMeans"):
                backend.run(_job("cluster.KMeans", "fit", view))
            with pytest.raises(EstimatorRaisedError, match="n_components=300"):
                backend.run(_job("decomposition.PCA", "fit", view, n_components=300))
            spec = StreamSpec("parts", X.shape, X.dtype.str, "C")
            part = client.put(X.reshape(-1).view(np.uint8))
            backend.stream(spec, 0, part, 60.0)
            client.free(part)
            streamed = StreamedArray(spec, backend.fetch)
            again = backend.run(_job("decomposition.PCA", "fit", streamed, n_components=3, svd_solver="full"))
            assert np.allclose(again.attributes["mean_"], plain.mean_)
            assert np.array_equal(backend.fetch(spec), X)
            backend.drop([spec.key])
            client.free(handle)
            del view, fitted, used, scaled
            assert all(slot.state == "free" for slot in pool.stat().slots)
        finally:
            backend.close()
