# SPDX-License-Identifier: BSD-3-Clause
"""The data plane without HTTP, and servers with it."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gsb
import pytest
from gsb.shm_transport import ShmTransport
from gsb.transports.stream import StreamTransport as Client
from gsb_server.settings import Settings
from gsb_server.transports.stream import DataListeners, StreamLink, StreamTransport
from helpers.processes import eventually
from helpers.servers import Server

import shmpool

TOKEN = "ab" * 32
SLOT = 2 << 20


class Plane:
    """A data plane in this process, over one pool."""

    def __init__(self, kind: str, folder: Path, **settings: Any) -> None:
        self.kind = kind
        self.path = folder / "data"
        unix = None
        if kind == "unix":
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self.path))
            listener.listen(128)
            unix = self.path
        else:
            listener = socket.create_server(("127.0.0.1", 0))
        self.port = 0 if kind == "unix" else listener.getsockname()[1]
        chosen = {"token": TOKEN, "data_timeout": 20.0, "data_grace": 0.0, **settings}
        self.pool = ShmTransport.get().pool
        self.transport = StreamTransport(self.pool, Settings(**chosen), DataListeners([listener], unix))
        self.clients: list[Client] = []

    def link(self) -> StreamLink:
        """A new session."""
        return self.transport.open({})

    def connect(self) -> socket.socket:
        """A bare connection."""
        if self.kind == "unix":
            connected = socket.socket(socket.AF_UNIX)
            connected.settimeout(20)
            connected.connect(str(self.path))
            return connected
        return socket.create_connection(("127.0.0.1", self.port), 20)

    def client(self, link: StreamLink, token: str = TOKEN) -> Client:
        """The client's end of a session."""
        self.clients.append(Client(self.connect, token, link.id, "test"))
        return self.clients[-1]

    @property
    def busy(self) -> list[Any]:
        """Slots that are not free."""
        return [slot for slot in self.pool.stat().slots if slot.state != "free"]

    def settle(self) -> None:
        """Wait until no connection is served and no slot taken."""
        eventually(lambda: not data_threads(), f"threads: {data_threads()}")
        eventually(lambda: not self.busy, f"slots: {self.busy}")

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.transport.close()
        self.settle()


def data_threads() -> list[threading.Thread]:
    """Threads that serve a data connection."""
    return [thread for thread in threading.enumerate() if thread.name == "gsb-data"]


@pytest.fixture
def shm(pool_path: Path) -> Iterator[ShmTransport]:
    """The process's pool: 4 + 4 + 8 slots of 2 MiB."""
    ShmTransport.reset()
    ShmTransport.configure(path=pool_path, slot_nbytes=SLOT)
    try:
        yield ShmTransport.get()
    finally:
        ShmTransport.reset()


@pytest.fixture
def make_plane(shm: ShmTransport) -> Iterator[Callable[..., Plane]]:
    """Starts data planes; in the end nothing of theirs may be left."""
    folder = Path(tempfile.mkdtemp(prefix="gsb-"))
    made: list[Plane] = []

    def make(kind: str = "unix", **settings: Any) -> Plane:
        made.append(Plane(kind, folder, **settings))
        return made[-1]

    try:
        yield make
        for plane in made:
            plane.close()
        assert list(folder.iterdir()) == [], "the data socket was left"
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def plane(make_plane: Callable[..., Plane]) -> Plane:
    return make_plane()


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = Server("--port", str(port), env={"GSB_DATA_GRACE": "0.2", "GSB_WATCH_INTERVAL": "0.05"})
    server.http = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
    try:
        yield server
    finally:
        gsb.disconnect()
        ShmTransport.reset()
        server.stop()


def all_free(pool: Path) -> bool:
    """Whether a pool has no array."""
    with shmpool.Pool.attach(pool, prefault_nbytes=0) as found:
        found.reclaim()
        return all(slot.state == "free" for slot in found.stat().slots)


@pytest.fixture
def is_empty() -> Callable[[Path], bool]:
    return all_free
