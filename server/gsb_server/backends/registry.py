# SPDX-License-Identifier: BSD-3-Clause
"""Which backends there are and which one is used.

Adding one is one line in ``_FACTORIES``; its module is imported only when it is asked for.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from .base import Backend, Probe

__all__ = ["BackendChoice", "choose", "names"]

# In the order ``auto`` tries them.
_FACTORIES = {
    "sklearn": ("gsb_server.backends.sklearn", "SklearnBackend"),
}


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """The backend in use, and what every one that was asked answered."""

    backend: Backend
    probe: Probe
    reason: str
    probes: dict[str, Probe]


def names() -> tuple[str, ...]:
    """Return the names that ``GSB_BACKEND`` takes."""
    return ("auto", *_FACTORIES)


def _load(name: str) -> Backend:
    module, attribute = _FACTORIES[name]
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend


def choose(wanted: str = "auto") -> BackendChoice:
    """Return the backend to use.

    Parameters
    ----------
    wanted : str
        ``auto`` or a name.

    Raises
    ------
    ValueError
        The name is unknown, or the backend asked for by name does not work here.
    """
    if wanted not in names():
        raise ValueError(f"no backend {wanted!r}; there are: {', '.join(names())}")
    probes: dict[str, Probe] = {}
    for name in _FACTORIES if wanted == "auto" else (wanted,):
        try:
            backend = _load(name)
        except ImportError as error:
            probes[name] = Probe(available=False, reason=f"cannot be imported: {error}")
            continue
        probes[name] = backend.probe()
        if probes[name].available:
            if wanted != "auto":
                reason = f"chosen by name: {probes[name].reason}"
            else:
                refused = [f"{other}: {probe.reason}" for other, probe in probes.items() if not probe.available]
                reason = "; ".join([*refused, probes[name].reason])
            return BackendChoice(backend, probes[name], reason, probes)
    raise ValueError(f"no backend works: {'; '.join(f'{name}: {probe.reason}' for name, probe in probes.items())}")
