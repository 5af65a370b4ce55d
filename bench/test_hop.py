# SPDX-License-Identifier: BSD-3-Clause
"""512 MiB of float32 to another process and back, warm: ours, one plain copy, and everything else one might use."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from bench.harness.arrays import Stamp, source
from bench.harness.clock import Turns, measure
from bench.harness.report import Report, Row
from bench.harness.settings import HOP_NBYTES, MIB, rounds
from bench.harness.workspace import Workspace, require_memory
from bench.peers.base import Peer
from bench.peers.copyto import Copyto
from bench.peers.iceoryx2_pubsub import Iceoryx2
from bench.peers.npy_file import NpyFile
from bench.peers.pipe import Pipe
from bench.peers.pyzmq import Pyzmq
from bench.peers.queue import Queue
from bench.peers.ray_store import RayStore
from bench.peers.shared_memory_fresh import SharedMemoryFresh
from bench.peers.shared_memory_reused import SharedMemoryReused
from bench.peers.shmpool_put import ShmpoolPut
from bench.peers.unix_socket import UnixSocket

BAR = 0.7
# The input region of the default pool holds two such arrays: after this many hops both places are warm.
WARM_UP = 4

# Groups, because a turn lasts as long as its slowest member, and Ray's daemons would disturb all others.
FAST: list[type[Peer]] = [SharedMemoryReused, Iceoryx2, UnixSocket, NpyFile]
SLOW: list[type[Peer]] = [SharedMemoryFresh, Pyzmq, Pipe, Queue]
RAY: list[type[Peer]] = [RayStore]


@contextlib.contextmanager
def _started(peer_type: type[Peer], workspace: Workspace, array: NDArray[Any]) -> Iterator[Peer]:
    peer = peer_type(workspace)
    peer.start(array)
    try:
        yield peer
    finally:
        peer.close()


def _timed(peer: Peer, stamp: Stamp) -> Callable[[], float]:
    def run() -> float:
        expected = stamp.next()
        start = time.perf_counter()
        answer = peer.hop()
        elapsed = time.perf_counter() - start
        assert answer is None or answer == expected, f"{peer.name} delivered something else"
        return elapsed

    return run


@pytest.fixture(scope="module")
def array() -> NDArray[np.float32]:
    """The array that travels."""
    require_memory(8 * 1024 * MIB)
    return source(HOP_NBYTES)


@pytest.mark.big
@pytest.mark.parametrize(
    ("peer_types", "n_rounds"),
    [
        pytest.param(FAST, rounds(31, 7), id="fast"),
        pytest.param(SLOW, rounds(7, 2), id="slow"),
        pytest.param(RAY, rounds(11, 3), id="ray"),
    ],
)
def test_hop(
    benchmark: BenchmarkFixture,
    workspace: Workspace,
    report: Report,
    array: NDArray[np.float32],
    peer_types: list[type[Peer]],
    n_rounds: int,
) -> None:
    present = [p for p in peer_types if p.package is None or importlib.util.find_spec(p.package)]
    missing = [p.name for p in peer_types if p not in present]
    if not present:
        pytest.skip(f"not installed: {', '.join(missing)}")
    stamp = Stamp(array)
    with contextlib.ExitStack() as stack:
        contenders: list[type[Peer]] = [*present, Copyto]
        peers = {p: stack.enter_context(_started(p, workspace, array)) for p in contenders}
        ours = stack.enter_context(_started(ShmpoolPut, workspace, array))
        turns = Turns({p: _timed(peer, stamp) for p, peer in peers.items()})
        our_hop = _timed(ours, stamp)
        for _ in range(WARM_UP):
            our_hop()
        turns.turn()
        for times in turns.times.values():
            times.clear()

        # pytest-benchmark times our hop; everybody else takes a turn in front of each of its rounds.
        median = measure(benchmark, our_hop, setup=turns.turn, rounds=n_rounds)

    section = "1. 512 MiB hop, put and get"
    copyto = turns.median(Copyto)
    ratio = median / copyto
    group = benchmark.name.partition("[")[2].rstrip("]")
    report.add(Row(section, f"shmpool ({group} round)", median, ratio, "np.copyto", f"≤ {BAR}", ratio <= BAR, n_rounds))
    report.add(Row(section, f"np.copyto ({group} round)", copyto, 1.0, "np.copyto", rounds=n_rounds))
    for peer_type in present:
        theirs = turns.median(peer_type)
        report.add(Row(section, peer_type.name, theirs, theirs / median, "shmpool", "> 1", theirs > median, n_rounds))
    for name in missing:
        benchmark.extra_info[name] = "not installed"
    benchmark.extra_info["seconds"] = {p.name: times for p, times in turns.times.items()}
    benchmark.extra_info["ratio_to_copyto"] = ratio
