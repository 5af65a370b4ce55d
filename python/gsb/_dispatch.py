# SPDX-License-Identifier: BSD-3-Clause
"""Where a method of a proxy runs: on the server, or in this process with the reason noted.

An estimator whose fitted state is not a `RemoteModel` (never fitted, unpickled, changed by hand, or fitted here) is
an ordinary scikit-learn object: its methods run in this process, except that a new fit goes to the server.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import sklearn
from sklearn.utils.validation import _check_feature_names, _get_feature_names

from gsb._config import get_config
from gsb._inputs import portable
from gsb._randomness import advance, with_global_generator
from gsb._remote_exceptions import said_before, warning_class
from gsb._report import Report, remember
from gsb._state import REPORT, STATE, bring_home, drop_fitted
from gsb._stay import is_small, reason_to_stay
from gsb.errors import (
    ConnectError,
    ConnectionLostError,
    FallbackWarning,
    ModelLostError,
    ServerNotProvenError,
    UnsupportedValueError,
)
from gsb.protocol import FIT_METHODS, METHODS, REUPLOAD

if TYPE_CHECKING:
    # Loaded when the first call is sent: a program whose calls are all small does without.
    from gsb._client import Answer, Call, Client
    from gsb._model import RemoteModel

_log = logging.getLogger(__name__)

Method = Callable[..., Any]

# Methods whose first argument is data of the fitted features, so that its feature names are checked.
_CHECKS_NAMES: Final = METHODS - FIT_METHODS - {"inverse_transform"}

_BY_HAND: Final = "a fitted attribute was written to in this process"

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


class _RunningHere(threading.local):
    """The estimators, by id, of which a method runs in this process, in this thread."""

    def __init__(self) -> None:
        self.estimators: set[int] = set()


_running_here = _RunningHere()


def dispatch(estimator: Any, base: Method, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry out a method of a proxy, there or here.

    Parameters
    ----------
    estimator
        The proxy.
    base : callable
        scikit-learn's own implementation.
    method : str
        Its name.
    """
    # What the methods of this very estimator call of it, in this thread, runs where they do.
    if id(estimator) in _running_here.estimators:
        return base(estimator, *args, **kwargs)
    model: RemoteModel | None = estimator.__dict__.get(STATE)
    fits = method in FIT_METHODS
    if model is None and not fits:
        return run_here(estimator, base, method, args, kwargs, "the fitted state is in this process")
    limit = get_config().local_nbytes
    if limit and is_small(args, kwargs, limit):
        reason = f"its data is smaller than {limit} bytes"
        if model is None or (fits and not _continues(estimator, method)):
            return run_here(estimator, base, method, args, kwargs, reason)
        if not fits:
            return _use_twin(estimator, model, method, args, kwargs, reason)
    if "_gsb_path" not in type(estimator).__dict__:
        # A user's subclass may override what the method calls inside; the server would not know.
        return run_here(estimator, base, method, args, kwargs, "a user's subclass runs in this process")
    started = time.perf_counter()
    settings = sklearn.get_config()
    reason_here = reason_to_stay(estimator, args, kwargs, settings)
    if reason_here is not None:
        return run_here(estimator, base, method, args, kwargs, reason_here)
    if fits:
        return _fit(estimator, model, base, method, args, kwargs, settings, started)
    assert model is not None
    if model.changed_by_hand():
        return run_here(estimator, base, method, args, kwargs, _BY_HAND)
    return _use(estimator, model, base, method, args, kwargs, settings, started)


# ---------------------------------------------------------------------------------- here
def run_here(
    estimator: Any, base: Method, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str
) -> Any:
    """Carry out a method in this process; the fitted state comes home first, if it is needed."""
    own = estimator.__dict__
    if STATE in own:
        if method in FIT_METHODS and not _continues(estimator, method):
            names = own.pop(STATE).names()
            drop_fitted(estimator, names)
        else:
            bring_home(estimator)
    active, key = _running_here.estimators, id(estimator)
    active.add(key)
    started = time.perf_counter()
    try:
        result = base(estimator, *args, **kwargs)
    finally:
        active.discard(key)
    _note(estimator, (estimator._gsb_path, method, reason, time.perf_counter() - started))
    return result


def _use_twin(
    estimator: Any, model: RemoteModel, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str
) -> Any:
    """Carry out a method on small data with a plain copy of the server's model."""
    try:
        twin = model.twin(estimator.to_sklearn)
    except (ConnectError, ConnectionLostError, ModelLostError) as error:
        if get_config().fallback == "error":
            raise
        raise ModelLostError("the server is gone, and with it the fitted model") from error
    own, started = estimator.__dict__, time.perf_counter()
    for name in estimator._gsb_params:
        if vars(twin)[name] is not own[name]:
            vars(twin)[name] = own[name]
    result = getattr(twin, method)(*args, **kwargs)
    _note(estimator, (estimator._gsb_path, method, reason, time.perf_counter() - started))
    return result


def _fall_back(
    estimator: Any, base: Method, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception
) -> Any:
    reason = f"no server: {error.args[0] if error.args else error}"
    if get_config().fallback == "quiet":
        _absence.note(reason)
        if _absence.is_news():
            text = f"estimators run in this process: {reason}"
            warnings.warn(text, FallbackWarning, stacklevel=_users_level())
    else:
        text = f"{type(estimator).__name__}.{method} runs in this process: {reason}"
        warnings.warn(text, FallbackWarning, stacklevel=_users_level())
    return run_here(estimator, base, method, args, kwargs, reason)


class _Absence:
    """What is known, with ``fallback="quiet"``, of a server that did not answer.

    An address that does not answer takes the whole `connect_timeout` to say so: not to be asked before each call.
    """

    _SECONDS: Final = 10.0

    def __init__(self) -> None:
        self._said = False
        self._settings: Any = None
        self._until = 0.0
        self._reason = ""

    def is_news(self) -> bool:
        """Tell whether nobody was warned yet; somebody is now."""
        said, self._said = self._said, True
        return not said

    def note(self, reason: str) -> None:
        """Remember that the server of the settings in force did not answer just now."""
        self._reason, self._settings, self._until = reason, get_config(), time.monotonic() + self._SECONDS

    def reason(self) -> str | None:
        """Say why a call need not be tried, or None."""
        if self._settings is None or self._settings is not get_config() or time.monotonic() >= self._until:
            return None
        return self._reason


_absence = _Absence()


def _continues(estimator: Any, method: str) -> bool:
    return method == "partial_fit" or bool(estimator.__dict__.get("warm_start"))


# ---------------------------------------------------------------------------------- there
def _fit(
    estimator: Any,
    model: RemoteModel | None,
    base: Method,
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    settings: dict[str, Any],
    started: float,
) -> Any:
    continues = _continues(estimator, method)
    if model is not None and continues and model.changed_by_hand():
        return run_here(estimator, base, method, args, kwargs, _BY_HAND)
    if model is None and continues and estimator.__sklearn_is_fitted__():
        return run_here(estimator, base, method, args, kwargs, "it goes on from a state in this process")
    goes_on = method == "partial_fit" and model is not None
    if model is None and (absent := _absence.reason()) is not None:
        return run_here(estimator, base, method, args, kwargs, absent)
    if not settings["skip_parameter_validation"] and not goes_on and estimator._gsb_validates:
        estimator._validate_params()
    own = estimator.__dict__
    try:
        params = {name: own[name] for name in estimator._gsb_params}
    except KeyError:
        return run_here(estimator, base, method, args, kwargs, "a parameter is kept under another name")
    from gsb._client import get_client
    from gsb._model import RemoteModel

    try:
        names = _names_of(estimator, args, kwargs, reset=not goes_on)
        client = get_client()
        goes_on_from = model.id if model is not None and continues else None
        sent = with_global_generator(params)
        answer = _ask(client, _call(estimator, method, args, kwargs, sent, goes_on_from, settings, started))
    except UnsupportedValueError as error:
        return run_here(estimator, base, method, args, kwargs, error.message)
    except ServerNotProvenError:
        raise
    except (ConnectError, ConnectionLostError) as error:
        if get_config().fallback != "error":
            return _fall_back(estimator, base, method, args, kwargs, error)
        raise
    except ModelLostError:
        # Only warm_start and partial_fit send a model.
        if model is None or not model.complete:
            raise
        return run_here(estimator, base, method, args, kwargs, "the server lost the model; it goes on from our copy")
    advance(params, answer.random_state)
    if model is not None and answer.model == model.id:
        assert answer.summary is not None
        model.update(answer.summary)
        model.params = params
    else:
        model = RemoteModel(client, answer, params, estimator._gsb_init)
    drop_fitted(estimator, model.names())
    own[STATE] = model
    if names is not None:
        own["feature_names_in_"] = names
    if get_config().keep_state:
        model.attributes()
    _repeat(answer.output, answer.warnings)
    result = estimator if method in ("fit", "partial_fit") else answer.result
    _note_answer(estimator, answer.report, started)
    return result


def _use(
    estimator: Any,
    model: RemoteModel,
    base: Method,
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    settings: dict[str, Any],
    started: float,
) -> Any:
    if method in _CHECKS_NAMES:
        _names_of(estimator, args, kwargs, reset=False)
    known = model.params
    present = estimator.__dict__
    now = {name: present[name] for name in known}
    changed = any(now[name] is not value for name, value in known.items())
    draws = estimator._gsb_path in _DRAWS_IN_USE
    params = with_global_generator(now) if draws else now if changed else None
    try:
        call = _call(estimator, method, args, kwargs, params, model.id, settings, started)
        try:
            answer = _ask(model.client, call)
        except ModelLostError as error:
            call.model = _send_back(estimator, model, error)
            answer = _ask(model.client, call)
    except UnsupportedValueError as error:
        return run_here(estimator, base, method, args, kwargs, error.message)
    except ServerNotProvenError:
        raise
    except (ConnectError, ConnectionLostError, ModelLostError) as error:
        if get_config().fallback != "error" and model.complete:
            return _fall_back(estimator, base, method, args, kwargs, error)
        if get_config().fallback != "error":
            raise ModelLostError("the server is gone, and with it the fitted model") from error
        raise
    if draws:
        advance(now, answer.random_state)
    if changed:
        model.params = now
    if answer.summary is not None:
        model.update(answer.summary)
    if answer.warnings or answer.output:
        _repeat(answer.output, answer.warnings)
    _note_answer(estimator, answer.report, started)
    return answer.result


# Estimators that draw random numbers after the fit too. A test over all estimators finds what is missing here.
_DRAWS_IN_USE: Final = frozenset({"sklearn.neural_network.BernoulliRBM"})


def _send_back(estimator: Any, model: RemoteModel, error: ModelLostError) -> str:
    """Give a server that has lost the model our copy of it; returns the new id."""
    if not (model.complete and estimator._gsb_path in REUPLOAD):
        raise error
    try:
        params = {name: estimator.__dict__[name] for name in estimator._gsb_params}
        new, session = model.client.upload(estimator._gsb_path, params, model.attributes())
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
    if not estimator.__sklearn_tags__().input_tags.two_d_array:
        return None
    if reset:
        return _get_feature_names(X)
    _check_feature_names(estimator, X, reset=False)
    return estimator.__dict__.get("feature_names_in_")


def _forwarded(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name, default in _FORWARDED.items() if settings.get(name, default) != default}


def _call(
    estimator: Any,
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    params: dict[str, Any] | None,
    model: str | None,
    settings: dict[str, Any],
    started: float,
) -> Call:
    from gsb._client import Call

    return Call(
        estimator=estimator._gsb_path,
        method=method,
        args=tuple([portable(value) for value in args]),
        kwargs={name: portable(value) for name, value in kwargs.items()},
        params=params,
        model=model,
        config=_forwarded(settings),
        started=started,
    )


def _ask(client: Client, call: Call) -> Answer:
    try:
        return client.call(call)
    except Exception as error:
        if (said := said_before(error)) is not None:
            _repeat(*said)
        raise


# ---------------------------------------------------------------------------------- afterwards
def _repeat(output: list[tuple[str, str]], warned: list[tuple[str, str]]) -> None:
    """Print and warn in this process as the estimator did in the other."""
    for stream, text in output:
        print(text, end="", file=sys.stderr if stream == "stderr" else sys.stdout)
    for category, message in warned:
        warnings.warn(message, warning_class(category), stacklevel=_users_level())


def _users_level() -> int:
    """Give the `stacklevel` of the user's line: above our frames and scikit-learn's wrappers of them."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_NOT_THE_USERS):
        level, frame = level + 1, frame.f_back
    return level


def _note_answer(estimator: Any, report: Report, started: float) -> None:
    # What happened after the decoding is part of it, and of the total.
    extra = time.perf_counter() - started - report.total
    report.stages["client_decode"] += extra
    object.__setattr__(report, "total", report.total + extra)
    _note(estimator, report)


def _note(estimator: Any, call: Any) -> None:
    remember(call)
    box = estimator.__dict__.get(REPORT)
    if box is None:
        estimator.__dict__[REPORT] = [call]
    else:
        # In place: a predict must leave the instance's dict as it was.
        box[:] = [call]
