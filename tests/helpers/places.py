# SPDX-License-Identifier: BSD-3-Clause
"""Private folders for pools, on tmpfs where there is one, and the proof that nothing stays behind."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

TMPFS = Path("/dev/shm")


class Places:
    """Makes folders below one root of this session.

    The root lies on tmpfs if the machine has one: that is where pools live, and its first-touch and out-of-space
    behaviour differ from a disk's.
    """

    def __init__(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        if TMPFS.is_dir() and os.access(TMPFS, os.W_OK):
            self.root = Path(tempfile.mkdtemp(prefix=f"shmpool-test-{os.getpid()}-", dir=TMPFS))
        else:
            self.root = tmp_path_factory.mktemp("pools")
        self._count = 0

    def new(self, name: str) -> Path:
        """A new empty folder; `name` is for whoever looks at it while a test hangs."""
        self._count += 1
        folder = self.root / f"{self._count:04d}-{re.sub(r'[^A-Za-z0-9]+', '-', name)[:60]}"
        folder.mkdir(mode=0o700)
        return folder

    def discard(self, folder: Path) -> None:
        """Remove a folder, after looking that it holds pool files and their lock files only."""
        close_pools_below(folder)
        strangers = sorted(
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if not path.is_dir() and not path.name.endswith((".bin", ".bin.lock"))
        )
        shutil.rmtree(folder)
        assert not strangers, f"a test left files beside its pools: {strangers}"

    def close(self) -> None:
        """Remove the root, which must be empty by now."""
        left = sorted(str(path) for path in self.root.rglob("*"))
        shutil.rmtree(self.root)
        assert not left, f"left in {self.root}: {left}"


def close_pools_below(folder: Path) -> None:
    """Close this process's pools below `folder`: a failed test must not keep a removed file's memory."""
    module = sys.modules.get("shmpool.pool")
    if module is None:
        return
    for pool in list(module._open_pools):
        if pool.path.is_relative_to(folder):
            pool.close()
