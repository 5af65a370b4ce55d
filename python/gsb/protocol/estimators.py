# SPDX-License-Identifier: BSD-3-Clause
"""Which names travel: methods, paths of estimators, parameters that may not be sent.

Only text in here, so that reading it costs no import. Which estimators there are is scikit-learn's to say:
`gsb.protocol.registry` asks it.
"""

from __future__ import annotations

import re
from typing import Any, Final

#: Methods that make or change a model. They are never sent twice.
FIT_METHODS: Final = frozenset({"fit", "fit_transform", "fit_predict", "partial_fit"})

#: Methods that leave the model as it is. They may be sent again after a broken connection.
PURE_METHODS: Final = frozenset(
    {
        "aic",
        "apply",
        "bic",
        "decision_function",
        "decision_path",
        "inverse_transform",
        "kneighbors",
        "kneighbors_graph",
        "latent_mean_and_variance",
        "mahalanobis",
        "perplexity",
        "predict",
        "predict_joint_log_proba",
        "predict_log_proba",
        "predict_proba",
        "radius_neighbors",
        "radius_neighbors_graph",
        "score",
        "score_samples",
        "transform",
    }
)

#: Every method that the server accepts, where the estimator has it.
METHODS: Final = FIT_METHODS | PURE_METHODS

#: Estimators whose fitted state is nothing but scalars, text and arrays that the server can check against each
#: other, so that a model it has lost can be sent back (``POST /v1/model``). libsvm, trees and neighbours trust
#: the consistency of theirs.
REUPLOAD: Final = frozenset(
    {
        "sklearn.cluster.DBSCAN",
        "sklearn.cluster.KMeans",
        "sklearn.decomposition.PCA",
        "sklearn.decomposition.TruncatedSVD",
        "sklearn.linear_model.ElasticNet",
        "sklearn.linear_model.Lasso",
        "sklearn.linear_model.LinearRegression",
        "sklearn.linear_model.LogisticRegression",
        "sklearn.linear_model.Ridge",
        "sklearn.preprocessing.MinMaxScaler",
        "sklearn.preprocessing.StandardScaler",
    }
)

_PATH: Final = re.compile(r"(sklearn(?:\.[a-z][a-z0-9_]*){1,3})\.([A-Z][A-Za-z0-9]*)")


def split_path(path: str) -> tuple[str, str] | None:
    """Split ``sklearn.decomposition.PCA`` into module and class; None if it has not that form."""
    found = _PATH.fullmatch(path)
    return (found[1], found[2]) if found else None


def refused_param(name: str, value: Any) -> str | None:
    """Say why a constructor parameter may not be sent to a server, or None if it may.

    Both sides ask: the client runs such a call itself, the server refuses it.
    """
    if name == "memory" and value is not None:
        return "memory names a directory of this machine's"
    if name == "input" and isinstance(value, str) and value in ("file", "filename"):
        return "the input is files of this process"
    return None
