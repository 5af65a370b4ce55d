# SPDX-License-Identifier: BSD-3-Clause
"""A place on tmpfs for the files of one benchmark."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

TMPFS = Path("/dev/shm")


class Workspace:
    """A unique directory in ``/dev/shm``; leaving the ``with`` block removes it."""

    def __enter__(self) -> Self:
        self.path = Path(tempfile.mkdtemp(prefix="shmpool-bench-", dir=TMPFS))
        self._count = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path)
        # what a contender keeps beside it, under a name that begins with ours
        for left_over in TMPFS.glob(f"{self.path.name}-*"):
            left_over.unlink()

    def new(self, name: str) -> Path:
        """The path of a file that does not exist yet."""
        self._count += 1
        return self.path / f"{self._count}-{name}"


def require_memory(nbytes: int) -> None:
    """Skip the test when the machine cannot hold its arrays: it would measure swapping, or be killed."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    free = min(available, shutil.disk_usage(TMPFS).free)
    if free < nbytes:
        pytest.skip(f"needs {nbytes >> 20} MiB of memory in {TMPFS}, {free >> 20} MiB are available")
