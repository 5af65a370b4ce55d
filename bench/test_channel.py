# SPDX-License-Identifier: BSD-3-Clause
"""Channels: one-way latency over size against everything else one might use, throughput, and the large arrays."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

import shmpool
from bench.channel_peers import PEERS, Iceoryx2, OurChannel, OurLoan, Pipe, Pong, UnixSocket
from bench.harness.arrays import Stamp, source, touch
from bench.harness.child import CONTEXT
from bench.harness.clock import Turns, measure
from bench.harness.report import Report, Row
from bench.harness.settings import HOP_NBYTES, MIB, rounds
from bench.harness.workspace import Workspace, require_memory
from bench.peers.shmpool_put import ShmpoolPut

SIZES = [64, 512, 4096, 16 * 1024, 64 * 1024, 256 * 1024, MIB, 4 * MIB, 16 * MIB, 64 * MIB]
LATENCY_FILE = Path(__file__).parents[1] / ".benchmarks" / "channel-latency.json"


@contextlib.contextmanager
def _started(peer_type: type[Pong], workspace: Workspace, array: NDArray[Any]) -> Iterator[Pong]:
    peer = peer_type(workspace, array)
    peer.start()
    try:
        for _ in range(12):
            peer.trip()
        peer.pause(True)
        yield peer
    finally:
        peer.pause(False)
        peer.close()


def _timed(peer: Pong, trips: int) -> Callable[[], float]:
    """Half of a round trip: the median of some in a row, as a program that answers sees them."""

    def run() -> float:
        peer.pause(False)
        peer.trip()
        times = []
        for _ in range(trips):
            start = time.perf_counter()
            peer.trip()
            times.append(time.perf_counter() - start)
        peer.pause(True)
        return sorted(times)[trips // 2] / 2

    return run


@pytest.mark.parametrize("nbytes", SIZES)
def test_latency(benchmark: BenchmarkFixture, workspace: Workspace, report: Report, nbytes: int) -> None:
    require_memory(64 * nbytes + 1024 * MIB)
    array = source(nbytes)
    present = [p for p in PEERS if p.package is None or importlib.util.find_spec(p.package)]
    trips = 200 if nbytes <= 64 * 1024 else 20 if nbytes <= 4 * MIB else 3
    n_rounds = rounds(15, 3)
    with contextlib.ExitStack() as stack:
        peers = {p: stack.enter_context(_started(p, workspace, array)) for p in present}
        ours = peers.pop(OurChannel)
        turns = Turns({p: _timed(peer, trips) for p, peer in peers.items()})
        run = _timed(ours, trips)
        mine: list[float] = []
        measure(benchmark, lambda: mine.append(run()), setup=turns.turn, rounds=n_rounds)
    median = sorted(mine)[len(mine) // 2]
    label = f"{nbytes // MIB} MiB" if nbytes >= MIB else f"{nbytes // 1024} KiB" if nbytes >= 1024 else f"{nbytes} B"
    section = f"6. channel, one way, {nbytes:>9} B"
    bars: dict[type[Pong], float] = {Pipe: 2, Iceoryx2: 2, UnixSocket: 1} if nbytes == 4096 else {}
    report.add(Row(section, f"shmpool Channel ({label})", median, rounds=n_rounds))
    found = {OurChannel.name: median}
    for peer in peers:
        theirs = found[peer.name] = turns.median(peer)
        bar = bars.get(peer)
        met = None if bar is None else theirs >= bar * median
        report.add(
            Row(section, peer.name, theirs, theirs / median, "shmpool", f"≥ {bar}" if bar else "", met, n_rounds)
        )
    benchmark.extra_info["one_way_seconds"] = found
    _save(nbytes, found)


def _save(nbytes: int, found: dict[str, float]) -> None:
    """For bench/plot_latency.py."""
    LATENCY_FILE.parent.mkdir(exist_ok=True)
    known: dict[str, Any] = {}
    if LATENCY_FILE.exists():
        known = json.loads(LATENCY_FILE.read_text(encoding="utf-8"))
    known[str(nbytes)] = found
    LATENCY_FILE.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def _consume(path: str, n: int) -> None:
    with shmpool.Pool.attach(path, prefault_nbytes=0) as pool:
        messages = shmpool.Channel.attach("messages", pool, timeout=30)
        done = shmpool.Channel.attach("done", pool, timeout=30)
        while True:
            for _ in range(n):
                messages.recv(60)
            done.send(np.array(n))


def test_throughput(benchmark: BenchmarkFixture, workspace: Workspace, report: Report) -> None:
    """64-byte arrays, one producer, one consumer."""
    n = rounds(200_000, 40_000)
    path = workspace.new("pool.bin")
    array = np.arange(8.0)
    with (
        shmpool.Pool.create(path, slot_nbytes=MIB, prefault_nbytes=0) as pool,
        shmpool.Channel.open("messages", pool, 256) as messages,
        shmpool.Channel.open("done", pool) as done,
    ):
        process = CONTEXT.Process(target=_consume, args=(str(path), n), daemon=True)
        process.start()

        def run() -> None:
            for _ in range(n):
                messages.send(array, 60)
            assert done.recv(60) == n

        seconds = measure(benchmark, run, rounds=rounds(9, 3), warmup_rounds=1) / n
        process.kill()
        process.join()
    rate = 1 / seconds
    benchmark.extra_info["messages_per_second"] = rate
    met = rate >= 300_000
    report.add(Row("7. channel, small messages", f"{rate:,.0f} a second", seconds, bar="≥ 300,000 a second", met=met))


def test_loan_of_any_size(benchmark: BenchmarkFixture, workspace: Workspace, report: Report) -> None:
    """512 MB that nobody copies, against 4 KiB that nobody copies."""
    require_memory(12 * 1024 * MIB)
    n_rounds = rounds(31, 7)
    with contextlib.ExitStack() as stack:
        small = stack.enter_context(_started(OurLoan, workspace, source(4096)))
        large = stack.enter_context(_started(OurLoan, workspace, source(HOP_NBYTES)))
        turns = Turns({"small": _timed(small, 20)})
        run = _timed(large, 20)
        mine: list[float] = []
        measure(benchmark, lambda: mine.append(run()), setup=turns.turn, rounds=n_rounds)
    median = sorted(mine)[len(mine) // 2]
    ratio = median / turns.median("small")
    section = "8. channel, loaned arrays, one way"
    report.add(Row(section, "4 KiB", turns.median("small"), rounds=n_rounds))
    report.add(Row(section, "512 MiB", median, ratio, "4 KiB", "≤ 2", ratio <= 2, n_rounds))


def _touch_all(path: str) -> None:
    with shmpool.Pool.attach(path, prefault_nbytes=0) as pool:
        arrays = shmpool.Channel.attach("arrays", pool, timeout=30)
        answers = shmpool.Channel.attach("answers", pool, timeout=30)
        for array in arrays:
            answer = np.frombuffer(touch(array), "u8")
            del array
            answers.send(answer)


def test_large_copy(benchmark: BenchmarkFixture, workspace: Workspace, report: Report) -> None:
    """512 MB copied into a channel, against `put`, a handle through a pipe, and `get`."""
    require_memory(8 * 1024 * MIB)
    array = source(HOP_NBYTES)
    stamp = Stamp(array)
    path = workspace.new("pool.bin")
    n_rounds = rounds(31, 5)
    with contextlib.ExitStack() as stack:
        put = ShmpoolPut(workspace)
        put.start(array)
        stack.callback(put.close)
        pool = stack.enter_context(shmpool.Pool.create(path))
        arrays = stack.enter_context(shmpool.Channel.open("arrays", pool, region="input"))
        answers = stack.enter_context(shmpool.Channel.open("answers", pool))
        process = CONTEXT.Process(target=_touch_all, args=(str(path),), daemon=True)
        process.start()
        stack.callback(process.join)
        stack.callback(process.kill)

        def with_put() -> float:
            expected = stamp.next()
            start = time.perf_counter()
            answer = put.hop()
            elapsed = time.perf_counter() - start
            assert answer == expected
            return elapsed

        def with_channel() -> float:
            expected = stamp.next()
            start = time.perf_counter()
            arrays.send(array, 60)
            answer = answers.recv(60)
            elapsed = time.perf_counter() - start
            assert isinstance(answer, np.ndarray)
            assert answer.tobytes() == expected
            return elapsed

        for _ in range(4):
            with_put()
            with_channel()
        turns = Turns({"put": with_put})
        mine: list[float] = []
        measure(benchmark, lambda: mine.append(with_channel()), setup=turns.turn, rounds=n_rounds)
    median = sorted(mine)[len(mine) // 2]
    ratio = median / turns.median("put")
    section = "9. 512 MiB copied, there and acknowledged"
    report.add(Row(section, "put, handle over a pipe, get", turns.median("put"), rounds=n_rounds))
    report.add(Row(section, "channel", median, ratio, "put and get", "≤ 1.05", ratio <= 1.05, n_rounds))


def test_idle_receiver(report: Report, workspace: Workspace, benchmark: BenchmarkFixture) -> None:
    """CPU time of a receiver to whom nothing comes."""
    with (
        shmpool.Pool.create(workspace.new("pool.bin"), slot_nbytes=MIB, prefault_nbytes=0) as pool,
        shmpool.Channel.open("quiet", pool) as channel,
    ):
        used: list[float] = []

        def wait() -> None:
            before = time.thread_time()
            with contextlib.suppress(shmpool.ChannelEmptyError):
                channel.recv(1.0)
            used.append(time.thread_time() - before)

        measure(benchmark, wait, rounds=rounds(5, 2))
    median = sorted(used)[len(used) // 2]
    report.add(Row("10. channel, idle receiver", "CPU time per second", median, bar="< 5 ms", met=median < 0.005))
