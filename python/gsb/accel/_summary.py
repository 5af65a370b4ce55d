# SPDX-License-Identifier: BSD-3-Clause
"""What ran where, and why: the table at the end of a program, those of its child processes added."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from gsb._report import Tally, observers, tally

__all__ = ["difference", "forked", "print_at_exit", "show", "write_at_exit"]

# A child writes no more often than this many seconds, besides at its end.
_EVERY = 0.25


def difference(later: Iterable[Tally], earlier: Iterable[Tally]) -> list[Tally]:
    """Give what has been added, most time first."""
    known = {row[:4]: row for row in earlier}
    added = []
    for row in later:
        before = known.get(row[:4])
        calls, seconds = (before.calls, before.seconds) if before is not None else (0, 0.0)
        if row.calls > calls:
            added.append(row._replace(calls=row.calls - calls, seconds=row.seconds - seconds))
    return sorted(added, key=lambda row: row.seconds, reverse=True)


def show(rows: list[Tally], n_children: int = 0, *, stderr: bool = True) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and not console.is_jupyter:
        console.width = 200  # a log: no line is broken
    here = sum(row.calls for row in rows if row.backend == "local")
    there = sum(row.calls for row in rows) - here
    title = f"gsb: {_count(there, 'call')} on the server, {_count(here, 'call')} in the program"
    if n_children:
        title += f" and its {_count(n_children, 'child', 'children')}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("estimator and method")
    table.add_column("where")
    table.add_column("calls", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("why")
    for row in rows:
        name = f"{row.estimator.rpartition('.')[2]}.{row.method}"
        where = "program" if row.backend == "local" else f"server, {row.backend}"
        table.add_row(name, where, str(row.calls), f"{row.seconds:.3f}", row.reason)
    console.print(table if rows else title)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _sum(tables: Iterable[Iterable[Tally]]) -> list[Tally]:
    total: dict[Any, Tally] = {}
    for row in (row for table in tables for row in table):
        known = total.get(row[:4])
        total[row[:4]] = (
            row if known is None else known._replace(calls=known.calls + row.calls, seconds=known.seconds + row.seconds)
        )
    return sorted(total.values(), key=lambda row: row.seconds, reverse=True)


# ---------------------------------------------------------------------------------- the program
def print_at_exit() -> str:
    """Print the table when this process ends; gives the folder in which children leave theirs."""
    folder = tempfile.mkdtemp(prefix="gsb-report-")
    owner = os.getpid()

    def finish() -> None:
        # Not in children that were forked with this handler.
        if os.getpid() != owner:
            return
        children = [_read(path) for path in sorted(Path(folder).glob("*.json"))]
        shutil.rmtree(folder, ignore_errors=True)
        used = [rows for rows in children if rows]
        show(_sum([tally(), *used]), len(used))

    atexit.register(finish)
    return folder


def _read(path: Path) -> list[Tally]:
    try:
        return [Tally(*row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):  # it was killed before the file was whole
        return []


# ---------------------------------------------------------------------------------- its children
class _Writer:
    """Keeps the file of one child up to date."""

    def __init__(self, folder: str) -> None:
        self._path = Path(folder) / f"{os.getpid()}-{time.monotonic_ns()}.json"
        self._before = tally()
        self._owner = os.getpid()
        self._next = 0.0

    @property
    def is_ours(self) -> bool:
        return os.getpid() == self._owner

    def write(self) -> None:
        rows = difference(tally(), self._before)
        if not self.is_ours or not rows:
            return
        draft = self._path.with_suffix(".draft")
        # The program may have ended, and removed the folder.
        with contextlib.suppress(OSError):
            draft.write_text(json.dumps(rows), encoding="utf-8")
            draft.replace(self._path)

    def note(self, call: object) -> None:
        """Write now and then: children are often killed at their end."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVERY
            self.write()


_writer: _Writer | None = None


def _begin(folder: str) -> _Writer | None:
    """Make this process's writer; None if it has one."""
    global _writer
    if _writer is not None:
        if _writer.is_ours:
            return None
        # Inherited through fork.
        observers.remove(_writer.note)
    _writer = _Writer(folder)
    observers.append(_writer.note)
    return _writer


def write_at_exit(folder: str) -> None:
    """Leave this process's table in the folder when it ends, and now and then. For a child that was spawned."""
    writer = _begin(folder)
    if writer is not None:
        atexit.register(writer.write)


class _Anchor:
    """What multiprocessing holds weakly, to know whether to go on calling."""


_anchor = _Anchor()


def forked(util: ModuleType, folder: str) -> None:
    """Let children that multiprocessing forks leave their tables, too; ``util`` is ``multiprocessing.util``."""

    def begin(anchor: _Anchor) -> None:
        # Called in every child of multiprocessing, spawned ones included; forked ones end without atexit.
        writer = _begin(folder)
        if writer is not None:
            util.Finalize(None, writer.write, exitpriority=0)

    util.register_after_fork(_anchor, begin)
