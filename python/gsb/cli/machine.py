# SPDX-License-Identifier: BSD-3-Clause
"""What the operating system says about processes, memory and mounts; None where it does not say."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["available_memory", "disk_written", "format_bytes", "pss", "space"]


def pss(pid: int) -> int | None:
    """Return the proportional set size in bytes: shared pages are divided among those who share them."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def disk_written(pid: int) -> int | None:
    """Return how many bytes a process has caused to be written to storage since it was started."""
    try:
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("write_bytes:"):
                return int(line.split()[1])
    except OSError:
        pass
    return None


def space(path: Path) -> tuple[int, int] | None:
    """Return size and free bytes of the file system a path lies on."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        found = os.statvfs(path)
    except (OSError, AttributeError):
        return None
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def available_memory() -> int | None:
    """Return the bytes of memory that can be had without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def format_bytes(count: float | None) -> str:
    """Return a number of bytes for people.

    >>> format_bytes(5e8)
    '476.8 MiB'
    """
    if count is None:
        return "unknown"
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
