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

from . import _core, mounts
from .errors import (
    PoolBusyError,
    PoolCorruptedError,
    PoolExistsError,
    PoolFormatError,
    PoolNotFoundError,
    PoolPermissionError,
    ShmPoolError,
    TooManyClientsError,
)
from .paths import check_owner, lock_path
from .space import space_error

# What a full, limited or quota-bound file system answers.
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

__all__ = ["Mode", "attach", "open_existing", "refuse", "remove"]


# On Windows `stat` and its like can only ask for a lock by taking it for a moment.
_LOOK_SECONDS = 0.1 if sys.platform == "win32" else 0.0


class Mode(enum.Enum):
    """What may be done about a pool file that is there, or is not."""

    OPEN = "open"
    CREATE = "create"
    ATTACH = "attach"


def _label() -> str:
    return " ".join(sys.orig_argv) or sys.executable or "python"


def _open_file(path: Path, how: int) -> _core.Descriptor:
    """Open a pool or lock file of ours; errors are this package's, and nothing but a regular file of ours passes."""
    try:
        file = _core.open_file(os.fsencode(path), how)
    except FileNotFoundError:
        if how == _core.OPEN_CREATE:
            raise PoolNotFoundError(
                f"the folder of {path} does not exist.",
                hint="create it, or choose another path with SHMPOOL_PATH",
            ) from None
        raise PoolNotFoundError(
            f"there is no pool at {path}.", hint="Pool.open() creates one; or compare SHMPOOL_PATH in both processes"
        ) from None
    except (PermissionError, IsADirectoryError) as error:
        raise PoolPermissionError(f"{path} cannot be opened: {error.strerror}.") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PoolPermissionError(f"{path} is a symbolic link, which a pool does not follow.") from None
        if error.errno == errno.EROFS:
            raise PoolPermissionError(
                f"{path} lies on a read-only file system.", hint="choose another path with SHMPOOL_PATH"
            ) from None
        if error.errno == errno.EBUSY:
            raise PoolBusyError(
                f"{path} is opened by somebody who does not share it, or is being removed.",
                hint="which program is it? Exclude the folder of the pool from backup and virus scanners",
            ) from None
        if error.errno in OUT_OF_SPACE:
            raise space_error(error.errno, path.parent, _core.PAGE_NBYTES) from None
        raise
    try:
        check_owner(file, path)
    except BaseException:
        file.close()
        raise
    return file


def open_existing(path: Path) -> _core.Descriptor:
    """Open a pool or lock file that is there; errors as for attaching."""
    return _open_file(path, _core.OPEN_WRITE)


def _same_file(file: _core.Descriptor, path: Path) -> bool:
    """Whether the path still names this file: it may have been removed between open and lock."""
    try:
        other = _core.open_file(os.fsencode(path), _core.OPEN_READ)
    except OSError:
        return False
    same = file.names(other)
    other.close()
    return same


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


def _build(file: _core.Descriptor, geometry: _core.Geometry) -> bytes:
    """Make the file a pool. The caller is alone; death at any point leaves something that is built again."""
    file.resize(0)
    _core.failpoint("create.empty")
    needed = _core.first_reservation(geometry)
    try:
        page = _core.header_creating()
        file.write(page, 0)
        _core.failpoint("create.marked")
        file.resize(geometry.file_nbytes)
        _core.failpoint("create.sized")
        # Behind the page that is written: a reservation may write zeros.
        _core.reserve(file.fileno(), len(page), needed - len(page))
    except OSError as error:
        file.resize(0)
        if error.errno in OUT_OF_SPACE:
            needed = geometry.file_nbytes if error.errno == errno.EFBIG else needed
            raise space_error(error.errno, file, needed) from None
        raise
    _core.failpoint("create.reserved")
    page = _core.header_ready(geometry, secrets.token_bytes(16), time.time_ns())
    # The state is the last byte range to arrive: until then the page says CREATING.
    file.write(page[24:], 24)
    file.write(page[20:24], 20)
    _core.failpoint("create.filled")
    file.write(page[16:20], 16)
    _core.failpoint("create.ready")
    return page


def attach(
    path: Path,
    mode: Mode,
    geometry: _core.Geometry | None,
    *,
    attach_timeout: float,
    default_timeout: float,
    trust_mount: bool = False,
) -> tuple[_core.Core, bool]:
    """Become a client of the pool at `path`, unless it lies on a mount known to be bad and that is not trusted.

    Returns
    -------
    core : _core.Core
    created : bool
        Whether this call made the pool.
    """
    if not trust_mount:
        mounts.refuse_incoherent(path)
    if mode is Mode.ATTACH and not path.exists():
        raise PoolNotFoundError(
            f"there is no pool at {path}.", hint="Pool.open() creates one; or compare SHMPOOL_PATH in both processes"
        )
    deadline = time.monotonic() + attach_timeout
    pause = 0.0005
    while True:
        try:
            attached = _try_attach(path, mode, geometry, default_timeout)
        except TooManyClientsError as error:
            if not error.transient or time.monotonic() >= deadline:
                raise
        except PoolBusyError:
            if time.monotonic() >= deadline:
                raise
        else:
            if attached is not None:
                return attached
            if time.monotonic() >= deadline:
                raise PoolBusyError(
                    f"another process was opening or removing {path} for {attach_timeout:g} s.",
                    hint="is it stopped? `python -m shmpool doctor` shows the processes that hold the lock file",
                )
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


def _first_page(file: _core.Descriptor) -> tuple[bytes, int]:
    """A private copy of the first page of a file, and the file's size."""
    return file.read(_core.PAGE_NBYTES, 0), file.size()


def _try_attach(
    path: Path, mode: Mode, geometry: _core.Geometry | None, default_timeout: float
) -> tuple[_core.Core, bool] | None:
    """One attempt; None when another opener is at work."""
    lock_file = lock_path(path)
    with contextlib.ExitStack() as undo:
        lock = _open_file(lock_file, _core.OPEN_CREATE)
        undo.callback(lock.close)
        alone = lock.lock(_core.LOCK_BYTE_LIFE, _core.LOCK_EXCLUSIVE)
        if not alone and not lock.lock(_core.LOCK_BYTE_LIFE, _core.LOCK_SHARED):
            return None
        if not _same_file(lock, lock_file):
            return None
        _core.failpoint("open.locked")
        if not alone and mode is Mode.CREATE:
            raise PoolExistsError(
                f"the pool at {path} is in use.",
                hint="Pool.open() joins it; Pool.create() needs a path of its own",
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
        file = _open_file(path, _core.OPEN_CREATE if alone else _core.OPEN_WRITE)
        undo.callback(lambda: file.close())
        _lock_pool_file(file, path, alone)
        page, size = _first_page(file)
        verdict, found, uuid, version, stamp = _core.header_check(page, size)
        if alone and mode is Mode.CREATE and verdict == "ok":
            if hasattr(os, "fork"):
                # A new file, not the old one emptied: a child that was forked by a dead user of the old one may still
                # look at it through inherited views, and would meet a SIGBUS.
                path.unlink()
                _core.failpoint("create.unlinked")
                file.close()
                file = _open_file(path, _core.OPEN_CREATE)
                _lock_pool_file(file, path, alone)
                page, size = _first_page(file)
            verdict = "creating"
        if alone and (size == 0 or verdict == "creating"):
            if geometry is None:
                raise PoolNotFoundError(f"there is no finished pool at {path}.", hint="Pool.open() creates one")
            page = _build(file, geometry)
            verdict, found, uuid, version, stamp = _core.header_check(page, geometry.file_nbytes)
            created = True
        elif verdict == "creating" or size == 0:
            return None  # its creator was killed between our two attempts at byte 0
        if verdict != "ok" or found is None:
            raise refuse(verdict, path, page, size, version, stamp)
        nonce = secrets.randbits(63) | 1
        core = _core.Core(
            file, lock, os.fsencode(lock_file), found, uuid, nonce, os.getpid(), _label(), default_timeout, alone
        )
        _core.failpoint("open.entered")
        if alone:
            file.downgrade(_core.LOCK_BYTE_POOL)
            lock.downgrade(_core.LOCK_BYTE_LIFE)
        undo.pop_all()
        return core, created


def _lock_pool_file(file: _core.Descriptor, path: Path, alone: bool) -> None:
    """Lock a byte of the pool file as byte 0 of the lock file is locked.

    The lock file decides. This second lock notices that somebody has removed the lock file under living users (a
    cleaner of temporary files, for instance): whoever then makes a new one is alone on it, but not on the pool.
    """
    mode = _core.LOCK_EXCLUSIVE if alone else _core.LOCK_SHARED
    deadline = time.monotonic() + _LOOK_SECONDS
    while not file.lock(_core.LOCK_BYTE_POOL, mode):
        if time.monotonic() < deadline:
            time.sleep(0.001)
            continue
        raise PoolCorruptedError(
            f"the lock file of {path} was removed, replaced, or closed by its users while the pool is in use: "
            "nobody can tell who is alive.",
            hint="end the processes that use the pool, then open it again; exclude it from temporary-file cleaners",
        )


def remove(path: Path) -> None:
    """Delete a pool and its lock file. Only when nobody is attached."""
    lock_file = lock_path(path)
    if not path.exists() and not lock_file.exists():
        raise PoolNotFoundError(f"there is no pool at {path}.")
    with contextlib.ExitStack() as undo:
        in_use = PoolExistsError(f"the pool at {path} is in use.", hint="`python -m shmpool stat` shows by whom")
        try:
            if not lock_file.exists():
                _open_file(lock_file, _core.OPEN_CREATE).close()
            lock = _open_file(lock_file, _core.OPEN_REMOVE)
        except PoolBusyError:
            raise in_use from None
        undo.callback(lock.close)
        if not lock.lock(_core.LOCK_BYTE_LIFE, _core.LOCK_EXCLUSIVE) or not _same_file(lock, lock_file):
            raise in_use
        if path.exists():
            file = _open_file(path, _core.OPEN_REMOVE)
            undo.callback(file.close)
            _lock_pool_file(file, path, alone=True)
            page, size = _first_page(file)
            verdict, _, _, version, stamp = _core.header_check(page, size)
            if verdict == "magic" and size > 0:
                raise refuse(verdict, path, page, size, version, stamp)
            file.remove(os.fsencode(path))
            file.close()
        # Last, and under the lock: an opener that waits finds that its lock file is no longer the one at the path.
        lock.remove(os.fsencode(lock_file))
