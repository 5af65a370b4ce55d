# SPDX-License-Identifier: BSD-3-Clause
"""Checks of `doctor` on the machine: room, limits, kernel features, copy speed.

Nothing is concluded from a version number: features are tried, on the file system that the pool lies on, with a file
that has no name.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .. import _core
from ..mounts import find_incoherent
from ..space import mount_of
from .finding import Finding, Place
from .render import size

__all__ = ["check_copy", "check_features", "check_filesystem", "check_huge_pages", "check_memory", "check_space"]

# What Pool.open() makes unless told otherwise.
_DEFAULT_SLOT_NBYTES = 256 * 2**20
_DEFAULT_POOL_NBYTES = 16 * _DEFAULT_SLOT_NBYTES
_NOTHING_FITS = 2**20
_DOCKER_SHM_NBYTES = 64 * 2**20
_COPY_NBYTES = 64 * 2**20
_MADV_POPULATE_WRITE = 23
_SYS_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "loongarch64": 98, "ppc64le": 221, "s390x": 238}


# struct flock of fcntl(2): type, whence, start, length, pid
FLOCK = struct.Struct("@hhqqi0q")


def check_filesystem(place: Place) -> Iterator[Finding]:
    """Whether the file system can carry a shared mapping, and does so in memory."""
    mount = mount_of(place.path)
    text = f"{mount.filesystem} on {mount.point}"
    if find_incoherent(place.path, mount) is not None:
        yield Finding(
            "file system",
            "FAIL",
            f"{text}: mappings are not coherent between its users",
            "put the pool on tmpfs or a local disk with SHMPOOL_PATH",
        )
    elif mount.filesystem in ("tmpfs", "ramfs"):
        yield Finding("file system", "OK", text)
    else:
        yield Finding(
            "file system",
            "WARN",
            f"{text}: works, but the kernel writes the pages back to the disk",
            "put the pool on tmpfs, for example /dev/shm, with SHMPOOL_PATH",
        )


def check_space(place: Place) -> Iterator[Finding]:
    """Whether the file system has room for the slots that have no memory yet."""
    mount = mount_of(place.path)
    found = os.statvfs(place.folder)
    total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    if place.seen is not None:
        stat = place.seen.stat
        slot, wanted = stat.slot_nbytes, stat.n_slots * stat.slot_nbytes - stat.reserved_nbytes
    else:
        slot, wanted = _DEFAULT_SLOT_NBYTES, _DEFAULT_POOL_NBYTES
    text = f"{size(free)} of {size(total)} free"
    docker = " (the default of docker)" if total == _DOCKER_SHM_NBYTES and mount.filesystem == "tmpfs" else ""
    advice = (
        f"mount -o remount,size=... {mount.point} (docker run --shm-size=8g; Kubernetes: an emptyDir of medium Memory "
        f"on {mount.point}), or smaller slots: Pool.open(slot_nbytes=...)"
    )
    if wanted <= 0:
        yield Finding("space", "OK", f"{text}{docker}; every slot has its memory")
    elif free < _NOTHING_FITS:
        yield Finding("space", "FAIL", f"{text}{docker}", advice)
    elif free < min(slot, wanted):
        yield Finding("space", "WARN", f"{text}{docker}; a slot is {size(slot)}, but only smaller arrays fit", advice)
    elif free < wanted:
        yield Finding("space", "WARN", f"{text}{docker}; a pool with all slots used needs {size(wanted)} more", advice)
    else:
        yield Finding("space", "OK", f"{text}{docker}")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    size_of_file = place.seen.stat.n_slots * place.seen.stat.slot_nbytes if place.seen else _DEFAULT_POOL_NBYTES
    if limit != resource.RLIM_INFINITY and limit < size_of_file:
        yield Finding(
            "file size limit", "FAIL", f"{size(limit)}, the pool file needs {size(size_of_file)}", "ulimit -f unlimited"
        )


def _cgroup_limits() -> Iterator[tuple[int, int]]:
    """(limit, in use) of every memory cgroup above this process that has a limit."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":
                root, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                root = Path("/sys/fs/cgroup/memory")
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            else:
                continue
            here = root / group.lstrip("/")
            while here.is_relative_to(root):
                with contextlib.suppress(OSError, ValueError):
                    limit = int((here / names[0]).read_text(encoding="ascii"))
                    if limit < 2**60:  # version 1 writes "no limit" as a huge number
                        yield limit, int((here / names[1]).read_text(encoding="ascii"))
                here = here.parent


def check_memory(place: Place) -> Iterator[Finding]:
    """What a container may use: the pages of a tmpfs count as memory of whoever touched them first."""
    wanted = place.seen.stat.n_slots * place.seen.stat.slot_nbytes if place.seen else _DEFAULT_POOL_NBYTES
    limits = list(_cgroup_limits())
    if limits:
        limit, used = min(limits)
        text = f"limit {size(limit)}, in use {size(used)}"
        if limit < wanted:
            yield Finding(
                "cgroup memory",
                "WARN",
                f"{text}; a full pool has {size(wanted)}",
                "raise the limit of the container (docker run --memory), or use fewer or smaller slots: "
                "beyond it the kernel kills processes",
            )
        else:
            yield Finding("cgroup memory", "OK", text)
    else:
        yield Finding("cgroup memory", "OK", "no limit")
    with contextlib.suppress(OSError, IndexError, ValueError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
        text = f"{size(available)} available"
        if available < wanted:
            yield Finding("memory", "WARN", f"{text}; a full pool has {size(wanted)}", "use fewer or smaller slots")
        else:
            yield Finding("memory", "OK", text)


def check_huge_pages(place: Place) -> Iterator[Finding]:
    """Whether tmpfs may use huge pages. For information: the pool works the same."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").read_text(encoding="ascii")
    except OSError:
        yield Finding("huge pages", "OK", "not known on this kernel")
        return
    chosen = text.partition("[")[2].partition("]")[0] or text.strip()
    yield Finding("huge pages", "OK", f"shmem_enabled is {chosen}")


def _fits(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def check_features(place: Place) -> Iterator[Finding]:
    """Try what the pool needs from the kernel, on a nameless file beside the pool."""
    try:
        probe = tempfile.TemporaryFile(dir=place.folder)  # noqa: SIM115 (closed below)
    except OSError as error:
        yield Finding(
            "kernel",
            "FAIL",
            f"no file can be made in {place.folder}: {error.strerror}",
            "choose another place with SHMPOOL_PATH",
        )
        return
    with probe:
        yield _probe_locks(probe.fileno())
        try:
            _core.reserve(probe.fileno(), 0, mmap.PAGESIZE)
            yield Finding("fallocate", "OK", "memory can be reserved before it is used")
        except OSError as error:
            yield Finding(
                "fallocate",
                "FAIL",
                f"reserving a page failed: {error.strerror}",
                "free some space" if _fits(error) else "put the pool on tmpfs with SHMPOOL_PATH",
            )
            return
        with mmap.mmap(probe.fileno(), mmap.PAGESIZE) as mapping:
            yield _probe_populate(mapping)
            yield _probe_futex(mapping)


def _try_lock(fd: int) -> bool:
    """Lock byte 0 exclusively, as an open file description does; False when another one holds it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _probe_locks(fd: int) -> Finding:
    name = "OFD locks"
    try:
        other = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return Finding(name, "WARN", f"not tried: /proc/self/fd cannot be opened ({error.strerror})")
    try:
        first, second = _try_lock(fd), _try_lock(other)
    except OSError as error:
        return Finding(name, "FAIL", f"{error.strerror}", "put the pool on tmpfs or a local disk with SHMPOOL_PATH")
    finally:
        os.close(other)
    if not first or second:
        return Finding(
            name,
            "FAIL",
            "two holders of one lock: nobody's death would be noticed",
            "put the pool on tmpfs or a local disk with SHMPOOL_PATH",
        )
    return Finding(name, "OK", "the kernel tells the living from the dead")


def _probe_populate(mapping: mmap.mmap) -> Finding:
    try:
        mapping.madvise(_MADV_POPULATE_WRITE)
    except OSError as error:
        return Finding(
            "MADV_POPULATE_WRITE",
            "WARN",
            f"{error.strerror}: pages are faulted in one by one",
            "works, but first uses of a slot are slower; Linux 5.14 has it",
        )
    return Finding("MADV_POPULATE_WRITE", "OK", "page tables are filled in one call")


def _probe_futex(mapping: mmap.mmap) -> Finding:
    number = _SYS_FUTEX.get(platform.machine())
    if number is None:
        return Finding("futex", "WARN", f"not tried: system call number unknown on {platform.machine()}")
    word = ctypes.c_uint32.from_buffer(mapping)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        # FUTEX_WAIT for a value that is not there: EAGAIN at once from a kernel that looked.
        arguments = (ctypes.c_long(number), ctypes.byref(word), ctypes.c_int(0), ctypes.c_uint32(word.value + 1))
        result = libc.syscall(*arguments, None, None, ctypes.c_int(0))
        code = ctypes.get_errno()
    finally:
        del word, arguments  # or the mapping cannot be closed
    if result == -1 and code == errno.EAGAIN:
        return Finding("futex", "OK", "waiters are woken at once")
    return Finding(
        "futex",
        "WARN",
        f"{os.strerror(code)}: waiters look every 10 ms instead",
        "a sandbox (seccomp, gVisor) may forbid it",
    )


def check_copy(place: Place) -> Iterator[Finding]:
    """How fast `put` copies here, against NumPy."""
    source, target = np.ones(_COPY_NBYTES, np.uint8), np.zeros(_COPY_NBYTES, np.uint8)
    ours, theirs = [], []
    for _ in range(5):  # in turns, so that other load falls on both
        start = time.perf_counter()
        _core.fast_copy(target, source)
        middle = time.perf_counter()
        np.copyto(target, source)
        ours.append(middle - start)
        theirs.append(time.perf_counter() - middle)
    fast, plain = sorted(ours)[2], sorted(theirs)[2]
    text = (
        f"{_core.copy_isa()}, {len(os.sched_getaffinity(0))} CPU(s): {size(_COPY_NBYTES)} in {fast * 1e3:.1f} ms = "
        f"{_COPY_NBYTES / fast / 1e9:.1f} GB/s, {fast / plain:.2f} of the time of np.copyto"
    )
    if fast > 1.5 * plain:
        yield Finding("copy", "WARN", text, "is the machine busy? Run it again, and python -m shmpool bench")
    else:
        yield Finding("copy", "OK", text)
