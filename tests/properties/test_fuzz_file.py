# SPDX-License-Identifier: BSD-3-Clause
"""Random bytes in every part of a pool file: each call works or raises ShmPoolError; nothing crashes or hangs.

The fuzzing (damage.py) runs in a child, so that a crash is a failed test and not the end of all tests. What it found
wrong comes back as tracebacks; the test's parameters reproduce it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.processes import Children

HERE = Path(__file__).parent
SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
ROUNDS = 100 if SOAK else 15
DEADLINE = 120.0

CHILD = """
import faulthandler
faulthandler.enable()
sys.path.insert(0, args[0])
import damage
say(damage.main(args[1], args[2], int(args[3]), int(args[4])))
"""


@pytest.mark.parametrize("seed", range(50 if SOAK else 2))
@pytest.mark.parametrize("kind", ["live", "file"])
def test_damage(kind: str, seed: int, pool_path: Path, children: Children) -> None:
    child = children.start(CHILD, HERE, kind, pool_path, seed, ROUNDS)
    worked, refused, n_wrong, wrong = child.hear(DEADLINE)
    child.finish(DEADLINE)
    assert n_wrong == 0, "\n".join(wrong)
    assert worked > 100
    assert refused > 100
