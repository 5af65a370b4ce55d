# SPDX-License-Identifier: BSD-3-Clause
"""The programs in examples/ run and print what they promise."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.pools import check_all_free

import shmpool

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.usefixtures("pool_of_examples")


def test_two_terminals(two_terminals: Callable[..., tuple[str, str]], pool_path: Path) -> None:
    folder = EXAMPLES / "two_terminals"
    produced, consumed = two_terminals((folder / "producer.py",), (folder / "consumer.py",))
    assert produced == "thank you\n"
    assert consumed == "(1000, 1000) float32 4.995e+08\n"
    with shmpool.Pool.attach(pool_path, prefault_nbytes=0) as pool:
        check_all_free(pool)


def test_worker_pool(run_program: Callable[..., str], pool_path: Path) -> None:
    out = run_program(EXAMPLES / "worker_pool.py")
    # 24,000 vectors of eight normal numbers: each norm is about 2.74
    match = re.fullmatch(r"12 tasks, 2 workers, sum of the norms: (\d+\.\d+)\n", out)
    assert match is not None, out
    assert 65_000 < float(match[1]) < 67_000
    with shmpool.Pool.attach(pool_path, prefault_nbytes=0) as pool:
        check_all_free(pool)


def test_loan_camera(run_program: Callable[..., str], pool_path: Path) -> None:
    out = run_program(EXAMPLES / "loan_camera.py", 60)
    match = re.fullmatch(r"(\d+) frames seen, (\d+) dropped, mean brightness \d+\.\d\n", out)
    assert match is not None, out
    assert int(match[1]) + int(match[2]) == 60
    assert int(match[1]) >= 4, "four frames fit before anybody looks"
    with shmpool.Pool.attach(pool_path, prefault_nbytes=0) as pool:
        check_all_free(pool)
