# SPDX-License-Identifier: BSD-3-Clause
"""An array larger than the pool, through a server of its own."""

from __future__ import annotations

from typing import Any

import gsb
import numpy as np
import pytest
import sklearn.decomposition
from gsb.decomposition import PCA


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_larger_than_the_pool(server: Any, slots_free: Any, order: Any) -> None:
    X = np.asarray(np.random.default_rng(7).standard_normal((300_000, 10)), order=order)
    assert X.nbytes > 16 << 20  # all slots together
    with gsb.config(server=server.url, token=server.token):
        pca = PCA(n_components=2, svd_solver="covariance_eigh").fit(X)
        # The report counts what went.
        assert pca.gsb_report_.nbytes_sent == X.nbytes
        plain = sklearn.decomposition.PCA(n_components=2, svd_solver="covariance_eigh").fit(X)
        assert np.allclose(pca.components_, plain.components_)
        # A strided view has no bytes in a row; it is made contiguous first.
        strided = X[::2]
        assert PCA(n_components=1, svd_solver="covariance_eigh").fit(strided).n_samples_ == len(strided)
        gsb.disconnect()
    slots_free(server)
