# SPDX-License-Identifier: BSD-3-Clause
"""One server per test session, as a subprocess, with everything of its own in temporary places."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gsb
import pytest
from gsb._client import Client, get_client
from gsb.shm_transport import ShmTransport
from helpers.servers import Server


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        gsb.disconnect()
        ShmTransport.reset()
        server.stop()


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """The session's server, chosen by the settings for the length of the test."""
    with shared_server.config():
        yield shared_server


@pytest.fixture
def client(server: Server) -> Client:
    return get_client()


@pytest.fixture
def own_server() -> Iterator[Callable[..., Server]]:
    """A function that starts servers for this test alone."""
    started: list[Server] = []

    def start(*options: str, token: str | None = None) -> Server:
        started.append(Server(*options, token=token))
        return started[-1]

    try:
        yield start
    finally:
        for server in started:
            server.stop()
