# SPDX-License-Identifier: BSD-3-Clause
"""The suite of `shmpool`, run by a Windows Python."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from windows_python import ROOT, WindowsPython, to_windows

FOLDERS = ("tests/pool",)
SECONDS = 400


@pytest.mark.timeout(SECONDS + 100)
def test_the_suite_passes_on_windows(windows: WindowsPython, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["-q", "--tb=short", "-c", to_windows(ROOT / "tests" / "wine" / "installed.ini")]
    options += ["--rootdir", to_windows(ROOT), "--confcutdir", to_windows(ROOT / "tests")]
    done = subprocess.run(
        windows.command(["-m", "pytest", *options, *FOLDERS]),
        cwd=ROOT,
        env=windows.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=SECONDS,
        umask=0o077,
    )
    with capfd.disabled():
        sys.stdout.write("\n" + "\n".join(done.stdout.splitlines()[-3:]) + "\n")
    assert done.returncode == 0, done.stdout[-20000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout[-20000:]
    assert int(passed[1]) > 500, "most of the suite was not run"
