# SPDX-License-Identifier: BSD-3-Clause
"""Sessions live as long as their clients, and everything of theirs goes with them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from gsb_server.errors import ServerError
from gsb_server.sessions import SessionStore
from gsb_server.transports.base import Link
from sklearn.preprocessing import StandardScaler

X = np.random.default_rng(0).standard_normal((60, 3))
BIG = np.random.default_rng(1).standard_normal((2000, 3))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"pool": "0" * 32}, "session_lost"),
        ({"client": [0]}, "malformed"),
        ({"client": [0, -1]}, "malformed"),
        ({"client": [0, 2**64]}, "malformed"),
        ({"client": [True, 5]}, "malformed"),
        ({"client": ["0", 5]}, "malformed"),
        ({"client": [0, 5]}, "session_lost"),
        ({"client": [10**6, 5]}, "session_lost"),
        ({"client": [2**63, 5]}, "session_lost"),
        ({"protocol": 0}, "protocol_mismatch"),
        ({"label": 5}, "malformed"),
        ({"transport": None}, "malformed"),
        ({"transport": "smoke"}, "malformed"),
        ({"transport": "stream"}, "malformed"),  # this server has no data plane
    ],
)
def test_only_a_client_that_is_attached_gets_one(peer: Any, change: dict[str, Any], code: str) -> None:
    assert peer.server.request("POST", "/v1/session", {**peer.hello, **change}).code == code


def test_there_is_a_limit(make_server: Any, make_peer: Any) -> None:
    server = make_server(max_sessions=2)
    peer = make_peer(server)
    make_peer(server)
    assert server.request("POST", "/v1/session", peer.hello).code == "busy"


def test_closing_one_drops_its_models(peer: Any) -> None:
    peer.ok("decomposition.PCA", "fit", X, params={})
    assert peer.server.request("DELETE", f"/v1/session/{peer.session}").status == 204
    assert len(peer.server.service.models) == 0
    assert peer.call("decomposition.PCA", "fit", X, params={}).code == "session_lost"
    # Twice is harmless.
    assert peer.server.request("DELETE", f"/v1/session/{peer.session}").status == 204


def test_a_client_that_detaches_is_noticed(server: Any, make_peer: Any, wait_until: Any, busy: Any) -> None:
    peer, survivor = make_peer(server), make_peer(server)
    peer.ok("decomposition.PCA", "fit", X, params={})
    peer.ok("preprocessing.StandardScaler", "fit_transform", BIG, params={})  # a result that is never read
    peer.put(BIG)
    assert len(busy(survivor.pool)) == 2
    peer.close()
    wait_until(lambda: len(server.service.sessions) == 1, "the session ends")
    wait_until(lambda: busy(survivor.pool) == [], "the slots are free")
    assert len(server.service.models) == 0
    assert server.request("GET", "/v1/status").json["metrics"]["sessions_lost"] == 1
    survivor.ok("decomposition.PCA", "fit", X, params={})


def test_a_client_killed_with_nine_is_noticed(
    server: Any, make_peer: Any, children: Any, wait_until: Any, busy: Any, token: str
) -> None:
    survivor = make_peer(server)
    child = children.start(
        "pool = shmpool.Pool.attach(args[0])\n"
        "pool.put(np.zeros(50_000))\n"
        "say([pool.client.index, pool.client.nonce])\nhear()",
        server.service.pool.path,
    )
    client = child.hear()
    body = {**survivor.hello, "client": client}
    session = server.request("POST", "/v1/session", body).json["session"]
    message = {**survivor.message("decomposition.PCA", "fit", X, params={}), "session": session}
    assert server.request("POST", "/v1/call", message).status == 200
    assert len(server.service.models) == 1
    child.kill()
    wait_until(lambda: len(server.service.sessions) == 1, "the session ends")
    wait_until(lambda: busy(survivor.pool) == [], "the slots are free")
    assert len(server.service.models) == 0
    assert server.request("POST", "/v1/call", message).code == "session_lost"


def test_a_client_that_dies_during_its_call_leaves_nothing(
    server: Any, make_peer: Any, wait_until: Any, busy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, survivor = make_peer(server), make_peer(server)
    gate, inside = threading.Event(), threading.Event()
    original = StandardScaler.fit

    def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
        inside.set()
        assert gate.wait(60)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(StandardScaler, "fit", slow)
    message = peer.message("preprocessing.StandardScaler", "fit_transform", BIG, params={})
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(server.request("POST", "/v1/call", message)))
    thread.start()
    try:
        assert inside.wait(60)
        peer.close()
        wait_until(lambda: len(server.service.sessions) == 1, "the session ends")
    finally:
        gate.set()
        thread.join(60)
    assert done[0].code == "session_lost"
    wait_until(lambda: busy(survivor.pool) == [], "the slots are free")
    assert len(server.service.models) == 0


def test_a_result_nobody_fetches_is_freed(make_server: Any, make_peer: Any, wait_until: Any, busy: Any) -> None:
    server = make_server(result_ttl=0.05)
    peer = make_peer(server)
    peer.ok("preprocessing.StandardScaler", "fit_transform", BIG, params={})
    wait_until(lambda: busy(peer.pool) == [], "the result is freed")


def test_an_answer_to_nobody_is_taken_back(server: Any, peer: Any, busy: Any) -> None:
    """The connection was closed while the call ran: the client lives, but does not know the slot."""
    import json

    from gsb_server.app import Endpoint

    message = peer.message("preprocessing.StandardScaler", "fit_transform", BIG, params={})
    body = json.dumps(message).encode()
    events = iter([{"type": "http.request", "body": body}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(events)

    async def send(event: Any) -> None:
        sent.append(event)

    endpoint = next(route.app for route in server.app.routes if route.path == "/v1/call")
    assert isinstance(endpoint, Endpoint)
    scope = {"type": "http", "method": "POST", "headers": [], "gsb_request_id": "x", "path": "/v1/call"}
    server.run(endpoint(scope, receive, send))
    peer.free(message)
    assert sent == []
    assert busy(peer.pool) == []


class LinkOfNobody(Link):
    """A link that carries nothing."""

    alive = True

    def is_alive(self) -> bool:
        return self.alive

    def read(self, wire: dict[str, Any]) -> Any:
        raise AssertionError

    write = take_back = read  # type: ignore[assignment]

    def close(self) -> None:
        pass


def test_time_to_live_spares_sessions_with_a_running_call() -> None:
    now = [0.0]
    store = SessionStore(max_sessions=8, ttl=10, clock=lambda: now[0])
    one, other = LinkOfNobody(), LinkOfNobody()
    idle, working = store.open(one), store.open(other)
    working.running = 1
    now[0] = 11
    assert store.lost() == [idle]
    one.alive = other.alive = False
    assert store.lost() == [idle, working]


def test_remembered_calls_are_bounded() -> None:
    store = SessionStore(max_sessions=8, ttl=10)
    session = store.open(LinkOfNobody())
    for number in range(5000):
        session.begin(str(number))
    assert len(session.calls) == 1024
    with pytest.raises(ServerError) as caught:
        session.begin("4999")
    assert caught.value.code == "duplicate_call"
