# SPDX-License-Identifier: BSD-3-Clause
"""What a pool is, without atomics, memory or processes: the specification that the state machine compares with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

REGIONS = ("input", "output", "scratch")


@dataclass(eq=False)
class Span:
    """Adjacent slots that live and die together. `owner` and the keys of `pins` are clients."""

    head: int
    n: int
    owner: int
    state: str = "writing"
    value: int = -1
    pins: Counter[int] = field(default_factory=Counter)


class Model:
    """Slots, clients and who holds what. Clients are numbered in the order in which they come."""

    def __init__(self, **sizes: int) -> None:
        self.sizes = sizes
        self.n_slots = sum(sizes.values())
        self.counters = dict.fromkeys(REGIONS, 0)
        self.spans: list[Span] = []
        self.dead: set[int] = set()  # died, and nobody has cleaned up yet
        self.closing: set[int] = set()  # closed, but something still needs its mapping

    def at(self, slot: int) -> Span | None:
        return next((span for span in self.spans if span.head <= slot < span.head + span.n), None)

    def claim(self, client: int, region: str, n: int) -> Span | None:
        ticket, self.counters[region] = self.counters[region], self.counters[region] + n
        span = self._search(client, region, n, ticket)
        if span is None:
            self.reclaim()  # a claim that finds nothing cleans up after the dead, and looks once more
            span = self._search(client, region, n, ticket)
        return span

    def _search(self, client: int, region: str, n: int, ticket: int) -> Span | None:
        first, size = sum(self.sizes[name] for name in REGIONS[: REGIONS.index(region)]), self.sizes[region]
        if n > size:
            first, size = 0, self.n_slots
        positions = size - n + 1
        start = ticket % size if ticket % size < positions else 0
        for step in range(positions):
            head = first + (start + step) % positions
            if all(self.at(slot) is None for slot in range(head, head + n)):
                self.spans.append(Span(head, n, client))
                return self.spans[-1]
        return None

    def retire(self, span: Span) -> None:
        span.state = "retired"
        self._settle(span)

    def _settle(self, span: Span) -> None:
        if span.state == "retired" and not +span.pins:
            self.spans.remove(span)

    def abort(self, span: Span) -> None:
        self.spans.remove(span)
        self._leave_if_idle(span.owner)

    def unpin(self, span: Span, client: int) -> None:
        span.pins[client] -= 1
        self._settle(span)
        self._leave_if_idle(client)

    def close(self, client: int) -> None:
        self.closing.add(client)
        for span in [span for span in self.spans if span.owner == client and span.state == "sealed"]:
            self.retire(span)
        self._leave_if_idle(client)

    def _leave_if_idle(self, client: int) -> None:
        busy = any(s.pins[client] > 0 or (s.owner == client and s.state == "writing") for s in self.spans)
        if client in self.closing and not busy:
            self.bury(client)

    def bury(self, client: int) -> None:
        """Nothing of this client remains: it left, or it died and somebody cleaned up."""
        self.dead.discard(client)
        self.closing.discard(client)
        for span in list(self.spans):
            span.pins[client] = 0
            if span.owner == client and span.state == "writing":
                self.spans.remove(span)
            elif span.owner == client and span.state == "sealed":
                self.retire(span)
            else:
                self._settle(span)

    def reclaim(self) -> int:
        found = list(self.dead)
        for client in found:
            self.bury(client)
        return len(found)
