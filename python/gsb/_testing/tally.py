# SPDX-License-Identifier: BSD-3-Clause
"""What the proxies of a whole test session have done, worker processes included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from gsb._report import Tally


class SessionTally:
    """Counters of calls: answered by the server, or carried out in the process of the tests, and why."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.local: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.backends: Counter[str] = Counter()

    def add(self, rows: Iterable[Tally | list[Any]]) -> None:
        """Add what one process has counted: `gsb.tally`, perhaps by way of JSON."""
        for row in rows:
            estimator, method, backend, reason, calls, _ = row
            name = f"{estimator.rpartition('.')[2]}.{method}"
            if backend == "local":
                self.local[name] += calls
                self.reasons[reason] += calls
            else:
                self.sent[name] += calls
                self.backends[backend] += calls

    @property
    def n_sent(self) -> int:
        """Number of calls that the server has answered."""
        return self.sent.total()

    @property
    def n_local(self) -> int:
        """Number of calls in the process of the tests."""
        return self.local.total()

    @property
    def share(self) -> float:
        """Share of the calls that the server has answered, 0 to 1."""
        return self.n_sent / max(1, self.n_sent + self.n_local)

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Give the counters, most frequent first."""
        return {name: dict(counter.most_common()) for name, counter in vars(self).items()}
