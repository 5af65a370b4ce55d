# SPDX-License-Identifier: BSD-3-Clause
"""What lies under a pool file: the kind of file system, and how much room it has."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from .errors import PoolSpaceError, ShmPoolError

__all__ = ["MountInfo", "mount_of", "space_error"]


@dataclass(frozen=True)
class MountInfo:
    """The mount that holds a path."""

    point: str
    filesystem: str
    source: str


def _unescape(field: str) -> str:
    # /proc/self/mountinfo writes blanks and the like as octal escapes
    return field.encode().decode("unicode_escape") if "\\" in field else field


def mount_of(path: str | os.PathLike[str]) -> MountInfo:
    """The mount of a path, or of its nearest existing parent, from ``/proc/self/mountinfo``."""
    path = os.path.abspath(os.fspath(path))
    while True:
        try:
            device = os.stat(path).st_dev
            break
        except (FileNotFoundError, NotADirectoryError):  # also when somebody removes it at this very moment
            path = os.path.dirname(path)
    wanted = f"{os.major(device)}:{os.minor(device)}"
    path = os.path.realpath(path)
    best = MountInfo("/", "unknown", "unknown")
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                left, _, right = line.partition(" - ")
                fields, tail = left.split(), right.split()
                point = _unescape(fields[4])
                inside = point == "/" or path == point or path.startswith(point + "/")
                if fields[2] == wanted and inside and len(point) >= len(best.point):
                    best = MountInfo(point, tail[0], tail[1] if len(tail) > 1 else "unknown")
    except OSError:
        pass
    return best


def space_error(code: int, place: int | Path, needed: int) -> ShmPoolError:
    """The error for a reservation that failed with errno `code`, on an open descriptor or in a folder."""
    stat = os.fstatvfs(place) if isinstance(place, int) else os.statvfs(place)
    available = stat.f_bavail * stat.f_frsize
    try:
        mount = mount_of(os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else place)
        where = f"the {mount.filesystem} on {mount.point}"
    except OSError:
        where = "the file system of the pool"
    if code == errno.EFBIG:
        hint = "raise the file size limit (ulimit -f) of this process"
    elif code == errno.EDQUOT:
        hint = "the disk quota is used up; put the pool elsewhere with SHMPOOL_PATH"
    else:
        hint = (
            "free some of it, give it more (docker run --shm-size=..., mount -o remount,size=...), use smaller "
            "arrays or slots, or put the pool elsewhere with SHMPOOL_PATH"
        )
    error = PoolSpaceError(
        f"{where} has {available} bytes available; {needed} more are needed ({os.strerror(code)}).",
        hint=hint,
        needed=needed,
        available=available,
    )
    error.errno = code
    return error
