# SPDX-License-Identifier: BSD-3-Clause
"""A Windows process and a Linux process on one pool file of a local, coherent file system.

wine's kernel objects are its server's, the locks of both end up in one Linux kernel. Neither can wake the other: they
look at the words often enough.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pools import check_progress, small
from windows_python import WindowsPython, to_windows

import shmpool

DEADLINE = 60.0
PRELUDE = """\
import json, os, sys
def say(value):
    os.write(1, json.dumps(value).encode() + b"\\n")
def hear():
    line = sys.stdin.readline()
    if not line:
        os._exit(3)
    return json.loads(line)
import numpy as np, shmpool
pool = shmpool.Pool.attach(sys.argv[1], prefault_nbytes=0, timeout=20)
"""


class Peer:
    """A Windows process that steps in turn with the test."""

    def __init__(self, windows: WindowsPython, text: str, path: Path) -> None:
        self.popen = subprocess.Popen(
            windows.command(["-c", PRELUDE + text, to_windows(path)]),
            env=windows.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            umask=0o077,
        )
        self._said: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self._said.put(line)
        self._said.put(b"")

    def hear(self) -> Any:
        """The next value that it says; other lines are wine's."""
        other = b""
        while True:
            line = self._said.get(timeout=DEADLINE)
            assert line, f"the Windows process ended: {other.decode(errors='replace')}"
            try:
                return json.loads(line)
            except ValueError:
                other += line

    def say(self, value: object) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(value).encode() + b"\n")

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(DEADLINE)

    def close(self) -> None:
        self.kill()
        self._thread.join(5)
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def start(windows: WindowsPython, small_pool: shmpool.Pool) -> Iterator[Callable[[str], Peer]]:
    peers: list[Peer] = []

    def start(text: str) -> Peer:
        peers.append(Peer(windows, text, small_pool.path))
        return peers[-1]

    yield start
    for peer in peers:
        peer.close()


def test_arrays_go_both_ways(small_pool: shmpool.Pool, start: Callable[[str], Peer]) -> None:
    peer = start("""
got = pool.get(shmpool.Handle.from_dict(hear()))
say(got.sum().item())
say(pool.put(np.arange(20000, dtype="i8")).to_dict())
hear()
""")
    peer.say(small_pool.put(np.arange(1000)).to_dict())
    assert peer.hear() == 499500
    handle = shmpool.Handle.from_dict(peer.hear())
    assert (small_pool.get(handle) == np.arange(20000)).all()
    assert len({(client.pid_namespace, client.alive) for client in small_pool.stat().clients}) == 2


def test_a_killed_windows_process_is_reclaimed(small_pool: shmpool.Pool, start: Callable[[str], Peer]) -> None:
    peer = start("""
kept = [pool.put(np.arange(10), "output") for _ in range(2)]
loan = pool.loan((10,), region="scratch")
view = pool.get(kept[0])
say("full")
hear()
""")
    assert peer.hear() == "full"
    with pytest.raises(shmpool.PoolFullError):
        small_pool.put(np.arange(3), "output", 0.05)
    peer.kill()
    for _ in range(2):
        small_pool.put(np.arange(3), "output", 30)
    small_pool.reclaim()
    for slot in small_pool.stat().slots:
        assert slot.owner in (None, small_pool.client.index)


def test_a_killed_linux_process_is_reclaimed_by_windows(
    small_pool: shmpool.Pool, start: Callable[[str], Peer], children: Any
) -> None:
    holder = children.start(
        "pool = shmpool.Pool.attach(args[0], prefault_nbytes=0)\n"
        'kept = [pool.put(np.arange(10), "output") for _ in range(2)]; say("full"); hear()',
        small_pool.path,
    )
    assert holder.hear() == "full"
    peer = start("""
try:
    pool.put(np.arange(3), "output", 0.05)
except shmpool.PoolFullError as error:
    say([holder.alive for holder in error.holders])
hear()
handles = [pool.put(np.arange(3), "output", 30) for _ in range(2)]
for handle in handles:
    pool.free(handle)
say(pool.reclaim())
hear()
""")
    assert peer.hear() == [True, True]
    holder.kill()
    peer.say("go")
    assert peer.hear() == 0
    peer.close()
    small_pool.reclaim()
    check_progress(small_pool)


def test_claims_of_both_never_meet(small_pool: shmpool.Pool, start: Callable[[str], Peer]) -> None:
    text = """
mine = pool.client.index
say("ready"); hear()
for n in range(3000):
    with pool.loan((512,), "i8", timeout=30) as loan:
        loan.array[:] = n * 2 + 1
        assert (loan.array == n * 2 + 1).all()
        handle = loan.seal()
    assert (pool.get(handle) == n * 2 + 1).all()
    pool.free(handle)
say("done"); hear()
"""
    with small(small_pool.path) as second:
        peer = start(text)
        assert peer.hear() == "ready"
        before = small_pool.counters["input"]
        peer.say("go")
        for n in range(3000):
            handle = second.put(np.full(512, 2 * n), timeout=30)
            assert (second.get(handle) == 2 * n).all()
            second.free(handle)
        assert peer.hear() == "done"
        assert small_pool.counters["input"] - before == 6000


def test_a_channel_joins_them(small_pool: shmpool.Pool, start: Callable[[str], Peer]) -> None:
    with (
        shmpool.Channel.open("there", small_pool) as there,
        shmpool.Channel.open("back", small_pool, role="recv") as back,
    ):
        peer = start("""
with shmpool.Channel.attach("there", pool) as there, shmpool.Channel.attach("back", pool) as back:
    say("ready")
    for _ in range(30):
        back.send(there.recv(timeout=20) + 1, timeout=20)
    hear()
""")
        assert peer.hear() == "ready"
        for n in range(30):
            there.send(np.full(100 if n % 2 else 7000, n), timeout=20)
            assert (back.recv(timeout=20) == n + 1).all()


def test_the_index_of_a_dead_linux_process_is_free_for_windows(
    small_pool: shmpool.Pool, start: Callable[[str], Peer], children: Any
) -> None:
    text = "pool = shmpool.Pool.attach(args[0], prefault_nbytes=0); say(pool.client.index); hear()"
    child = children.start(text, small_pool.path)
    index = child.hear()
    child.kill()
    peer = start("say(pool.client.index); hear()")
    assert peer.hear() == index
