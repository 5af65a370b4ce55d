# SPDX-License-Identifier: BSD-3-Clause
"""Proxies: subclasses of scikit-learn's estimators whose methods run on the server.

`make_proxy` makes one from a row of the table. A proxy stores parameters as scikit-learn does; the fitted
state is one object, `RemoteModel`, under ``_gsb`` in the instance's dict. An estimator without it (never
fitted, unpickled, changed by hand, or fitted under fallback) is an ordinary scikit-learn object and its methods
run in this process.
"""

from __future__ import annotations

import copy
import functools
import importlib
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import numpy as np
import sklearn
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    RegressorMixin,
)
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.utils._available_if import _AvailableIfDescriptor, available_if
from sklearn.utils.validation import _check_feature_names, _get_feature_names

from gsb._client import Answer, Call, get_client
from gsb._config import get_config
from gsb._inputs import portable
from gsb._model import RemoteModel
from gsb._remote_exceptions import warning_class
from gsb._report import Report, local_report, remember
from gsb.errors import (
    ConnectError,
    ConnectionLostError,
    FallbackWarning,
    ModelLostError,
    ServerNotProvenError,
    UnsupportedValueError,
)
from gsb.protocol import ESTIMATORS, FIT_METHODS, METHODS, EstimatorRow, random_state_tuple

_log = logging.getLogger(__name__)

# Methods whose first argument is data of the fitted features, so that its feature names are checked.
_CHECKS_NAMES: Final = METHODS - FIT_METHODS - {"inverse_transform"}

# score() of these is a metric over predict(): cheaper here than sending y.
_LOCAL_SCORE: Final = (ClassifierMixin.score, RegressorMixin.score)

# Settings of scikit-learn that change what is computed, rather than how it is shown.
_FORWARDED: Final = {
    "assume_finite": False,
    "working_memory": 1024,
    "pairwise_dist_chunk_size": 256,
    "enable_cython_pairwise_dist": True,
    "skip_parameter_validation": False,
    "sparse_interface": "spmatrix",
}

# Modules whose frames stand between a proxy and the line that called it.
_NOT_THE_USERS: Final = ("gsb.", "sklearn.utils._set_output", "sklearn.utils._available_if", "sklearn.base")

_STATE: Final = "_gsb"
_REPORT: Final = "_gsb_report"

_running_here = threading.local()


@contextmanager
def _here(estimator: Any) -> Iterator[None]:
    """Within the block, methods of this very estimator, called by this thread, run in this process."""
    active: set[int] = _running_here.__dict__.setdefault("active", set())
    key = id(estimator)
    nested = key in active
    active.add(key)
    try:
        yield
    finally:
        if not nested:
            active.discard(key)


def _is_here(estimator: Any) -> bool:
    active = getattr(_running_here, "active", None)
    return active is not None and id(estimator) in active


class ProxyMixin:
    """What proxies add to the scikit-learn class; not to be used alone."""

    _gsb_row: EstimatorRow
    _gsb_base: type[BaseEstimator]
    _gsb_params: tuple[str, ...]
    # Everything that the constructor sets: some set more than their parameters.
    _gsb_init: frozenset[str]

    # ------------------------------------------------------------------------------ fitted attributes
    def __getattr__(self, name: str) -> Any:
        # Only reached when the usual look-up has failed.
        model = self.__dict__.get(_STATE)
        if model is not None and name in model:
            return model.attr(name)
        if not name.startswith("__") and hasattr(type(self), name):
            # A property or conditional method that raised AttributeError itself: its own words, not ours.
            return object.__getattribute__(self, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def __setattr__(self, name: str, value: Any) -> None:
        model = self.__dict__.get(_STATE)
        if model is not None and name in model:
            # The server's copy would no longer be this estimator.
            _bring_home(self)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        model = self.__dict__.get(_STATE)
        if model is not None and name in model:
            _bring_home(self)
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        model = self.__dict__.get(_STATE)
        names = set(super().__dir__())
        return sorted(names | model.names()) if model is not None else sorted(names)

    def __sklearn_is_fitted__(self) -> bool:
        return _STATE in self.__dict__ or any(
            name.endswith("_") and not name.startswith("__") for name in self.__dict__
        )

    @property
    def gsb_report_(self) -> Report:
        """What the last call of this estimator has cost, and where it ran and why."""
        box = self.__dict__.get(_REPORT)
        if not box:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute 'gsb_report_'; nothing was called yet"
            )
        return cast(Report, box[0])

    # ------------------------------------------------------------------------------ leaving the server
    def to_sklearn(self) -> BaseEstimator:
        """Give a plain scikit-learn estimator, fitted if this one is; it needs no server and no gsb.

        Returns
        -------
        estimator
            Independent of this one: later fits and changes do not show in it.
        """
        plain: BaseEstimator = object.__new__(self._gsb_base)
        state = _full_state(self)
        params = {name: state.pop(name) for name in self._gsb_params if name in state}
        plain.__dict__.update(params)
        plain.__dict__.update(copy.deepcopy(state))
        return plain

    def __getstate__(self) -> dict[str, Any]:
        return {**_full_state(self), "_gsb_sklearn_version": sklearn.__version__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        version = state.pop("_gsb_sklearn_version", sklearn.__version__)
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
        self.__dict__[_REPORT] = []


def _full_state(estimator: Any) -> dict[str, Any]:
    """Give the dict that a scikit-learn estimator in the same condition would have."""
    state = dict(estimator.__dict__)
    model = state.pop(_STATE, None)
    state.pop(_REPORT, None)
    if model is not None:
        state = {**model.attributes(), **state}
    return state


def _bring_home(estimator: Any) -> None:
    """Fetch the fitted state and let go of the server's copy."""
    state = _full_state(estimator)
    estimator.__dict__.pop(_STATE, None)
    estimator.__dict__.update(state)


def _drop_fitted(estimator: Any, names: set[str]) -> None:
    """Remove what an earlier fit in this process has left."""
    for name in list(estimator.__dict__):
        if name in estimator._gsb_init or name in (_STATE, _REPORT):
            continue
        if name in names or (name.endswith("_") and not name.startswith("_")):
            del estimator.__dict__[name]


# ---------------------------------------------------------------------------------- calling
def _dispatch(
    estimator: Any, base: Callable[..., Any], method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if _is_here(estimator):
        return base(estimator, *args, **kwargs)
    if "_gsb_row" not in type(estimator).__dict__:
        # A user's subclass may override what the method calls inside; the server would not know.
        return _run_here(estimator, base, method, args, kwargs, "a user's subclass runs in this process")
    started = time.perf_counter()
    if method in FIT_METHODS:
        return _fit(estimator, base, method, args, kwargs, started)
    model: RemoteModel | None = estimator.__dict__.get(_STATE)
    if model is None:
        return _run_here(estimator, base, method, args, kwargs, "the fitted state is in this process")
    return _use(estimator, model, base, method, args, kwargs, started)


def _run_here(
    estimator: Any,
    base: Callable[..., Any],
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    reason: str,
) -> Any:
    if _STATE in estimator.__dict__:
        if method in FIT_METHODS and not _continues(estimator, method):
            names = estimator.__dict__.pop(_STATE).names()
            _drop_fitted(estimator, names)
        else:
            _bring_home(estimator)
    started = time.perf_counter()
    with _here(estimator):
        result = base(estimator, *args, **kwargs)
    _log.debug("%s.%s ran in this process: %s", type(estimator).__name__, method, reason)
    _note(estimator, local_report(estimator._gsb_row.path, method, reason, time.perf_counter() - started))
    return result


def _fall_back(
    estimator: Any,
    base: Callable[..., Any],
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    error: Exception,
) -> Any:
    reason = f"no server: {error.args[0] if error.args else error}"
    text = f"{type(estimator).__name__}.{method} runs in this process: {reason}"
    warnings.warn(text, FallbackWarning, stacklevel=_users_level())
    return _run_here(estimator, base, method, args, kwargs, reason)


def _continues(estimator: Any, method: str) -> bool:
    return method == "partial_fit" or bool(estimator.__dict__.get("warm_start"))


def _fit(
    estimator: Any,
    base: Callable[..., Any],
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    started: float,
) -> Any:
    model: RemoteModel | None = estimator.__dict__.get(_STATE)
    continues = _continues(estimator, method)
    if model is None and continues and estimator.__sklearn_is_fitted__():
        return _run_here(estimator, base, method, args, kwargs, "it goes on from a state in this process")
    settings = sklearn.get_config()
    if not settings["skip_parameter_validation"] and not (method == "partial_fit" and model is not None):
        estimator._validate_params()
    client = get_client()
    params = {name: estimator.__dict__[name] for name in estimator._gsb_params}
    try:
        names = _names_of(estimator, args, kwargs, reset=not (method == "partial_fit" and model is not None))
        call = Call(
            estimator=estimator._gsb_row.path,
            method=method,
            args=tuple(portable(value) for value in args),
            kwargs={name: portable(value) for name, value in kwargs.items()},
            params=_with_global_random_state(params),
            model=model.id if model is not None and continues else None,
            config=_forwarded(settings),
            started=started,
        )
        answer = client.call(call)
    except UnsupportedValueError as error:
        return _run_here(estimator, base, method, args, kwargs, error.message)
    except ServerNotProvenError:
        raise
    except (ConnectError, ConnectionLostError) as error:
        if get_config().fallback == "local":
            return _fall_back(estimator, base, method, args, kwargs, error)
        raise
    except ModelLostError:
        # Only warm_start and partial_fit send a model.
        if model is None or not model.complete:
            raise
        return _run_here(estimator, base, method, args, kwargs, "the server lost the model; it goes on from our copy")
    _advance_random_states(params, answer.random_state)
    if model is not None and answer.model == model.id:
        assert answer.summary is not None
        model.update(answer.summary)
        model.params = params
    else:
        model = RemoteModel(client, answer, params, estimator._gsb_init)
    _drop_fitted(estimator, model.names())
    estimator.__dict__[_STATE] = model
    if names is not None:
        estimator.__dict__["feature_names_in_"] = names
    if get_config().keep_state:
        model.attributes()
    _warn(answer)
    result = estimator if method in ("fit", "partial_fit") else answer.result
    _note(estimator, answer.report, started)
    return result


def _use(
    estimator: Any,
    model: RemoteModel,
    base: Callable[..., Any],
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    started: float,
) -> Any:
    if method in _CHECKS_NAMES:
        _names_of(estimator, args, kwargs, reset=False)
    known = model.params
    present = estimator.__dict__
    changed = any(present[name] is not known[name] for name in known)
    try:
        call = Call(
            estimator=estimator._gsb_row.path,
            method=method,
            args=tuple([portable(value) for value in args]),
            kwargs={name: portable(value) for name, value in kwargs.items()},
            params={name: present[name] for name in known} if changed else None,
            model=model.id,
            config=_forwarded(sklearn.get_config()),
            started=started,
        )
        try:
            answer = model.client.call(call)
        except ModelLostError as error:
            call.model = _send_back(estimator, model, error)
            answer = model.client.call(call)
    except UnsupportedValueError as error:
        return _run_here(estimator, base, method, args, kwargs, error.message)
    except ServerNotProvenError:
        raise
    except (ConnectError, ConnectionLostError, ModelLostError) as error:
        if get_config().fallback == "local" and model.complete:
            return _fall_back(estimator, base, method, args, kwargs, error)
        if get_config().fallback == "local":
            raise ModelLostError("the server is gone, and with it the fitted model") from error
        raise
    if changed:
        model.params = {name: present[name] for name in known}
    if answer.summary is not None:
        model.update(answer.summary)
    if answer.warnings:
        _warn(answer)
    _note(estimator, answer.report, started)
    return answer.result


def _send_back(estimator: Any, model: RemoteModel, error: ModelLostError) -> str:
    """Give a server that has lost the model our copy of it; returns the new id."""
    if not (model.complete and estimator._gsb_row.reupload):
        raise error
    try:
        params = {name: estimator.__dict__[name] for name in estimator._gsb_params}
        new, session = model.client.upload(estimator._gsb_row.path, params, model.attributes())
    except UnsupportedValueError:
        raise error from None
    _log.info("sent the model of %s back to the server", type(estimator).__name__)
    model.replaced(new, session)
    return new


def _names_of(estimator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, reset: bool) -> Any:
    X = args[0] if args else kwargs.get("X")
    if type(X) is np.ndarray and "feature_names_in_" not in estimator.__dict__:
        return None
    if X is None:
        return None
    if reset:
        return _get_feature_names(X)
    _check_feature_names(estimator, X, reset=False)
    return estimator.__dict__.get("feature_names_in_")


def _forwarded(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name, default in _FORWARDED.items() if settings.get(name, default) != default}


def _with_global_random_state(params: dict[str, Any]) -> dict[str, Any]:
    """Let ``random_state=None`` mean this process's global generator, as it does locally."""
    if "random_state" in params and params["random_state"] is None:
        return {**params, "random_state": np.random.mtrand._rand}
    return params


def _advance_random_states(params: dict[str, Any], states: dict[str, Any]) -> None:
    for name, wire in states.items():
        generator = params.get(name)
        if name == "random_state" and generator is None:
            generator = np.random.mtrand._rand
        if isinstance(generator, np.random.RandomState):
            generator.set_state(random_state_tuple(wire))


def _warn(answer: Answer) -> None:
    for category, message in answer.warnings:
        warnings.warn(message, warning_class(category), stacklevel=_users_level())


def _users_level() -> int:
    """Give the `stacklevel` of the user's line: above our frames and scikit-learn's wrappers of them."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_NOT_THE_USERS):
        level, frame = level + 1, frame.f_back
    return level


def _note(estimator: Any, report: Report, started: float | None = None) -> None:
    if started is not None:
        # What happened after the decoding is part of it, and of the total.
        extra = time.perf_counter() - started - report.total
        report.stages["client_decode"] += extra
        object.__setattr__(report, "total", report.total + extra)
    remember(report)
    box = estimator.__dict__.get(_REPORT)
    if box is None:
        estimator.__dict__[_REPORT] = [report]
    else:
        # In place: a predict must leave the instance's dict as it was.
        box[:] = [report]


# ---------------------------------------------------------------------------------- making them
def make_proxy(row: EstimatorRow) -> type[BaseEstimator]:
    """Make the proxy class of one row of the table."""
    base: type[BaseEstimator] = getattr(importlib.import_module(row.module), row.name)
    module = f"gsb.{row.module.partition('.')[2]}"
    namespace: dict[str, Any] = {
        "__module__": module,
        "__qualname__": row.name,
        "__doc__": f"{base.__doc__ or ''}\n    Made by gsb: the work is done by the server.\n",
        "_gsb_row": row,
        "_gsb_base": base,
        "_gsb_params": tuple(base._get_param_names()),
        "_gsb_init": frozenset(vars(base())),
    }
    for method in sorted(METHODS):
        wrapped = _wrap(base, method)
        if wrapped is not None:
            namespace[method] = wrapped
    return type(row.name, (ProxyMixin, base), namespace)


def _wrap(base: type[BaseEstimator], method: str) -> Any:
    for owner in base.__mro__:
        if method in owner.__dict__:
            found = owner.__dict__[method]
            break
    else:
        return None
    if found in _LOCAL_SCORE:
        return None
    if isinstance(found, _AvailableIfDescriptor):
        return available_if(found.check)(_remote(found.fn, method))
    return _remote(found, method)


def _remote(original: Callable[..., Any], method: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _dispatch(self, original, method, args, kwargs)

    return call


_made: dict[str, type[BaseEstimator]] = {}
_made_lock = threading.Lock()


def proxy_class(path: str) -> type[BaseEstimator]:
    """Give the proxy class of an estimator, such as ``sklearn.decomposition.PCA``; always the same one."""
    with _made_lock:
        if path not in _made:
            _made[path] = make_proxy(ESTIMATORS[path])
        return _made[path]


def all_proxies() -> list[type[BaseEstimator]]:
    """Give all proxy classes."""
    return [proxy_class(path) for path in ESTIMATORS]
