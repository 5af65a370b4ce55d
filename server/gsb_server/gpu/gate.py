# SPDX-License-Identifier: BSD-3-Clause
"""Who may use how much of the device's memory, and in which order.

A job is admitted when what it is expected to need fits beside what is admitted already. Whoever does not fit waits,
and everybody behind it too: first come, first served, so that a large job is not starved by small ones. What needs
more than there is at all is admitted alone: the estimate is only that, and refusing would be final.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..backends.base import Job

__all__ = ["Gate", "GateClosedError", "GateTimeoutError", "Pass", "estimate", "estimate_stream"]

# An upload, a copy in the order that the library wants, and its workspace.
_FIT_FACTOR = 3.0
# Without a fit: the upload and a result of the same size.
_USE_FACTOR = 2.0
# A small job needs a context's worth of scratch, whatever the size of its arrays.
_FLOOR_NBYTES = 8 * 2**20
# What the driver, fragmentation and other programs take.
_USABLE = 0.92


class GateTimeoutError(TimeoutError):
    """The device's memory was taken until the deadline."""


class GateClosedError(RuntimeError):
    """The gate was closed while the caller waited."""


_SMALL = frozenset({bool, int, float, str, type(None)})


def _nbytes(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes if value.dtype.kind != "O" else 0
    if isinstance(value, dict):
        return sum(_nbytes(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        # A list of numbers is common, and can be long.
        return sum(_nbytes(item) for item in value if type(item) not in _SMALL)
    if type(value).__module__.startswith("scipy.sparse"):
        return sum(_nbytes(part) for part in vars(value).values())
    return 0


def estimate(job: Job) -> int:
    """Estimate the bytes of device memory that a job needs at its peak."""
    factor = _FIT_FACTOR if "fit" in job.method else _USE_FACTOR
    return _FLOOR_NBYTES + int(factor * (_nbytes(job.args) + _nbytes(job.kwargs) + _nbytes(job.params)))


def estimate_stream(nbytes: int) -> int:
    """Estimate what an array that arrives in parts will need, the call that uses it included."""
    return _FLOOR_NBYTES + int(_FIT_FACTOR * nbytes)


class Pass:
    """An admission; given back once."""

    def __init__(self, gate: Gate, nbytes: int, lane: str) -> None:
        self._gate: Gate | None = gate
        self.nbytes = nbytes
        self.lane = lane

    def give_back(self) -> None:
        """Let the next ones in. Twice is harmless."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate._give_back(self.nbytes, self.lane)


class Gate:
    """First come, first served admission by bytes.

    Parameters
    ----------
    capacity : int
        Bytes that may be admitted together; `resize` changes it.

    Notes
    -----
    Concurrency: any thread. Blocking: `admit`, up to its deadline.
    """

    def __init__(self, capacity: int = 0) -> None:
        self.capacity = capacity
        self._taken: Counter[str] = Counter()
        self._queues: defaultdict[str, deque[object]] = defaultdict(deque)
        self._changed = threading.Condition()
        self._closed = False

    @property
    def taken(self) -> int:
        """Bytes admitted."""
        return self._taken.total()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(len(queue) for queue in self._queues.values())

    def resize(self, free_nbytes: int) -> None:
        """Note how much the device has for jobs when none is running."""
        with self._changed:
            self.capacity = int(free_nbytes * _USABLE)
            self._changed.notify_all()

    def close(self) -> None:
        """Send everybody away who waits, and whoever comes later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def admit(self, nbytes: int, deadline: float = math.inf, lane: str = "job") -> Pass:
        """Wait for room.

        Parameters
        ----------
        nbytes : int
        deadline : float
            On ``time.monotonic()``.
        lane : str
            Each has a queue of its own, and one of each is admitted whatever the others hold. Arrays in parts keep
            their memory until a job has used them: if jobs could wait for them, both would wait for ever.

        Raises
        ------
        GateTimeoutError
            The deadline passed.
        GateClosedError
            The server is stopping.
        """
        me = object()
        with self._changed:
            queue = self._queues[lane]
            queue.append(me)
            try:
                while not self._closed:
                    if queue[0] is me and (not self._taken[lane] or self.taken + nbytes <= self.capacity):
                        self._taken[lane] += nbytes
                        return Pass(self, nbytes, lane)
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise GateTimeoutError(
                            f"{nbytes >> 20} MiB of device memory did not become free: {self.taken >> 20} of "
                            f"{self.capacity >> 20} MiB are taken, {len(queue) - 1} others wait"
                        )
                    self._changed.wait(None if left == math.inf else left)
                raise GateClosedError("the server is shutting down")
            finally:
                queue.remove(me)
                self._changed.notify_all()

    def _give_back(self, nbytes: int, lane: str) -> None:
        with self._changed:
            self._taken[lane] -= nbytes
            self._changed.notify_all()

    @contextmanager
    def admitted(self, nbytes: int, deadline: float = math.inf) -> Iterator[Pass]:
        """Hold a pass for the time of a block."""
        found = self.admit(nbytes, deadline)
        try:
            yield found
        finally:
            found.give_back()
