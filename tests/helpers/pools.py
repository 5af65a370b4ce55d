# SPDX-License-Identifier: BSD-3-Clause
"""Small pools, arrays that prove their own integrity, and what must hold of a pool after a death."""

from __future__ import annotations

import os
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

import shmpool

__all__ = ["SLOT", "check_all_free", "check_progress", "check_stamped", "small", "stamped"]

# The least that reaches every path of `put`: copies of 64 KiB and more take the threaded engine.
SLOT = 65536
REGIONS: tuple[shmpool.pool.Region, ...] = ("input", "output", "scratch")


def small(path: str | os.PathLike[str], *, anew: bool = False, **changes: Any) -> shmpool.Pool:
    """Open a pool (`anew`: create it) of 4 + 2 + 2 slots of 64 KiB that prefaults nothing."""
    options: dict[str, Any] = {
        "slot_nbytes": SLOT,
        "input_slots": 4,
        "output_slots": 2,
        "scratch_slots": 2,
        "max_clients": 16,
        "prefault_nbytes": 0,
        "timeout": 20.0,
    }
    return (shmpool.Pool.create if anew else shmpool.Pool.open)(path, **{**options, **changes})


def stamped(seed: int, nbytes: int = 4096) -> NDArray[np.uint64]:
    """An array that says what it must contain: seed, length, checksum of the rest, the rest."""
    n = nbytes // 8
    array = np.empty(n, np.uint64)
    # A cheap pattern in which every word depends on seed and place, so that foreign or shifted bytes show.
    array[3:] = np.arange(3, n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(seed * 2654435761 % 2**64)
    array[0] = seed
    array[1] = n
    array[2] = zlib.crc32(array[3:].data)
    return array


def check_stamped(array: NDArray[Any], seed: int | None = None) -> int:
    """Assert that an array made by `stamped` is whole (and is the one of `seed`); its seed."""
    assert array.dtype == np.uint64
    assert array[1] == array.size, f"{array[1]} words expected, {array.size} there"
    assert array[2] == zlib.crc32(array[3:].data), f"checksum of seed {array[0]} does not hold"
    found = int(array[0])
    assert seed is None or found == seed, f"array {seed} expected, {found} found"
    return found


def check_progress(pool: shmpool.Pool, seed: int = 1) -> None:
    """Assert that every slot of the pool can be claimed, written, read and freed, singly and as one span.

    Nobody else may hold anything. What the dead left is reclaimed on the way, by the claims themselves.
    """
    geometry = pool.geometry
    handles: list[shmpool.Handle] = []
    for region in REGIONS:
        for _ in range(getattr(geometry, f"{region}_slots")):
            handles.append(pool.put(stamped(seed + len(handles)), region))
    assert sorted(handle.slot for handle in handles) == list(range(geometry.n_slots))
    for offset, handle in enumerate(handles):
        check_stamped(pool.get(handle), seed + offset)
    for handle in handles:
        pool.free(handle)
    whole = pool.put(stamped(seed, geometry.nbytes))
    assert whole.span == geometry.n_slots
    check_stamped(pool.get(whole), seed)
    pool.free(whole)
    check_all_free(pool)


def check_all_free(pool: shmpool.Pool) -> None:
    """Assert that nobody holds anything."""
    stat = pool.stat()
    assert [slot for slot in stat.slots if slot.state != "free" or slot.pins] == []
