# SPDX-License-Identifier: BSD-3-Clause
"""Benchmarks: the import path, what every one of them shares, and the table at the end.

Run with ``pytest --benchmark-only bench``; ``SHMPOOL_BENCH_QUICK=1`` takes fewer rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Children are spawned and must import what they run, so the root is on the path rather than in pytest's own importer.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.harness.report import Report
from bench.harness.workspace import Workspace

_REPORT = pytest.StashKey[Report]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = Report()


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Where a benchmark leaves its rows for the table at the end."""
    return request.config.stash[_REPORT]


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    """A directory on tmpfs of this test alone, removed with all it holds."""
    with Workspace() as space:
        yield space


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    report = config.stash[_REPORT]
    if report.rows:
        terminalreporter.section("shmpool: figures and bars")
        for line in report.lines(terminalreporter._tw.fullwidth):
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"saved as {report.save(config.rootpath)}")
