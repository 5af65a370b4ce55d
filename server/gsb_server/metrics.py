# SPDX-License-Identifier: BSD-3-Clause
"""Counters for ``/v1/status``: how many calls, how they ended, how long their stages took."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Any

__all__ = ["Metrics"]

_WINDOW = 256


class Metrics:
    """Counters of one server.

    Notes
    -----
    Concurrency: the event loop only.
    """

    def __init__(self) -> None:
        self.started = time.time()
        self.calls = 0
        self.sessions_opened = 0
        self.sessions_lost = 0
        self.methods: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.bytes_in = 0
        self.bytes_out = 0
        self._recent: deque[dict[str, float]] = deque(maxlen=_WINDOW)

    def call(self, estimator: str, method: str, stages: dict[str, float], bytes_in: int, bytes_out: int) -> None:
        """Count a call that was answered."""
        self.calls += 1
        self.methods[f"{estimator.rpartition('.')[2]}.{method}"] += 1
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self._recent.append(stages)

    def error(self, code: str) -> None:
        """Count a refusal."""
        self.errors[code] += 1

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values; stage times are medians of recent calls, in seconds."""
        medians: dict[str, float] = {}
        if self._recent:
            for name in self._recent[-1]:
                values = sorted(stages.get(name, 0.0) for stages in self._recent)
                medians[name] = values[len(values) // 2]
        return {
            "uptime_seconds": time.time() - self.started,
            "calls": self.calls,
            "methods": dict(self.methods),
            "errors": dict(self.errors),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "sessions_opened": self.sessions_opened,
            "sessions_lost": self.sessions_lost,
            "median_stages": medians,
        }
