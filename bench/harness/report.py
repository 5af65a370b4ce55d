# SPDX-License-Identifier: BSD-3-Clause
"""The rows that the benchmarks leave, the table made of them, and the file they are saved in."""

from __future__ import annotations

import io
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def duration(seconds: float) -> str:
    """Seconds with three digits and the unit that fits."""
    size, unit = next((u for u in _UNITS if seconds >= u[0]), _UNITS[-1])
    value = seconds / size
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes
    ----------
    section, what : str
        The table it belongs to, and its line.
    seconds : float
        Median time.
    ratio : float or None
        Of `seconds` to the time of `of`, both from the same rounds.
    of : str
        What the ratio is to.
    bar : str
        What is asked for; empty for a row that only informs.
    met : bool or None
        Whether the bar is met; None without one.
    rounds : int
        How many measurements the median is of.
    """

    section: str
    what: str
    seconds: float
    ratio: float | None = None
    of: str = ""
    bar: str = ""
    met: bool | None = None
    rounds: int = 0


class Report:
    """All rows of one run."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Keep one row."""
        self.rows.append(row)

    def lines(self, width: int) -> list[str]:
        """The tables as text, in the order of the sections' names: the tests run in random order."""
        console = Console(file=io.StringIO(), width=max(width, 100), force_terminal=False)
        for section in sorted({row.section for row in self.rows}):
            table = Table(title=section, title_justify="left", title_style="bold")
            table.add_column("what", min_width=34)
            table.add_column("median", justify="right")
            table.add_column("ratio", justify="right")
            table.add_column("to")
            table.add_column("bar")
            table.add_column("met")
            table.add_column("rounds", justify="right")
            for row in self.rows:
                if row.section == section:
                    table.add_row(
                        row.what,
                        duration(row.seconds),
                        "" if row.ratio is None else f"{row.ratio:.2f}",
                        row.of,
                        row.bar,
                        {None: "", True: "yes", False: "NO"}[row.met],
                        str(row.rounds or ""),
                    )
            console.print(table)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().splitlines()

    def save(self, root: Path) -> Path:
        """Write the rows as JSON beside pytest-benchmark's own records."""
        folder = root / ".benchmarks"
        folder.mkdir(exist_ok=True)
        path = folder / "shmpool-ratios.json"
        content = {
            "cpus": len(os.sched_getaffinity(0)),
            "kernel": platform.release(),
            "load_average": os.getloadavg(),
            "numpy": np.__version__,
            "python": platform.python_version(),
            "rows": [asdict(row) for row in self.rows],
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return path
