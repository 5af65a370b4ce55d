# SPDX-License-Identifier: BSD-3-Clause
"""Runs ``tests/device`` in a process of its own, because SciPy must be imported there with another environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# One BLAS thread: the arrays are tiny, and torch's threads beside BLAS's make them a hundred times slower.
ENVIRON = {"SCIPY_ARRAY_API": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# The stand-ins for cuML and CuPy are found where they are wanted, and nowhere else.
STANDINS = {"test_cuml.py": {"PYTHONPATH": str(ROOT / "tests" / "standins" / "fake")}}


def _run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            "--no-header",
            "-p",
            "no:cacheprovider",
            f"tests/device/{name}",
            *arguments,
        ],
        cwd=ROOT,
        env={**os.environ, **ENVIRON, **STANDINS.get(name, {})},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "tests" / "device").glob("test_*.py")))
def test_in_a_process_of_its_own(name: str) -> None:
    output = _run(name, "-m", "not gpu")
    passed = re.search(r"(\d+) passed", output)
    assert passed, output
    assert int(passed[1]) >= 20, output
    for absent in re.findall(r"^SKIPPED .*: (.* is not installed.*)$", output, re.MULTILINE):
        print(absent)


def test_here_the_backend_says_that_it_is_in_the_wrong_process() -> None:
    from gsb_server.backends.array_api import ArrayApiBackend
    from helpers.devices import StrictDevice

    probe = ArrayApiBackend(StrictDevice()).probe()
    assert not probe.available
    assert "SCIPY_ARRAY_API=1" in probe.reason


def test_importing_the_backends_imports_no_gpu_library() -> None:
    code = (
        "import sys, gsb_server.backends.registry, gsb_server.backends.array_api, gsb_server.backends.cuml;"
        "print(sorted({'cupy', 'cuml', 'cudf', 'rmm', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
