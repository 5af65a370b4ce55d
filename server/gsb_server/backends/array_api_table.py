# SPDX-License-Identifier: BSD-3-Clause
"""What scikit-learn's own estimators can do on device arrays: our tested table.

scikit-learn says of an estimator whether it supports the Array API, but not for every parameter and not always rightly
(``Ridge(solver="cholesky")`` claims it and fails; ``RidgeClassifier(solver="svd")`` denies it and works). So a row is
here because the tests run every method of it on two array libraries and compare with the CPU; whatever a row does not
allow goes to the CPU with the row's own words as the reason. Tested with scikit-learn 1.9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["ROWS", "Limit", "Row", "refuses_params"]


_TYPES = {int: "an integer", str: "a name"}


@dataclass(frozen=True, slots=True)
class Limit:
    """What a parameter may be.

    Attributes
    ----------
    values : tuple
        Allowed values, compared with their type.
    types : tuple of type
        Allowed types besides.
    """

    values: tuple[Any, ...] = ()
    types: tuple[type, ...] = ()

    def allows(self, value: Any) -> bool:
        """Whether the value is allowed."""
        if isinstance(value, self.types) and not isinstance(value, bool):
            return True
        return any(value is allowed or (type(value) is type(allowed) and value == allowed) for allowed in self.values)

    def describe(self, name: str) -> str:
        """Say it for people."""
        words = [f"`{value!r}`" for value in self.values] + [_TYPES[kind] for kind in self.types]
        return f"`{name}` {' or '.join(words)}"


def _one_of(*values: Any) -> Limit:
    return Limit(values)


_NONE = Limit((None,))
_OFF = Limit((False,))


@dataclass(frozen=True, slots=True)
class Row:
    """One estimator.

    Attributes
    ----------
    methods : frozenset of str
        The methods that are tested.
    limits : mapping
        Parameter to what it may be; others are free.
    target : str
        What ``y`` is: "ignored", "classes", "numbers"; or the input itself is "labels".
    kinds : str
        dtype kinds that labels may have beside integers and floats: "b" booleans, "U" text (which stays on the host),
        "O" objects.
    several_targets : bool
        Whether ``y`` may have several columns.
    integers : str
        What becomes of an X of integers: "float64" as in scikit-learn on the CPU, "kept", or "refused".
    same_dtype : bool
        Whether later calls need X to be of the dtype that it had in the fit.
    adopts : bool
        Whether a model fitted on the CPU can go on here.
    finish : callable or None
        Puts right what a fit on a device leaves in a plain estimator.
    """

    methods: frozenset[str]
    limits: Mapping[str, Limit] = field(default_factory=dict)
    target: Literal["ignored", "classes", "numbers", "labels"] = "ignored"
    kinds: str = ""
    several_targets: bool = False
    integers: Literal["float64", "kept", "refused"] = "float64"
    same_dtype: bool = False
    adopts: bool = True
    finish: Callable[[Any], None] | None = None


def _methods(names: str) -> frozenset[str]:
    return frozenset(names.split())


def _plain_poisson_loss(estimator: Any) -> None:
    estimator._base_loss = estimator._get_loss()


_SCALER = _methods("fit fit_transform transform inverse_transform partial_fit")
_STATELESS = _methods("fit fit_transform transform")
_CLASSIFIER = _methods("fit predict decision_function score")
_PROBABLE = _CLASSIFIER | _methods("predict_proba predict_log_proba")

#: Public name -> row.
ROWS: dict[str, Row] = {
    "sklearn.decomposition.PCA": Row(
        _methods("fit fit_transform transform inverse_transform score score_samples"),
        {
            "svd_solver": _one_of("auto", "full", "covariance_eigh", "randomized"),
            "power_iteration_normalizer": _one_of("auto", "QR", "none"),
        },
    ),
    "sklearn.discriminant_analysis.LinearDiscriminantAnalysis": Row(
        _PROBABLE | _methods("fit_transform transform"),
        {"solver": _one_of("svd"), "store_covariance": _OFF, "priors": _NONE, "covariance_estimator": _NONE},
        target="classes",
        kinds="b",
    ),
    "sklearn.kernel_approximation.Nystroem": Row(
        _STATELESS,
        {"kernel": _one_of("rbf", "linear", "poly", "polynomial", "sigmoid", "cosine"), "kernel_params": _NONE},
        integers="refused",  # array libraries disagree about the float that they become
    ),
    "sklearn.linear_model.LogisticRegression": Row(
        _PROBABLE,
        {"solver": _one_of("lbfgs"), "warm_start": _OFF},
        target="classes",
        kinds="bUO",
    ),
    "sklearn.linear_model.PoissonRegressor": Row(
        _methods("fit predict score"),
        {"solver": _one_of("lbfgs"), "warm_start": _OFF},
        target="numbers",
        adopts=False,
        finish=_plain_poisson_loss,
    ),
    "sklearn.linear_model.Ridge": Row(
        _methods("fit predict score"),
        {"solver": _one_of("auto", "svd"), "positive": _OFF},
        target="numbers",
        several_targets=True,
    ),
    "sklearn.linear_model.RidgeCV": Row(
        _methods("fit predict score"),
        {"cv": Limit((None,), (int,)), "scoring": Limit((None,), (str,)), "alpha_per_target": _OFF},
        target="numbers",
        several_targets=True,
    ),
    "sklearn.linear_model.RidgeClassifier": Row(
        _CLASSIFIER,
        {"solver": _one_of("auto", "svd"), "positive": _OFF, "class_weight": _NONE},
        target="classes",
        kinds="U",
        several_targets=True,
    ),
    "sklearn.linear_model.RidgeClassifierCV": Row(
        _CLASSIFIER,
        {"cv": Limit((None,), (int,)), "scoring": Limit((None,), (str,)), "class_weight": _NONE},
        target="classes",
        kinds="U",
        several_targets=True,
    ),
    "sklearn.mixture.GaussianMixture": Row(
        _methods("fit fit_predict predict predict_proba score score_samples"),
        {
            "init_params": _one_of("random", "random_from_data"),
            "weights_init": _NONE,
            "means_init": _NONE,
            "precisions_init": _NONE,
            "warm_start": _OFF,
        },
        # On the CPU, predict computes log-probabilities in the dtype of X, that is, truncated.
        integers="refused",
    ),
    "sklearn.naive_bayes.GaussianNB": Row(
        _methods("fit partial_fit predict predict_proba predict_log_proba score"),
        target="classes",
        kinds="U",
    ),
    "sklearn.preprocessing.Binarizer": Row(_STATELESS, integers="kept"),
    "sklearn.preprocessing.KernelCenterer": Row(_STATELESS, same_dtype=True),
    "sklearn.preprocessing.LabelBinarizer": Row(
        _methods("fit fit_transform transform inverse_transform"),
        {"sparse_output": _OFF},
        target="labels",
        integers="kept",
    ),
    "sklearn.preprocessing.LabelEncoder": Row(
        _methods("fit fit_transform transform inverse_transform"), target="labels", integers="kept"
    ),
    "sklearn.preprocessing.MaxAbsScaler": Row(_SCALER, same_dtype=True),
    "sklearn.preprocessing.MinMaxScaler": Row(_SCALER, same_dtype=True),
    "sklearn.preprocessing.Normalizer": Row(_STATELESS),
    "sklearn.preprocessing.PolynomialFeatures": Row(_STATELESS, {"order": _one_of("C")}),
    "sklearn.preprocessing.StandardScaler": Row(_SCALER),
}


def refuses_params(row: Row, params: Mapping[str, Any]) -> str:
    """Say which parameter a row does not allow; empty if none."""
    for name, limit in row.limits.items():
        if name in params and not limit.allows(params[name]):
            value = params[name]
            shown = repr(value) if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"
            return f"{name}={shown[:60]} is not possible on device arrays, only {limit.describe(name)}"
    return ""
