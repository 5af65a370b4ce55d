# SPDX-License-Identifier: BSD-3-Clause
"""Runs programs as a reader of the documentation does, with a pool of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.places import Places
from helpers.processes import DEADLINE, eventually

import shmpool

Start = Callable[..., subprocess.Popen[str]]


def end(process: subprocess.Popen[str]) -> str:
    """Wait for a clean end without a word on stderr; what it printed."""
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    assert err == ""
    return out


def wait_until_listening(process: subprocess.Popen[str], folder: Path) -> None:
    """Wait until `process` listens on a Unix socket in `folder`."""

    def listening() -> bool:
        assert process.poll() is None, process.communicate()[1]
        # Flags 00010000 are those of a socket that listens; the path alone is there a moment earlier.
        lines = Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace").splitlines()
        return any(" 00010000 " in line and f" {folder}/" in line for line in lines)

    eventually(listening, f"a process listens in {folder}")


@pytest.fixture
def pool_path(places: Places) -> Iterator[Path]:
    """As everywhere, but short: the programs put a Unix socket beside it, whose name may have 107 characters."""
    folder = places.new("ex")
    yield folder / "pool.bin"
    places.discard(folder)  # also asserts that the socket is gone


@pytest.fixture
def env(pool_path: Path) -> dict[str, str]:
    """The environment of a program: this test's pool is the default one."""
    return {**os.environ, "SHMPOOL_PATH": str(pool_path), "PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def pool_of_examples(pool_path: Path) -> Path:
    """A pool for programs that open the default one: the usual slots, but small ones."""
    shmpool.Pool.create(pool_path, slot_nbytes=1 << 20, prefault_nbytes=0).close()
    return pool_path


@pytest.fixture
def start(env: dict[str, str]) -> Iterator[Start]:
    """Start ``python ARGUMENTS``; killed at the end if it has not ended by itself."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=DEADLINE)


@pytest.fixture
def two_terminals(start: Start, pool_path: Path) -> Callable[..., tuple[str, str]]:
    """Run two programs side by side, the second once the first listens; what each printed."""

    def run(first: tuple[object, ...], second: tuple[object, ...]) -> tuple[str, str]:
        one = start(*first)
        wait_until_listening(one, pool_path.parent)
        two = start(*second)
        return end(one), end(two)

    return run


@pytest.fixture
def run_program(start: Start) -> Callable[..., str]:
    """Run one program to its end; what it printed."""
    return lambda *arguments: end(start(*arguments))
