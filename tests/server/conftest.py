# SPDX-License-Identifier: BSD-3-Clause
"""The application driven in this process by raw ASGI events: no socket, no HTTP client, every message visible."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from gsb.protocol import decode_value, encode_value
from gsb.transports.coherence import prove_coherence
from gsb_server.app import create_app
from gsb_server.settings import Settings

import shmpool

TOKEN = "test-token-" + "0" * 32
DEADLINE = 60.0
JSON = (b"content-type", b"application/json")


class Answer:
    """Status and body of an answer."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        assert messages, "no answer was sent"
        self.status: int = messages[0]["status"]
        self.headers = dict(messages[0]["headers"])
        self.body = b"".join(message.get("body", b"") for message in messages[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of the error envelope, which must be complete."""
        error = self.json["error"]
        assert error["message"]
        assert error["request_id"]
        assert "hint" in error
        return str(error["code"])

    def __repr__(self) -> str:
        return f"<Answer {self.status} {self.body[:300]!r}>"


class Server:
    """The application on an event loop of its own, in a thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="test-loop", daemon=True)
        self.app = create_app(settings)
        self.service = self.app.state.service
        self._stop = asyncio.Event()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(DEADLINE)

    async def _lifespan(self, started: asyncio.Future[None]) -> None:
        sent = iter(({"type": "lifespan.startup"}, None))

        async def receive() -> Any:
            message = next(sent)
            if message is None:
                await self._stop.wait()
                return {"type": "lifespan.shutdown"}
            return message

        async def send(message: Any) -> None:
            if message["type"] == "lifespan.startup.complete":
                started.set_result(None)
            elif message["type"] == "lifespan.startup.failed":
                started.set_exception(RuntimeError(message["message"]))

        await self.app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

    def __enter__(self) -> Self:
        self.thread.start()

        async def start() -> asyncio.Task[None]:
            started = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(self._lifespan(started))
            await started
            return task

        self.life = self.run(start())
        return self

    def __exit__(self, *exc: object) -> None:
        async def stop() -> None:
            self._stop.set()
            await self.life

        try:
            self.run(stop())
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(DEADLINE)
            self.loop.close()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: list[tuple[bytes, bytes]] | None = None,
        token: str | None = TOKEN,
        chunks: list[bytes] | None = None,
        server: tuple[str, int | None] | None = ("/tmp/s.sock", None),
    ) -> Answer:
        """Send one request; ``body`` is made JSON unless it is bytes."""
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        if headers is None:
            headers = [(b"host", b"localhost"), JSON]
            if token is not None:
                headers.append((b"authorization", b"Bearer " + token.encode()))
            if chunks is None:
                headers.append((b"content-length", str(len(raw)).encode()))
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": headers,
            "server": server,
            "client": None,
            "state": {},
        }
        parts = list(chunks) if chunks is not None else [raw]
        sent: list[dict[str, Any]] = []

        async def receive() -> Any:
            if parts:
                part = parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(parts)}
            return await asyncio.get_running_loop().create_future()  # the connection stays open

        async def send(message: Any) -> None:
            sent.append(message)

        self.run(self.app(scope, receive, send))
        return Answer(sent)


class Peer:
    """A client of the server: an attachment to the pool and a session."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.pool = shmpool.Pool.attach(server.service.pool.path, prefault_nbytes=0)
        answer = server.request("POST", "/v1/session", self.hello)
        assert answer.status == 200, answer
        self.greeting = answer.json
        self.session = self.greeting["session"]

    @property
    def hello(self) -> dict[str, Any]:
        client = self.pool.client
        identity = [client.index, client.nonce]
        return {
            "protocol": 1,
            "transport": "shared",
            "pool": self.pool.uuid,
            "client": identity,
            "ticket": self.prove(),
            "label": "test",
        }

    def prove(self) -> str:
        """Go through the coherence handshake, for a ticket."""

        def post(path: str, message: dict[str, Any]) -> dict[str, Any]:
            answer = self.server.request("POST", path, message)
            assert answer.status == 200, answer
            return dict(answer.json)

        return prove_coherence(str(self.pool.path), self.pool.uuid, post)

    def put(self, array: np.ndarray) -> dict[str, Any]:
        return {"$": "slot", "handle": self.pool.put(array, timeout=DEADLINE).to_dict()}

    def encode(self, value: Any) -> Any:
        return encode_value(value, self.put)

    def decode(self, value: Any) -> Any:
        """Decode, copying; slots named by the answer are freed."""

        def read(wire: dict[str, Any]) -> np.ndarray:
            handle = shmpool.Handle.from_dict(wire["handle"])
            assert self.pool.owner(handle) == self.pool.client, "a result must be given to the client"
            array = self.pool.get(handle, copy=True)
            self.pool.free(handle)
            return array

        return decode_value(value, read)

    def message(self, estimator: str, method: str, *args: Any, **fields: Any) -> dict[str, Any]:
        for name in ("params", "kwargs", "config"):
            if name in fields:
                fields[name] = {key: self.encode(value) for key, value in fields[name].items()}
        return {
            "session": self.session,
            "call": secrets.token_hex(16),
            "estimator": f"sklearn.{estimator}",
            "method": method,
            "args": [self.encode(value) for value in args],
            **fields,
        }

    def call(self, estimator: str, method: str, *args: Any, **fields: Any) -> Answer:
        """Send a call and free the slots of its arguments, as a client does."""
        message = self.message(estimator, method, *args, **fields)
        try:
            return self.server.request("POST", "/v1/call", message)
        finally:
            self.free(message)

    def free(self, message: Any) -> None:
        if isinstance(message, dict):
            if message.get("$") == "slot":
                self.pool.free(shmpool.Handle.from_dict(message["handle"]))
            else:
                for item in message.values():
                    self.free(item)
        elif isinstance(message, list):
            for item in message:
                self.free(item)

    def ok(self, estimator: str, method: str, *args: Any, **fields: Any) -> dict[str, Any]:
        answer = self.call(estimator, method, *args, **fields)
        assert answer.status == 200, answer
        return dict(answer.json)

    def close(self) -> None:
        self.pool.close()


def busy_slots(pool: shmpool.Pool) -> list[Any]:
    """Slots that are not free."""
    return [slot for slot in pool.stat().slots if slot.state != "free"]


@pytest.fixture
def make_server(pool_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server with small slots; the settings given win."""
    running: list[Server] = []

    def make(**settings: Any) -> Server:
        values: dict[str, Any] = {
            "token": TOKEN,
            "pool_path": pool_path,
            "slot_nbytes": 1 << 20,
            "workers": 2,
            "watch_interval": 0.02,
            "output_timeout": 0.3,
            "shutdown_timeout": 10.0,
        }
        server = Server(Settings(**{**values, **settings}))
        server.__enter__()
        running.append(server)
        return server

    yield make
    for server in running:
        server.__exit__()


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    return make_server()


@pytest.fixture
def make_peer() -> Iterator[Callable[[Server], Peer]]:
    peers: list[Peer] = []

    def make(server: Server) -> Peer:
        peers.append(Peer(server))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


@pytest.fixture
def peer(server: Server, make_peer: Callable[[Server], Peer]) -> Iterator[Peer]:
    """A client; afterwards no slot may be taken."""
    peer = make_peer(server)
    yield peer
    assert busy_slots(peer.pool) == []


@pytest.fixture
def busy() -> Callable[[shmpool.Pool], list[Any]]:
    return busy_slots


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool], str], None]:
    from helpers.processes import eventually

    return eventually


@pytest.fixture
def token() -> str:
    return TOKEN
