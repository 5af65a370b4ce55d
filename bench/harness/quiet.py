# SPDX-License-Identifier: BSD-3-Clause
"""Waiting for the machine to be ours: on a busy one, times say more about the neighbours than about the code.

``SHMPOOL_BENCH_PATIENCE=<seconds>`` is how long one run may wait in all, in front of its rounds, for moments in which
nobody else uses the CPUs. The default is 0: measure at once.
"""

from __future__ import annotations

import os
import time

_WINDOW = 0.2
_MAX_BUSY = 0.08

_left = float(os.environ.get("SHMPOOL_BENCH_PATIENCE", "0"))


def _busy_and_total() -> tuple[int, int]:
    with open("/proc/stat", encoding="ascii") as lines:
        ticks = [int(field) for field in lines.readline().split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # idle and waiting for disks are not busy


def wait_for_quiet() -> None:
    """Return when the CPUs have been idle for a moment, or when the patience of this run is used up."""
    global _left
    while _left > 0:
        busy, total = _busy_and_total()
        time.sleep(_WINDOW)
        _left -= _WINDOW
        busy_now, total_now = _busy_and_total()
        if busy_now - busy <= _MAX_BUSY * (total_now - total):
            return
