# SPDX-License-Identifier: BSD-3-Clause
"""Taking turns: contenders that are compared are measured in the same rounds, so that noise hits all of them."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

from pytest_benchmark.fixture import BenchmarkFixture

from bench.harness.quiet import wait_for_quiet

K = TypeVar("K", bound=Hashable)


def measure(benchmark: BenchmarkFixture, target: Callable[..., object], **options: Any) -> float:
    """Run ``benchmark.pedantic``; the median in seconds."""
    benchmark.pedantic(target, **options)  # type: ignore[no-untyped-call]
    assert benchmark.stats is not None
    return float(benchmark.stats.stats.median)


class Turns(Generic[K]):
    """Runs every contender once per turn, in a new order each time, and keeps their times.

    Parameters
    ----------
    contenders : mapping
        What to run, by key. Each returns the seconds it took, so that it can prepare and check outside of them.
    """

    def __init__(self, contenders: Mapping[K, Callable[[], float]]) -> None:
        self._contenders = dict(contenders)
        self._order = list(self._contenders)
        self._random = random.Random(7)
        self.times: dict[K, list[float]] = {key: [] for key in self._contenders}

    def turn(self) -> None:
        """One round of all."""
        wait_for_quiet()
        self._random.shuffle(self._order)
        for key in self._order:
            self.times[key].append(self._contenders[key]())

    def median(self, key: K) -> float:
        """Median seconds of one contender."""
        return statistics.median(self.times[key])
