# SPDX-License-Identifier: BSD-3-Clause
"""What lies under a pool file: the kind of file system, and how much room it has."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import PoolSpaceError, ShmPoolError

if TYPE_CHECKING:
    from . import _core

__all__ = ["MountInfo", "free_memory", "mount_of", "space_error"]


@dataclass(frozen=True)
class MountInfo:
    """The mount that holds a path."""

    point: str
    filesystem: str
    source: str


def _unescape(field: str) -> str:
    # /proc/self/mountinfo writes blanks and the like as octal escapes
    return field.encode().decode("unicode_escape") if "\\" in field else field


def _volume_of(path: str) -> MountInfo:
    """As `mount_of`, on Windows: drives and the folders that volumes are mounted in."""
    import ctypes

    kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
    point, name = ctypes.create_unicode_buffer(32768), ctypes.create_unicode_buffer(64)
    if not kernel32.GetVolumePathNameW(path, point, len(point)):
        return MountInfo(os.path.splitdrive(path)[0] or "\\", "unknown", "unknown")
    kernel32.GetVolumeInformationW(point, None, 0, None, None, None, name, len(name))
    filesystem = name.value or "unknown"
    remote = 4  # DRIVE_REMOTE: SMB, and \\wsl.localhost, whose name is 9P
    if kernel32.GetDriveTypeW(point) == remote:
        return MountInfo(point.value, "9p" if filesystem.lower() == "9p" else "cifs", filesystem)
    return MountInfo(point.value, filesystem, point.value)


def mount_of(path: str | os.PathLike[str]) -> MountInfo:
    """The mount of a path, or of its nearest existing parent: from ``/proc/self/mountinfo``, or the Windows volume."""
    path = os.path.abspath(os.fspath(path))
    if sys.platform == "win32":
        return _volume_of(path)
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


def free_memory() -> int | None:
    """Bytes of memory that can be used without swapping; None where the system does not say."""
    if sys.platform == "win32":
        import ctypes

        # MEMORYSTATUSEX: two 32-bit fields, then totals and what is available of them
        status = (ctypes.c_uint64 * 8)(ctypes.sizeof(ctypes.c_uint64) * 8)
        known = ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status[2]) if known else None
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _where(place: _core.Descriptor | Path) -> tuple[str, int]:
    """A file system in words, and the bytes that it can still give."""
    if isinstance(place, Path):
        available = shutil.disk_usage(place).free
        mount = mount_of(place)
    elif sys.platform == "win32":
        return "the volume of the pool", place.available() or 0
    else:
        stat = os.fstatvfs(place.fileno())
        available = stat.f_bavail * stat.f_frsize
        try:
            mount = mount_of(os.readlink(f"/proc/self/fd/{place.fileno()}"))
        except OSError:
            return "the file system of the pool", available
    return f"the {mount.filesystem} on {mount.point}", available


def space_error(code: int, place: _core.Descriptor | Path, needed: int) -> ShmPoolError:
    """The error for a reservation that failed with errno `code`, in an open file or in a folder."""
    where, available = _where(place)
    if code == errno.EFBIG:
        hint = "raise the file size limit (ulimit -f) of this process"
    elif code == errno.EDQUOT:
        hint = "the disk quota is used up; put the pool elsewhere with SHMPOOL_PATH"
    elif sys.platform == "win32":
        hint = "free some of it, use smaller or fewer slots, or put the pool on another drive with SHMPOOL_PATH"
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
