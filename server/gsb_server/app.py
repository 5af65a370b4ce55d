# SPDX-License-Identifier: BSD-3-Clause
"""The ASGI application: routes, lifespan, and the translation of errors into answers."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from gsb import runtime
from gsb.protocol import wire
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from .errors import ServerError, from_exception
from .requests import parse
from .security import Gate, Receive, Scope, Send, send_error, send_json
from .service import Service
from .settings import Settings
from .transports import DataListeners
from .transports.base import Given

__all__ = ["create_app", "default_socket"]

log = logging.getLogger("gsb_server")

Handler = Callable[["Request"], Awaitable[tuple[int, bytes]]]


def default_socket() -> Path:
    """Return the socket local clients look for; its directory is made."""
    runtime.runtime_dir(create=True)
    return runtime.socket_path()


class Request:
    """What a handler needs of a request. Starlette's own costs more than a small call."""

    __slots__ = ("body", "given", "hung_up", "id", "received", "scope")

    def __init__(self, scope: Scope, body: bytes, received: float, hung_up: Receive) -> None:
        self.scope = scope
        # Once the body has been read, the next event is that the client hangs up.
        self.hung_up = hung_up
        self.body = body
        self.received = received
        # Arrays that the answer names; nobody would ever free them if it is not delivered.
        self.given: list[Given] = []
        self.id: str = scope["gsb_request_id"]

    def json(self) -> dict[str, Any]:
        """Parse the body."""
        return parse(self.body)

    @property
    def host(self) -> str:
        """The ``Host`` header."""
        return next((v.decode("latin-1") for k, v in self.scope["headers"] if k == b"host"), "")


class Endpoint:
    """An ASGI endpoint around a handler: method, body, errors."""

    def __init__(self, service: Service, method: str, handler: Handler) -> None:
        self.service = service
        self.method = method
        self.handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request_id = scope["gsb_request_id"]
        try:
            if scope["method"] != self.method:
                raise ServerError("method_not_allowed", f"this route takes {self.method}", "see docs/http-api.md")
            body = b""
            if self.method == "POST":
                message = await receive()
                body = message.get("body", b"")
                if message.get("more_body"):
                    parts = [body]
                    while message.get("more_body"):
                        message = await receive()
                        parts.append(message.get("body", b""))
                    body = b"".join(parts)
                if message["type"] == "http.disconnect":
                    return
            request = Request(scope, body, time.perf_counter(), receive)
            status, answer = await self.handler(request)
            if request.given and await _hung_up(receive):
                self.service.take_back(request.given)
                return
        except Exception as error:
            refused = from_exception(error)
            self.service.metrics.error(refused.code)
            if refused.code == "internal":
                log.exception("request %s failed", request_id)
            await send_error(send, refused, request_id)
            return
        await send_json(send, status, answer, request_id)


async def _hung_up(receive: Receive) -> bool:
    """Whether the client has closed the connection while it was waiting."""
    waiting = asyncio.ensure_future(receive())
    await asyncio.sleep(0)
    if waiting.done():
        return bool(waiting.result()["type"] == "http.disconnect")
    waiting.cancel()
    return False


def _json(value: dict[str, Any]) -> tuple[int, bytes]:
    return 200, json.dumps(value).encode()


def _routes(service: Service) -> list[Route]:
    async def hello(request: Request) -> tuple[int, bytes]:
        return _json(service.hello(request.json(), request.host))

    async def open_session(request: Request) -> tuple[int, bytes]:
        return _json(service.open_session(request.json()))

    async def witness(request: Request) -> tuple[int, bytes]:
        return _json(service.transports.shared.coherence.handle(request.json()))

    async def close_session(request: Request) -> tuple[int, bytes]:
        service.close_session(request.scope["path_params"]["session"])
        return 204, b""

    async def call(request: Request) -> tuple[int, bytes]:
        return await service.call(request.json(), request.received, request.id, request.given)

    async def progress(request: Request) -> tuple[int, bytes]:
        query = parse_qs(request.scope["query_string"].decode("latin-1"))
        session = query.get("session", [""])[0]
        return _json(service.progress(session, request.scope["path_params"]["call"]))

    async def attrs(request: Request) -> tuple[int, bytes]:
        return await service.on_worker("attrs", request.json(), request.id, request.given)

    async def state(request: Request) -> tuple[int, bytes]:
        return await service.on_worker("state", request.json(), request.id, request.given)

    async def load(request: Request) -> tuple[int, bytes]:
        return await service.on_worker("load", request.json(), request.id, request.given)

    async def part(request: Request) -> tuple[int, bytes]:
        return await service.part(request.json(), request.id)

    async def forget(request: Request) -> tuple[int, bytes]:
        service.forget(request.json())
        return 204, b""

    async def file(request: Request) -> tuple[int, bytes]:
        return _json(await service.file(request.json()))

    async def attend(request: Request) -> tuple[int, bytes]:
        await service.attend(request.json(), request.hung_up)
        return 204, b""

    async def health(request: Request) -> tuple[int, bytes]:
        return _json({"status": "shutting down" if service.closing else "ok"})

    async def status(request: Request) -> tuple[int, bytes]:
        return _json(service.status())

    table: list[tuple[str, str, Handler]] = [
        # In the order of how often they are called: the router looks from the top.
        (wire.CALL, "POST", call),
        (wire.ATTRS, "POST", attrs),
        (wire.STATE, "POST", state),
        (wire.MODEL, "POST", load),
        (wire.PART, "POST", part),
        (wire.FORGET, "POST", forget),
        (wire.FILE, "POST", file),
        (wire.CALL + "/{call}", "GET", progress),
        (wire.HELLO, "POST", hello),
        (wire.WITNESS, "POST", witness),
        (wire.SESSION, "POST", open_session),
        (wire.SESSION + "/{session}", "DELETE", close_session),
        (wire.ATTEND, "POST", attend),
        (wire.HEALTH, "GET", health),
        (wire.STATUS, "GET", status),
    ]
    return [Route(path, Endpoint(service, method, handler)) for path, method, handler in table]


def create_app(settings: Settings | None = None, data: DataListeners | None = None) -> Starlette:
    """Build the application.

    Parameters
    ----------
    settings : Settings, optional
        Read from ``GSB_*`` variables where not given. Without a token in them, the user's token file is
        read, and made if it is missing.
    data : DataListeners, optional
        Where the data plane listens; without them arrays come through the pool only.

    Returns
    -------
    Starlette
        ``app.state.service`` is the `Service`. The pool is opened when the lifespan starts.
    """
    settings = settings or Settings.from_env()
    if not settings.token:
        settings = settings.with_(token=runtime.ensure_token())
    service = Service(settings, data)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    async def not_found(request: Any, error: Exception) -> Any:
        from starlette.responses import JSONResponse

        from .errors import envelope

        refused = ServerError("not_found", "no such route", "see docs/http-api.md")
        return JSONResponse(envelope(refused, request.scope["gsb_request_id"]), status_code=refused.status)

    app = Starlette(
        routes=_routes(service),
        middleware=[
            Middleware(
                Gate,
                token=settings.token,
                max_body_nbytes=settings.max_body_nbytes,
                on_refusal=service.metrics.error,
            )
        ],
        exception_handlers={404: not_found},
        lifespan=lifespan,
    )
    app.state.service = service
    return app
