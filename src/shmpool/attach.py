# SPDX-License-Identifier: BSD-3-Clause
"""How a process comes to be attached to a pool: create, recover or join (docs/format.md, *open*).

The rule that makes it safe to be killed anywhere in here: whoever holds byte 0 of the lock file exclusively is alone,
and only that one creates or repairs. The kernel releases the byte at death, so a half-made pool is always found by
somebody who is alone and may make it anew.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import secrets
import sys
import time
from pathlib import Path

from . import _core
from .errors import (
    PoolBusyError,
    PoolCorruptedError,
    PoolExistsError,
    PoolFormatError,
    PoolNotFoundError,
    PoolPermissionError,
    ShmPoolError,
    UnsupportedFilesystemError,
)
from .paths import check_owner, lock_path
from .space import mount_of, space_error

__all__ = ["Mode", "attach", "refuse", "remove"]

# Mappings of these go stale or lose writes between kernels, and their locks do not cross (WSL2's drives, FUSE,
# network file systems): a pool there would return wrong numbers, not errors.
INCOHERENT = frozenset(
    {"9p", "drvfs", "wslfs", "lxfs", "nfs", "nfs4", "cifs", "smb3", "smbfs", "virtiofs", "ceph", "afs"}
)


class Mode(enum.Enum):
    """What may be done about a pool file that is there, or is not."""

    OPEN = "open"
    CREATE = "create"
    ATTACH = "attach"


def _label() -> str:
    return " ".join(sys.orig_argv) or sys.executable or "python"


def _open_file(path: Path, *, create: bool) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        if create:
            raise PoolNotFoundError(
                f"the folder of {path} does not exist.", hint="create it, or choose another path with SHMPOOL_PATH"
            ) from None
        raise PoolNotFoundError(
            f"there is no pool at {path}.", hint="Pool.open() creates one; or compare SHMPOOL_PATH in both processes"
        ) from None
    except PermissionError as error:
        raise PoolPermissionError(f"{path} cannot be opened: {error.strerror}.") from None
    except IsADirectoryError:
        raise PoolPermissionError(f"{path} is a directory.") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PoolPermissionError(f"{path} is a symbolic link, which a pool does not follow.") from None
        raise


def _same_file(fd: int, path: Path) -> bool:
    """Whether the path still names the file behind fd: it may have been removed between open and lock."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def refuse(verdict: str, path: Path, page: bytes, size: int, version: int, stamp: int) -> ShmPoolError:
    """The error for a file whose first page `header_check` did not find in order."""
    if verdict == "magic":
        return PoolFormatError(
            f"{path} is not a pool (it begins with {page[:8]!r}). It was not touched.",
            hint="choose another path with SHMPOOL_PATH",
            expected=b"SHMPOOL\0",
            found=page[:8],
        )
    if verdict == "version":
        return PoolFormatError(
            f"{path} has pool format {version}, this build of shmpool knows format {_core.FORMAT_VERSION}.",
            hint="use one version of shmpool on both sides, or another path for each",
            expected=_core.FORMAT_VERSION,
            found=version,
        )
    if verdict == "layout":
        return PoolFormatError(
            f"{path} was made by a build of shmpool with another memory layout (stamp {stamp:08x}, "
            f"here {_core.layout_stamp():08x}).",
            hint="use one build of shmpool on both sides",
            expected=_core.layout_stamp(),
            found=stamp,
        )
    if verdict == "truncated":
        return PoolCorruptedError(
            f"{path} is truncated: {size} bytes are less than its header says.",
            hint="end the processes that use it and remove the file",
        )
    return PoolCorruptedError(
        f"the header of {path} is damaged (its checksum or geometry does not hold). It was not touched.",
        hint="end the processes that use it and remove the file",
    )


def _build(fd: int, geometry: _core.Geometry) -> bytes:
    """Make the file a pool. The caller is alone; death at any point leaves something that is built again."""
    os.ftruncate(fd, 0)
    _core.failpoint("create.empty")
    os.pwrite(fd, _core.header_creating(), 0)
    _core.failpoint("create.marked")
    try:
        os.ftruncate(fd, geometry.file_nbytes)
        _core.failpoint("create.sized")
        _core.reserve(fd, 0, geometry.table_nbytes)
    except OSError as error:
        os.ftruncate(fd, 0)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise space_error(error.errno, fd, geometry.table_nbytes) from None
        raise
    _core.failpoint("create.reserved")
    uuid = secrets.token_bytes(16)
    page = _core.header_ready(geometry, uuid, time.time_ns())
    # The state is the last byte range to arrive: until then the page says CREATING.
    os.pwrite(fd, page[24:], 24)
    os.pwrite(fd, page[20:24], 20)
    _core.failpoint("create.filled")
    os.pwrite(fd, page[16:20], 16)
    _core.failpoint("create.ready")
    return page


def attach(
    path: Path, mode: Mode, geometry: _core.Geometry | None, *, attach_timeout: float, default_timeout: float
) -> tuple[_core.Core, bool]:
    """Become a client of the pool at `path`.

    Returns
    -------
    core : _core.Core
    created : bool
        Whether this call made the pool.
    """
    mount = mount_of(path)
    if mount.filesystem in INCOHERENT or mount.filesystem.startswith("fuse"):
        raise UnsupportedFilesystemError(
            f"{path} lies on {mount.filesystem} ({mount.point}), whose mappings are not coherent between its users.",
            hint="put the pool on tmpfs or a local disk with SHMPOOL_PATH; across machines or kernels, stream instead",
            filesystem=mount.filesystem,
        )
    if mode is Mode.ATTACH and not path.exists():
        raise PoolNotFoundError(
            f"there is no pool at {path}.", hint="Pool.open() creates one; or compare SHMPOOL_PATH in both processes"
        )
    deadline = time.monotonic() + attach_timeout
    pause = 0.0005
    while True:
        attached = _try_attach(path, mode, geometry, default_timeout)
        if attached is not None:
            return attached
        if time.monotonic() >= deadline:
            raise PoolBusyError(
                f"another process was opening or removing {path} for {attach_timeout:g} s.",
                hint="is it stopped? `python -m shmpool doctor` shows the processes that hold the lock file",
            )
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


def _first_page(path: Path, *, create: bool) -> tuple[int, bytes, int]:
    """Open a pool file; descriptor, private copy of its first page, size."""
    fd = _open_file(path, create=create)
    try:
        return fd, os.pread(fd, _core.PAGE_NBYTES, 0), check_owner(fd, path).st_size
    except BaseException:
        os.close(fd)
        raise


def _try_attach(
    path: Path, mode: Mode, geometry: _core.Geometry | None, default_timeout: float
) -> tuple[_core.Core, bool] | None:
    """One attempt; None when another opener is at work."""
    lock_file = lock_path(path)
    with contextlib.ExitStack() as undo:
        lock_fd = _open_file(lock_file, create=True)
        undo.callback(os.close, lock_fd)
        # Before the first lock: a child forked in between must not inherit our proof of life.
        _core.watch_fork(lock_fd)
        undo.callback(_core.unwatch_fork, lock_fd)
        check_owner(lock_fd, lock_file)
        alone = _core.lock(lock_fd, _core.LOCK_BYTE_LIFE, _core.LOCK_EXCLUSIVE)
        if not alone and not _core.lock(lock_fd, _core.LOCK_BYTE_LIFE, _core.LOCK_SHARED):
            return None
        if not _same_file(lock_fd, lock_file):
            return None
        _core.failpoint("open.locked")
        if not alone and mode is Mode.CREATE:
            raise PoolExistsError(
                f"the pool at {path} is in use.", hint="Pool.open() joins it; Pool.create() needs a path of its own"
            )
        created = not path.exists()
        if created and not alone:
            # Somebody attached has removed the pool file by hand: its users keep the old one.
            raise PoolNotFoundError(
                f"{path} was removed while processes are attached to it.",
                hint="end them, or choose another path; Pool.remove() never does this",
            )
        if created and mode is Mode.ATTACH:
            raise PoolNotFoundError(f"there is no pool at {path}.", hint="Pool.open() creates one")
        fd, page, size = _first_page(path, create=alone)
        undo.callback(lambda: os.close(fd))
        verdict, found, uuid, version, stamp = _core.header_check(page, size)
        if alone and mode is Mode.CREATE and verdict == "ok":
            # A new file, not the old one emptied: a child that was forked by a dead user of the old one may still look
            # at it through inherited views, and would meet a SIGBUS.
            path.unlink()
            _core.failpoint("create.unlinked")
            os.close(fd)
            fd, page, size = _first_page(path, create=True)
            verdict = "creating"
        if alone and (size == 0 or verdict == "creating"):
            if geometry is None:
                raise PoolNotFoundError(f"there is no finished pool at {path}.", hint="Pool.open() creates one")
            page = _build(fd, geometry)
            verdict, found, uuid, version, stamp = _core.header_check(page, geometry.file_nbytes)
            created = True
        elif verdict == "creating" or size == 0:
            return None  # its creator was killed between our two attempts at byte 0
        if verdict != "ok" or found is None:
            raise refuse(verdict, path, page, size, version, stamp)
        undo.pop_all()  # the core owns both descriptors from here on, also when it fails
        nonce = secrets.randbits(63) | 1
        core = _core.Core(fd, lock_fd, found, uuid, nonce, os.getpid(), _label(), default_timeout, alone)
        _core.failpoint("open.entered")
        if alone:
            _core.lock(lock_fd, _core.LOCK_BYTE_LIFE, _core.LOCK_SHARED)
        return core, created


def remove(path: Path) -> None:
    """Delete a pool and its lock file. Only when nobody is attached."""
    lock_file = lock_path(path)
    if not path.exists() and not lock_file.exists():
        raise PoolNotFoundError(f"there is no pool at {path}.")
    lock_fd = _open_file(lock_file, create=True)
    try:
        check_owner(lock_fd, lock_file)
        if not _core.lock(lock_fd, _core.LOCK_BYTE_LIFE, _core.LOCK_EXCLUSIVE) or not _same_file(lock_fd, lock_file):
            raise PoolExistsError(f"the pool at {path} is in use.", hint="`python -m shmpool stat` shows by whom")
        if path.exists():
            fd, page, size = _first_page(path, create=False)
            os.close(fd)
            verdict, _, _, version, stamp = _core.header_check(page, size)
            if verdict == "magic" and size > 0:
                raise refuse(verdict, path, page, size, version, stamp)
            path.unlink()
        # Last, and under the lock: an opener that waits finds that its lock file is no longer the one at the path.
        lock_file.unlink()
    finally:
        os.close(lock_fd)
