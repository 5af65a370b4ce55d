# SPDX-License-Identifier: BSD-3-Clause
"""Who gets in: token, host, origin, type and size, on every route."""

from __future__ import annotations

from typing import Any

import pytest
from gsb.protocol import client_proof, server_proof
from gsb.protocol.wire import ERROR_STATUS
from gsb_server.security import Gate

ROUTES = [
    ("POST", "/v1/call"),
    ("POST", "/v1/attrs"),
    ("POST", "/v1/state"),
    ("POST", "/v1/model"),
    ("POST", "/v1/forget"),
    ("GET", "/v1/call/abc"),
    ("POST", "/v1/witness"),
    ("POST", "/v1/session"),
    ("POST", "/v1/file"),
    ("POST", "/v1/attend"),
    ("POST", "/v1/part"),
    ("DELETE", "/v1/session/abc"),
    ("GET", "/v1/health"),
    ("GET", "/v1/status"),
    ("GET", "/no/such/route"),
]
NONCE = "ab" * 32


def test_the_list_of_routes_is_complete(server: Any) -> None:
    known = {path.replace("abc", "{}") for _, path in ROUTES} | {"/v1/hello"}
    real = {route.path.replace("{call}", "{}").replace("{session}", "{}") for route in server.app.routes}
    assert real <= known


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("wrong", [None, "", "wrong", "test-token-" + "0" * 31, "test-token-" + "0" * 33])
def test_every_route_wants_the_token(server: Any, method: str, path: str, wrong: str | None) -> None:
    answer = server.request(method, path, token=wrong)
    assert (answer.status, answer.code) == (401, "unauthorized")


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"localhost.evil.example",
        b"localhost:80@evil",
        b"",
        b"LOCALHOST:1",
        b"127.0.0.1",
        b"localhost:8765",
    ],
)
def test_other_hosts_are_refused_on_the_unix_socket(server: Any, token: str, host: bytes) -> None:
    headers = [(b"host", host), (b"authorization", f"Bearer {token}".encode())]
    assert server.request("GET", "/v1/health", headers=headers).code == "forbidden_host"


@pytest.mark.parametrize(
    ("host", "good"),
    [
        (b"127.0.0.1:8765", True),
        (b"localhost:8765", True),
        (b"[::1]:8765", True),
        (b"127.0.0.1", False),
        (b"127.0.0.1:8766", False),
        (b"rebound.example:8765", False),
    ],
)
def test_over_tcp_the_host_is_an_own_address(server: Any, token: str, host: bytes, good: bool) -> None:
    headers = [(b"host", host), (b"authorization", f"Bearer {token}".encode())]
    answer = server.request("GET", "/v1/health", headers=headers, server=("127.0.0.1", 8765))
    assert answer.status == (200 if good else 403)


def test_a_missing_or_doubled_host_is_refused(server: Any, token: str) -> None:
    authorization = (b"authorization", f"Bearer {token}".encode())
    assert server.request("GET", "/v1/health", headers=[authorization]).code == "forbidden_host"
    twice = [(b"host", b"localhost"), (b"host", b"localhost"), authorization]
    assert server.request("GET", "/v1/health", headers=twice).code == "forbidden_host"


@pytest.mark.parametrize(
    "header", [(b"origin", b"http://localhost"), (b"origin", b"null"), (b"sec-fetch-site", b"cross-site")]
)
def test_web_pages_are_refused_even_with_the_token(server: Any, token: str, header: tuple[bytes, bytes]) -> None:
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {token}".encode()), header]
    assert server.request("GET", "/v1/health", headers=headers).code == "forbidden_origin"


def test_a_body_must_be_json(server: Any, token: str) -> None:
    headers = [
        (b"host", b"localhost"),
        (b"authorization", f"Bearer {token}".encode()),
        (b"content-type", b"text/plain"),
    ]
    assert server.request("POST", "/v1/call", b"{}", headers=headers).code == "malformed"


def test_a_declared_large_body_is_refused_unread(make_server: Any) -> None:
    server = make_server(max_body_nbytes=1000)
    assert server.request("POST", "/v1/call", b"x" * 1001).code == "too_large"
    assert server.request("POST", "/v1/call", b"x" * 1000).code == "malformed"


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"9" * 30, b"", b"1 1"])
def test_a_strange_length_is_refused(server: Any, token: str, length: bytes) -> None:
    headers = [
        (b"host", b"localhost"),
        (b"authorization", f"Bearer {token}".encode()),
        (b"content-type", b"application/json"),
        (b"content-length", length),
    ]
    assert server.request("POST", "/v1/call", b"{}", headers=headers).code == "too_large"


def test_a_large_body_of_undeclared_length_is_cut_off(make_server: Any) -> None:
    server = make_server(max_body_nbytes=1000)
    assert server.request("POST", "/v1/call", chunks=[b"x" * 600, b"x" * 600]).code == "too_large"
    assert server.request("POST", "/v1/call", chunks=[b"{", b"}"]).code == "session_lost"


def test_websockets_are_closed(server: Any) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    server.run(server.app({"type": "websocket", "path": "/v1/call", "headers": []}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_hello_proves_both_sides(server: Any, token: str) -> None:
    body = {"protocol": 1, "nonce": NONCE, "proof": client_proof(token, NONCE, "localhost")}
    answer = server.request("POST", "/v1/hello", body, token=None)
    assert answer.status == 200, answer
    said = answer.json
    expected = server_proof(token, NONCE, "localhost", said["server"], said["pool"]["uuid"])
    assert said["proof"] == expected
    assert said["pool"]["path"] == str(server.service.pool.path)
    assert token not in answer.body.decode()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"proof": "0" * 64}, "unauthorized"),
        ({"proof": "ä"}, "unauthorized"),
        ({"nonce": "cd" * 32}, "unauthorized"),
        ({"nonce": "ab"}, "malformed"),
        ({"nonce": "ab" * 31 + "\0."}, "malformed"),
        ({"nonce": 5}, "malformed"),
        ({"protocol": 2}, "protocol_mismatch"),
        ({"protocol": "1"}, "malformed"),
        ({"protocol": True}, "malformed"),
    ],
)
def test_hello_refuses(server: Any, token: str, change: dict[str, Any], code: str) -> None:
    body = {"protocol": 1, "nonce": NONCE, "proof": client_proof(token, NONCE, "localhost"), **change}
    assert server.request("POST", "/v1/hello", body, token=None).code == code


def test_a_relayed_hello_is_worthless(server: Any, token: str) -> None:
    # A proof made for another address does not fit the one it arrives at.
    body = {"protocol": 1, "nonce": NONCE, "proof": client_proof(token, NONCE, "127.0.0.1:9999")}
    assert server.request("POST", "/v1/hello", body, token=None).code == "unauthorized"


@pytest.mark.parametrize("path", ["/v1/call", "/v1/status", "/v1/session/abc"])
def test_the_wrong_method_is_refused(server: Any, path: str) -> None:
    answer = server.request("PUT", path)
    assert (answer.status, answer.code) == (405, "method_not_allowed")


def test_an_unknown_route_is_refused(server: Any) -> None:
    answer = server.request("GET", "/nope")
    assert (answer.status, answer.code) == (404, "not_found")


def test_refusals_are_counted(server: Any) -> None:
    server.request("GET", "/v1/health", token="wrong")
    assert server.request("GET", "/v1/status").json["metrics"]["errors"] == {"unauthorized": 1}


def test_a_gate_without_a_token_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="token"):
        Gate(lambda *_: None, token="", max_body_nbytes=1)  # type: ignore[arg-type,return-value]


def test_every_code_the_server_uses_has_a_status() -> None:
    import re
    from pathlib import Path

    import gsb_server

    folder = Path(gsb_server.__file__).parent
    used = {
        code for path in folder.rglob("*.py") for code in re.findall(r'ServerError\(\s*"([a-z_]+)"', path.read_text())
    }
    assert used
    assert used <= set(ERROR_STATUS)
