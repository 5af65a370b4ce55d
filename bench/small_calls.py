# SPDX-License-Identifier: BSD-3-Clause
"""A program of many scikit-learn calls on small data, as written without a thought of gsb. Prints its seconds.

``bench/test_accel.py`` runs it plain and accelerated.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier


def _once(X: Any, y: Any) -> None:
    for model in (LinearRegression(), Ridge(), GaussianNB(), KNeighborsClassifier(), DecisionTreeClassifier()):
        model.fit(X, y)
        for row in range(20):
            model.predict(X[row : row + 1])  # one row at a time: the shortest calls that there are
        model.score(X, y)
    for scaler in (StandardScaler(), MinMaxScaler(), PCA(n_components=3)):
        scaler.fit_transform(X)
        scaler.inverse_transform(scaler.transform(X))
        clone(scaler).set_params(copy=True).get_params()
    KMeans(3, n_init=1, random_state=0).fit(X).predict(X)
    RandomForestClassifier(10, random_state=0).fit(X, y).predict_proba(X)
    pipe = make_pipeline(StandardScaler(), PCA(n_components=3), LogisticRegression())
    cross_val_score(pipe, X, y, cv=3)
    GridSearchCV(pipe, {"logisticregression__C": [0.1, 1.0]}, cv=2).fit(X, y).predict(X)


def main(repeats: int) -> None:
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    X = rng.random((200, 6))
    y = (X[:, 0] + 0.3 * rng.random(200) > 0.6).astype(int)
    _once(X, y)
    started = time.perf_counter()
    for _ in range(repeats):
        _once(X, y)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main(int(sys.argv[1]))
