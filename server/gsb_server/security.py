# SPDX-License-Identifier: BSD-3-Clause
"""The gate in front of every route: host, origin, token, type and size of the body.

Pure ASGI: ``BaseHTTPMiddleware`` costs more than a small call itself.

A web page in the user's browser can send requests to 127.0.0.1 and, by DNS rebinding, under a host name of
its own choice. It cannot know the token, cannot set ``Host`` to a loopback name, cannot send
``application/json`` without a preflight, and its requests carry ``Origin``; each is checked.
"""

from __future__ import annotations

import hmac
import itertools
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gsb.protocol import wire

from .errors import ServerError, envelope

__all__ = ["App", "Gate", "Receive", "Scope", "Send", "send_error", "send_json"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# The client shows its token only to a server that has proved that it knows it, so the first request
# carries a proof in its body instead. Its handler checks it.
_WITHOUT_TOKEN = frozenset({wire.HELLO})

_FROM_A_PAGE = ServerError(
    "forbidden_origin",
    "requests from web pages are refused",
    "call the server from a program, without Origin",
)


def _own_hosts(server: tuple[str, int | None] | None, extra: tuple[str, ...]) -> frozenset[bytes]:
    """Return the values of ``Host`` that name the socket a request came in by."""
    port = server[1] if server else None
    if port is None:
        return frozenset({wire.UNIX_HOST.encode()})
    names = {"127.0.0.1", "localhost", "[::1]", *extra}
    hosts = {f"{name}:{port}" for name in names}
    if port == 80:
        hosts |= names
    return frozenset(host.encode() for host in hosts)


class Gate:
    """ASGI middleware that lets only the user's own programs in.

    Parameters
    ----------
    app : ASGI application
    token : str
        The shared secret; compared in constant time.
    max_body_nbytes : int
        Bodies beyond it are refused before they are read.
    extra_hosts : tuple of str
        Further accepted host names.
    on_refusal : callable, optional
        Told the code of every refusal.
    """

    def __init__(
        self,
        app: App,
        token: str,
        max_body_nbytes: int,
        extra_hosts: tuple[str, ...] = (),
        on_refusal: Callable[[str], None] | None = None,
    ) -> None:
        if not token:
            raise ValueError("the token must not be empty")
        self.app = app
        self.max_body_nbytes = max_body_nbytes
        self._expected = b"Bearer " + token.encode()
        self._extra_hosts = extra_hosts
        self._hosts: dict[Any, frozenset[bytes]] = {}
        self._on_refusal = on_refusal
        self._prefix = os.urandom(4).hex()
        self._count = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        kind = scope["type"]
        if kind == "lifespan":
            await self.app(scope, receive, send)
            return
        if kind != "http":
            # A websocket handshake is refused by closing it.
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        request_id = f"{self._prefix}-{next(self._count)}"
        scope["gsb_request_id"] = request_id
        try:
            declared = self._check(scope)
        except ServerError as error:
            if self._on_refusal is not None:
                self._on_refusal(error.code)
            await send_error(send, error, request_id)
            return
        await self.app(scope, receive if declared else self._counted(receive), send)

    def _check(self, scope: Scope) -> bool:
        """Raise unless the request may pass; True when the length of its body is declared and fits."""
        host = length = content_type = None
        token = b""
        hosts = 0
        for name, value in scope["headers"]:
            if name == b"authorization":
                token = value
            elif name == b"host":
                host = value
                hosts += 1
            elif name == b"origin" or (name == b"sec-fetch-site" and value != b"none"):
                raise _FROM_A_PAGE
            elif name == b"content-length":
                length = value
            elif name == b"content-type":
                content_type = value
        server = scope.get("server")
        server = tuple(server) if server else None
        own = self._hosts.get(server)
        if own is None:
            own = self._hosts[server] = _own_hosts(server, self._extra_hosts)
        if hosts != 1 or host not in own:
            raise ServerError(
                "forbidden_host",
                "the Host header is not an address of this server",
                "connect to 127.0.0.1, or by the Unix socket with Host: localhost",
            )
        # Compared even when it is missing, so that both cases take the same path.
        if not hmac.compare_digest(token, self._expected) and scope["path"] not in _WITHOUT_TOKEN:
            raise ServerError(
                "unauthorized",
                "the token is missing or wrong",
                "local clients find it by themselves; or set GSB_TOKEN to the server's (see `gsb doctor`)",
            )
        if scope["method"] == "POST" and (content_type or b"").partition(b";")[0].strip() != b"application/json":
            raise ServerError("malformed", "the body must be application/json", "set Content-Type: application/json")
        if length is None:
            return False
        if not length.isdigit() or len(length) > 15 or int(length) > self.max_body_nbytes:
            raise self._too_large()
        return True

    def _too_large(self) -> ServerError:
        return ServerError(
            "too_large",
            f"the body is larger than {self.max_body_nbytes:,} bytes",
            "arrays of 10 KiB and more travel through the pool; pass arrays instead of long lists",
        )

    def _counted(self, receive: Receive) -> Receive:
        """Wrap ``receive`` for bodies of undeclared length."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self.max_body_nbytes:
                    raise self._too_large()
            return message

        return counted


async def send_json(send: Send, status: int, body: bytes, request_id: str) -> None:
    """Send a JSON answer; without a body where ``body`` is empty."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-gsb-request-id", request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers[1:] if not body else headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ServerError, request_id: str, exception: dict[str, Any] | None = None) -> None:
    """Send the error envelope."""
    body = json.dumps(envelope(error, request_id, exception)).encode()
    await send_json(send, error.status, body, request_id)
