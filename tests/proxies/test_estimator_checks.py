# SPDX-License-Identifier: BSD-3-Clause
"""scikit-learn's own estimator checks on every proxy, through a real server."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from gsb._client import get_client
from helpers.estimators import usual_proxies
from sklearn.base import BaseEstimator
from sklearn.utils.estimator_checks import _get_check_estimator_ids, estimator_checks_generator

WEIGHTS = {
    f"check_sample_weight_equivalence_on_{kind}_data": (
        "scikit-learn's own expected failure: weights are not the same as repeating samples here"
    )
    for kind in ("dense", "sparse")
}

# Estimator -> check -> reason. Each fails in the same way with the plain class; strict.
REASONS: dict[str, dict[str, str]] = {
    "KMeans": WEIGHTS,
    "RandomForestClassifier": WEIGHTS,
    "RandomForestRegressor": WEIGHTS,
    "SVC": WEIGHTS,
    "SVR": WEIGHTS,
    "Ridge": {
        "check_non_transformer_estimators_n_iter": "scikit-learn's own expected failure: no n_iter_ for every solver"
    },
}

# Of other libraries' arrays, which stay in this process; and of a method that these classes do not have.
NOT_APPLICABLE = {
    "RandomForestClassifier": ("check_classifiers_multilabel_output_format_decision_function",),
    "KNeighborsClassifier": ("check_classifiers_multilabel_output_format_decision_function",),
}


PROXIES = usual_proxies()


def applicable_checks() -> Iterator[Any]:
    for proxy in PROXIES:
        estimator = proxy()
        name = proxy.__name__
        skipped = ("check_array_api_", *NOT_APPLICABLE.get(name, ()))
        for found in estimator_checks_generator(
            estimator, expected_failed_checks=REASONS.get(name, {}), mark="xfail", xfail_strict=True
        ):
            check = found.values[1] if hasattr(found, "values") else found[1]
            while isinstance(check, partial):
                check = check.func
            if not check.__name__.startswith(skipped):
                yield found


@pytest.fixture(scope="module", autouse=True)
def really_remote(shared_server: Any, request: pytest.FixtureRequest) -> Iterator[None]:
    """The checks prove nothing unless the server did the work."""
    with shared_server.config():
        before = get_client().status()["metrics"]["methods"]
        yield
        after = get_client().status()["metrics"]["methods"]
    ours = [item for item in request.session.items if item.path == request.path]
    names = {proxy.__name__ for proxy in PROXIES} if len(ours) > 500 else set()  # else chosen by hand
    unused = [name for name in names if after.get(f"{name}.fit", 0) == before.get(f"{name}.fit", 0)]
    assert not unused


# scikit-learn's own runs let this warning through, too.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(("estimator", "check"), list(applicable_checks()), ids=_get_check_estimator_ids)
def test_check(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)
