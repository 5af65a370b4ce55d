# SPDX-License-Identifier: BSD-3-Clause
"""scikit-learn's own estimator checks on every proxy, through a real server."""

from __future__ import annotations

from typing import Any

import gsb
import pytest
from gsb._report import last_report
from sklearn.base import BaseEstimator
from sklearn.utils._test_common.instance_generator import _get_expected_failed_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

# Beyond what scikit-learn itself expects to fail: estimator -> check -> reason.
REASONS: dict[str, dict[str, str]] = {}


def expected(estimator: BaseEstimator) -> dict[str, str]:
    plain = estimator.to_sklearn()
    return {**_get_expected_failed_checks(plain), **REASONS.get(type(estimator).__name__, {})}


@parametrize_with_checks(
    [proxy() for proxy in gsb.all_proxies()], expected_failed_checks=expected, xfail_strict=True
)
# scikit-learn runs these checks with the warning let through, too.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.usefixtures("server")
def test_check(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)
