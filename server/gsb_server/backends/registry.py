# SPDX-License-Identifier: BSD-3-Clause
"""Which backends there are and which are used.

``auto`` is cuml, then array_api, then sklearn. Whether the first two work is found out by asking a device, in the GPU
worker, never by whether an import succeeds: CuPy and cuML can be imported without a GPU. Choosing one of them by name
leaves the other out; the CPU is behind both, unless calls are strict.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import hardware
from .base import Backend, Probe
from .chain import ChainBackend
from .sklearn import SklearnBackend

if TYPE_CHECKING:
    from ..settings import Settings

__all__ = ["BackendChoice", "check", "choose", "names"]

# In the order ``auto`` asks them. They are imported in the GPU worker only.
_ON_THE_GPU = {
    "cuml": "gsb_server.backends.cuml:CumlBackend",
    "array_api": "gsb_server.backends.array_api:ArrayApiBackend",
}
_CPU = "sklearn"
_DEVICE = "cupy"


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """The backend in use, and what every one that was asked answered.

    Attributes
    ----------
    backend : Backend
        One, or a chain.
    probe : Probe
        What the first of it found.
    reason : str
        Why it and not another.
    probes : dict
        Name to what it answered.
    names : tuple of str
        Who may do a job, in the order in which they are asked.
    """

    backend: Backend
    probe: Probe
    reason: str
    probes: dict[str, Probe]
    names: tuple[str, ...]


def names() -> tuple[str, ...]:
    """Return the names that ``GSB_BACKEND`` takes."""
    return ("auto", *_ON_THE_GPU, _CPU)


def check(wanted: str) -> None:
    """Refuse a name that cannot work, before anything is started.

    Raises
    ------
    ValueError
        It is unknown, or a GPU's and there is no driver or no CuPy.
    """
    if wanted not in names():
        raise ValueError(f"no backend {wanted!r}; there are: {', '.join(names())}")
    reason = hardware.missing() if wanted in _ON_THE_GPU else ""
    if reason:
        raise ValueError(f"backend {wanted!r} does not work here: {reason}")


def choose(wanted: str = "auto", pool: Any = None, settings: Settings | None = None) -> BackendChoice:
    """Return the backend to use.

    Parameters
    ----------
    wanted : str
        ``auto`` or a name.
    pool : shmpool.Pool, optional
        The server's pool; without one no GPU worker is started.
    settings : Settings, optional
        For the GPU worker.

    Raises
    ------
    ValueError
        The name is unknown, or the backend asked for by name does not work here.
    """
    check(wanted)
    cpu = SklearnBackend()
    asked = () if wanted == _CPU else tuple(_ON_THE_GPU) if wanted == "auto" else (wanted,)
    worker, probes = _start_worker(asked, pool, settings) if asked else (None, {})
    if worker is None and wanted in _ON_THE_GPU:
        raise ValueError(f"backend {wanted!r} does not work here: {probes[wanted].reason}")
    refused = {name: probe.reason for name, probe in probes.items() if not probe.available}
    probes[_CPU] = cpu.probe()
    if worker is None:
        reason = "; ".join([*_together(refused), probes[_CPU].reason])
        if wanted == _CPU:
            reason = f"chosen by name: {reason}"
        return BackendChoice(cpu, probes[_CPU], reason, probes, (_CPU,))
    chain = ChainBackend((worker, cpu), refused)
    probe = chain.probe()
    reason = "; ".join([*_together(refused), probe.reason])
    if wanted != "auto":
        reason = f"chosen by name: {reason}"
    available = tuple(name for name in asked if name not in refused)
    return BackendChoice(chain, probe, reason, probes, (*available, _CPU))


def _together(refused: dict[str, str]) -> list[str]:
    """Name backends that have one reason together."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in refused.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"{', '.join(group)}: {reason}" for reason, group in by_reason.items()]


def _start_worker(
    asked: tuple[str, ...], pool: Any, settings: Settings | None
) -> tuple[Backend | None, dict[str, Probe]]:
    """Start the GPU worker with the backends asked for; None if it has none that works."""
    reason = hardware.missing() or ("" if pool is not None else "there is no pool, so no GPU worker was started")
    if not reason:
        try:
            supervisor = importlib.import_module("gsb_server.gpu.supervisor")
        except ImportError as error:
            reason = f"the GPU worker cannot be imported: {error}"
    if reason:
        return None, {name: Probe(available=False, reason=reason) for name in asked}
    worker = supervisor.SupervisedBackend(
        pool=pool, settings=settings, device=_DEVICE, backends=tuple(_ON_THE_GPU[name] for name in asked)
    )
    whole = worker.probe()
    probes = {name: worker.probes.get(name, whole) for name in asked}
    if not whole.available or not any(probe.available for probe in probes.values()):
        worker.close()
        return None, {name: Probe(available=False, reason=probe.reason) for name, probe in probes.items()}
    return worker, probes
