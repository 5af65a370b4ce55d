# SPDX-License-Identifier: BSD-3-Clause
"""scikit-learn's own estimators on device arrays, through its Array API dispatch.

It is for what cuML lacks, and for machines with CuPy and no cuML. What can be done is in ``array_api_table``; a job
outside of it is refused before anything is uploaded.

Three things need care:

* **The process.** ``SCIPY_ARRAY_API=1`` must be in the environment before SciPy is imported, and then changes SciPy for
  the whole process (it rejects masked and object arrays). So this backend lives in the GPU worker alone; `probe` says
  so where it finds itself elsewhere. The dispatch itself is a thread-local setting and is switched on per job.
* **Writes.** A device array that others may read is given only to calls that do not write: those whose ``copy``
  parameters are not off. Tests compare the bytes before and after each call.
* **What comes back.** A fit on a device leaves device arrays and zero-dimensional arrays where a fit on the CPU leaves
  NumPy arrays and scalars. ``attributes`` and ``export`` give what the CPU would.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn

from ..warning_capture import collect_warnings
from .array_api_table import ROWS, Row, refuses_params
from .attempts import FITS, GAPS, fresh_params, signature
from .base import CapturedWarning, Job, Outcome, Probe, RefusedByBackend
from .sklearn import SklearnBackend, estimator_class, may_write, parameter_names, params_differ

if TYPE_CHECKING:
    from ..gpu.device import Device

__all__ = ["ArrayApiBackend"]

log = logging.getLogger("gsb_server")

_FLOATS = ("float32", "float64")
_LEAST_SKLEARN = (1, 9)
# Warnings that tell of the dispatch, which the user did not ask for, rather than of the data.
_ABOUT_THE_DISPATCH = "Array API"


@dataclass(slots=True)
class _Model:
    """A fitted estimator whose arrays are on the device, and the dtype its X had."""

    name: str
    estimator: Any
    dtype: np.dtype[Any]


@cache
def _defaults(cls: Any) -> dict[str, Any]:
    return cls().get_params(deep=False)  # type: ignore[no-any-return]


def _is_text(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype.kind in "OUS"


class ArrayApiBackend:
    """Runs jobs with scikit-learn on arrays of a device.

    Parameters
    ----------
    device : Device
        Where arrays live. The backend uses it from one thread.
    """

    name = "array_api"
    accelerated = True
    several = False
    max_workers: int | None = 1

    def __init__(self, device: Device) -> None:
        self.device = device

    # ------------------------------------------------------------------ probe

    def probe(self) -> Probe:
        """Fit three small estimators on the device and compare with NumPy."""
        versions = {"scikit-learn": sklearn.__version__, "numpy": np.__version__}
        reason = self._unusable()
        if reason:
            return Probe(available=False, reason=reason, versions=versions)
        return Probe(
            available=True,
            reason=f"scikit-learn {sklearn.__version__} on the arrays of {self.device.name}",
            device=self.device.name,
            versions=versions,
        )

    def _unusable(self) -> str:
        if tuple(int(part) for part in sklearn.__version__.split(".")[:2]) < _LEAST_SKLEARN:
            return f"scikit-learn {sklearn.__version__} is too old: 1.9 or later is needed"
        if not _scipy_is_ready():
            return "SciPy was imported without SCIPY_ARRAY_API=1, which the GPU worker's process sets"
        data = np.array([[1.0, 2.0], [3.0, 5.0], [4.0, 1.0], [0.5, 0.0]])
        labels = np.array([0, 1, 1, 0])
        for name, args in (
            ("sklearn.preprocessing.StandardScaler", (data,)),
            ("sklearn.decomposition.PCA", (data,)),
            ("sklearn.linear_model.LogisticRegression", (data, labels)),
        ):
            try:
                found = self.export(self.run(Job(name, {}, None, "fit", args, {}, {})).model)
            except Exception as error:
                return f"{name.rpartition('.')[2]}.fit on {self.device.name} raised {type(error).__name__}: {error}"
            expected: Any = estimator_class(name)
            for attribute, value in vars(expected().fit(*args)).items():
                if isinstance(value, np.ndarray) and not np.allclose(value, getattr(found, attribute), atol=1e-4):
                    return f"{name.rpartition('.')[2]}.{attribute} on {self.device.name} is not what NumPy gives"
        return ""

    # ------------------------------------------------------------------ jobs

    def run(self, job: Job) -> Outcome:
        """Do the job on the device."""
        row = _row(job.estimator)
        cls: Any = estimator_class(job.estimator)
        if job.method not in row.methods:
            raise RefusedByBackend(f"{cls.__name__}.{job.method} is not possible on device arrays")
        model: _Model | None = job.model
        params = fresh_params(job.params)
        dtype = None if model is None else model.dtype
        before = _defaults(cls) if model is None else model.estimator.get_params(deep=False)
        effective = {**before, **job.params}
        refusal = refuses_params(row, effective)
        if refusal:
            raise RefusedByBackend(refusal)
        arguments = _Arguments(self.device, row, cls, job, dtype, shared=not may_write(cls, job, effective))
        with (
            collect_warnings() as caught,
            sklearn.config_context(**{**job.config, "array_api_dispatch": True, "transform_output": "default"}),
        ):
            args, kwargs = arguments.upload()
            if model is None:
                estimator = cls(**params)
            else:
                estimator = model.estimator
                if params and params_differ(estimator, params):
                    if job.method not in FITS:
                        estimator = copy.copy(estimator)
                    estimator.set_params(**params)
            changed = job.method in FITS or (model is not None and estimator is not model.estimator)
            started = time.perf_counter()
            try:
                result = getattr(estimator, job.method)(*args, **kwargs)
            except GAPS as error:
                if model is not None and job.method in FITS:
                    raise  # the state may have changed already
                log.info("%s.%s on %s: %s", cls.__name__, job.method, self.device.name, error)
                raise RefusedByBackend(
                    f"scikit-learn raised {type(error).__name__} on device arrays: {str(error)[:200]}"
                ) from None
            self.device.synchronize()
            seconds = time.perf_counter() - started
        is_self = result is estimator
        if changed:
            model = _Model(job.estimator, estimator, arguments.dtype)
        outcome = Outcome(
            result=None if is_self else self._plain(result),
            is_self=is_self,
            model=model,
            nbytes=0,
            state_changed=changed,
            attributes={},
            random_states={
                name: getattr(estimator, name)
                for name, value in job.params.items()
                if isinstance(value, np.random.RandomState)
            },
            started=started,
            compute_seconds=seconds,
            warnings=[
                CapturedWarning(f"{w.category.__module__}.{w.category.__qualname__}", str(w.message))
                for w in caught
                if _ABOUT_THE_DISPATCH not in str(w.message)
            ],
        )
        if changed:
            assert model is not None
            outcome.nbytes = sum(map(_nbytes, self._device_arrays(list(vars(estimator).values()))))
            outcome.attributes = self.attributes(model)
        return outcome

    def _plain(self, value: Any) -> Any:
        """Bring scalars to the host; arrays stay, for whoever sends them knows where they go."""
        if self.device.owns(value) and value.ndim == 0:
            return self.device.download(value)[()]
        if isinstance(value, (tuple, list)):
            return type(value)(self._plain(item) for item in value)
        return value

    def _device_arrays(self, value: Any) -> Iterator[Any]:
        if self.device.owns(value):
            yield value
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from self._device_arrays(item)

    # ------------------------------------------------------------------ models

    def attributes(self, model: _Model) -> dict[str, Any]:
        """Return what a fit on the CPU would have set, as NumPy arrays and scalars."""
        cls: Any = type(model.estimator)
        params = parameter_names(cls)
        return {name: value for name, value in vars(self.export(model)).items() if name not in params}

    def export(self, model: _Model) -> Any:
        """Return a plain estimator with NumPy attributes."""
        cls: Any = type(model.estimator)
        params = fresh_params(model.estimator.get_params(deep=False))
        plain = cls(**params)
        for name, value in vars(model.estimator).items():
            if name not in params:
                setattr(plain, name, self._host(value))
        finish = ROWS[model.name].finish
        if finish is not None:
            finish(plain)
        return plain

    def _host(self, value: Any) -> Any:
        if self.device.owns(value):
            array = self.device.download(value)
            return array[()] if array.ndim == 0 else array
        if isinstance(value, (list, tuple)):
            return type(value)(self._host(item) for item in value)
        if isinstance(value, np.ndarray):
            return value.copy()
        return value

    def load(self, estimator: str, params: dict[str, Any], state: dict[str, Any]) -> tuple[Any, int]:
        """Build a plain estimator, with all checks, and take it over."""
        _row(estimator)
        plain, _ = SklearnBackend().load(estimator, params, state)
        return self.adopt(estimator, plain)

    def adopt(self, estimator: str, plain: Any) -> tuple[Any, int]:
        """Upload the fitted arrays of a plain estimator."""
        row = _row(estimator)
        if not row.adopts:
            raise RefusedByBackend(f"a fitted {type(plain).__name__} cannot be moved to the device")
        refusal = refuses_params(row, plain.get_params(deep=False))
        if refusal:
            raise RefusedByBackend(refusal)
        moved = copy.copy(plain)
        cls: Any = type(plain)
        params = parameter_names(cls)
        dtype: np.dtype[Any] = np.dtype(np.float64)
        for name, value in vars(plain).items():
            if name in params or not isinstance(value, (np.ndarray, np.generic)):
                continue
            if value.dtype.kind in "biuf":
                setattr(moved, name, self.device.upload(np.asarray(value)))
                if value.dtype.kind == "f" and value.ndim:
                    dtype = value.dtype
        model = _Model(estimator, moved, dtype)
        return model, sum(map(_nbytes, self._device_arrays(list(vars(moved).values()))))

    def close(self) -> None:
        """Nothing is held."""


class _Arguments:
    """The arguments of a job: all checked before the first is uploaded.

    Attributes
    ----------
    dtype : dtype
        What X is on the device.
    """

    def __init__(
        self, device: Device, row: Row, cls: Any, job: Job, fitted_dtype: np.dtype[Any] | None, shared: bool
    ) -> None:
        self.device = device
        self.row = row
        self.fitted_dtype = fitted_dtype
        self.dtype = np.dtype(np.float64)
        self.shared = shared
        try:
            bound = signature(cls, job.method).bind(None, *job.args, **job.kwargs)
        except TypeError as error:
            raise RefusedByBackend(f"the arguments do not fit: {error}") from None
        self.positional = len(bound.args) - 1
        self.values: dict[str, Any] = {}
        for name, value in list(bound.arguments.items())[1:]:
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL and value:
                raise RefusedByBackend("it has more arguments than are known here")
            if kind is inspect.Parameter.VAR_KEYWORD:
                self.values.update(value)
            else:
                self.values[name] = value
        for name in self.values:
            self.values[name] = self._check(name, self.values[name])

    def _check(self, name: str, value: Any) -> Any:
        if name in ("X", "K") or (self.row.target == "labels" and name in ("y", "Y")):
            return self._check_data(name, value)
        if name == "y":
            return self._check_target(value) if self.row.target != "ignored" else None
        if value is None or isinstance(value, (bool, int, float, str)):
            if name == "sample_weight" and value is not None:
                raise RefusedByBackend("sample_weight is a number, not an array")
            return value
        if name in ("sample_weight", "classes"):
            return self._check_numbers(name, np.asarray(value) if isinstance(value, (list, tuple)) else value)
        raise RefusedByBackend(f"the argument {name} is a {type(value).__name__}")

    def _check_data(self, name: str, value: Any) -> Any:
        labels = self.row.target == "labels"
        value = self._check_numbers(name, value)
        if not labels and value.ndim != 2:
            raise RefusedByBackend(f"{name} has {value.ndim} dimensions, not 2")
        dtype = _dtype(value)
        if labels and dtype.kind not in "iu":
            raise RefusedByBackend(f"labels of dtype {dtype} cannot be encoded on device arrays, integers can")
        if self.row.integers != "kept" and dtype.kind != "f":
            if self.row.integers == "refused":
                raise RefusedByBackend(f"{name} has the dtype {dtype}, not floats")
            dtype = np.dtype(np.float64)
        self.dtype = dtype
        # Not ``in (None, dtype)``: NumPy takes None for float64.
        if self.row.same_dtype and self.fitted_dtype is not None and self.fitted_dtype != dtype:
            raise RefusedByBackend(f"{name} is {dtype}, and the fit was on {self.fitted_dtype}")
        return value

    def _check_target(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            value = np.asarray(value)
        if self.row.target == "classes" and isinstance(value, np.ndarray) and _is_text(value):
            if value.dtype.kind not in self.row.kinds or value.ndim != 1:
                raise RefusedByBackend(f"labels of dtype {value.dtype} are not possible on device arrays")
            return value
        if value is None:
            return None
        value = self._check_numbers("y", value, booleans=self.row.target == "numbers" or "b" in self.row.kinds)
        if value.ndim != 1 and not (self.row.several_targets and value.ndim == 2 and value.shape[1] > 1):
            raise RefusedByBackend(f"y has the shape {tuple(value.shape)}")
        return value

    def _check_numbers(self, name: str, value: Any, booleans: bool = True) -> Any:
        if not isinstance(value, np.ndarray) and not self.device.owns(value):
            what = "sparse" if type(value).__module__.startswith("scipy.sparse") else f"a {type(value).__name__}"
            raise RefusedByBackend(f"{name} is {what}, not a dense array")
        dtype = _dtype(value)
        if dtype.kind not in "biuf" or not dtype.isnative or (dtype.kind == "f" and dtype.name not in _FLOATS):
            raise RefusedByBackend(f"{name} has the dtype {dtype}")
        if dtype.kind == "b" and not booleans:
            raise RefusedByBackend(f"{name} is boolean")
        if not math.prod(value.shape):
            raise RefusedByBackend(f"{name} is empty")
        return value

    def upload(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Bring them to the device. Call it with the dispatch switched on."""
        moved = {name: self._move(name, value) for name, value in self.values.items()}
        names = list(moved)
        return tuple(moved[name] for name in names[: self.positional]), {
            name: moved[name] for name in names[self.positional :]
        }

    def _move(self, name: str, value: Any) -> Any:
        shared = self.shared
        if isinstance(value, np.ndarray) and not _is_text(value):
            value = self.device.upload(value, shared=shared)
        elif not self.device.owns(value):
            return value
        elif not shared:
            # It came here on the device, and others may read it.
            value = _namespace(value).asarray(value, copy=True)
        if name in ("X", "K") and self.row.integers == "float64" and _dtype(value).kind != "f":
            xp = _namespace(value)
            value = xp.astype(value, xp.float64)
        return value


def _namespace(value: Any) -> Any:
    """Return the array library's own functions, in the form in which scikit-learn calls them."""
    compat = importlib.import_module("sklearn.externals.array_api_compat")
    return compat.array_namespace(value)


def _dtype(value: Any) -> np.dtype[Any]:
    """Return the NumPy dtype of an array of any library."""
    if isinstance(value.dtype, np.dtype):
        return value.dtype
    # "torch.float32", "array_api_strict.float32"
    return np.dtype(str(value.dtype).rpartition(".")[2])


def _nbytes(value: Any) -> int:
    return int(math.prod(value.shape)) * _dtype(value).itemsize


def _row(name: str) -> Row:
    row = ROWS.get(name)
    if row is None:
        raise RefusedByBackend(f"scikit-learn's {name.rpartition('.')[2]} does not work on device arrays")
    return row


def _scipy_is_ready() -> bool:
    """Whether SciPy dispatches. It read the variable when it was imported; scikit-learn looks at it now."""
    if os.environ.get("SCIPY_ARRAY_API") != "1":
        return False
    try:
        flags = importlib.import_module("scipy._lib._array_api_override")
    except ImportError:
        return True  # moved: the trial fit will show it
    return bool(getattr(flags, "SCIPY_ARRAY_API", True))
