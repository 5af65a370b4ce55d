# SPDX-License-Identifier: BSD-3-Clause
"""What a call has cost, stage by stage, and where it ran and why."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

from gsb.protocol import STAGES

_local = threading.local()


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


def local_report(estimator: str, method: str, reason: str, seconds: float) -> Report:
    """Report a call that was carried out in this process."""
    stages = dict.fromkeys(STAGES, 0.0)
    stages["compute"] = seconds
    return Report(estimator, method, "local", "this process", reason, stages, seconds)


def remember(report: Report) -> None:
    """Make a report the last one of this thread."""
    _local.report = report


def last_report() -> Report | None:
    """Give the report of the last call that this thread has made, or None.

    Returns
    -------
    Report or None
    """
    return getattr(_local, "report", None)
