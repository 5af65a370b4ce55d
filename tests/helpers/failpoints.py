# SPDX-License-Identifier: BSD-3-Clause
"""A build of the package in which processes can be killed or stopped at labelled places.

The build is made once per state of the sources, in ``build/failpoints/<hash of the sources>/shmpool``, and found by
children through PYTHONPATH. Parent and survivors use the normal build: both have the same layout stamp.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["FailpointBuild", "channel_labels", "failpoint_build", "failpoint_labels"]

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src" / "shmpool"
CACHE = ROOT / "build" / "failpoints"
_LABEL = re.compile(r"""(?:SHMPOOL_FAILPOINT|\bfailpoint)\("([a-z_]+\.[a-z_]+)"\)""")


def _sources() -> list[Path]:
    return sorted(path for path in SOURCES.rglob("*") if path.suffix in {".h", ".c", ".pyx", ".pxd", ".pxi", ".py"})


def _labels() -> set[str]:
    return {label for path in _sources() for label in _LABEL.findall(path.read_text(encoding="utf-8"))}


# These places are passed by channels only: test_channel_failpoints drives victims there.
_CHANNELS = ("send.", "recv.", "custody.", "heal.", "channel.")


def failpoint_labels() -> list[str]:
    """Every label in the sources but those of channels."""
    return sorted(label for label in _labels() if not label.startswith(_CHANNELS))


def channel_labels() -> list[str]:
    """The labels of channels."""
    return sorted(label for label in _labels() if label.startswith(_CHANNELS))


@dataclass(frozen=True)
class FailpointBuild:
    """Where the build lies, and how to have a child use it."""

    path: Path

    def env(self, log: Path | None = None) -> Mapping[str, str]:
        """The environment for a child that runs on this build; `log` collects the labels it passes."""
        found = {"PYTHONPATH": str(self.path), "SHMPOOL_TEST_BUILD": str(self.path)}
        return found if log is None else {**found, "SHMPOOL_FAILPOINT_LOG": str(log)}


# For children: fail at once if they run on another build than they were meant to.
CHECK_BUILD = """
assert shmpool.__file__.startswith(os.environ["SHMPOOL_TEST_BUILD"]), shmpool.__file__
"""


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    import fcntl

    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stamp() -> str:
    digest = hashlib.sha256()
    for path in [*_sources(), ROOT / "setup.py"]:
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(sys.version.encode())
    return digest.hexdigest()[:16]


def _build(target: Path) -> None:
    work = target.with_suffix(".making")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(SOURCES, work / "src" / "shmpool", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    shutil.copy(ROOT / "setup.py", work)
    # A copy of the sources, so that neither Cython's nor the compiler's output meets that of the normal build; without
    # optimisation, because most of the time goes into the compiler and none of it into the tests.
    made = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "lib", "--build-temp", "temp"],
        cwd=work,
        env={**os.environ, "SHMPOOL_FAILPOINTS": "1", "SHMPOOL_DEBUG": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert made.returncode == 0, f"the failpoint build failed:\n{made.stdout}\n{made.stderr}"
    for path in (work / "src" / "shmpool").glob("*.py"):
        shutil.copy(path, work / "lib" / "shmpool")
    os.rename(work / "lib", target)
    shutil.rmtree(work)


@pytest.fixture(scope="session")
def failpoint_build() -> FailpointBuild:
    """The package compiled with failpoints; made on first use, or before (tests/wine)."""
    if made := os.environ.get("SHMPOOL_TEST_FAILPOINTS"):
        return FailpointBuild(Path(made))
    with _alone():
        target = CACHE / _stamp()
        if not target.is_dir():
            for old in CACHE.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            _build(target)
        return FailpointBuild(target)
