# SPDX-License-Identifier: BSD-3-Clause
"""Where pools live by default, and whom their files must belong to."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import PoolPermissionError

if TYPE_CHECKING:
    from . import _core

__all__ = ["check_owner", "default_path", "lock_path"]

ENVIRONMENT_VARIABLE = "SHMPOOL_PATH"


def default_path(*, create: bool = True) -> Path:
    """``$SHMPOOL_PATH``, else ``pool.bin`` in a private folder of this user.

    On Linux that is a 0700 folder on tmpfs, on Windows ``%LOCALAPPDATA%\\shmpool``.

    Parameters
    ----------
    create : bool, default True
        Make the directory if it is not there; without, the path is only named.

    Raises
    ------
    PoolPermissionError
        The directory exists but belongs to somebody else, is open to others, or is a link.
    """
    if chosen := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(chosen)
    if sys.platform == "win32":
        # Private by the access list that it inherits from the user's profile.
        local = Path(os.environ.get("LOCALAPPDATA") or tempfile.gettempdir()) / "shmpool"
        if create:
            local.mkdir(parents=True, exist_ok=True)
        return local / "pool.bin"
    base = Path("/dev/shm")
    if not (base.is_dir() and os.access(base, os.W_OK)):
        base = Path(tempfile.gettempdir())
    folder = base / f"shmpool-{os.getuid()}"
    if create:
        folder.mkdir(mode=0o700, exist_ok=True)
    elif not folder.exists():
        return folder / "pool.bin"
    found = folder.lstat()
    # Anybody may create names in /dev/shm: a folder that was put there for us is refused, not used.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PoolPermissionError(
            f"{folder} is not a private folder of user {os.getuid()} (owner {found.st_uid}, "
            f"mode {stat.S_IMODE(found.st_mode):04o}).",
            hint=f"remove it, or choose another place with {ENVIRONMENT_VARIABLE}",
        )
    return folder / "pool.bin"


def lock_path(path: Path) -> Path:
    """The side-car lock file of a pool file."""
    return path.with_name(path.name + ".lock")


def check_owner(file: _core.Descriptor, path: Path) -> None:
    """Refuse files that are not this user's alone."""
    access = file.access()
    if access == "private":
        return
    if access == "no file":
        raise PoolPermissionError(f"{path} is not a regular file.")
    elsewhere = "a pool is shared by processes of one user; choose another path with SHMPOOL_PATH"
    if sys.platform == "win32":
        if access == "foreign":
            raise PoolPermissionError(f"{path} belongs to another user.", hint=elsewhere)
        raise PoolPermissionError(
            f"the access list of {path} lets other users open it; pool files are their owner's alone.",
            hint=f'is this a pool file? If it is: icacls "{path}" /inheritance:r /grant:r "%USERNAME%":F',
        )
    found = os.fstat(file.fileno())
    if access == "foreign":
        raise PoolPermissionError(
            f"{path} belongs to user {found.st_uid}, this process runs as {os.geteuid()}.", hint=elsewhere
        )
    raise PoolPermissionError(
        f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, so other users may open it; pool files are 0600.",
        hint=f"is this a pool file? If it is: chmod 600 {path}",
    )
