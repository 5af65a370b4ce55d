# SPDX-License-Identifier: BSD-3-Clause
"""``gc``: free now what dead processes left; on request, delete a pool that nobody uses.

Claims clean up by themselves when they need a slot. This is for looking tidy, and for getting memory back: a pool
file never shrinks, so ``--remove`` is what returns its memory to the system.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import PoolExistsError, ShmPoolError
from ..pool import Pool
from . import render
from .peek import Look, look

__all__ = ["run"]


def _freed(before: Look, after: Look) -> list[int]:
    """Slots of the dead that are free now, or belong to a later claim."""
    return [
        old.slot
        for old in before.held_by_dead
        if (new := after.stat.slots[old.slot]).state == "free" or new.generation != old.generation
    ]


def _remove(path: Path, *, as_json: bool) -> int:
    try:
        reserved = look(path).stat.reserved_nbytes
    except ShmPoolError:  # removable all the same: unfinished, damaged
        reserved = 0
    try:
        Pool.remove(path)
    except PoolExistsError:
        users = [client for client in look(path).stat.clients if client.alive]
        if as_json:
            render.print_json({"path": str(path), "removed": False, "users": [client.pid for client in users]})
        print(f"shmpool: {path} is in use and was left as it is. Attached:", file=sys.stderr)
        for client in users:
            print(f"  pid {client.pid} for {render.age(client.age)}: {client.label}", file=sys.stderr)
        return 1
    if as_json:
        render.print_json({"path": str(path), "removed": True, "returned_nbytes": reserved})
    else:
        print(f"removed {path}; {render.size(reserved)} of memory returned")
    return 0


def run(path: Path, *, as_json: bool, remove: bool) -> int:
    """Clean up the pool at `path`."""
    if remove:
        return _remove(path, as_json=as_json)
    before = look(path)
    if before.held_by_dead or before.dead:
        with Pool.attach(path, prefault_nbytes=0) as pool:
            pool.reclaim()  # somebody who is attached alone has done so on entering
            after = look(path)
        freed = _freed(before, after)
    else:
        after, freed = before, []
    if as_json:
        render.print_json(
            {
                "path": str(path),
                "dead_clients": [client.pid for client in before.dead],
                "freed_slots": freed,
                "freed_nbytes": sum(before.stat.slots[slot].nbytes for slot in freed),
                "used_slots": after.stat.used_slots,
            }
        )
        return 0
    if not before.dead:
        print("nothing to do: no dead process left anything in this pool")
        return 0
    for client in before.dead:
        print(f"cleaned up after pid {client.pid}: {client.label}")
    held = sum(before.stat.slots[slot].nbytes for slot in freed)
    print(f"freed {len(freed)} slot(s) with {render.size(held)} of arrays; {after.stat.used_slots} still in use")
    return 0
