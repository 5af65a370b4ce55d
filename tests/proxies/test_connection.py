# SPDX-License-Identifier: BSD-3-Clause
"""The client against servers that answer nonsense."""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gsb._client import Client
from gsb._http import Address, Connection
from gsb._remote_exceptions import error_of, exception_class, warning_class
from gsb.errors import (
    CODE_CLASSES,
    ConnectionLostError,
    GSBError,
    ProtocolError,
    RemoteError,
    RequestTimeoutError,
    ServerNotProvenError,
)
from gsb.protocol import ERROR_STATUS, PROTOCOL_VERSION, server_proof

TOKEN = "ab" * 32
Handler = Callable[[str, bytes], bytes]


def answer(body: Any, status: int = 200) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(data)) + data


@contextlib.contextmanager
def fake_server(handler: Handler) -> Iterator[str]:
    """A Unix socket behind which `handler` makes raw answers; None hangs up, b"" says nothing."""
    with tempfile.TemporaryDirectory(prefix="gsb-") as directory, socket.socket(socket.AF_UNIX) as listener:
        path = Path(directory) / "s"
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(30)
        stopping = threading.Event()
        open_sockets: list[socket.socket] = []

        def serve() -> None:
            while not stopping.is_set():
                with contextlib.suppress(OSError):
                    found, _ = listener.accept()
                    found.settimeout(30)
                    open_sockets.append(found)
                    with found, found.makefile("rb") as file:
                        while line := file.readline():
                            length = 0
                            while (head := file.readline()) not in (b"\r\n", b""):
                                if head.lower().startswith(b"content-length:"):
                                    length = int(head.split(b":")[1])
                            made = handler(line.split()[1].decode(), file.read(length))
                            if made is None:
                                break
                            found.sendall(made)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            stopping.set()
            for found in open_sockets:
                with contextlib.suppress(OSError):
                    found.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as waker:
                waker.connect(str(path))
            thread.join(30)
            assert not thread.is_alive()


def hello(body: bytes, **changes: Any) -> bytes:
    nonce = json.loads(body)["nonce"]
    message = {
        "protocol": PROTOCOL_VERSION,
        "server": "s",
        "pool": {"path": "/nonexistent/pool", "uuid": "00" * 16},
        "proof": server_proof(TOKEN, nonce, "localhost", "s", "00" * 16),
        **changes,
    }
    return answer(message)


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{}{}{}",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20000,
        answer(b"{"),
        answer(b"[]"),
        answer({}),
        answer({"protocol": 1, "server": "s", "pool": {}, "proof": ""}),
        answer({"protocol": 1, "server": "s", "pool": {"uuid": "x", "path": "/"}, "proof": 5}),
        answer(b"<html>", 500),
        answer({"error": "text"}, 500),
        answer({"error": {}}, 404),
    ],
    ids=lambda raw: repr(raw[:40]),
)
def test_malformed_answers(raw: bytes) -> None:
    with fake_server(lambda path, body: raw) as url, pytest.raises(ProtocolError):
        Client(url, TOKEN).connect()


@pytest.mark.parametrize(
    "changes", [{"proof": "00" * 32}, {"server": "other"}, {"pool": {"path": "/", "uuid": "11" * 16}}]
)
def test_a_server_that_does_not_know_the_token(changes: dict[str, Any]) -> None:
    seen: list[tuple[str, bytes]] = []

    def handler(path: str, body: bytes) -> bytes:
        seen.append((path, body))
        return hello(body, **changes)

    with fake_server(handler) as url, pytest.raises(ServerNotProvenError):
        Client(url, TOKEN).connect()
    # Neither the token nor a second request went to it.
    assert [path for path, _ in seen] == ["/v1/hello"]
    assert TOKEN.encode() not in seen[0][1]


def test_an_error_keeps_hint_and_request_id() -> None:
    error = {"error": {"code": "busy", "message": "full", "hint": "wait", "request_id": "r1"}}
    with fake_server(lambda path, body: answer(error, 503)) as url, pytest.raises(CODE_CLASSES["busy"]) as caught:
        Client(url, TOKEN).connect()
    assert (caught.value.hint, caught.value.request_id, caught.value.code) == ("wait", "r1", "busy")


def connection(url: str) -> Connection:
    return Connection(Address(url), 5.0)


def test_hanging_up_and_silence() -> None:
    with fake_server(lambda path, body: None) as url, pytest.raises(ConnectionLostError):  # type: ignore[arg-type,return-value]
        connection(url).request("GET", "/")
    with fake_server(lambda path, body: b"") as url, pytest.raises(RequestTimeoutError):
        connection(url).request("GET", "/", timeout=0.2)
    half = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"
    with fake_server(lambda path, body: half) as url, pytest.raises(RequestTimeoutError):
        connection(url).request("GET", "/", timeout=0.2)


def test_an_answer_in_pieces_and_a_long_one() -> None:
    body = np.random.default_rng(0).bytes(3_000_000)
    with fake_server(lambda path, sent: answer(body)) as url:
        found = connection(url)
        for _ in range(3):
            assert found.request("POST", "/", b"x" * 100_000, timeout=20) == (200, body)
        found.close()
        assert found.is_stale()


def test_nothing_is_asked_on_a_connection_after_an_error() -> None:
    """A late answer must not be taken for that of the next request."""
    with fake_server(lambda path, body: b"") as url:
        found = connection(url)
        with pytest.raises(RequestTimeoutError):
            found.request("GET", "/", timeout=0.1)
        assert found.is_stale()
        with pytest.raises(ConnectionLostError):
            found.request("GET", "/", timeout=0.1)


# --------------------------------------------------------------------------------- errors by name
def test_every_code_has_a_status_and_a_class() -> None:
    assert set(ERROR_STATUS) == set(CODE_CLASSES) | {"estimator_error"}


def body_of(kind: str, text: str = "text") -> bytes:
    error = {"code": "estimator_error", "message": text, "exception": {"type": kind, "message": text}}
    return json.dumps({"error": error}).encode()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("builtins.ValueError", ValueError),
        ("sklearn.exceptions.NotFittedError", None),
        ("numpy.linalg.LinAlgError", np.linalg.LinAlgError),
        ("numpy.exceptions.AxisError", np.exceptions.AxisError),
        ("builtins.UnicodeDecodeError", RemoteError),  # cannot be made from a text alone
        ("builtins.SystemExit", RemoteError),
        ("builtins.eval", RemoteError),
        ("os.system", RemoteError),
        ("subprocess.Popen", RemoteError),
        ("", RemoteError),
    ],
)
def test_exceptions_come_from_known_modules_only(name: str, expected: type[Exception] | None) -> None:
    error = error_of(422, body_of(name))
    assert type(error).__name__ == name.rpartition(".")[2] if expected is None else type(error) is expected
    assert "text" in str(error)


def test_warning_categories() -> None:
    assert warning_class("builtins.FutureWarning") is FutureWarning
    assert warning_class("sklearn.exceptions.ConvergenceWarning").__name__ == "ConvergenceWarning"
    for name in ("builtins.ValueError", "my.Warning", "", "builtins.print"):
        assert warning_class(name) is UserWarning
    assert exception_class("builtins.UserWarning") is None


def test_errors_pickle_and_draw_their_tree() -> None:
    import pickle

    import gsb.errors as module

    for name, kind in vars(module).items():
        if isinstance(kind, type) and issubclass(kind, Exception) and kind.__module__ == module.__name__:
            assert name in (module.__doc__ or ""), name
            if issubclass(kind, GSBError):
                error = kind("message", hint="do this", code="c", request_id="r")
                copy = pickle.loads(pickle.dumps(error))
                assert type(copy) is kind
                assert (copy.message, copy.hint, copy.code, copy.request_id) == ("message", "do this", "c", "r")
                assert str(copy) == "message (do this)"
                assert kind is GSBError or kind.hint or name == "TransportError"
