# SPDX-License-Identifier: BSD-3-Clause
"""The channel programs in examples/ run and print what they promise."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.pools import check_all_free

import shmpool

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.usefixtures("pool_of_examples")


def check_nothing_left(path: Path) -> None:
    with shmpool.Pool.attach(path, prefault_nbytes=0) as pool:
        pool.reclaim()
        check_all_free(pool)


def test_camera_in_three_terminals(start: Callable[..., subprocess.Popen[str]], pool_path: Path) -> None:
    program = EXAMPLES / "channel_camera.py"
    sender = start(program, "send", 60, 2)
    watchers = [start(program, "watch") for _ in range(2)]
    assert sender.communicate(timeout=60) == ("60 frames sent\n", "")
    for watcher in watchers:
        assert watcher.communicate(timeout=60) == ("60 frames seen; the camera is gone\n", "")
    check_nothing_left(pool_path)


def test_workers(run_program: Callable[..., str], pool_path: Path) -> None:
    assert run_program(EXAMPLES / "channel_workers.py") == "12 tasks, 2 workers, right\n"
    check_nothing_left(pool_path)


def test_asyncio(run_program: Callable[..., str], pool_path: Path) -> None:
    out = run_program(EXAMPLES / "channel_asyncio.py")
    assert out == f"sum {sum(range(50))}, the event loop went on meanwhile: True\n"
    check_nothing_left(pool_path)
