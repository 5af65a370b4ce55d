# SPDX-License-Identifier: BSD-3-Clause
"""Runs the command line as a user does: as another process, with its own environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import DEADLINE, Child, Children

# A child with a bit of everything: a sealed span that it pins itself, a small array, a claim that is not sealed.
HOLDER = """
from helpers.pools import small
pool = small(args[0])
wide = pool.put(np.zeros(80_000, "u1"))
view = pool.get(wide)
lone = pool.put(np.arange(10.0), region="output")
loan = pool.loan((8,), "f8", region="scratch")
say(lone.to_bytes().hex())
hear()
"""

_NO_RICH = "raise ModuleNotFoundError('No module named rich', name='rich')\n"


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """stdout as JSON."""
        return json.loads(self.out)


@pytest.fixture
def env(pool_path: Path) -> dict[str, str]:
    """The environment of a command: this test's pool by default, a terminal of 100 columns."""
    return {**os.environ, "SHMPOOL_PATH": str(pool_path), "COLUMNS": "100", "PYTHONWARNINGS": "error"}


@pytest.fixture
def run(env: dict[str, str]) -> Callable[..., Result]:
    """Run ``python -m shmpool`` to its end; never a traceback, whatever happens."""

    def run(*arguments: object, **changes: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "shmpool", *map(str, arguments)],
            env={**env, **changes},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def without_rich(tmp_path: Path) -> dict[str, str]:
    """Environment in which ``import rich`` fails as if it were not installed."""
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text(_NO_RICH)
    return {"PYTHONPATH": str(tmp_path)}


@pytest.fixture
def holder(children: Children, pool_path: Path) -> Child:
    """A living process that holds a span, an array and an unsealed claim in the pool."""
    child = children.start(HOLDER, pool_path, env={"PYTHONPATH": str(Path(__file__).parents[1])})
    child.hear()
    return child
