# SPDX-License-Identifier: BSD-3-Clause
"""The estimators that tests of one behaviour go through: one of each kind. Tests of all of them ask the registry."""

from __future__ import annotations

from typing import Any

from gsb.registry import proxy_class

PATHS = (
    "sklearn.cluster.DBSCAN",
    "sklearn.cluster.KMeans",
    "sklearn.decomposition.PCA",
    "sklearn.decomposition.TruncatedSVD",
    "sklearn.ensemble.RandomForestClassifier",
    "sklearn.ensemble.RandomForestRegressor",
    "sklearn.linear_model.ElasticNet",
    "sklearn.linear_model.Lasso",
    "sklearn.linear_model.LinearRegression",
    "sklearn.linear_model.LogisticRegression",
    "sklearn.linear_model.Ridge",
    "sklearn.neighbors.KNeighborsClassifier",
    "sklearn.neighbors.KNeighborsRegressor",
    "sklearn.neighbors.NearestNeighbors",
    "sklearn.preprocessing.MinMaxScaler",
    "sklearn.preprocessing.StandardScaler",
    "sklearn.svm.SVC",
    "sklearn.svm.SVR",
)


def usual_proxies() -> list[type[Any]]:
    """Give their proxies."""
    return [proxy_class(path) for path in PATHS]
