# SPDX-License-Identifier: BSD-3-Clause
"""Which classes of scikit-learn have a name on the wire; asked of scikit-learn itself.

A class is known by its public path, such as ``sklearn.decomposition.PCA``. Estimators are called by it;
estimators, kernels and splitters travel as parameters of others by it. scikit-learn is imported by the functions,
not by this module.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import threading
from typing import Any, Final

from gsb.errors import UnsupportedEstimatorError
from gsb.protocol.estimators import METHODS, split_path

# Parts of scikit-learn that hold no estimator of their own, or read files.
_NO_ESTIMATORS: Final = frozenset(
    {"base", "conftest", "datasets", "exceptions", "experimental", "externals", "tests", "utils"}
)

# A required parameter of one of these names is the work: the estimator only organises it.
_COMPOSED_OF: Final = frozenset({"estimator", "estimators", "steps", "transformers", "transformer_list"})

# scikit-learn's packages import each other. Two threads that enter such a circle at different places do not wait for
# each other (that would be a deadlock): one of them meets a half-made module and an ImportError.
_importing = threading.Lock()


@functools.cache
def public_path(cls: Any) -> str | None:
    """Give the public path of a class of scikit-learn, or None if it has none.

    Parameters
    ----------
    cls : type
        Any class; never one of somebody else's for which a path is given.
    """
    parts = cls.__module__.split(".")
    if parts[0] != "sklearn" or cls.__name__.startswith("_"):
        return None
    private = next((index for index, part in enumerate(parts) if part.startswith("_")), len(parts))
    module = ".".join(parts[:private])
    path = f"{module}.{cls.__name__}"
    if split_path(path) is None or parts[1] in _NO_ESTIMATORS:
        return None
    return path if getattr(importlib.import_module(module), cls.__name__, None) is cls else None


@functools.cache
def parameter_path(cls: Any) -> str | None:
    """Give the public path of a class whose objects may travel as parameters, or None: see `resolve`."""
    path = public_path(cls)
    return path if path is not None and _is_known(cls, path) else None


@functools.cache
def resolve(path: str) -> type:
    """Import the class that a public path names: an estimator, a kernel or a splitter of scikit-learn.

    Raises
    ------
    UnsupportedEstimatorError
        The path names anything else.

    Notes
    -----
    Concurrency: any thread. The path may come from a hostile peer: only modules of scikit-learn that are public and
    hold estimators are imported, and only concrete classes whose own public path it is are given.
    """
    found = split_path(path)
    if found is not None and found[0].split(".")[1] not in _NO_ESTIMATORS:
        module, name = found
        with _importing:
            _enable_experimental()
            cls = _find(module, name)
            if cls is not None and _is_known(cls, path):
                return cls
    raise UnsupportedEstimatorError(
        f"{path[:100]!r} is not an estimator of scikit-learn", hint="use scikit-learn's own class for it"
    )


def is_estimator(cls: type) -> bool:
    """Tell whether a class is an estimator that can be called, not a kernel or splitter."""
    from sklearn.base import BaseEstimator

    return issubclass(cls, BaseEstimator) and any(hasattr(cls, method) for method in METHODS)


def is_composition(cls: type) -> bool:
    """Tell whether an estimator only organises the work of others that it must be given, as a Pipeline does."""
    parameters = inspect.signature(cls).parameters
    return any(
        name in _COMPOSED_OF and parameter.default is inspect.Parameter.empty for name, parameter in parameters.items()
    )


@functools.cache
def estimator_paths() -> tuple[str, ...]:
    """Give the public paths of all estimators that scikit-learn has, compositions included, sorted.

    Notes
    -----
    Imports the whole of scikit-learn at the first call: about two seconds.
    """
    from sklearn.utils import all_estimators

    with _importing:
        _enable_experimental()
        found = {public_path(cls) for _, cls in all_estimators() if is_estimator(cls)}
    return tuple(sorted(path for path in found if path is not None))


def _is_known(cls: type, path: str) -> bool:
    return public_path(cls) == path and issubclass(cls, _kinds()) and not inspect.isabstract(cls)


def _find(module: str, name: str) -> type | None:
    try:
        cls = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return None
    return cls if isinstance(cls, type) else None


@functools.cache
def _kinds() -> tuple[Any, ...]:
    from sklearn.base import BaseEstimator
    from sklearn.gaussian_process.kernels import Kernel
    from sklearn.model_selection import BaseCrossValidator, BaseShuffleSplit

    return (BaseEstimator, Kernel, BaseCrossValidator, BaseShuffleSplit)


@functools.cache
def _enable_experimental() -> None:
    from sklearn.experimental import enable_halving_search_cv, enable_iterative_imputer  # noqa: F401
