# SPDX-License-Identifier: BSD-3-Clause
"""The interface between the server and what computes.

A backend knows nothing of HTTP, sessions, slots or handles. It is given a ``Job`` whose arrays are
read-only views, and returns an ``Outcome``. Everything it needs to be loaded (CuPy, cuML) it imports
lazily, inside its own module, when ``probe`` is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

__all__ = [
    "Backend",
    "CapturedWarning",
    "Deferred",
    "EstimatorRaisedError",
    "Job",
    "Outcome",
    "Probe",
    "RefusedByBackend",
    "StreamSpec",
    "StreamedArray",
    "note_said",
    "said_before",
]


@dataclass(frozen=True, slots=True)
class Probe:
    """What a backend found when it looked for its hardware and libraries."""

    available: bool
    reason: str
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CapturedWarning:
    """One warning raised during a job, by name, so that it can cross processes."""

    category: str
    message: str


@dataclass(frozen=True, slots=True)
class Deferred:
    """Stands for an attribute that exists and was not brought to the host.

    ``Backend.attributes`` gives the value where ``kind`` is "large"; ``Backend.export`` gives all of them. It saves
    the download of a training set that nearest neighbours keep, or the conversion of a forest, which most callers never
    look at.
    """

    kind: Literal["large", "opaque"]


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """An array that arrives in parts: the text it goes by, and what it is."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    order: str

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class StreamedArray:
    """An argument that arrived in parts and lies on a device; ``fetch`` brings it to the host."""

    spec: StreamSpec
    fetch: Callable[[StreamSpec], np.ndarray[Any, Any]]


def _brought_back(value: Any) -> Any:
    if isinstance(value, StreamedArray):
        return value.fetch(value.spec)
    if isinstance(value, dict) and any(isinstance(item, StreamedArray) for item in value.values()):
        return {key: _brought_back(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(item, StreamedArray) for item in value):
        return type(value)(_brought_back(item) for item in value)
    return value


@dataclass(slots=True)
class Job:
    """One call of one method.

    Attributes
    ----------
    estimator : str
        Qualified name from the allow-list, such as ``"sklearn.decomposition.PCA"``.
    params : dict
        Constructor parameters.
    model : object or None
        What an earlier ``Outcome.model`` of this backend was; None for a new estimator.
    method : str
        A public method of the estimator.
    args, kwargs
        Decoded. Arrays are read-only views of memory that belongs to somebody else.
    config : dict
        Values for ``sklearn.config_context``.
    strict : bool
        Only a backend with a GPU may do it.
    timeout : float or None
        Seconds after which nobody waits for it.
    """

    estimator: str
    params: dict[str, Any]
    model: Any
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    config: dict[str, Any]
    strict: bool = False
    timeout: float | None = None

    def on_host(self) -> Job:
        """Return the job with arrays that were streamed to a device brought back, for a backend without one."""
        args, kwargs = _brought_back(self.args), _brought_back(self.kwargs)
        return self if args is self.args and kwargs is self.kwargs else replace(self, args=args, kwargs=kwargs)


@dataclass(slots=True)
class Outcome:
    """What came of a job.

    Attributes
    ----------
    result : object
        What the method returned; ``is_self`` instead when it returned the estimator.
    model : object
        Opaque to the server; given back in the next ``Job``.
    nbytes : int
        Host and device memory the model holds, for the memory limit of the store. 0: as before.
    state_changed : bool
        Whether ``attributes`` is to be sent.
    attributes : dict
        ``vars`` of the plain estimator without its parameters; empty where the state did not change. A value may be
        ``Deferred``.
    random_states : dict
        For every parameter that is a ``RandomState``, the generator as it is after the call.
    started : float
        ``time.perf_counter()`` at the start of the estimator's own work.
    compute_seconds : float
        Time in the estimator alone, device synchronised.
    reason : str
        Why this backend, where it is not the one asked first.
    backend, device : str
        Who did it and on what, where a chain had the choice.
    detail : dict of str to float
        Further times in seconds, of a backend that has stages of its own.
    output : list of (stream, text)
        What the estimator has printed, ``stdout`` and ``stderr`` in order.
    """

    result: Any
    is_self: bool
    model: Any
    nbytes: int
    state_changed: bool
    attributes: dict[str, Any]
    random_states: dict[str, Any]
    started: float
    compute_seconds: float
    warnings: list[CapturedWarning]
    reason: str = ""
    backend: str = ""
    device: str = ""
    detail: dict[str, float] = field(default_factory=dict)
    output: list[tuple[str, str]] = field(default_factory=list)


class EstimatorRaisedError(Exception):
    """An estimator's exception that crossed a process: ``description`` is its class and text."""

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__(description.get("message", ""))
        self.description = description


class RefusedByBackend(Exception):  # noqa: N818 - an answer, not an error: the next backend is asked
    """The backend cannot do this job; the text says why and goes into the report."""


def note_said(error: BaseException, warnings: list[CapturedWarning], output: list[tuple[str, str]]) -> None:
    """Keep with an estimator's exception what it has warned of and printed before."""
    if warnings or output:
        error.__dict__["_gsb_said"] = (warnings, output)


def said_before(error: BaseException) -> tuple[list[CapturedWarning], list[tuple[str, str]]]:
    """Give what `note_said` has kept."""
    found: tuple[list[CapturedWarning], list[tuple[str, str]]] = error.__dict__.get("_gsb_said", ([], []))
    return found


class Backend(Protocol):
    """What the server asks of a backend.

    Notes
    -----
    Concurrency: ``run``, ``export`` and ``attributes`` are called from several worker threads at once
    unless ``max_workers`` is 1. ``probe`` is called once, at start.

    Attributes
    ----------
    name : str
        One word, as in ``GSB_BACKEND``.
    accelerated : bool
        Whether it computes on a GPU; strict jobs go to no other.
    several : bool
        Whether it stands for several backends, whose names are in its refusals.
    max_workers : int or None
        How many threads may call it at once.
    """

    name: str
    accelerated: bool
    several: bool
    max_workers: int | None

    def probe(self) -> Probe:
        """Look for hardware and libraries. Never raises."""
        ...

    def run(self, job: Job) -> Outcome:
        """Do the job. Estimator errors propagate as they are.

        Raises
        ------
        RefusedByBackend
            It cannot. Nothing has changed: not the model, not the arguments, not their random states.
        """
        ...

    def attributes(self, model: Any) -> dict[str, Any]:
        """Return what ``Outcome.attributes`` would hold."""
        ...

    def export(self, model: Any) -> Any:
        """Return the fitted plain scikit-learn estimator that ``model`` stands for."""
        ...

    def load(self, estimator: str, params: dict[str, Any], state: dict[str, Any]) -> tuple[Any, int]:
        """Build a model from plain attributes sent by a client. Returns the model and its bytes."""
        ...

    def adopt(self, estimator: str, plain: Any) -> tuple[Any, int]:
        """Make a model of a fitted plain estimator, which is given away. Returns the model and its bytes.

        Raises
        ------
        RefusedByBackend
            It cannot be taken over.
        """
        ...

    def close(self) -> None:
        """Release everything."""
        ...
