# SPDX-License-Identifier: BSD-3-Clause
"""Proxy classes by scikit-learn class: made at their first use, always the same one."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

from sklearn.base import BaseEstimator

from gsb.errors import UnsupportedEstimatorError
from gsb.protocol.registry import estimator_paths, is_composition, is_estimator, public_path, resolve
from gsb.proxy import ProxyMixin, make_proxy

__all__ = ["all_proxies", "proxy_class", "proxy_for", "remote"]

_Estimator = TypeVar("_Estimator", bound=BaseEstimator)

_made: dict[type, type[BaseEstimator] | None] = {}
_made_lock = threading.Lock()


def proxy_for(cls: type) -> type[BaseEstimator] | None:
    """Give the proxy class of a class of scikit-learn, or None if there is none.

    Parameters
    ----------
    cls : type
        Any class.

    Returns
    -------
    type or None
        Always the same one for the same class. None for what is no public estimator, and for compositions such as
        Pipeline and GridSearchCV: they organise estimators given to them, and those are what runs on the server.
    """
    try:
        return _made[cls]
    except KeyError:
        pass
    path = public_path(cls)
    wanted = path is not None and is_estimator(cls) and not is_composition(cls)
    with _made_lock:
        if cls not in _made:
            _made[cls] = make_proxy(cls, path) if wanted and path is not None else None
        return _made[cls]


def remote(cls: type[_Estimator]) -> type[_Estimator]:
    """Give the class whose instances do the work of ``cls`` on the server.

    Parameters
    ----------
    cls : type
        A public estimator of scikit-learn, or a proxy already.

    Returns
    -------
    type
        A subclass of ``cls``, the same as ``gsb.<module>.<name>``.

    Raises
    ------
    UnsupportedEstimatorError
        ``cls`` is a composition, or not an estimator of scikit-learn.

    Examples
    --------
    >>> import gsb
    >>> from sklearn.mixture import GaussianMixture
    >>> gsb.remote(GaussianMixture).__module__
    'gsb.mixture'
    """
    if not isinstance(cls, type):
        raise UnsupportedEstimatorError(f"{cls!r} is not a class", hint="pass the class, then make an instance")
    if issubclass(cls, ProxyMixin) and "_gsb_path" in vars(cls):
        return cls
    found = proxy_for(cls)
    if found is not None:
        return found
    kind: Any = cls
    if public_path(kind) is not None and is_estimator(kind):
        raise UnsupportedEstimatorError(
            f"{cls.__name__} organises estimators given to it", hint="use it as it is, and give it proxies"
        )
    raise UnsupportedEstimatorError(
        f"{cls.__module__}.{cls.__qualname__} is not a public estimator of scikit-learn",
        hint="the server runs scikit-learn's own classes only",
    )


def proxy_class(path: str) -> type[BaseEstimator]:
    """Give the proxy class of a public path such as ``sklearn.decomposition.PCA``."""
    return remote(resolve(path))


def all_proxies() -> list[type[BaseEstimator]]:
    """Give the proxy classes of all of scikit-learn's estimators but compositions, sorted by path.

    Notes
    -----
    Imports the whole of scikit-learn at the first call: about two seconds.
    """
    found = (proxy_for(resolve(path)) for path in estimator_paths())
    return [cls for cls in found if cls is not None]
