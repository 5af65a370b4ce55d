# SPDX-License-Identifier: BSD-3-Clause
"""``top``: order, rates, suspects, and the live screen in a real terminal."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from fcntl import ioctl
from typing import Any

import numpy as np
from helpers.processes import DEADLINE, Child

import shmpool
from shmpool.cli.peek import look
from shmpool.cli.top import Frame, channel_rates, leak_suspects, rates

Run = Callable[..., Any]


def test_rates(small_pool: shmpool.Pool) -> None:
    before = look(small_pool.path)
    for _ in range(5):
        small_pool.free(small_pool.put(np.zeros(3)))
    now = look(small_pool.path)
    assert rates(Frame(now, before, 2.0)) == {"input": 2.5, "output": 0.0, "scratch": 0.0}
    assert set(rates(Frame(now, None, 2.0)).values()) == {None}
    other = dataclasses.replace(before, stat=dataclasses.replace(before.stat, uuid="0" * 32))
    assert set(rates(Frame(now, other, 2.0)).values()) == {None}, "the pool was made anew: nothing to compare with"


def test_channel_rates(small_pool: shmpool.Pool) -> None:
    with shmpool.Channel.open("frames", small_pool, 8) as frames:
        before = look(small_pool.path)
        for _ in range(5):
            frames.send(np.zeros(3))
        with shmpool.Channel.open("later", small_pool, 8):
            now = look(small_pool.path)
            assert channel_rates(Frame(now, before, 2.0)) == {0: 2.5, 1: None}
            assert channel_rates(Frame(now, None, 2.0)) == {0: None, 1: None}
    with shmpool.Channel.open("another", small_pool, 8):
        now = look(small_pool.path)
        assert channel_rates(Frame(now, before, 2.0)) == {0: None}, "the same place, another channel"


def test_leak_suspects(small_pool: shmpool.Pool) -> None:
    lone = small_pool.put(np.zeros(3))
    read = small_pool.put(np.zeros(3))
    view = small_pool.get(read)
    with small_pool.loan((3,), "f8"):
        assert leak_suspects(look(small_pool.path), 0.0) == {lone.slot}
        assert leak_suspects(look(small_pool.path), 3600.0) == set()
    del view


def test_once(run: Run, holder: Child, small_pool: shmpool.Pool) -> None:
    time.sleep(0.02)
    young = small_pool.put(np.zeros(3))
    channel = shmpool.Channel.open("frames", small_pool, 4)
    channel.send(np.zeros(3))
    result = run("top", "--once", "--interval", "0.05", "--leak-after", "0.01", COLUMNS="80")
    assert result.code == 0
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 80
    slots = [line.split()[2] for line in lines if line.split()[2:4] and line.split()[3:4] != [] and " s  " in line[:8]]
    assert slots == ["0-1", "4", "6", str(young.slot)], "longest held first"
    assert "slots 5/8" in result.out
    assert "nobody: a leak?" in result.out
    frames = next(line.split() for line in lines if line.startswith("frames"))
    assert frames == ["frames", "queue", "1/4", "1", "0", "0/s"]
    channel.close()


def test_json_line(run: Run, small_pool: shmpool.Pool) -> None:
    handle = small_pool.put(np.zeros(3))
    result = run("top", "--once", "--json", "--interval", "0.05", "--leak-after", "0.01")
    assert result.out.count("\n") == 1
    assert result.data["leak_suspects"] == [handle.slot]
    assert result.data["rates"] == {"input": 0.0, "output": 0.0, "scratch": 0.0}
    assert result.data["channel_rates"] == {}


def test_json_goes_on(env: dict[str, str], small_pool: shmpool.Pool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "shmpool", "top", "--json", "--interval", "0.02"], env=env, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], DEADLINE)
        assert ready
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    finally:
        process.kill()
        process.communicate()
    assert {line["uuid"] for line in lines} == {small_pool.uuid}


def test_empty_pool(run: Run, small_pool: shmpool.Pool) -> None:
    assert "every slot is free" in run("top", "--once", "--interval", "0.05").out


def test_without_rich(run: Run, small_pool: shmpool.Pool, without_rich: dict[str, str]) -> None:
    result = run("top", "--once", "--interval", "0.05", **without_rich)
    assert result.code == 1
    assert result.err.startswith("shmpool: top needs rich: pip install 'shmpool[cli]'.")
    assert run("top", "--once", "--json", "--interval", "0.05", **without_rich).data["uuid"] == small_pool.uuid


def read_until(fd: int, wanted: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + DEADLINE
    while wanted not in seen:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{wanted!r} did not appear: {seen[-2000:]!r}"
        seen += os.read(fd, 65536)
    return seen


def test_live_screen(env: dict[str, str], small_pool: shmpool.Pool) -> None:
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 80, 0, 0))
    env = {key: value for key, value in env.items() if key not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "shmpool", "top", "--interval", "0.05"],
        env=env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    try:
        screen = read_until(ours, b"every slot is free")
        assert b"\x1b[?1049h" in screen, "its own screen, so that the shell's is left as it was"
        handles = [small_pool.put(np.zeros(3), region="scratch" if n > 3 else "input") for n in range(6)]
        read_until(ours, b"and 2 younger")  # twelve lines of terminal hold four slots
        channels = [shmpool.Channel.open(f"frames{n}", small_pool, 4) for n in range(3)]
        read_until(ours, b"channels 3")
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 16, 80, 0, 0))
        assert b"frames0" in read_until(ours, b"and 2 slower")
        read_until(ours, b"and 3 younger")
        for channel in channels:
            channel.close()
        for handle in handles:
            small_pool.free(handle)
        read_until(ours, b"every slot is free")
        process.send_signal(signal.SIGINT)
        read_until(ours, b"\x1b[?1049l")
        assert process.wait(DEADLINE) == 130
    finally:
        process.kill()
        process.wait()
        os.close(theirs)
        os.close(ours)
