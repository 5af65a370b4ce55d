# SPDX-License-Identifier: BSD-3-Clause
"""Prefaulting: have the next slots' memory ready before the first array arrives.

Copying 512 MB takes tens of milliseconds; making the kernel find, zero and map 131,072 pages takes hundreds
(docs/performance-notes.md, *first touch*). So a background thread populates the slots that the rotation counter will
hand out first, in memory and in this process's page tables. It never touches contents and stops at `close`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading

from . import _core
from .errors import ShmPoolError
from .space import free_memory

__all__ = ["DEFAULT_PREFAULT_NBYTES", "every_slot", "next_slots", "start_warming", "warm"]

# The input region of a default pool: with less, the second large array would find cold slots.
DEFAULT_PREFAULT_NBYTES = 2**30

# Prefaulting is a courtesy: it never takes more than this part of what is free.
_SHARE_OF_FREE = 8


def _free_nbytes(path: str) -> int:
    free = shutil.disk_usage(os.path.dirname(path)).free
    memory = free_memory()
    return free if memory is None else min(free, memory)


def warm(core: _core.Core, path: str, steps: list[tuple[int, int]]) -> int:
    """Prefault (slot, nbytes) pairs now; the bytes that were prepared."""
    done = 0
    # Closed, forked or removed meanwhile: there is nothing left to prepare, and nobody to tell.
    with contextlib.suppress(ShmPoolError, OSError):
        left = _free_nbytes(path) // _SHARE_OF_FREE
        for slot, nbytes in steps:
            if left <= 0 or not core.warm(slot, min(nbytes, left)):
                break
            done += min(nbytes, left)
            left -= nbytes
    return done


def _rotation(core: _core.Core, region: str) -> list[int]:
    """The slots of a region in the order in which an idle pool hands them out next."""
    geometry = core.geometry
    counts = (geometry.input_slots, geometry.output_slots, geometry.scratch_slots)
    index = _core.REGIONS.index(region)
    first, n = sum(counts[:index]), counts[index]
    start = core.counters()[region]
    return [first + (start + step) % n for step in range(n)]


def next_slots(core: _core.Core, region: str, nbytes: int) -> list[tuple[int, int]]:
    """Steps that prepare `nbytes` in the slots that come next, whole slots first: for one large array."""
    steps = []
    for slot in _rotation(core, region):
        if nbytes <= 0:
            break
        steps.append((slot, min(nbytes, core.geometry.slot_nbytes)))
        nbytes -= core.geometry.slot_nbytes
    return steps


def every_slot(core: _core.Core, region: str, nbytes: int) -> list[tuple[int, int]]:
    """Steps that prepare the first `nbytes` of each slot of a region: for a stream of smaller arrays."""
    return [(slot, min(nbytes, core.geometry.slot_nbytes)) for slot in _rotation(core, region)]


def start_warming(core: _core.Core, path: str, steps: list[tuple[int, int]]) -> threading.Thread | None:
    """Prefault (slot, nbytes) pairs in a daemon thread."""
    if not steps:
        return None
    thread = threading.Thread(target=warm, args=(core, path, steps), name="shmpool-prefault", daemon=True)
    thread.start()
    return thread
