# SPDX-License-Identifier: BSD-3-Clause
"""``doctor``: check this machine and this pool, and say what to do."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .. import __version__, _core
from . import render
from .check_machine import (
    check_copy,
    check_features,
    check_filesystem,
    check_huge_pages,
    check_memory,
    check_space,
)
from .check_pool import check_clients, check_folder, check_lock_file, check_pool
from .finding import Finding, Place

__all__ = ["CHECKS", "examine", "run"]

# In the order in which they are shown; the slow one last.
CHECKS = (
    check_pool,
    check_clients,
    check_lock_file,
    check_folder,
    check_filesystem,
    check_space,
    check_memory,
    check_huge_pages,
    check_features,
    check_copy,
)

_STYLES = {"OK": "green", "WARN": "bold yellow", "FAIL": "bold red"}


def examine(path: Path) -> Iterator[Finding]:
    """All findings about the pool at `path` and the machine below it, as they come."""
    place = Place.at(path)
    for check in CHECKS:
        yield from check(place)


def _versions() -> dict[str, str]:
    return {
        "shmpool": __version__,
        "format": f"{_core.FORMAT_VERSION} ({_core.layout_stamp():08x})",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def run(path: Path, *, as_json: bool) -> int:
    """Examine the pool at `path`; 1 if anything is a FAIL."""
    console = None if as_json else render.console()
    findings: list[Finding] = []
    if console is None:
        findings = list(examine(path))
    else:
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        console.print(Text(", ".join(f"{name} {version}" for name, version in _versions().items()), style="dim"))
        console.print(Text(str(path), style="bold"))
        for finding in examine(path):  # as they come: the copy takes a moment
            findings.append(finding)
            line = Table.grid(padding=(0, 2))
            line.add_column(width=4)
            line.add_column(width=19)
            line.add_column(overflow="fold")
            line.add_row(Text(finding.status, style=_STYLES[finding.status]), finding.check, finding.found)
            if finding.status != "OK" and finding.advice:
                line.add_row("", "", Text("-> " + finding.advice, style="italic"))
            console.print(Padding(line, (0, 0, 0, 2)))
    count = {status: sum(finding.status == status for finding in findings) for status in ("OK", "WARN", "FAIL")}
    if console is None:
        render.print_json(
            {
                "path": str(path),
                "versions": _versions(),
                "checks": [finding.to_dict() for finding in findings],
                "count": count,
            }
        )
    else:
        console.print(
            f"{count['OK']} OK, {count['WARN']} to look at, {count['FAIL']} failed",
            style=_STYLES["FAIL" if count["FAIL"] else "WARN" if count["WARN"] else "OK"],
        )
    return 1 if count["FAIL"] else 0
