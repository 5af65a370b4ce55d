# SPDX-License-Identifier: BSD-3-Clause
"""Processes that the benchmark starts: one client of several, or a library in a process of its own.

``python -m bench.gpu.jobs cuml|sklearn|client …`` prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

COMPONENTS = 8


def make(rows: int, columns: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the data: 500,000 x 250 of it are 500 MB."""
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)


def _timed(fit_transform: Any, repeats: int) -> dict[str, Any]:
    seconds = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        fit_transform()
        seconds.append(time.perf_counter() - begun)
    return {"cold": seconds[0], "warm": seconds[1:]}


def cuml(rows: int, columns: int, repeats: int) -> dict[str, Any]:
    """In-process cuML on host arrays, result on the host."""
    begun = time.perf_counter()
    import cuml
    import cupy

    imported = time.perf_counter() - begun
    X = make(rows, columns)

    def fit_transform() -> None:
        with cuml.using_output_type("numpy"):
            cuml.decomposition.PCA(n_components=COMPONENTS).fit_transform(X)
        cupy.cuda.runtime.deviceSynchronize()

    return {"import": imported, **_timed(fit_transform, repeats)}


def sklearn(rows: int, columns: int, repeats: int) -> dict[str, Any]:
    """Plain scikit-learn."""
    begun = time.perf_counter()
    from sklearn.decomposition import PCA

    imported = time.perf_counter() - begun
    X = make(rows, columns)
    return {"import": imported, **_timed(lambda: PCA(n_components=COMPONENTS).fit_transform(X), repeats)}


def client(rows: int, columns: int, repeats: int) -> dict[str, Any]:
    """One of several clients; says when it is ready, waits for a line, then calls."""
    from gsb.decomposition import PCA

    X = make(rows, columns, seed=int(time.time_ns() % 2**32))
    expected = np.abs(X[:, 0]).sum()
    print("ready", flush=True)
    sys.stdin.readline()
    seconds, errors, backends = [], [], []
    for _ in range(repeats):
        begun = time.perf_counter()
        try:
            pca = PCA(n_components=COMPONENTS)
            result = pca.fit_transform(X)
            seconds.append(time.perf_counter() - begun)
            backends.append(pca.gsb_report_.backend)
            if result.shape != (rows, COMPONENTS) or not np.isfinite(result).all():
                errors.append(f"a result of shape {result.shape}")
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    if np.abs(X[:, 0]).sum() != expected:
        errors.append("the input was changed")
    return {"seconds": seconds, "errors": errors, "backends": backends}


if __name__ == "__main__":
    job = {"cuml": cuml, "sklearn": sklearn, "client": client}[sys.argv[1]]
    print(json.dumps(job(*map(int, sys.argv[2:5]))), flush=True)
