# SPDX-License-Identifier: BSD-3-Clause
"""Prefaulting: have the next slots' memory ready before the first array arrives.

Copying 512 MB takes tens of milliseconds; making the kernel find, zero and map 131,072 pages takes hundreds
(docs/performance-notes.md, *first touch*). So a background thread populates the slots that the rotation counter will
hand out first, in memory and in this process's page tables. It never touches contents and stops at `close`.
"""

from __future__ import annotations

import contextlib
import os
import threading

from . import _core
from .errors import ShmPoolError

__all__ = ["DEFAULT_PREFAULT_NBYTES", "start_warming"]

DEFAULT_PREFAULT_NBYTES = 512 * 2**20

# Prefaulting is a courtesy: it never takes more than this part of what is free.
_SHARE_OF_FREE = 8


def _free_nbytes(fd_path: str) -> int:
    stat = os.statvfs(fd_path)
    free = stat.f_bavail * stat.f_frsize
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                free = min(free, int(line.split()[1]) * 1024)
    return free


def _warm(core: _core.Core, path: str, nbytes: int) -> None:
    # Closed, forked or removed meanwhile: there is nothing left to prepare, and nobody to tell.
    with contextlib.suppress(ShmPoolError, OSError):
        left = min(nbytes, _free_nbytes(path) // _SHARE_OF_FREE)
        geometry = core.geometry
        n = geometry.input_slots
        start = core.counters()["input"]
        for step in range(n):
            if left <= 0 or not core.warm((start + step) % n, left):
                return
            left -= geometry.slot_nbytes


def start_warming(core: _core.Core, path: str, nbytes: int) -> threading.Thread | None:
    """Prefault the input slots that come next, up to `nbytes` in all, in a daemon thread."""
    if nbytes <= 0 or core.geometry.input_slots == 0:
        return None
    thread = threading.Thread(target=_warm, args=(core, path, nbytes), name="shmpool-prefault", daemon=True)
    thread.start()
    return thread
