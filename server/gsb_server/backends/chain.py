# SPDX-License-Identifier: BSD-3-Clause
"""Several backends as one: each job goes to the first that can do it.

What a backend cannot do it refuses with a reason, and the next one is asked. A fitted model stays where it was
fitted. When that backend refuses one method of it, the model is handed on as a plain scikit-learn estimator, and the
copy is kept, so that the next call of that method does not pay for it again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from .base import Backend, Job, Outcome, Probe, RefusedByBackend

__all__ = ["ChainBackend"]


@dataclass(slots=True)
class _Held:
    """A model: who has its state, and copies of it that other backends were handed."""

    estimator: str
    home: int
    model: Any
    nbytes: int
    copies: dict[int, tuple[Any, int]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class ChainBackend:
    """Asks backends in order.

    Parameters
    ----------
    backends : sequence of Backend
        Best first. None may be a chain whose members are here as well.
    unavailable : mapping of str to str, optional
        Backends that are not in the chain, and why; named where a strict job finds nobody.

    Notes
    -----
    Concurrency: any number of threads; each backend is entered by at most its own ``max_workers``.
    Lifetime: the chain closes its backends.
    """

    def __init__(self, backends: Sequence[Backend], unavailable: Mapping[str, str] | None = None) -> None:
        self.backends = tuple(backends)
        self.unavailable = dict(unavailable or {})
        self.name = "+".join(backend.name for backend in self.backends)
        self.several = True
        self.accelerated = any(backend.accelerated for backend in self.backends)
        self.max_workers: int | None = None
        self._gates: list[AbstractContextManager[Any]] = [
            threading.BoundedSemaphore(backend.max_workers) if backend.max_workers else nullcontext()
            for backend in self.backends
        ]
        self._devices = [""] * len(self.backends)

    def probe(self) -> Probe:
        """Probe every backend; the chain is what its first one is."""
        probes = [backend.probe() for backend in self.backends]
        self._devices = [probe.device for probe in probes]
        versions: dict[str, str] = {}
        for probe in reversed(probes):
            versions.update(probe.versions)
        return replace(probes[0], available=any(probe.available for probe in probes), versions=versions)

    def run(self, job: Job) -> Outcome:
        """Do the job with the first backend that does not refuse it."""
        reasons: list[str] = []
        held: _Held | None = job.model
        for index in self._candidates(job, reasons):
            backend = self.backends[index]
            try:
                if not backend.accelerated:
                    job = job.on_host()
                if held is None:
                    with self._gates[index]:
                        outcome = backend.run(job)
                    outcome.model = _Held(job.estimator, index, outcome.model, outcome.nbytes)
                else:
                    outcome = self._run_on(held, index, job)
            except RefusedByBackend as refusal:
                reasons.append(_told(backend, refusal))
                continue
            outcome.backend = outcome.backend or backend.name
            outcome.device = outcome.device or self._devices[index]
            if reasons:
                outcome.reason = "; ".join([*reasons, *([outcome.reason] if outcome.reason else [])])
            return outcome
        raise RefusedByBackend("; ".join(reasons))

    def _candidates(self, job: Job, reasons: list[str]) -> Iterator[int]:
        first = 0 if job.model is None else job.model.home
        for index in range(first, len(self.backends)):
            if job.strict and not self.backends[index].accelerated:
                reasons.extend(f"{name}: {why}" for name, why in self.unavailable.items())
                if job.model is not None and index == first:
                    reasons.append(f"the model is held by {self.backends[index].name}, which has no GPU")
                continue
            yield index

    def _run_on(self, held: _Held, index: int, job: Job) -> Outcome:
        backend = self.backends[index]
        with held.lock:
            model, grown = held.model, 0
            if index != held.home:
                # Under the lock, so that a second thread does not take the same model over once more.
                if index not in held.copies:
                    plain = self._export(held)
                    with self._gates[index]:
                        held.copies[index] = backend.adopt(held.estimator, plain)
                    grown = held.nbytes + sum(nbytes for _, nbytes in held.copies.values())
                model = held.copies[index][0]
        with self._gates[index]:
            outcome = backend.run(replace(job, model=model))
        if outcome.state_changed:
            with held.lock:
                # Whoever changed the state has the only true copy of it.
                held.home, held.model, held.nbytes = index, outcome.model, outcome.nbytes
                held.copies.clear()
        else:
            outcome.nbytes = grown
        outcome.model = held
        return outcome

    def _export(self, held: _Held) -> Any:
        with self._gates[held.home]:
            return self.backends[held.home].export(held.model)

    def attributes(self, model: _Held) -> dict[str, Any]:
        """Return what the backend that holds the model says."""
        with model.lock, self._gates[model.home]:
            return self.backends[model.home].attributes(model.model)

    def export(self, model: _Held) -> Any:
        """Return the plain estimator."""
        with model.lock:
            return self._export(model)

    def load(self, estimator: str, params: dict[str, Any], state: dict[str, Any]) -> tuple[Any, int]:
        """Build a model in the first backend that takes it."""
        return self._first(estimator, lambda backend: backend.load(estimator, params, state))

    def adopt(self, estimator: str, plain: Any) -> tuple[Any, int]:
        """Give a plain estimator to the first backend that takes it."""
        return self._first(estimator, lambda backend: backend.adopt(estimator, plain))

    def _first(self, estimator: str, request: Callable[[Backend], tuple[Any, int]]) -> tuple[_Held, int]:
        reasons: list[str] = []
        for index, backend in enumerate(self.backends):
            try:
                with self._gates[index]:
                    model, nbytes = request(backend)
            except RefusedByBackend as refusal:
                reasons.append(_told(backend, refusal))
                continue
            return _Held(estimator, index, model, nbytes), nbytes
        raise RefusedByBackend("; ".join(reasons))

    def close(self) -> None:
        """Close every backend."""
        for backend in self.backends:
            backend.close()


def _told(backend: Backend, refusal: RefusedByBackend) -> str:
    """Put a backend's name before its reason, unless it speaks for several, which are named in it already."""
    return str(refusal) if backend.several else f"{backend.name}: {refusal}"
