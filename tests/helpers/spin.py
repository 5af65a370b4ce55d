# SPDX-License-Identifier: BSD-3-Clause
"""Running Spin, for the tests of the models."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["BUILD_SECONDS", "MEMORY_MIB", "SEARCH_DEPTH", "SEARCH_SECONDS", "number", "program", "run"]

BUILD_SECONDS = 60
SEARCH_SECONDS = 120
SEARCH_DEPTH = 10_000
MEMORY_MIB = 3000


def program(*names: str) -> str:
    """The first of the programs that is installed; skips the test if there is none."""
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    pytest.skip(f"not installed: {' or '.join(names)}")


def run(command: list[str], folder: Path, seconds: float) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(
        command,
        cwd=folder,
        timeout=seconds,
        check=False,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"{command[0]}: exit {done.returncode}\n{done.stdout}"
    return done.stdout


def number(pattern: str, report: str) -> int:
    """The number that a pattern finds."""
    found = re.search(pattern, report)
    assert found is not None, f"no {pattern!r} in\n{report}"
    return int(found[1])
