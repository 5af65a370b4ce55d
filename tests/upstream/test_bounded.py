# SPDX-License-Identifier: BSD-3-Clause
"""A part of scikit-learn's own tests through the bridge; ``make test-sklearn`` runs far more of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sklearn

MODULES = (
    "sklearn.cluster.tests.test_dbscan",
    "sklearn.decomposition.tests.test_truncated_svd",
    "sklearn.linear_model.tests.test_base",
    "sklearn.tests.test_pipeline",
)
EXPECTED = Path(__file__).parent / "xfail-sklearn.yaml"


def test_scikit_learns_own_tests_pass(run_suite: Any) -> None:
    run = run_suite(
        *("--pyargs", *MODULES, "-q", "--tb=short", "-p", "no:benchmark", "--gsb-xfail-list", str(EXPECTED)),
        root=Path(sklearn.__file__).parent,
        env={"SKLEARN_SKIP_NETWORK_TESTS": "1"},
        timeout=240,
    )
    assert run.status == 0, run
    assert run.stats["calls_sent"] > 400
    assert run.stats["share_sent"] > 0.8
