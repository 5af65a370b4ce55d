# SPDX-License-Identifier: BSD-3-Clause
"""``make bench-gpu`` runs to its end over stand-ins, and its page says what was not measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(ROOT / part) for part in ("src", "python", "server"))
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.skipif(bool(os.environ.get("GSB_TEST_GPU")), reason="make bench-gpu is the real thing")
def test_the_benchmark_is_whole(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    done = _run(
        "--device",
        "fake",
        "--rows",
        8000,
        "--columns",
        80,
        "--repeat",
        1,
        "--slot",
        "2M",
        "--output",
        page,
        "--paths",
        "parts",
        "--clients",
        2,
    )
    # 1: a bar was missed, which is nothing to stand-ins.
    assert done.returncode in (0, 1), done.stderr
    text = page.read_text()
    assert "Fake GPU" in text
    assert "the figures mean nothing" in text
    assert "0 errors; on trial" in text
    for row in ("`client_encode`", "of these, `upload`", "**total, warm**", "scikit-learn in-process"):
        assert row in text
    missing = text.partition("## Not yet measured")[2].partition("##")[0]
    assert "pageable, warm" in missing
    assert "in parts" not in missing
    assert "make test-gpu" in missing
    assert "WSL2" in missing


def test_figures_of_stand_ins_do_not_go_into_the_documentation() -> None:
    before = (ROOT / "docs" / "gpu.md").read_text()
    done = _run("--device", "fake", "--rows", 500, "--columns", 5, "--repeat", 1, "--output", ROOT / "docs" / "gpu.md")
    assert done.returncode == 1
    assert "do not go into the documentation" in done.stderr
    assert (ROOT / "docs" / "gpu.md").read_text() == before


def test_the_page_without_a_run_lists_everything() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from bench.gpu.report import ABSENT, render; t = render({}); print(all(x in t for x in ABSENT.values()))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "True\n", done.stderr
