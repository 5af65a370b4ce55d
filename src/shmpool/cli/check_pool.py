# SPDX-License-Identifier: BSD-3-Clause
"""Checks of `doctor` on the pool: its file, its folder, its users. Nothing is written and no lock is taken."""

from __future__ import annotations

import os
import stat as stat_module
import time
from collections.abc import Iterator

from ..errors import PoolBusyError, PoolNotFoundError, ShmPoolError
from ..paths import lock_path
from .finding import Finding, Place, Status
from .peek import is_opening
from .render import program, size

__all__ = ["check_clients", "check_folder", "check_lock_file", "check_pool"]


def check_pool(place: Place) -> Iterator[Finding]:
    """Whether there is a pool, and whether this build can read it."""
    if place.seen is not None:
        stat = place.seen.stat
        total = size(stat.n_slots * stat.slot_nbytes)
        users = sum(client.alive for client in stat.clients)
        if any(slot.state == "corrupt" for slot in stat.slots):
            yield Finding("pool", "FAIL", "it has corrupt slots", "end its users, then python -m shmpool gc --remove")
        else:
            yield Finding(
                "pool", "OK", f"{total}, {stat.used_slots}/{stat.n_slots} slots used, {users} process(es) attached"
            )
    elif isinstance(place.refused, PoolNotFoundError):
        yield Finding("pool", "OK", "none there yet; Pool.open() creates it")
    elif place.refused is not None:
        status: Status = "WARN" if isinstance(place.refused, PoolBusyError) else "FAIL"
        yield Finding("pool", status, place.refused.message, place.refused.hint)


def check_folder(place: Place) -> Iterator[Finding]:
    """Whether nobody else can reach into the pool's folder."""
    folder = place.path.parent
    try:
        found = folder.lstat()
    except FileNotFoundError:
        parent = place.folder
        if os.access(parent, os.W_OK):
            yield Finding("folder", "OK", f"{folder} does not exist yet")
        else:
            yield Finding(
                "folder",
                "FAIL",
                f"{folder} does not exist and {parent} is not writable",
                "choose another place with SHMPOOL_PATH",
            )
        return
    mode = stat_module.S_IMODE(found.st_mode)
    text = f"{folder} (mode {mode:04o}, user {found.st_uid})"
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(
            "folder", "FAIL", f"{text} is not writable for user {os.getuid()}", "choose another place with SHMPOOL_PATH"
        )
    elif found.st_uid not in (os.getuid(), 0) or (mode & 0o022 and not mode & stat_module.S_ISVTX):
        yield Finding(
            "folder",
            "WARN",
            f"{text}: others can replace the files in it",
            f"chmod 700 {folder}, or choose a private folder with SHMPOOL_PATH",
        )
    else:
        yield Finding("folder", "OK", text)


def check_clients(place: Place) -> Iterator[Finding]:
    """Who is attached, who is dead, who is stopped, who holds the lock file."""
    if place.seen is None:
        return
    seen, stat = place.seen, place.seen.stat
    living = sum(client.alive for client in stat.clients)
    if living >= stat.max_clients * 0.9:
        yield Finding(
            "clients",
            "WARN",
            f"{living} of {stat.max_clients} entries are taken",
            "close Pool objects that are not needed, or create the pool with a larger max_clients",
        )
    else:
        yield Finding("clients", "OK", f"{living} of {stat.max_clients} entries are taken")
    held = seen.held_by_dead
    if held:
        pids = ", ".join(str(client.pid) for client in seen.dead)
        yield Finding(
            "dead processes",
            "WARN",
            f"pid {pids} left {len(held)} slot(s)",
            "nothing need be done: the next claim frees them; python -m shmpool gc does it now",
        )
    else:
        yield Finding("dead processes", "OK", "hold nothing")
    stopped = [f"{pid} {program(label)}" for pid, state, label in place.holders if state in "Tt"]
    if stopped:
        yield Finding(
            "stopped processes",
            "WARN",
            f"{', '.join(stopped)}: keep what they hold",
            "kill -CONT, or kill: a stopped process is alive and is never robbed",
        )


def check_lock_file(place: Place) -> Iterator[Finding]:
    """Which processes have the lock file open, and whether one blocks all others."""
    lock_file = lock_path(place.path)
    if place.seen is not None and place.seen.lock_lost:
        yield Finding(
            "lock file",
            "FAIL",
            f"the pool has users that hold no lock in {lock_file}: it was removed or replaced, or they closed it",
            "end them: nobody can join, and nobody can tell whether they live. Keep cleaners of temporary files away",
        )
        return
    if not lock_file.exists():
        return
    names = [f"{pid} {program(label)}" for pid, _, label in place.holders]
    text = f"open in {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    if not names:
        text = "open in no process of this user"
    deadline = time.monotonic() + 1.0
    try:
        while (opening := is_opening(lock_file)) and time.monotonic() < deadline:
            time.sleep(0.05)
    except ShmPoolError as error:
        yield Finding("lock file", "FAIL", error.message, error.hint)
        return
    if opening:
        yield Finding(
            "lock file",
            "FAIL",
            f"{text}; one of them has been opening the pool for a second and blocks others",
            "is it stopped? kill -CONT it, or kill it",
        )
    else:
        yield Finding("lock file", "OK", text)
