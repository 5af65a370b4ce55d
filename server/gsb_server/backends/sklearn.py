# SPDX-License-Identifier: BSD-3-Clause
"""The backend that is always there: scikit-learn on the CPU.

Three things need care, because several jobs run at once on arrays that belong to somebody else:

* **Writes.** Inputs are read-only views. Where an estimator may write (``copy=False`` and its relatives,
  or calls that change a model in place and so could not be repeated) it gets private copies; where it
  turns out to need a writable buffer although it does not write, the job is done again with copies.
* **Retention.** A fitted estimator may keep its input (nearest neighbours do). Such arrays are replaced by
  copies after the fit; otherwise the model would keep the client's slot for ever.
* **Thread-locals.** scikit-learn's configuration, joblib's backend and the warnings of a job are set in
  the thread that runs it.
"""

from __future__ import annotations

import contextvars
import copy
import functools
import inspect
import logging
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import joblib
import numpy as np
import sklearn
from gsb.errors import UnsupportedValueError
from gsb.protocol.registry import resolve as estimator_class
from joblib._parallel_backends import ThreadingBackend
from numpy.lib.array_utils import byte_bounds

from ..output_capture import collect_output
from ..warning_capture import collect_warnings
from .base import CapturedWarning, Job, Outcome, Probe, note_said

__all__ = ["SklearnBackend", "estimator_class", "may_write", "parameter_names", "params_differ"]

log = logging.getLogger("gsb_server")

_COPY_FLAGS = ("copy", "copy_X", "copy_x", "copy_Y")
# Estimators that ask for a writable array and then, with the flag set (its default), write to a copy of their
# own. Given a read-only view they would make one more copy first: 500 MB of it, for nothing. They get a
# view that says it is writable; tests compare the slot's bytes before and after.
_COPIES_ITSELF = frozenset({("sklearn.decomposition.PCA", "fit"), ("sklearn.decomposition.PCA", "fit_transform")})
_IN_PLACE = frozenset({"partial_fit"})


class _ContextThreads(ThreadingBackend):  # type: ignore[misc]
    """joblib's threads, started in a copy of the job's context, so that their warnings are the job's.

    Processes are never started for ``n_jobs``: they would inherit nothing useful and copy everything.
    """

    def submit(self, func: Callable[[], Any], callback: Any = None) -> Any:
        context = contextvars.copy_context()
        return super().submit(functools.partial(context.run, func), callback)


@functools.cache
def parameter_names(cls: Any) -> frozenset[str]:
    """Return the names of a class's constructor parameters."""
    return frozenset(inspect.signature(cls).parameters)


@functools.cache
def _positional(cls: Any, method: str) -> tuple[str, ...]:
    return tuple(inspect.signature(getattr(cls, method)).parameters)[1:]


# Types that neither are nor hold an array. A list of scalars is the common case, and can be long.
_SCALARS = frozenset({bool, int, float, complex, str, bytes, type(None)})


def _arrays(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _arrays(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            if type(item) not in _SCALARS:
                yield from _arrays(item)
    elif type(value).__module__.startswith("scipy.sparse"):
        for name in ("data", "indices", "indptr", "row", "col", "offsets"):
            part = getattr(value, name, None)
            if isinstance(part, np.ndarray):
                yield part


def _private(value: Any) -> Any:
    """Copy every array in ``value``; the layout stays."""
    if isinstance(value, np.ndarray):
        return value.copy(order="K")
    if isinstance(value, dict):
        return {key: _private(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and any(type(item) not in _SCALARS for item in value):
        return type(value)(_private(item) for item in value)
    if type(value).__module__.startswith("scipy.sparse"):
        return value.copy()
    return value


class _Borrowed:
    """Array protocol of somebody else's memory; keeps it alive."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def _writable_view(array: np.ndarray) -> np.ndarray:
    """Return a view of the same memory whose flag says that it may be written to. It must not be."""
    return array if array.flags.writeable else np.asarray(_Borrowed(array))


def may_write(cls: type, job: Job, params: dict[str, Any]) -> bool:
    """Whether parameters or arguments allow the call to write into its input."""
    for flag in _COPY_FLAGS:
        if params.get(flag, True) is False or job.kwargs.get(flag, True) is False:
            return True
    if any(value is False for value in job.args):
        names = _positional(cls, job.method)
        return any(name in _COPY_FLAGS and value is False for name, value in zip(names, job.args, strict=False))
    return False


def _detach(estimator: Any, inputs: list[np.ndarray]) -> tuple[Any, int]:
    """Return the estimator, rebuilt if it holds memory of ``inputs``, and the bytes it holds.

    Pickling with out-of-band buffers shows every contiguous buffer an estimator reaches without copying
    any, those inside Cython objects too.
    """
    buffers: list[pickle.PickleBuffer] = []
    try:
        stream = pickle.dumps(estimator, protocol=5, buffer_callback=buffers.append)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UnsupportedValueError(f"the fitted {type(estimator).__name__} cannot be pickled: {error}") from None
    nbytes = len(stream)
    ranges = [byte_bounds(array) for array in inputs if array.nbytes]
    kept: list[Any] = []
    borrowed = False
    for buffer in buffers:
        with buffer.raw() as raw:
            nbytes += raw.nbytes
            if raw.nbytes:
                start = np.frombuffer(raw, np.uint8).__array_interface__["data"][0]
                if any(start < high and low < start + raw.nbytes for low, high in ranges):
                    borrowed = True
                    kept.append(bytearray(raw))
                    continue
        kept.append(buffer)
    if borrowed:
        estimator = pickle.loads(stream, buffers=kept)
    return estimator, nbytes


class SklearnBackend:
    """Runs jobs with scikit-learn in the calling thread."""

    name = "sklearn"
    accelerated = False
    several = False
    max_workers: int | None = None

    def __init__(self) -> None:
        self._local = threading.local()
        # (class, method) that needed a writable buffer once: the next job starts with copies.
        self._needs_copies: set[tuple[type, str]] = set()

    def probe(self) -> Probe:
        """Return what is there; scikit-learn always is."""
        return Probe(
            available=True,
            reason="scikit-learn on the CPU",
            device=f"cpu ({joblib.cpu_count()} threads)",
            versions={"scikit-learn": sklearn.__version__, "numpy": np.__version__},
        )

    def run(self, job: Job) -> Outcome:
        """Do the job."""
        cls = estimator_class(job.estimator)
        self._prepare_thread()
        in_place = job.model is not None and (job.method in _IN_PLACE or bool(job.params.get("warm_start")))
        args, kwargs, params = job.args, job.kwargs, job.params
        inputs = [*_arrays(args), *_arrays(kwargs), *_arrays(params)]
        key = (cls, job.method)
        if inputs and (in_place or key in self._needs_copies or may_write(cls, job, params)):
            args, kwargs, params, inputs = _private(args), _private(kwargs), _private(params), []
        elif args and isinstance(args[0], np.ndarray) and (job.estimator, job.method) in _COPIES_ITSELF:
            # ``may_write`` has made sure that the flag is not off.
            args = (_writable_view(args[0]), *args[1:])
        before = None if job.model is None else vars(job.model).copy()
        config: AbstractContextManager[Any] = sklearn.config_context(**job.config) if job.config else nullcontext()
        with collect_warnings() as caught, collect_output() as output, config:
            try:
                estimator, result, started, seconds = self._call(cls, job, params, args, kwargs)
            except ValueError as error:
                if not inputs or "read-only" not in str(error):
                    note_said(error, _captured(caught), output.parts)
                    raise
                log.info(
                    "%s.%s needs writable buffers; it gets private copies from now on",
                    cls.__name__,
                    job.method,
                )
                self._needs_copies.add(key)
                caught.clear()
                output.parts.clear()
                args, kwargs, params, inputs = _private(args), _private(kwargs), _private(params), []
                estimator, result, started, seconds = self._call(cls, job, params, args, kwargs)
            except Exception as error:
                note_said(error, _captured(caught), output.parts)
                raise
        is_self = result is estimator
        if is_self:
            result = None
        random_states = {
            name: getattr(estimator, name) for name, value in params.items() if isinstance(value, np.random.RandomState)
        }
        changed = before is None or "fit" in job.method or _changed(before, vars(estimator))
        nbytes = 0
        if changed:
            estimator, nbytes = _detach(estimator, inputs)
        return Outcome(
            result=result,
            is_self=is_self,
            model=estimator,
            nbytes=nbytes,
            state_changed=changed,
            attributes=self.attributes(estimator) if changed else {},
            random_states=random_states,
            started=started,
            compute_seconds=seconds,
            warnings=_captured(caught),
            output=output.parts,
        )

    def _call(
        self, cls: type, job: Job, params: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any, float, float]:
        estimator = job.model
        if estimator is None:
            # A RandomState would be advanced by a first attempt; each attempt starts from its own copy.
            fresh = {
                name: copy.deepcopy(value) if isinstance(value, np.random.RandomState) else value
                for name, value in params.items()
            }
            # What the constructor warns of, the client's own object has warned of already.
            with collect_warnings():
                estimator = cls(**fresh)
        elif params and params_differ(estimator, params):
            # The caller changed parameters since the fit. Other threads may be using the model as it was.
            if "fit" not in job.method:
                estimator = copy.copy(estimator)
            estimator.set_params(**params)
        method = getattr(estimator, job.method)
        start = time.perf_counter()
        result = method(*args, **kwargs)
        return estimator, result, start, time.perf_counter() - start

    def _prepare_thread(self) -> None:
        # Set once per thread; entering a context per call would cost more than a small predict.
        if not getattr(self._local, "ready", False):
            joblib.parallel_config(_ContextThreads())
            self._local.ready = True

    def attributes(self, model: Any) -> dict[str, Any]:
        """Return everything but the parameters, private attributes included."""
        cls: Any = type(model)
        params = parameter_names(cls)
        return {name: value for name, value in vars(model).items() if name not in params}

    def export(self, model: Any) -> Any:
        """Return the estimator itself: it is the plain one."""
        return model

    def load(self, estimator: str, params: dict[str, Any], state: dict[str, Any]) -> tuple[Any, int]:
        """Build an estimator and set its fitted attributes, all of them plain values.

        Raises
        ------
        ValueError
            A name is not one a fit would set, or the shapes do not belong together.
        """
        cls = estimator_class(estimator)
        instance = cls(**_private(params))
        for name, value in _private(state).items():
            if name.startswith("__") or not name.isidentifier() or hasattr(cls, name):
                raise ValueError(f"{cls.__name__}.{name[:100]} is not an attribute that a fit sets")
            setattr(instance, name, value)
        _check_state(instance)
        return _detach(instance, [])

    def adopt(self, estimator: str, plain: Any) -> tuple[Any, int]:
        """Take over a fitted estimator: it is a model as it is."""
        return _detach(plain, [])

    def close(self) -> None:
        """Nothing is held."""


def _captured(caught: list[Any]) -> list[CapturedWarning]:
    return [CapturedWarning(f"{w.category.__module__}.{w.category.__qualname__}", str(w.message)) for w in caught]


def params_differ(estimator: Any, params: dict[str, Any]) -> bool:
    """Whether an estimator has other parameters than these; what cannot be compared cheaply differs."""
    for name, value in params.items():
        current = getattr(estimator, name, None)
        if current is value:
            continue
        if type(current) is not type(value):
            return True
        if isinstance(value, (np.ndarray, dict, list, tuple, np.random.RandomState)):
            return True
        if current != value and not (current != current and value != value):
            return True
    return False


def _changed(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return len(before) != len(after) or any(before.get(name, before) is not value for name, value in after.items())


def _check_state(estimator: Any) -> None:
    """Refuse a state whose arrays do not fit each other: compiled loops trust them."""
    state = vars(estimator)
    n_features = state.get("n_features_in_")
    if type(n_features) is not int or n_features < 1:
        raise ValueError("n_features_in_ is missing")
    for name in ("components_", "cluster_centers_", "coef_", "mean_", "scale_", "min_"):
        value = state.get(name)
        if isinstance(value, np.ndarray) and value.ndim and value.shape[-1] != n_features:
            raise ValueError(f"{name} has {value.shape[-1]} columns, not {n_features}")
    threads = state.get("_n_threads", 1)
    if type(threads) is not int or not 1 <= threads <= 1024:
        raise ValueError("_n_threads is out of range")
