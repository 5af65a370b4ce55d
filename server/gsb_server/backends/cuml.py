# SPDX-License-Identifier: BSD-3-Clause
"""cuML, through the classes with which cuML itself stands in for scikit-learn's.

``cuml.accel`` has a class for every estimator in ``cuml_table``. It holds a plain scikit-learn estimator, the truth
about parameters, and cuML's own, made from it; it knows which parameters and arguments cuML cannot do
(``UnsupportedOnGPU``) and how to turn a fitted cuML model into a plain estimator. Its ``install``, which replaces
scikit-learn's classes everywhere and switches managed memory on, is never called. And where it would go on silently on
the CPU, this backend refuses, so that the reason is told and the CPU's work is done in the server's process.

Taking its word keeps us in step with cuML's published list of tests that may fail: those run on exactly these classes.
What we use of it is not a public interface, so the version is checked, and ``tests/device/test_cuml.py`` runs against
the real package wherever there is a GPU.
"""

from __future__ import annotations

import importlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn

from ..warning_capture import collect_warnings
from . import hardware
from .attempts import FITS, GAPS, fresh_params, signature
from .base import CapturedWarning, Deferred, Job, Outcome, Probe, RefusedByBackend
from .cuml_table import ROWS, Row
from .sklearn import SklearnBackend, estimator_class, parameter_names, params_differ

if TYPE_CHECKING:
    from ..gpu.device import Device

__all__ = ["CumlBackend"]

log = logging.getLogger("gsb_server")

_LEAST_CUML = (26, 10)
_ABSENT = object()


@dataclass(slots=True)
class _Model:
    """One of cuML's stand-ins, fitted: ``proxy._cpu`` has the parameters, ``proxy._gpu`` the state."""

    name: str
    proxy: Any


class CumlBackend:
    """Runs jobs with cuML.

    Parameters
    ----------
    device : Device
        CuPy's. The backend uses it from one thread.
    """

    name = "cuml"
    accelerated = True
    several = False
    max_workers: int | None = 1

    def __init__(self, device: Device) -> None:
        self.device = device

    # ------------------------------------------------------------------ probe

    def probe(self) -> Probe:
        """Import cuML and fit a small PCA on the device; compare with NumPy."""
        if self.device.kind != "cupy":
            return Probe(available=False, reason=f"cuML needs CuPy's arrays, not those of {self.device.name}")
        try:
            import cuml
        except ModuleNotFoundError as error:
            if error.name != "cuml":
                return Probe(available=False, reason=f"cuML cannot be imported: {error}")
            advice = hardware.advice(hardware.driver_cuda_version())
            return Probe(available=False, reason=f"cuML is not installed: {advice}")
        except Exception as error:
            # A library that is missing or of another version shows as almost anything.
            return Probe(available=False, reason=f"cuML cannot be imported: {type(error).__name__}: {error}")
        version = str(cuml.__version__)
        versions = {"cuml": version, "scikit-learn": sklearn.__version__, "numpy": np.__version__}
        reason = self._unusable(version)
        if reason:
            return Probe(available=False, reason=reason, versions=versions)
        return Probe(
            available=True, reason=f"cuML {version} on {self.device.name}", device=self.device.name, versions=versions
        )

    def _unusable(self, version: str) -> str:
        if tuple(int(part) for part in version.split(".")[:2]) < _LEAST_CUML:
            return f"cuML {version} is too old: 26.10 or later is needed"
        data = np.array([[1.0, 2.0, 0.0], [3.0, 5.0, 1.0], [4.0, 1.0, 0.5], [0.5, 0.0, 2.0], [2.0, 2.5, 1.5]])
        name = "sklearn.decomposition.PCA"
        try:
            found = self.export(self.run(Job(name, {"n_components": 2}, None, "fit", (data,), {}, {})).model)
        except Exception as error:
            return f"PCA.fit with cuML {version} raised {type(error).__name__}: {error}"
        expected: Any = estimator_class(name)
        variances = expected(n_components=2).fit(data).explained_variance_
        if not np.allclose(found.explained_variance_, variances, rtol=1e-3):
            return f"PCA.explained_variance_ of cuML {version} is not what NumPy gives"
        return ""

    # ------------------------------------------------------------------ jobs

    def run(self, job: Job) -> Outcome:
        """Do the job on the device."""
        import cuml

        row = _row(job.estimator)
        unsupported = _unsupported()
        # cuML's settings, like scikit-learn's, are those of the thread.
        with collect_warnings() as caught, sklearn.config_context(**job.config), cuml.using_output_type("cupy"):
            proxy = self._proxy_for(job)
            args, kwargs = self._arguments(row, type(proxy), job)
            started = time.perf_counter()
            try:
                result = proxy._call_gpu_method(job.method, *args, **kwargs)
            except unsupported as refusal:
                raise RefusedByBackend(_why(refusal, "not possible with these arguments")) from None
            except GAPS as error:
                if job.model is not None and job.method in FITS:
                    raise  # the state may have changed already
                log.info("%s.%s with cuML: %s", type(proxy).__name__, job.method, error)
                raise RefusedByBackend(f"cuML raised {type(error).__name__}: {str(error)[:200]}") from None
            self.device.synchronize()
            seconds = time.perf_counter() - started
            is_self = result is proxy
            fitted = job.method in FITS
            model = _Model(job.estimator, proxy) if fitted else job.model
            return Outcome(
                result=None if is_self else self._plain(result),
                is_self=is_self,
                model=model,
                nbytes=_nbytes(vars(proxy._gpu), set()) if fitted else 0,
                state_changed=fitted,
                attributes=self._attributes(row, model) if fitted else {},
                random_states={
                    name: getattr(proxy._cpu, name)
                    for name, value in job.params.items()
                    if isinstance(value, np.random.RandomState)
                },
                started=started,
                compute_seconds=seconds,
                warnings=[
                    CapturedWarning(f"{w.category.__module__}.{w.category.__qualname__}", str(w.message))
                    for w in caught
                ],
            )

    def _proxy_for(self, job: Job) -> Any:
        """Return what is to be called: a new one, or the model."""
        cls = _stand_in(job.estimator)
        params = fresh_params(job.params)
        if job.model is None:
            proxy = cls(**params)
            # The words for wrong parameters are scikit-learn's own.
            proxy._validate_params()
            proxy._gpu = proxy._gpu_class(**_gpu_params(proxy._gpu_class, proxy._cpu))
            return proxy
        proxy = job.model.proxy
        if not params or not params_differ(proxy._cpu, params):
            return proxy
        # Set on the model itself: it is this thread's alone, and later calls rely on it.
        plain = sklearn.clone(proxy._cpu).set_params(**params)
        proxy._gpu.set_params(**_gpu_params(proxy._gpu_class, plain))
        proxy._cpu = plain
        return proxy

    def _arguments(self, row: Row, cls: Any, job: Job) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not hasattr(cls._cpu_class, job.method):
            raise RefusedByBackend(f"there is no method {job.method}")
        names = list(signature(cls._cpu_class, job.method).parameters)[1:]
        args, kwargs = list(job.args), dict(job.kwargs)
        if len(args) > len(names):
            raise RefusedByBackend(f"{job.method} takes {len(names)} arguments, not {len(args)}")
        if not args and names and names[0] in kwargs:
            args.append(kwargs.pop(names[0]))  # cuML's stand-ins look for the data in the first place
        # Pipelines pass y to whoever ignores it; it need not go to the device.
        ignored = () if row.supervised else tuple(name for name in names[1:] if name == "y")
        moved = [
            None if name in ignored else self._move(row, name, value) for name, value in zip(names, args, strict=False)
        ]
        return tuple(moved), {
            name: None if name in ignored else self._move(row, name, value) for name, value in kwargs.items()
        }

    def _move(self, row: Row, name: str, value: Any) -> Any:
        """Upload numbers; text and sparse matrices stay, cuML brings them to the device itself."""
        if self.device.owns(value):
            # It came here on the device, and others may read it.
            return value if row.reads == "any" else self.device.xp.asarray(value, copy=True)
        if not isinstance(value, np.ndarray) or not value.ndim:
            return value
        if value.dtype.kind not in "biuf" or not value.dtype.isnative:
            return value
        transposed = value.flags.c_contiguous and not value.flags.f_contiguous
        shared = name == "X" and (row.reads == "any" or (row.reads == "c_order" and transposed))
        return self.device.upload(value, shared=shared)

    def _plain(self, value: Any) -> Any:
        """Bring scalars and sparse matrices to the host; arrays stay, for whoever sends them knows where they go."""
        if self.device.owns(value):
            return self.device.download(value)[()] if value.ndim == 0 else value
        if type(value).__module__.startswith("cupyx."):
            return value.get()
        if isinstance(value, (tuple, list)):
            return type(value)(self._plain(item) for item in value)
        return value

    # ------------------------------------------------------------------ models

    def _attributes(self, row: Row, model: _Model) -> dict[str, Any]:
        """Return the attributes, or their names where they are dear."""
        if not row.deferred:
            return self.attributes(model)
        import cuml

        gpu, plain = model.proxy._gpu, model.proxy._cpu
        cls: Any = type(plain)
        params = parameter_names(cls)
        # Some constructors set more than their parameters.
        found: dict[str, Any] = {name: value for name, value in vars(plain).items() if name not in params}
        with cuml.using_output_type("numpy"):
            for name in row.cheap:
                value = getattr(gpu, name, _ABSENT)
                if value is not _ABSENT:
                    found[name] = value
        found.update(row.constants)
        for name in row.large:
            # What only some fits make is there or not; looking must not convert it.
            if not name.startswith("oob_") or name in vars(gpu):
                found[name] = Deferred("large")
        found.update({name: Deferred("opaque") for name in row.opaque})
        return found

    def attributes(self, model: _Model) -> dict[str, Any]:
        """Return what the plain estimator has beside its parameters."""
        plain = self.export(model)
        cls: Any = type(plain)
        params = parameter_names(cls)
        return {name: value for name, value in vars(plain).items() if name not in params}

    def export(self, model: _Model) -> Any:
        """Return the plain estimator, converted by cuML."""
        proxy = model.proxy
        plain = type(proxy._cpu)(**fresh_params(proxy._cpu.get_params(deep=False)))
        proxy._gpu._sync_attrs_to_cpu(plain)
        self.device.synchronize()
        return plain

    def load(self, estimator: str, params: dict[str, Any], state: dict[str, Any]) -> tuple[Any, int]:
        """Build a plain estimator, with all checks, and take it over."""
        _row(estimator)
        plain, _ = SklearnBackend().load(estimator, params, state)
        return self.adopt(estimator, plain)

    def adopt(self, estimator: str, plain: Any) -> tuple[Any, int]:
        """Have cuML convert a fitted plain estimator."""
        _row(estimator)
        cls = _stand_in(estimator)
        proxy = cls(**fresh_params(plain.get_params(deep=False)))
        try:
            proxy._gpu = proxy._gpu_class.from_sklearn(plain)
        except _unsupported() as refusal:
            raise RefusedByBackend(_why(refusal, "a fitted one cannot be converted")) from None
        except GAPS as error:
            raise RefusedByBackend(f"cuML raised {type(error).__name__}: {str(error)[:200]}") from None
        self.device.synchronize()
        return _Model(estimator, proxy), _nbytes(vars(proxy._gpu), set())

    def close(self) -> None:
        """Nothing is held."""


def _row(name: str) -> Row:
    row = ROWS.get(name)
    if row is None:
        raise RefusedByBackend(f"cuML has no {name.rpartition('.')[2]} that scikit-learn could take back")
    return row


def _stand_in(name: str) -> Any:
    """Return the class with which cuML stands in for one of scikit-learn's."""
    package, _, cls = name.rpartition(".")
    try:
        return getattr(importlib.import_module(f"cuml.accel._overrides.{package}"), cls)
    except (ImportError, AttributeError) as error:
        raise RefusedByBackend(f"this cuML has no {cls}: {error}") from None


def _unsupported() -> type[Exception]:
    from cuml.internals.interop import UnsupportedOnGPU

    return UnsupportedOnGPU  # type: ignore[no-any-return]


def _why(refusal: Exception, otherwise: str) -> str:
    """Return cuML's words in one line: some of them show a whole array."""
    return " ".join(str(refusal).split())[:200] or otherwise


def _gpu_params(gpu_class: Any, plain: Any) -> dict[str, Any]:
    """Translate the parameters of a plain estimator into cuML's."""
    try:
        return gpu_class._params_from_cpu(plain)  # type: ignore[no-any-return]
    except _unsupported() as refusal:
        raise RefusedByBackend(_why(refusal, "these parameters are not supported")) from None


def _nbytes(value: Any, seen: set[int]) -> int:
    """Return the bytes of all arrays and strings of bytes within a value."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, (bytes, bytearray)):
        return len(value)
    if isinstance(value, dict):
        return sum([_nbytes(item, seen) for item in value.values()])
    if isinstance(value, (list, tuple)):
        return sum([_nbytes(item, seen) for item in value])
    nbytes = getattr(value, "nbytes", None)
    if isinstance(nbytes, int):
        return nbytes
    if type(value).__module__.partition(".")[0] in ("cuml", "cupyx", "scipy"):
        return _nbytes(getattr(value, "__dict__", {}), seen)
    return 0
