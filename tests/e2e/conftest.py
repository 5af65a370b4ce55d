# SPDX-License-Identifier: BSD-3-Clause
"""A server process with a pool, a socket and a token of its own, for clients in processes of their own."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gsb._client import Client
from gsb.cli.server_process import ServerProcess

import shmpool

DEADLINE = 60.0


class Running:
    """A running server and how to reach it."""

    def __init__(self, pool_path: Path, *options: str) -> None:
        # Not below tmp_path: the name of a socket has room for 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="gsb-e2e-"))
        self.pool_path = pool_path
        self.token = secrets.token_hex(16)
        self.url = f"unix://{self.folder / 'server.sock'}"
        self.environment = {"GSB_RUNTIME_DIR": str(self.folder), "GSB_TOKEN": self.token, "GSB_SERVER": self.url}
        self.log = (self.folder / "log").open("wb")
        self.arguments = ["--socket", str(self.folder / "server.sock"), "--pool", str(pool_path), *options]
        self.start()

    def start(self) -> None:
        environment = {**self.environment, "GSB_WATCH_INTERVAL": "0.05"}
        self.process = ServerProcess(self.arguments, environment, output=self.log)
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """As kill -9."""
        assert self.process._process is not None
        self.process._process.kill()
        self.process.wait(DEADLINE)
        self.process.stop()

    def status(self) -> dict[str, Any]:
        client = Client(self.url, self.token)
        try:
            return client.status()
        finally:
            client.close()

    def log_text(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def close(self) -> None:
        self.process.stop()
        self.log.close()
        shutil.rmtree(self.folder)


@pytest.fixture
def run_server(pool_path: Path) -> Iterator[Callable[..., Running]]:
    """Start servers; afterwards the folder of the pool holds the pool and its lock file alone."""
    running: list[Running] = []

    def start(*options: str) -> Running:
        running.append(Running(pool_path, "--slot-size", "1M", *options))
        return running[-1]

    yield start
    for server in running:
        server.close()
    assert sorted(path.name for path in pool_path.parent.iterdir()) in ([], ["pool.bin", "pool.bin.lock"])


@pytest.fixture
def server(run_server: Callable[..., Running]) -> Running:
    return run_server()


@pytest.fixture
def slots_free(wait_until: Any) -> Callable[[Running], None]:
    """Wait until no slot of a server's pool is taken."""

    def check(server: Running) -> None:
        with shmpool.Pool.attach(server.pool_path, prefault_nbytes=0) as pool:

            def free() -> bool:
                pool.reclaim()
                return all(slot.state == "free" for slot in pool.stat().slots)

            wait_until(free, "all slots are free")

    return check


@pytest.fixture
def wait_until() -> Callable[..., None]:
    from helpers.processes import eventually

    return eventually


@pytest.fixture
def gsb_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line to its end."""

    def run(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        import os

        return subprocess.run(
            [sys.executable, "-m", "gsb.cli", *arguments],
            env={**os.environ, "COLUMNS": "160", "TERM": "dumb", **env},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


#: A client that transforms arrays of its own again and again, and looks at every element that comes back.
WORKER = """
import gsb
from gsb.preprocessing import StandardScaler
from sklearn.preprocessing import StandardScaler as Plain
seed, requests, rows = (int(arg) for arg in args)
generator = np.random.default_rng(seed)
scaler = StandardScaler()
base = generator.standard_normal((rows, 8))
scaler.fit(base)
plain = Plain().fit(base)
wrong = 0
say("ready")
hear()
for number in range(requests):
    X = base + number
    expected = plain.transform(X)
    result = scaler.transform(X)
    wrong += not np.array_equal(result, expected)
    wrong += result is X or not result.flags.writeable
say({"wrong": wrong, "backend": scaler.gsb_report_.backend, "slots": scaler.gsb_report_.slots_sent})
hear()
"""


@pytest.fixture
def worker() -> str:
    return WORKER
