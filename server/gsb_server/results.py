# SPDX-License-Identifier: BSD-3-Clause
"""Values of an answer on their way out: small ones inline, arrays into the output region.

The session's link stores a result so that it dies with the client, before the answer names it.

Room in the output region is waited for, up to a deadline. An answer with one array waits while it holds
nothing, so it cannot be part of a deadlock. An answer with several holds the first while it waits for the
next: only one such answer is written at a time, and never with more slots than the region has.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from gsb.protocol import encode_inline, encode_value

import shmpool

from .errors import ServerError

if TYPE_CHECKING:
    from .transports.base import Link

__all__ = ["ResultWriter", "Results"]

Array = np.ndarray[Any, np.dtype[Any]]

# Arrays beyond the slots of the region go inline as long as the answer stays readable.
_INLINE_TOTAL = 16 * 2**20


class Results:
    """What the writers of all answers share."""

    def __init__(self, pool: shmpool.Pool, timeout: float) -> None:
        self.pool = pool
        self.timeout = timeout
        self.slots = pool.geometry.output_slots
        self.slot_nbytes = pool.geometry.slot_nbytes
        self.several = threading.Lock()

    def writer(self, link: Link) -> ResultWriter:
        """Return a writer for one answer."""
        return ResultWriter(self, link)


class ResultWriter:
    """Encodes the values of one answer.

    ``encode`` may be called several times, then ``commit`` once. Unless ``commit`` was reached and
    returned, ``discard`` frees what was written.

    Notes
    -----
    Concurrency: one thread. Blocking: ``commit`` waits for free slots up to the deadline.
    """

    def __init__(self, shared: Results, link: Link) -> None:
        self.shared = shared
        self.link = link
        self.wires: list[dict[str, Any]] = []
        self.nbytes = 0
        self._pending: list[tuple[dict[str, Any], Array]] = []

    def encode(self, value: Any) -> Any:
        """Encode a value; arrays of 10 KiB and more are filled in by ``commit``."""
        return encode_value(value, self._later)

    def _later(self, array: Array) -> dict[str, Any]:
        place: dict[str, Any] = {}
        self._pending.append((place, array))
        return place

    def commit(self) -> None:
        """Have the link store the arrays, for the client to fetch.

        Raises
        ------
        ServerError
            No slot became free in time, or an array has no room at all.
        """
        pending = self._pending
        if not pending:
            return
        if len(pending) > 1:
            pending = self._let_go(pending)
        if len(pending) == 1:
            self._write(*pending[0], self.shared.timeout)
        else:
            self._write_several(pending)
        self._pending = []

    def _let_go(self, pending: list[tuple[dict[str, Any], Array]]) -> list[tuple[dict[str, Any], Array]]:
        """Copy what lies in slots already, if other arrays must wait for theirs: nothing may be held meanwhile."""
        pool = self.shared.pool
        if all(pool.handle_of(array) is not None for _, array in pending):
            return pending
        self._pending = []
        return [(place, array if pool.handle_of(array) is None else array.copy(order="K")) for place, array in pending]

    def _write_several(self, pending: list[tuple[dict[str, Any], Array]]) -> None:
        shared = self.shared
        deadline = time.monotonic() + shared.timeout
        by_size = sorted(pending, key=lambda item: item[1].nbytes, reverse=True)
        slots = sum(max(1, -(-array.nbytes // shared.slot_nbytes)) for _, array in by_size)
        inline = []
        while slots > shared.slots and len(by_size) > 1:
            inline.append(by_size.pop())
            slots -= max(1, -(-inline[-1][1].nbytes // shared.slot_nbytes))
        if sum(array.nbytes for _, array in inline) > _INLINE_TOTAL:
            raise ServerError(
                "too_large",
                f"the answer has {len(pending)} arrays and the output region {shared.slots} slots",
                "start the server with more output slots",
            )
        for place, array in inline:
            place.update(encode_inline(array))
        if not shared.several.acquire(timeout=shared.timeout):
            raise ServerError(
                "pool_full",
                "other answers of several arrays wait for room",
                "read or drop results that are not read yet",
            )
        try:
            for place, array in by_size:
                self._write(place, array, max(0.0, deadline - time.monotonic()))
        finally:
            shared.several.release()

    def _write(self, place: dict[str, Any], array: Array, timeout: float) -> None:
        wire = self.link.write(array, timeout)
        self.wires.append(wire)
        self.nbytes += array.nbytes
        place.update(wire)

    def discard(self) -> None:
        """Free what was written: the answer is not sent."""
        self._pending = []
        for wire in self.wires:
            self.link.take_back(wire)
        self.wires = []
