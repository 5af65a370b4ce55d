# SPDX-License-Identifier: BSD-3-Clause
"""Mounts that cannot carry a shared mapping, known by name: the error is immediate and explains itself.

A mapping there goes stale, or a page that both sides write loses what one of them wrote, and locks do not reach the
other side. A pool would return wrong numbers, not errors. Mounts that are not on the list are not trusted either where
it matters: see `shmpool.witness`.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Final

from .errors import UnsupportedFilesystemError
from .space import MountInfo, mount_of

__all__ = ["INCOHERENT", "filesystem_magic", "find_incoherent", "refuse_incoherent"]

#: Names of such file systems, as mountinfo has them; besides everything that begins with ``fuse``.
INCOHERENT: Final = frozenset(
    {
        *("9p", "drvfs", "wslfs", "lxfs", "virtiofs", "vboxsf", "vmhgfs", "prl_fs"),
        *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ceph", "afs", "lustre", "gpfs", "coda"),
    }
)

#: ``f_type`` of ``statfs`` -> name, for places without a mountinfo that tells.
_MAGIC: Final = {
    0x01021997: "9p",
    0x65735546: "fuse",
    0x53464846: "wslfs",
    0x786F4256: "vboxsf",
    0xBACBACBC: "vmhgfs",
    0x6969: "nfs",
    0x517B: "smbfs",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x00C36400: "ceph",
    0x5346414F: "afs",
    0x6B414653: "afs",
    0x0BD00BD0: "lustre",
    0x47504653: "gpfs",
    0x73757245: "coda",
}

_WHAT: Final = {
    "9p": "a drive of Windows in WSL2, or a folder that a virtual machine shares",
    "drvfs": "a drive of Windows in WSL",
    "virtiofs": "a folder that a virtual machine shares",
    "nfs": "a network drive",
    "nfs4": "a network drive",
    "cifs": "a network drive",
    "smb2": "a network drive",
    "smb3": "a network drive",
}


def filesystem_magic(path: str | os.PathLike[str]) -> int | None:
    """``f_type`` of ``statfs``, for a path or its nearest existing parent; None where there is no such call."""
    if not sys.platform.startswith("linux"):
        return None
    found = Path(os.path.abspath(path))
    while not found.exists() and found != found.parent:
        found = found.parent
    # The structure begins with the type on every Linux of 64 bits; the rest is room to spare.
    buffer = (ctypes.c_long * 64)()
    if ctypes.CDLL(None).statfs(os.fsencode(found), ctypes.byref(buffer)) != 0:
        return None
    return int(buffer[0]) & 0xFFFFFFFF


def find_incoherent(path: str | os.PathLike[str], mount: MountInfo | None = None) -> MountInfo | None:
    """The mount of a path if it is known to be of that kind, by mountinfo or by ``statfs``; None otherwise."""
    mount = mount or mount_of(path)
    if mount.filesystem in INCOHERENT or mount.filesystem.startswith("fuse"):
        return mount
    name = _MAGIC.get(filesystem_magic(path) or 0)
    return None if name is None else MountInfo(mount.point, name, mount.source)


def refuse_incoherent(path: str | os.PathLike[str]) -> None:
    """Raise `UnsupportedFilesystemError` for a path on such a mount."""
    mount = find_incoherent(path)
    if mount is None:
        return
    what = _WHAT.get(mount.filesystem.partition(".")[0])
    raise UnsupportedFilesystemError(
        f"{path} lies on {mount.filesystem} ({mount.point}{': ' + what if what else ''}), whose mappings are not "
        "coherent between its users.",
        hint="put the pool on tmpfs or a local disk with SHMPOOL_PATH; across machines or kernels send the bytes "
        "instead (gsb does: docs/transports.md)",
        filesystem=mount.filesystem,
    )
