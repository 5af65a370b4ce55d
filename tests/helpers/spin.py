# SPDX-License-Identifier: BSD-3-Clause
"""Running Spin, for the tests of the models."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

__all__ = ["SEARCH_DEPTH", "check_complete", "number", "verify"]

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


def verify(model: Path, folder: Path, defines: Sequence[str], *, optimize: str) -> str:
    """Generate, build and run the verifier of a model in a folder; its report."""
    spin = program("spin")
    compiler = program("cc", "gcc", "clang")
    shutil.copy(model, folder)
    run([spin, "-a", *defines, model.name], folder, BUILD_SECONDS)
    options = ["-DSAFETY", "-DCOLLAPSE", "-DNOREDUCE", f"-DMEMLIM={MEMORY_MIB}"]
    run([compiler, optimize, "-w", *options, "-o", "pan", "pan.c"], folder, BUILD_SECONDS)
    return run([str(folder / "pan"), f"-m{SEARCH_DEPTH}"], folder, SEARCH_SECONDS)


def check_complete(report: str) -> None:
    """No error, and every state was visited, none was mistaken for another, and deadlocks count."""
    assert number(r"errors: (\d+)", report) == 0, report
    assert "Full statespace search for:" in report, report
    assert re.search(r"invalid end states\s+\+", report), report
    assert re.search(r"assertion violations\s+\+", report), report
    for shortcut in ("Search not completed", "too small", "Bit statespace", "Hash-Compact", "out of"):
        assert shortcut not in report, report
