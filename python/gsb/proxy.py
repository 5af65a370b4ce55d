# SPDX-License-Identifier: BSD-3-Clause
"""Proxies: subclasses of scikit-learn's estimators whose methods run on the server.

A proxy stores parameters as scikit-learn does; the fitted state is one object, `RemoteModel`, under ``_gsb`` in the
instance's dict. `gsb._dispatch` decides where a method runs.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any, Final

import sklearn
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.utils._available_if import _AvailableIfDescriptor, available_if
from sklearn.utils._metadata_requests import _MetadataRequester

from gsb._dispatch import dispatch
from gsb._proxy_type import ProxyType
from gsb._report import Report, as_report
from gsb._state import REPORT, STATE, bring_home, full_state
from gsb.protocol import METHODS

# score() of these is a metric over predict(): cheaper here than sending y.
_LOCAL_SCORE: Final = (ClassifierMixin.score, RegressorMixin.score)

_WATCHED: Final = ("copy", "input", "memory")


class ProxyMixin:
    """What proxies add to the scikit-learn class; not to be used alone."""

    _gsb_path: str
    _gsb_base: type[BaseEstimator]
    _gsb_params: tuple[str, ...]
    # Parameters on whose value it depends whether a call can be sent.
    _gsb_watched: tuple[str, ...]
    # Whether it declares what its parameters may be.
    _gsb_validates: bool
    # Whether it hands metadata on to scorers, splitters or other estimators.
    _gsb_routes: bool
    # Everything that the constructor sets: some set more than their parameters.
    _gsb_init: frozenset[str]

    # ------------------------------------------------------------------------------ fitted attributes
    def __getattr__(self, name: str) -> Any:
        # Only reached when the usual look-up has failed.
        model = self.__dict__.get(STATE)
        if model is not None and name in model:
            return model.attr(name)
        if not name.startswith("__") and hasattr(type(self), name):
            # A property or conditional method that raised AttributeError itself: its own words, not ours.
            return object.__getattribute__(self, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def __setattr__(self, name: str, value: Any) -> None:
        model = self.__dict__.get(STATE)
        if model is not None and name in model:
            # The server's copy would no longer be this estimator.
            bring_home(self)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        model = self.__dict__.get(STATE)
        if model is not None and name in model:
            bring_home(self)
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        model = self.__dict__.get(STATE)
        names = set(super().__dir__())
        return sorted(names | model.names()) if model is not None else sorted(names)

    def __sklearn_is_fitted__(self) -> bool:
        own: Callable[[], bool] | None = getattr(super(), "__sklearn_is_fitted__", None)
        if own is not None:
            return own()
        return STATE in self.__dict__ or any(name.endswith("_") and not name.startswith("__") for name in self.__dict__)

    @property
    def gsb_report_(self) -> Report:
        """What the last call of this estimator has cost, and where it ran and why."""
        box = self.__dict__.get(REPORT)
        if not box:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute 'gsb_report_'; nothing was called yet"
            )
        return as_report(box[0])

    # ------------------------------------------------------------------------------ leaving the server
    def to_sklearn(self) -> BaseEstimator:
        """Give a plain scikit-learn estimator, fitted if this one is; it needs no server and no gsb.

        Returns
        -------
        estimator
            Independent of this one: later fits and changes do not show in it.
        """
        plain: BaseEstimator = object.__new__(self._gsb_base)
        state = full_state(self)
        params = {name: state.pop(name) for name in self._gsb_params if name in state}
        plain.__dict__.update(params)
        plain.__dict__.update(copy.deepcopy(state))
        return plain

    def __getstate__(self) -> dict[str, Any]:
        state = full_state(self)
        if "_gsb_path" in type(self).__dict__:
            # As scikit-learn writes it for its own classes, so that plain scikit-learn can read it.
            state["_sklearn_version"] = sklearn.__version__
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        version = state.pop("_sklearn_version", sklearn.__version__)
        if version != sklearn.__version__:
            warnings.warn(
                InconsistentVersionWarning(
                    estimator_name=type(self).__name__,
                    current_sklearn_version=sklearn.__version__,
                    original_sklearn_version=version,
                ),
                stacklevel=2,
            )
        self.__dict__.update(state)
        self.__dict__[REPORT] = []


# ---------------------------------------------------------------------------------- making them
def make_proxy(base: type[BaseEstimator], path: str) -> type[BaseEstimator]:
    """Make the proxy class of an estimator of scikit-learn.

    Parameters
    ----------
    base : type
        The class.
    path : str
        Its public path. The proxy's own is the same one in ``gsb``.
    """
    params = tuple(base._get_param_names())
    namespace: dict[str, Any] = {
        "__module__": f"gsb.{path.partition('.')[2].rpartition('.')[0]}",
        "__qualname__": base.__name__,
        "__doc__": f"{base.__doc__ or ''}\n    Made by gsb: the work is done by the server.\n",
        "_gsb_path": path,
        "_gsb_base": base,
        "_gsb_params": params,
        "_gsb_init": frozenset(params) | _set_by_constructor(base),
        "_gsb_watched": tuple(name for name in _WATCHED if name in params),
        "_gsb_validates": hasattr(base, "_parameter_constraints"),
        "_gsb_routes": getattr(base, "get_metadata_routing", None) is not _MetadataRequester.get_metadata_routing,
    }
    for method in sorted(METHODS):
        wrapped = _wrap(base, method)
        if wrapped is not None:
            namespace[method] = wrapped
    return ProxyType(base.__name__, (ProxyMixin, base), namespace)


def _set_by_constructor(base: type[BaseEstimator]) -> frozenset[str]:
    """Give the attributes that the constructor sets: in some estimators more than the parameters."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # deprecated classes say so to those who use them
            return frozenset(vars(base()))
    except TypeError:  # a parameter without a default
        return frozenset()


def _wrap(base: type[BaseEstimator], method: str) -> Any:
    for owner in base.__mro__:
        if method in owner.__dict__:
            found = owner.__dict__[method]
            break
    else:
        return None
    if found in _LOCAL_SCORE or isinstance(found, property):
        # Some estimators say by a property that they do not have the method of their base class.
        return None
    if isinstance(found, _AvailableIfDescriptor):
        return available_if(found.check)(_remote(found.fn, method))
    return _remote(found, method)


def _remote(original: Callable[..., Any], method: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return dispatch(self, original, method, args, kwargs)

    return call
