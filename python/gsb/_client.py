# SPDX-License-Identifier: BSD-3-Clause
"""The client: connections, session, calls. Knows messages and slots, but no scikit-learn."""

from __future__ import annotations

import atexit
import collections
import contextlib
import dataclasses
import logging
import os
import pickle
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from gsb import _progress, runtime
from gsb._codec import Inbox, Outbox, Parts
from gsb._config import get_config
from gsb._control import answer_of, encode_json, exchange, introduce
from gsb._http import Address, Connection
from gsb._remote_exceptions import is_lost_model, said_of
from gsb._report import Report
from gsb.errors import (
    AuthenticationError,
    ConnectionLostError,
    GSBError,
    ModelLostError,
    ProtocolError,
    TransportError,
    UnsupportedValueError,
)
from gsb.protocol import (
    FIT_METHODS,
    MAX_BODY_NBYTES,
    SERVER_STAGES,
    decode_value,
    encode_value,
)
from gsb.protocol.wire import ATTRS, CALL, FORGET, MODEL, PART, SESSION, STATE, STATUS
from gsb.transports import Dialog, Transport, choose

_log = logging.getLogger(__name__)

#: Seconds to wait for a free slot when the call itself has no deadline.
_SLOT_SECONDS: Final = 300.0


class Session(NamedTuple):
    """A session with one server process."""

    id: str
    server: str
    transport: Transport
    #: Arrays above the first number of bytes are sent in parts of the second.
    parts: tuple[int, int] | None = None


@dataclasses.dataclass
class Call:
    """One call of a method; see ``docs/http-api.md``."""

    estimator: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    params: dict[str, Any] | None = None
    model: str | None = None
    config: dict[str, Any] | None = None
    started: float = 0.0


class Summary(NamedTuple):
    """What is known of a fitted model."""

    attrs: dict[str, Any]
    large: frozenset[str]
    opaque: frozenset[str]


class Answer(NamedTuple):
    """The answer to a call. ``report.total`` ends with the decoding."""

    result: Any
    model: str | None
    summary: Summary | None
    random_state: dict[str, Any]
    warnings: list[tuple[str, str]]
    output: list[tuple[str, str]]
    report: Report
    session: str


class Client:
    """The way to one server.

    Parameters
    ----------
    url : str, optional
        Default: `gsb.runtime.default_url`.
    token : str, optional
        Default: ``$GSB_TOKEN`` or the token file.
    transport : {"shared", "stream", "file"}, optional
        How arrays travel. Default: the first that works.

    Notes
    -----
    Concurrency: any thread; each has its own connection, all share a session.
    Fork: the child opens connections and a session of its own; models of the parent stay usable.
    Crash: the server drops the session when the kernel releases the lock of this process.
    """

    def __init__(self, url: str | None = None, token: str | None = None, transport: str | None = None) -> None:
        self._url = url
        self._token = token
        self._transport = transport
        self._threads = threading.local()
        self._session: Session | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._forgotten: collections.deque[tuple[str, str]] = collections.deque(maxlen=100_000)

    @property
    def url(self) -> str:
        """The address of the server."""
        return self._url or runtime.default_url()

    # ------------------------------------------------------------------------------ connecting
    def connect(self) -> Session:
        """Connect and open the session, if that has not been done.

        Raises
        ------
        ConnectError
            No server answers, or it has not proved that it knows the token.
        AuthenticationError
            The server refuses our token.
        """
        return self._session_for(self._connection())

    def _connection(self) -> Connection:
        found: Connection | None = getattr(self._threads, "connection", None)
        if found is not None:
            if found.pid == os.getpid() and not found.is_stale():
                return found
            found.close()
            self._threads.connection = None
        if self._pid != os.getpid():
            # A forked child: the lock may have been held by another thread of the parent.
            self._lock, self._session, self._pid = threading.Lock(), None, os.getpid()
            self._forgotten.clear()
        found = self._open()
        self._threads.connection = found
        return found

    def _open(self) -> Connection:
        token = self._token or runtime.load_token()
        connection = Connection(Address(self.url), get_config().connect_timeout)
        if token is None:
            connection.close()
            raise AuthenticationError(
                "no token was found",
                hint="set GSB_TOKEN, or use the server's runtime directory (GSB_RUNTIME_DIR)",
            )
        try:
            introduce(connection, token, get_config().connect_timeout)
        except BaseException:
            connection.close()
            raise
        return connection

    def _session_for(self, connection: Connection) -> Session:
        found = self._session
        if found is not None and _is_usable(found, connection):
            return found
        with self._lock:
            found = self._session
            if found is None or not _is_usable(found, connection):
                found = self._session = self._open_session(connection)
            return found

    def _open_session(self, connection: Connection) -> Session:
        settings = get_config()
        greeting: dict[str, Any] = {}

        def post(path: str, message: dict[str, Any]) -> dict[str, Any]:
            answer = exchange(connection, "POST", path, message, settings.connect_timeout)
            if path == SESSION:
                greeting.update(answer)
            return answer

        def dialog(offer: dict[str, Any]) -> Dialog:
            return Dialog(
                address=connection.address,
                token=connection.token,
                server=connection.server,
                offer=offer,
                post=post,
                label=" ".join(sys.argv)[:200],
                timeout=settings.connect_timeout,
                asked_for=self._transport is not None,
            )

        former, self._session = self._session, None
        if former is not None:
            former.transport.close()
        try:
            opened = choose(connection.offers, dialog, self._transport)
            parts = greeting.get("parts")
            limits = None if parts is None else (max(1, int(parts["above"])), max(1, int(parts["nbytes"])))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, GSBError):
                raise
            raise ProtocolError(f"malformed answer to session: {error!r}") from error
        session = Session(opened.session, connection.server, opened.transport, limits)
        _log.info("session %s with the server at %s", session.id, self.url)
        return session

    def close(self) -> None:
        """End the session: the server frees its models at once."""
        session, self._session = self._session, None
        connection: Connection | None = getattr(self._threads, "connection", None)
        self._threads.connection = None
        if self._pid != os.getpid():
            return
        if connection is not None and connection.pid == os.getpid():
            if session is not None and session.server == connection.server and not connection.is_stale():
                with contextlib.suppress(TransportError):
                    connection.request("DELETE", f"{SESSION}/{session.id}", timeout=1.0)
            connection.close()
        if session is not None:
            session.transport.close()

    # ------------------------------------------------------------------------------ messages
    def _ask(self, path: str, message: dict[str, Any]) -> tuple[dict[str, Any], Session]:
        """Send a small message that may be repeated; ``session`` is filled in."""
        for attempt in (1, 2):
            connection = self._connection()
            session = self._session_for(connection)
            try:
                answer = exchange(connection, "POST", path, {"session": session.id, **message}, get_config().timeout)
                return answer, session
            except ConnectionLostError:
                self._threads.connection = None
                if attempt == 2:
                    raise
            except Exception as error:
                self._note_error(error, session)
                raise
        raise AssertionError("unreachable")

    def _note_error(self, error: Exception, session: Session) -> None:
        if getattr(error, "code", "") == "session_lost" and self._session is session:
            self._session = None
            session.transport.close()

    # ------------------------------------------------------------------------------ calls
    def call(self, call: Call) -> Answer:
        """Have the server call a method of an estimator.

        Raises
        ------
        UnsupportedValueError
            An argument or parameter cannot travel. Nothing was sent.
        ConnectError, ConnectionLostError, RequestTimeoutError
            See `gsb.errors`.
        ModelLostError
            The server does not have ``call.model``.
        Exception
            Whatever the estimator raised, as the same class.

        Notes
        -----
        Blocking: until the answer is there, or ``gsb.config(timeout=...)`` has passed.
        """
        repeatable = call.method not in FIT_METHODS
        for attempt in (1, 2):
            connection = self._connection()
            session = self._session_for(connection)
            try:
                return self._call_once(connection, session, call)
            except ConnectionLostError:
                self._threads.connection = None
                if not repeatable or attempt == 2:
                    raise
            except Exception as error:
                self._note_error(error, session)
                lost = is_lost_model(error)
                if lost and call.model is not None:
                    raise ModelLostError("the server no longer has this model", code="model_lost") from error
                if not lost or attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def _call_once(self, connection: Connection, session: Session, call: Call) -> Answer:
        timeout = get_config().timeout
        call_id = secrets.token_hex(16)
        begun = call.started or time.perf_counter()
        outbox = Outbox(session.transport, timeout or _SLOT_SECONDS, self._parts(connection, session, timeout))
        with self._shown(call, call_id, session) as show:
            try:
                if show:
                    show("client_encode")
                body = self._encode_call(call, call_id, session, outbox, timeout)
                encoded = time.perf_counter()
                if show:
                    show("request")
                answer = answer_of(*connection.request("POST", CALL, body, timeout))
            finally:
                outbox.close()
            received = time.perf_counter()
            if show:
                show("client_decode")
            return _decode_call(call, session, outbox, answer, (begun, encoded, received))

    def _parts(self, connection: Connection, session: Session, timeout: float | None) -> Parts | None:
        if session.parts is None:
            return None
        head = {"session": session.id} if timeout is None else {"session": session.id, "timeout": timeout}
        return Parts(
            *session.parts,
            post=lambda message: exchange(connection, "POST", PART, head | message, timeout),
            forget=lambda key: exchange(
                connection, "POST", FORGET, {"session": session.id, "models": [], "arrays": [key]}, 5.0
            ),
        )

    def _encode_call(self, call: Call, call_id: str, session: Session, outbox: Outbox, timeout: float | None) -> bytes:
        write = outbox.write
        message: dict[str, Any] = {
            "session": session.id,
            "call": call_id,
            "estimator": call.estimator,
            "method": call.method,
            "args": [encode_value(value, write) for value in call.args],
        }
        if call.kwargs:
            message["kwargs"] = {name: encode_value(value, write) for name, value in call.kwargs.items()}
        if call.params is not None:
            message["params"] = {name: encode_value(value, write) for name, value in call.params.items()}
        if call.model is not None:
            message["model"] = call.model
        if call.config:
            message["config"] = {name: encode_value(value, write) for name, value in call.config.items()}
        if self._forgotten:
            message["forget"] = self._take_forgotten(session)
        if timeout is not None:
            message["timeout"] = timeout
        body = encode_json(message).encode()
        if len(body) > MAX_BODY_NBYTES:
            raise UnsupportedValueError(f"text and small arrays make a message of {len(body)} bytes")
        return body

    @contextlib.contextmanager
    def _shown(self, call: Call, call_id: str, session: Session) -> Iterator[Any]:
        display = _progress.current()
        if display is None:
            yield None
            return
        label = f"{call.estimator.rpartition('.')[2]}.{call.method}"
        with display.track(label, lambda: self._stage_of(call_id, session)) as show:
            yield show

    def _stage_of(self, call_id: str, session: Session) -> str | None:
        """Ask for the stage of a call, from the thread that draws, over a connection of its own."""
        try:
            path = f"{CALL}/{call_id}?session={session.id}"
            return str(exchange(self._connection(), "GET", path, None, 2.0).get("stage"))
        except Exception:
            return None

    # ------------------------------------------------------------------------------ models
    def attrs(self, model: str, names: list[str]) -> dict[str, Any]:
        """Fetch large fitted attributes."""
        answer, session = self._ask(ATTRS, {"model": model, "names": names})
        return _decode_values(answer.get("attrs"), Inbox(session.transport))

    def state(self, model: str) -> Any:
        """Fetch a fitted model as a scikit-learn estimator.

        Notes
        -----
        This unpickles what the server sends: it has proved at the handshake that it knows the user's token.
        """
        answer, session = self._ask(STATE, {"model": model})
        # Never views: the estimator would pin its slots, and scikit-learn expects writable arrays.
        inbox = Inbox(session.transport, copy=True)
        try:
            stream = decode_value(answer["pickle"], inbox.read)
            buffers = [decode_value(wire, inbox.read) for wire in answer["buffers"]]
        except (KeyError, TypeError) as error:
            raise ProtocolError(f"malformed state: {error!r}") from error
        return pickle.loads(stream.tobytes(), buffers=buffers)

    def upload(self, estimator: str, params: dict[str, Any], attrs: dict[str, Any]) -> tuple[str, str]:
        """Send fitted state back; returns the new model's id and the session's."""
        session = self.connect()
        outbox = Outbox(session.transport, get_config().timeout or _SLOT_SECONDS)
        try:
            message = {
                "estimator": estimator,
                "params": {name: encode_value(value, outbox.write) for name, value in params.items()},
                "attrs": {name: encode_value(value, outbox.write) for name, value in attrs.items()},
            }
            answer, session = self._ask(MODEL, message)
        finally:
            outbox.close()
        return str(answer["model"]), session.id

    def forget(self, session: str, model: str) -> None:
        """Note that a model is no longer needed; the next call tells the server."""
        self._forgotten.append((session, model))

    def _take_forgotten(self, session: Session) -> list[str]:
        names: list[str] = []
        with contextlib.suppress(IndexError):
            while len(names) < 1000:
                owner, model = self._forgotten.popleft()
                if owner == session.id:
                    names.append(model)
        return names

    def flush_forgotten(self) -> None:
        """Tell the server now which models are no longer needed."""
        session = self.connect()
        names = self._take_forgotten(session)
        if names:
            self._ask(FORGET, {"models": names})

    def status(self) -> dict[str, Any]:
        """Ask the server what it is doing."""
        return exchange(self._connection(), "GET", STATUS, None, get_config().connect_timeout)


def _is_usable(session: Session, connection: Connection) -> bool:
    return session.server == connection.server and session.transport.is_usable


def _decode_values(wire: Any, inbox: Inbox) -> dict[str, Any]:
    if type(wire) is not dict:
        raise ProtocolError("the answer lacks its attributes")
    return {name: decode_value(value, inbox.read) for name, value in wire.items()}


def _decode_call(
    call: Call, session: Session, outbox: Outbox, answer: dict[str, Any], times: tuple[float, float, float]
) -> Answer:
    begun, encoded, received = times
    inbox = Inbox(session.transport)
    try:
        result = decode_value(answer["result"], inbox.read)
        wire = answer.get("summary")
        summary = None
        if wire is not None:
            summary = Summary(_decode_values(wire["attrs"], inbox), frozenset(wire["large"]), frozenset(wire["opaque"]))
        output, warned = said_of(answer)
        stages = {name: float(answer["stages"][name]) for name in SERVER_STAGES}
        queue = float(answer.get("queue") or 0.0)
        backend, device, reason = str(answer["backend"]), str(answer["device"]), str(answer["reason"])
        random_state = dict(answer.get("random_state") or {})
        slots = inbox.slots
        detail = {str(name): float(seconds) for name, seconds in (answer.get("detail") or {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ProtocolError):
            raise
        raise ProtocolError(f"malformed answer to {call.method}: {error!r}") from error
    stages["client_encode"] = encoded - begun
    stages["request"] = received - encoded - sum(stages[name] for name in SERVER_STAGES)
    ended = time.perf_counter()
    stages["client_decode"] = ended - received
    report = Report(
        estimator=call.estimator,
        method=call.method,
        backend=backend,
        device=device,
        reason=reason,
        stages=stages,
        total=ended - begun,
        queue=queue,
        nbytes_sent=outbox.nbytes,
        nbytes_received=inbox.nbytes,
        slots_sent=outbox.slots,
        slots_received=slots,
        transport=session.transport.kind,
        detail=detail,
    )
    return Answer(result, answer.get("model"), summary, random_state, warned, output, report, session.id)


# ---------------------------------------------------------------------------------- process-wide
_clients: dict[tuple[str, str | None, str | None], Client] = {}
_clients_lock = threading.Lock()


def get_client() -> Client:
    """Give the client for the settings in force; one per server, token and transport."""
    settings = get_config()
    key = settings.server or runtime.default_url(), settings.token, settings.transport
    found = _clients.get(key)
    if found is None:
        with _clients_lock:
            found = _clients.setdefault(key, Client(*key))
    return found


def disconnect() -> None:
    """End the sessions of this process. Fitted proxies whose state was not fetched lose it."""
    with _clients_lock:
        clients = list(_clients.values())
        _clients.clear()
    for client in clients:
        client.close()


def _after_fork() -> None:
    global _clients_lock
    _clients_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(disconnect)
