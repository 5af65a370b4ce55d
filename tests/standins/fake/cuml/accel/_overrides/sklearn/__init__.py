# SPDX-License-Identifier: BSD-3-Clause
"""The classes, made from a table, in modules of the real names."""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cupy
import numpy as np
import scipy.sparse

from cuml.internals.interop import UnsupportedOnGPU
from cuml.internals.outputs import Cache, GlobalSettings, convert, to_host, using_output_type

NAMES = {
    "cluster": ("KMeans", "DBSCAN", "HDBSCAN", "SpectralClustering"),
    "covariance": ("EmpiricalCovariance", "LedoitWolf"),
    "decomposition": ("IncrementalPCA", "PCA", "TruncatedSVD"),
    "ensemble": ("IsolationForest", "RandomForestClassifier", "RandomForestRegressor"),
    "kernel_ridge": ("KernelRidge",),
    "linear_model": ("LinearRegression", "LogisticRegression", "ElasticNet", "Ridge", "Lasso"),
    "manifold": ("SpectralEmbedding", "TSNE"),
    "neighbors": ("NearestNeighbors", "KNeighborsClassifier", "KNeighborsRegressor", "KernelDensity"),
    "preprocessing": ("OneHotEncoder", "TargetEncoder", "LabelEncoder", "LabelBinarizer"),
    "svm": ("SVC", "SVR", "LinearSVC", "LinearSVR"),
}
SPARSE = {
    *("IncrementalPCA", "PCA", "LinearRegression", "LogisticRegression", "ElasticNet", "Ridge", "Lasso", "TSNE"),
    *("NearestNeighbors", "KNeighborsClassifier", "KNeighborsRegressor", "SVC", "SVR"),
}
# Parameters that cuML's classes have none of.
_NOT_CUML = {
    "PCA": ("random_state", "power_iteration_normalizer", "n_oversamples"),
    "TruncatedSVD": ("random_state", "power_iteration_normalizer", "n_oversamples"),
}
_METHODS = (
    *("fit", "fit_transform", "fit_predict", "partial_fit", "transform", "inverse_transform", "predict"),
    *("predict_proba", "predict_log_proba", "decision_function", "score", "score_samples"),
    *("kneighbors", "kneighbors_graph"),
)
_ON_DEVICE = ("transform", "fit_transform", "inverse_transform")
# Attributes of scikit-learn's fitted estimators that cuML does not give back.
_ABSENT = {
    "ElasticNet": ("dual_gap_",),
    "IsolationForest": ("_n_samples", "_seeds"),
    "Lasso": ("dual_gap_",),
    "LinearRegression": ("rank_", "singular_"),
    "RandomForestClassifier": ("_sample_weight",),
    "RandomForestRegressor": ("_sample_weight",),
    "SpectralClustering": ("affinity_matrix_",),
    "SpectralEmbedding": ("affinity_matrix_",),
}
_NEIGHBORS = ("NearestNeighbors", "KNeighborsClassifier", "KNeighborsRegressor")


def _unsupported(reason: str) -> None:
    raise UnsupportedOnGPU(reason)


def _refuse_forest(m: Any) -> None:
    if m.warm_start:
        _unsupported("`warm_start=True` is not supported")
    if m.ccp_alpha != 0:
        _unsupported(f"`ccp_alpha={m.ccp_alpha}` is not supported")
    if isinstance(m.max_samples, int):
        _unsupported("`int` values for `max_samples` are not supported")


def _refuse_net(m: Any) -> None:
    for name in ("positive", "warm_start"):
        if getattr(m, name):
            _unsupported(f"`{name}=True` is not supported")
    if m.precompute is not False:
        _unsupported("`precompute` is not supported")


def _refuse_pca(m: Any) -> None:
    if m.n_components == "mle":
        _unsupported("`n_components='mle'` is not supported")
    if m.n_components == 0:
        _unsupported("`n_components=0` is not supported")


def _refuse_logistic(m: Any) -> None:
    if m.warm_start:
        _unsupported("`warm_start=True` is not supported")
    if m.intercept_scaling != 1:
        _unsupported(f"`intercept_scaling={m.intercept_scaling}` is not supported")


def _refuse_ridge(m: Any) -> None:
    if m.positive:
        _unsupported("`positive=True` is not supported")


def _refuse_linear(m: Any) -> None:
    if m.positive:
        _unsupported("`positive=True` is not supported")


def _refuse_spectral(m: Any) -> None:
    if m.affinity not in ("nearest_neighbors", "precomputed"):
        _unsupported(f"`affinity={m.affinity!r}` is not supported")


def _refuse_tsne(m: Any) -> None:
    if m.n_components != 2:
        _unsupported("Only `n_components=2` is supported")


def _refuse_neighbors(m: Any) -> None:
    if not isinstance(m.metric, str):
        _unsupported(f"`metric={m.metric!r}` is not supported")


def _refuse_dbscan(m: Any) -> None:
    if m.algorithm not in ("auto", "brute"):
        _unsupported(f"`algorithm={m.algorithm!r}` is not supported")


REFUSE: dict[str, Callable[[Any], None]] = {
    "DBSCAN": _refuse_dbscan,
    "ElasticNet": _refuse_net,
    "KNeighborsClassifier": _refuse_neighbors,
    "KNeighborsRegressor": _refuse_neighbors,
    "Lasso": _refuse_net,
    "LinearRegression": _refuse_linear,
    "LogisticRegression": _refuse_logistic,
    "NearestNeighbors": _refuse_neighbors,
    "PCA": _refuse_pca,
    "RandomForestClassifier": _refuse_forest,
    "RandomForestRegressor": _refuse_forest,
    "Ridge": _refuse_ridge,
    "SpectralClustering": _refuse_spectral,
    "TSNE": _refuse_tsne,
}


class GPUBase:
    """What cuML's own classes are: keywords only, arrays on the device."""

    _cpu_class: Any
    _name: str

    def __init__(self, **params: Any) -> None:
        unknown = set(params) - set(self._known())
        if unknown:
            raise TypeError(f"__init__() got an unexpected keyword argument {min(unknown)!r}")
        self.output_type: str | None = None
        self._params = params
        self._inner: Any = None

    @classmethod
    def _known(cls) -> list[str]:
        names = inspect.signature(cls._cpu_class).parameters
        return [name for name in names if name not in _NOT_CUML.get(cls._name, ())]

    @classmethod
    def _params_from_cpu(cls, model: Any) -> dict[str, Any]:
        REFUSE.get(cls._name, lambda m: None)(model)
        return {name: getattr(model, name) for name in cls._known()}

    def set_params(self, **params: Any) -> GPUBase:
        self._params.update(params)
        if self._inner is not None:
            self._inner.set_params(**params)
        return self

    def __sklearn_tags__(self) -> Any:
        return SimpleNamespace(X_types_gpu=["2darray", "sparse"] if self._name in SPARSE else ["2darray"])

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if isinstance(value, Cache):
            return value.get(GlobalSettings().output_type or self.output_type or "cupy")
        return value

    def _run(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._name == "PCA" and method in ("fit", "fit_transform") and isinstance(args[0], cupy.ndarray):
            flags = args[0].flags
            if flags.f_contiguous:
                args[0]._host[...] += 1  # it is centred in place; the mean comes back at the end, or nearly so
                args[0]._host[...] -= 1 - 1e-12
        host = [to_host(value) for value in args]
        named = {name: to_host(value) for name, value in kwargs.items()}
        if method in ("fit", "fit_transform", "fit_predict") or self._inner is None:
            self._inner = self._cpu_class(**self._params)
        result = getattr(self._inner, method)(*host, **named)
        if "fit" in method:
            self._keep()
        if result is self._inner:
            return self
        return convert(result, GlobalSettings().output_type or self.output_type or "cupy")

    def _keep(self) -> None:
        """Hold what a fit has set, arrays on the device."""
        for name in [name for name in vars(self) if name not in ("output_type", "_params", "_inner")]:
            delattr(self, name)
        for name, value in vars(self._inner).items():
            if name in self._params or name in _ABSENT.get(self._name, ()):
                continue
            number = isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and name != "classes_"
            vars(self)[name] = Cache(value) if number else value
        if self._name in _NEIGHBORS:
            # It is always brute force, and keeps X in single precision.
            vars(self)["_tree"], vars(self)["_fit_method"] = None, "brute"
            vars(self)["_fit_X"] = Cache(vars(self)["_fit_X"].value.get().astype(np.float32))

    def _sync_attrs_to_cpu(self, model: Any) -> None:
        for name, value in list(vars(self).items()):
            if name not in ("output_type", "_params", "_inner"):
                setattr(model, name, value.value.get() if isinstance(value, Cache) else copy.deepcopy(value))

    @classmethod
    def from_sklearn(cls, model: Any) -> Any:
        assert isinstance(model, cls._cpu_class)
        if cls._name == "IsolationForest":
            _unsupported("Conversion of a fitted sklearn IsolationForest is not supported")
        made = cls(**cls._params_from_cpu(model))
        made._inner = copy.deepcopy(model)
        made._keep()
        made.output_type = "numpy"
        return made


def _method(name: str) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._run(name, *args, **kwargs)

    call.__name__ = name
    return call


class ProxyBase:
    """What stands in for one of scikit-learn's classes."""

    _gpu_class: Any
    _cpu_class: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._cpu = self._cpu_class(*args, **kwargs)
        self._gpu: Any = None
        self._synced = False

    def _validate_params(self) -> None:
        if hasattr(self._cpu, "_parameter_constraints"):
            self._cpu._validate_params()

    def _call_gpu_method(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if args and scipy.sparse.issparse(args[0]) and "sparse" not in self._gpu.__sklearn_tags__().X_types_gpu:
            _unsupported("Sparse inputs are not supported")
        call = getattr(self, f"_gpu_{method}", None) or getattr(self._gpu, method, None)
        if call is None:
            _unsupported("Method is not implemented in cuml")
        if method in _ON_DEVICE:
            out = call(*args, **kwargs)
        else:
            with using_output_type("numpy"):
                out = call(*args, **kwargs)
        return self if out is self._gpu else out


def _gpu_fit_svc(self: Any, X: Any, y: Any, sample_weight: Any = None) -> Any:
    if len(np.unique(to_host(y))) > 2:
        _unsupported("Multiclass `y` is not supported")
    return self._gpu.fit(X, y, sample_weight=sample_weight)


def _gpu_fit_forest(self: Any, X: Any, y: Any, sample_weight: Any = None) -> Any:
    if np.isnan(to_host(X)).any():
        _unsupported("Missing values are not supported")
    return self._gpu.fit(X, y, sample_weight=sample_weight)


_OVERRIDES: dict[str, dict[str, Any]] = {
    "SVC": {"_gpu_fit": _gpu_fit_svc},
    "RandomForestClassifier": {"_gpu_fit": _gpu_fit_forest},
    "RandomForestRegressor": {"_gpu_fit": _gpu_fit_forest},
}


def _make(package: str, name: str) -> type:
    cpu = getattr(importlib.import_module(f"sklearn.{package}"), name)
    methods = {method: _method(method) for method in _METHODS if hasattr(cpu, method)}
    gpu = type(name, (GPUBase,), {"_cpu_class": cpu, "_name": name, "__module__": f"cuml.{package}", **methods})
    return type(name, (ProxyBase,), {"_cpu_class": cpu, "_gpu_class": gpu, **_OVERRIDES.get(name, {})})


for _package, _names in NAMES.items():
    _module = types.ModuleType(f"{__name__}.{_package}")
    for _name in _names:
        setattr(_module, _name, _make(_package, _name))
    sys.modules[_module.__name__] = _module
