# SPDX-License-Identifier: BSD-3-Clause
"""What all commands have in common: exit codes, one clear line instead of a traceback, silence when interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.processes import DEADLINE

import shmpool
from shmpool.cli import app

READERS = (["stat"], ["stat", "--json"], ["top", "--once"], ["top", "--once", "--json"], ["top"])


@pytest.mark.parametrize("command", [*READERS, ["gc"], ["gc", "--remove"]], ids=" ".join)
def test_no_pool(run: Callable[..., object], pool_path: Path, command: list[str]) -> None:
    result = run(*command)
    assert result.code == 3
    assert result.out == ""
    assert result.err.startswith(f"shmpool: there is no pool at {pool_path}.")
    assert result.err.count("\n") == 1
    assert list(pool_path.parent.iterdir()) == [], "asking must not create anything"


@pytest.mark.parametrize("command", [*READERS, ["gc"], ["gc", "--remove"]], ids=" ".join)
def test_foreign_file(run: Callable[..., object], pool_path: Path, command: list[str]) -> None:
    pool_path.write_bytes(b"GIF89a" + bytes(9000))
    pool_path.chmod(0o600)
    before = pool_path.read_bytes()
    result = run(*command)
    assert result.code == 1
    assert result.out == ""
    assert "is not a pool (it begins with b'GIF89a" in result.err
    assert pool_path.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["stat", "--fast"],
        ["top", "--interval", "0"],
        ["top", "--interval", "inf"],
        ["top", "--interval", "soon"],
        ["bench", "--max-mib", "0"],
        ["bench", "--seconds", "-1"],
    ],
    ids=" ".join,
)
def test_wrong_usage(run: Callable[..., object], arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert result.err.startswith("usage: python -m shmpool")


def test_help_names_every_command_and_exit_code(run: Callable[..., object]) -> None:
    result = run("--help")
    assert result.code == 0
    for word in ("stat", "top", "doctor", "gc", "bench", "exit codes:", "there is no pool at the path"):
        assert word in result.out


def test_path_beats_the_environment(run: Callable[..., object], small_pool: shmpool.Pool) -> None:
    result = run("stat", "--json", "--path", small_pool.path, SHMPOOL_PATH="/nowhere/pool.bin")
    assert result.data["uuid"] == small_pool.uuid


@pytest.mark.parametrize("command", ["stat", "top", "doctor", "gc"])
def test_default_folder_is_not_created(
    pool_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    asked: list[bool] = []

    def default_path(*, create: bool = True) -> Path:
        asked.append(create)
        return pool_path

    monkeypatch.setattr(app, "default_path", default_path)
    assert app.main([command, "--json"]) in (0, 1, 3)
    assert asked == [False]
    capsys.readouterr()


def test_ctrl_c_is_quiet(env: dict[str, str], small_pool: shmpool.Pool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "shmpool", "top", "--interval", "0.05"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        # The first picture is out, so the loop runs. (Before it, Python's own start-up would be interrupted.)
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert err == b""


@pytest.mark.parametrize(
    "command", [["stat"], ["stat", "--json"], ["top", "--json", "--interval", "0.01"]], ids=" ".join
)
def test_broken_pipe_is_quiet(env: dict[str, str], small_pool: shmpool.Pool, command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # nobody will ever read
    try:
        done = subprocess.run(
            [sys.executable, "-m", "shmpool", *command],
            env=env,
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=DEADLINE,
        )
    finally:
        os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 141


def test_top_says_when_the_pool_goes(env: dict[str, str], small_pool: shmpool.Pool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "shmpool", "top", "--interval", "0.05"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        process.stdout.read(1)
        small_pool.close()
        shmpool.Pool.remove(small_pool.path)
        _, err = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 3
    assert err.startswith(b"shmpool: there is no pool at")


def test_importing_the_library_does_not_import_the_command_line() -> None:
    text = "import sys, shmpool; print([m for m in sys.modules if m.startswith(('shmpool.cli', 'rich'))])"
    out = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert out.stdout.strip() == "[]"
