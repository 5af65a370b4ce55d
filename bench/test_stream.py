# SPDX-License-Identifier: BSD-3-Clause
"""The transport `stream` beside a bare ``sendall`` and ``recv_into`` of the same bytes, in the same rounds."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gsb
import numpy as np
import pytest
from gsb._client import Client
from gsb._control import exchange
from gsb.cli.server_process import ServerProcess
from gsb.protocol.data import form_of
from gsb.transports.coherence import prove_coherence
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from bench.harness.child import Answer, Child
from bench.harness.clock import Turns, measure
from bench.harness.report import Report, Row
from bench.harness.settings import rounds
from bench.harness.workspace import Workspace, require_memory

NBYTES = 500_000_000
BAR_RATIO = 2.5
BAR_HANDSHAKE = 2e-3

TOKEN = "ab" * 32


@contextmanager
def bare_peer(kind: str, path: str, nbytes: int) -> Iterator[Answer]:
    """The other end of a bare connection: takes the bytes, or gives them back."""
    listener = socket.socket(socket.AF_UNIX) if kind == "unix" else socket.socket()
    listener.bind(path if kind == "unix" else ("127.0.0.1", 0))
    listener.listen()
    buffer = memoryview(np.ones(nbytes, np.uint8)).cast("B")
    connected: socket.socket | None = None

    def answer(request: bytes) -> bytes:
        nonlocal connected
        if request == b"where":
            return b"" if kind == "unix" else str(listener.getsockname()[1]).encode()
        if request == b"accept":
            connected, _ = listener.accept()
            return b"ok"
        assert connected is not None
        if request == b"take":
            done = 0
            while done < nbytes:
                done += connected.recv_into(buffer[done:])
            connected.sendall(b"!")
        else:
            connected.sendall(buffer)
        return b"ok"

    with listener:
        yield answer
    if connected is not None:
        connected.close()


@contextmanager
def server(workspace: Workspace) -> Iterator[tuple[str, str]]:
    """A gsb server; its addresses."""
    folder = Path(tempfile.mkdtemp(prefix="gsb-bench-"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    arguments = ["--socket", str(folder / "s"), "--port", str(port), "--pool", str(workspace.new("pool.bin"))]
    try:
        with ServerProcess(
            [*arguments, "--log-level", "warning"], {"GSB_RUNTIME_DIR": str(folder), "GSB_TOKEN": TOKEN}
        ):
            yield f"unix://{folder / 's'}", f"http://127.0.0.1:{port}"
            gsb.disconnect()
    finally:
        gsb.ShmTransport.reset()
        shutil.rmtree(folder, ignore_errors=True)


def receive(connected: socket.socket, target: memoryview) -> None:
    done = 0
    while done < len(target):
        done += connected.recv_into(target[done:])


@pytest.mark.big
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_500_mb(benchmark: BenchmarkFixture, workspace: Workspace, report: Report, kind: str) -> None:
    require_memory(6 * 1024 * 2**20)
    array: NDArray[Any] = np.random.default_rng(7).random(NBYTES // 4, dtype=np.float32)
    target = memoryview(np.ones(NBYTES, np.uint8)).cast("B")
    path = str(workspace.new("bare"))
    with server(workspace) as urls, Child(bare_peer, kind, path, NBYTES) as peer:
        client = Client(urls[kind == "tcp"], TOKEN, "stream")
        transport = client.connect().transport
        where = peer.ask(b"where")
        peer.tell(b"accept")
        bare = socket.socket(socket.AF_UNIX) if kind == "unix" else socket.socket()
        bare.connect(path if kind == "unix" else ("127.0.0.1", int(where)))
        assert peer.answer() == b"ok"

        def bare_there() -> float:
            peer.tell(b"take")
            start = time.perf_counter()
            bare.sendall(memoryview(array).cast("B"))
            assert bare.recv(1) == b"!"
            seconds = time.perf_counter() - start
            assert peer.answer() == b"ok"
            return seconds

        def bare_back() -> float:
            start = time.perf_counter()
            peer.tell(b"give")
            receive(bare, target)
            seconds = time.perf_counter() - start
            assert peer.answer() == b"ok"
            return seconds

        sent: list[dict[str, Any]] = []

        def there() -> float:
            start = time.perf_counter()
            sent.append(transport.write(array, 60.0))
            return time.perf_counter() - start

        def back() -> float:
            there()
            start = time.perf_counter()
            found = transport.read({**sent.pop(), **form_of(array).to_dict()})
            seconds = time.perf_counter() - start
            assert found[0] == array[0]
            assert found[-1] == array[-1]
            np.testing.assert_array_equal(found[::4096], array[::4096])
            return seconds

        def there_and_free() -> float:
            seconds = there()
            transport.release(sent.pop())
            return seconds

        turns = Turns(
            {"bare there": bare_there, "there": there_and_free, "bare back": bare_back, "back": back},
        )
        for _ in range(3):
            turns.turn()
        turns.times = {key: [] for key in turns.times}
        n = rounds(9, 3)
        measure(benchmark, turns.turn, rounds=n)
        bare.close()
        client.close()

    section = f"8. stream, 500 MB, {kind}"
    ratios = {}
    for direction, words in (("there", "into a slot of the server"), ("back", "out of it, into fresh memory")):
        ours, reference = turns.median(direction), turns.median(f"bare {direction}")
        ratios[direction] = ours / reference
        met = ratios[direction] <= BAR_RATIO
        report.add(Row(section, words, ours, ratios[direction], "bare", f"≤ {BAR_RATIO}", met, n))
        report.add(Row(section, f"bare sendall/recv_into, {direction}", reference, 1.0, "bare", rounds=n))
    benchmark.extra_info.update(ratios=ratios, times=turns.times)


def test_handshake(benchmark: BenchmarkFixture, workspace: Workspace, report: Report) -> None:
    """What the first session of a process pays to know that the mapping can be trusted."""
    with server(workspace) as (url, _):
        client = Client(url, TOKEN, "shared")
        pool = client.connect().transport.pool  # type: ignore[attr-defined]
        connection = client._connection()

        def post(path: str, message: dict[str, Any]) -> dict[str, Any]:
            return exchange(connection, "POST", path, message, 5.0)

        n = rounds(300, 50)
        seconds = measure(benchmark, lambda: prove_coherence(str(pool.path), pool.uuid, post), rounds=n)
        client.close()
    bar = f"< {BAR_HANDSHAKE * 1e3:g} ms"
    report.add(Row("9. coherence handshake", "four round trips", seconds, None, "", bar, seconds < BAR_HANDSHAKE, n))
