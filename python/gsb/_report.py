# SPDX-License-Identifier: BSD-3-Clause
"""What a call has cost, stage by stage, and where it ran and why."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from gsb.protocol import STAGES

_local = threading.local()
_tally: dict[tuple[str, str, str, str], list[float]] = {}
_tally_lock = threading.Lock()

#: Called with every call of a proxy, by the thread that made it.
observers: list[Callable[[Report | LocalCall], None]] = []


@dataclasses.dataclass(frozen=True)
class Report:
    """One call.

    Attributes
    ----------
    estimator, method : str
        What was called.
    backend : str
        ``sklearn`` and so on for the server's backends, ``local`` for scikit-learn in this process.
    device : str
        What it ran on.
    reason : str
        Why there.
    stages : dict of str to float
        Seconds: client_encode, request, server_decode, compute, server_encode, client_decode. ``request`` is
        the way there and back and the time queued: the round trip less the server's own stages.
    total : float
        Seconds from the call of the method to its return.
    queue : float
        Seconds of ``request`` that were spent waiting for a worker.
    nbytes_sent, nbytes_received : int
        Bytes of the arrays that did not fit into the messages.
    slots_sent, slots_received : tuple of int
        The first slot of each array in the pool, where it is shared.
    transport : str
        How those arrays have travelled: ``shared``, ``stream`` or ``file``; empty where none was needed.
    detail : dict of str to float
        Seconds of stages that this backend alone has; they lie within the server's own.
    """

    estimator: str
    method: str
    backend: str
    device: str
    reason: str
    stages: dict[str, float]
    total: float
    queue: float = 0.0
    nbytes_sent: int = 0
    nbytes_received: int = 0
    slots_sent: tuple[int, ...] = ()
    slots_received: tuple[int, ...] = ()
    transport: str = ""
    detail: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def overhead(self) -> float:
        """Seconds besides the estimator's own work."""
        return self.total - self.stages["compute"]

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a dict that JSON can hold."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.estimator}.{self.method} on {self.backend}, {self.device}: {self.reason}"]
        lines += [f"  {name:<14} {self.stages[name] * 1e3:10.2f} ms" for name in STAGES]
        lines.append(f"  {'total':<14} {self.total * 1e3:10.2f} ms")
        if self.nbytes_sent or self.nbytes_received:
            sent, received = self.nbytes_sent / 1e6, self.nbytes_received / 1e6
            lines.append(f"  sent {sent:.1f} MB, received {received:.1f} MB, {self.transport}")
        return "\n".join(lines)


#: A call carried out in this process, before anybody asks for it as a `Report`: path, method, reason, seconds.
LocalCall = tuple[str, str, str, float]


def as_report(call: Report | LocalCall) -> Report:
    """Give the report of a call; that of a local one is made only now."""
    if isinstance(call, Report):
        return call
    path, method, reason, seconds = call
    stages = dict.fromkeys(STAGES, 0.0)
    stages["compute"] = seconds
    return Report(path, method, "local", "this process", reason, stages, seconds)


def remember(call: Report | LocalCall) -> None:
    """Make a call the last one of this thread, and count it."""
    _local.call = call
    if type(call) is tuple:
        path, method, reason, seconds = call
        key = (path, method, "local", reason)
    else:
        assert isinstance(call, Report)
        key, seconds = (call.estimator, call.method, call.backend, call.reason), call.total
    with _tally_lock:
        entry = _tally.get(key)
        if entry is None:
            entry = _tally[key] = [0, 0.0]
        entry[0] += 1
        entry[1] += seconds
    for observer in observers:
        observer(call)


def last_report() -> Report | None:
    """Give the report of the last call that this thread has made, or None.

    Returns
    -------
    Report or None
    """
    call = getattr(_local, "call", None)
    return None if call is None else as_report(call)


class Tally(NamedTuple):
    """How often a method ran at one place for one reason.

    Attributes
    ----------
    estimator, method, backend, reason : str
        As in `Report`.
    calls : int
        How often.
    seconds : float
        How long in all.
    """

    estimator: str
    method: str
    backend: str
    reason: str
    calls: int
    seconds: float


def tally() -> list[Tally]:
    """Give what the proxies of this process have done so far, most frequent first.

    Returns
    -------
    list of Tally
    """
    with _tally_lock:
        rows = [Tally(*key, int(calls), seconds) for key, (calls, seconds) in _tally.items()]
    return sorted(rows, key=lambda row: row.calls, reverse=True)


def _after_fork() -> None:
    global _tally_lock
    _tally_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
