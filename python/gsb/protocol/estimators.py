# SPDX-License-Identifier: BSD-3-Clause
"""The one table of estimators: what the client offers and the server allows.

Only text in here, so that reading it costs no import. Adding an estimator is one line.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class EstimatorRow(NamedTuple):
    """One estimator.

    Attributes
    ----------
    module : str
        The scikit-learn module it is imported from; ``gsb`` mirrors its last part.
    name : str
        The class.
    reupload : bool
        Whether the fitted state is nothing but scalars, strings and arrays, so that a model which the
        server has lost can be sent back (``POST /v1/model``).
    """

    module: str
    name: str
    reupload: bool = False

    @property
    def path(self) -> str:
        """The public name, such as ``sklearn.decomposition.PCA``."""
        return f"{self.module}.{self.name}"


ROWS: Final = (
    EstimatorRow("sklearn.decomposition", "PCA", True),
    EstimatorRow("sklearn.decomposition", "TruncatedSVD", True),
    EstimatorRow("sklearn.cluster", "KMeans", True),
    EstimatorRow("sklearn.cluster", "DBSCAN", True),
    EstimatorRow("sklearn.linear_model", "LinearRegression", True),
    EstimatorRow("sklearn.linear_model", "Ridge", True),
    EstimatorRow("sklearn.linear_model", "Lasso", True),
    EstimatorRow("sklearn.linear_model", "ElasticNet", True),
    EstimatorRow("sklearn.linear_model", "LogisticRegression", True),
    EstimatorRow("sklearn.ensemble", "RandomForestClassifier"),
    EstimatorRow("sklearn.ensemble", "RandomForestRegressor"),
    EstimatorRow("sklearn.neighbors", "NearestNeighbors"),
    EstimatorRow("sklearn.neighbors", "KNeighborsClassifier"),
    EstimatorRow("sklearn.neighbors", "KNeighborsRegressor"),
    EstimatorRow("sklearn.preprocessing", "StandardScaler", True),
    EstimatorRow("sklearn.preprocessing", "MinMaxScaler", True),
    # Not to be sent back: libsvm trusts the consistency of its arrays.
    EstimatorRow("sklearn.svm", "SVC"),
    EstimatorRow("sklearn.svm", "SVR"),
)

#: Public name -> row. The server accepts no estimator that is not a key of it.
ESTIMATORS: Final[dict[str, EstimatorRow]] = {row.path: row for row in ROWS}

#: Methods that make or change a model. They are never sent twice.
FIT_METHODS: Final = frozenset({"fit", "fit_transform", "fit_predict", "partial_fit"})

#: Methods that leave the model as it is. They may be sent again after a broken connection.
PURE_METHODS: Final = frozenset(
    {
        "apply",
        "decision_function",
        "decision_path",
        "inverse_transform",
        "kneighbors",
        "kneighbors_graph",
        "predict",
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
