# SPDX-License-Identifier: BSD-3-Clause
"""Runs of pytest in a process of their own, with the plugin under test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SETTINGS = Path(__file__).parent / "suite.ini"


class Run:
    """What a run of pytest has said."""

    def __init__(self, done: subprocess.CompletedProcess[str], stats: dict[str, Any]) -> None:
        self.status = done.returncode
        self.output = done.stdout + done.stderr
        self.stats = stats

    def __repr__(self) -> str:
        return f"exit status {self.status}\n{self.output}"


@pytest.fixture
def run_suite(tmp_path: Path) -> Callable[..., Run]:
    """Run a test-suite through the bridge; afterwards nothing of its server is left."""
    places = tmp_path / "tmp"
    places.mkdir()

    def run(*arguments: str, root: Path = tmp_path, timeout: float = 120, env: dict[str, str] | None = None) -> Run:
        stats = tmp_path / "stats.json"
        stats.unlink(missing_ok=True)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "GSB_", "COV_"))
        }
        environment["TMPDIR"] = str(places)
        # Thread pools of client and server would fight for the cores.
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1") | (env or {})
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-p", "gsb.pytest_plugin", "--gsb-stats", str(stats)),
                *(
                    "-c",
                    str(SETTINGS),
                    "--rootdir",
                    str(root),
                    "-p",
                    "no:randomly",
                    "-p",
                    "no:cacheprovider",
                    *arguments,
                ),
            ],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        result = Run(done, json.loads(stats.read_text()) if stats.exists() else {})
        left = [str(path) for path in places.glob("gsb-*")]
        pool = result.stats.get("pool")
        if pool is not None and result.stats["server"] == "own" and Path(pool).exists():
            left.append(pool)
        assert not left, f"left behind: {left}\n{result}"
        return result

    return run
