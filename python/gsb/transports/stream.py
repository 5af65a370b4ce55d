# SPDX-License-Identifier: BSD-3-Clause
"""`stream`: arrays go over data connections into slots of the server's pool, and come back out of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import select
import socket
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any, Final, TypeVar

import numpy as np

from gsb._http import Address, connect_tcp, connect_unix
from gsb._recycle import SMALLEST, recycler
from gsb.errors import (
    CODE_CLASSES,
    ConnectionLostError,
    GSBError,
    PayloadTooLargeError,
    ProtocolError,
    RemoteError,
    RequestTimeoutError,
    ServerNotProvenError,
    SessionLostError,
    TransportError,
    TransportUnavailableError,
)
from gsb.protocol import data as wire_data
from gsb.protocol.wire import PROTOCOL_VERSION, SESSION, proofs_match
from gsb.transports._sockets import receive_exactly, receive_into, send_array
from gsb.transports.base import Array, Dialog, Opened, Transport

_T = TypeVar("_T")

#: Connections of one session; more threads take turns.
_MAX_CONNECTIONS: Final = 8

#: Seconds that the server may be silent in the middle of a transfer.
_SILENCE_SECONDS: Final = 60.0

#: Seconds to wait for room in the server's pool when the call itself has no deadline.
_ROOM_SECONDS: Final = 300.0


class StreamTransport(Transport):
    """Data connections. Wire: ``{"$": "ref", "id": ...}``; in answers with the array's form.

    Parameters
    ----------
    connect : callable
        Makes a connected socket.
    token, session, where : str
        The shared secret, the session's id, and the address for people.
    ids : iterator of int, optional
        The ids of arrays, where another transport of the session chooses some of them.

    Notes
    -----
    Concurrency: any thread; each transfer has a connection for itself. A transfer that breaks is repeated once over a
    new one.
    Blocking: for 60 s without a byte, or as long as the bytes take at a MiB a second; `write` also for room.
    Fork: the sockets are closed in the child, so that they tell of the parent's life alone.
    Crash: the server frees what it holds for us when our last connection is closed by the kernel.
    """

    kind = "stream"

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        token: str,
        session: str,
        where: str,
        ids: Iterator[int] | None = None,
    ) -> None:
        self._connect = connect
        self._token = token
        self._session = session
        self._where = where
        self._ids = itertools.count(1) if ids is None else ids
        self._idle: list[DataConnection] = []
        self._busy: set[DataConnection] = set()
        self._room = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self._closed = False
        self._pid = os.getpid()
        _all.add(self)

    @classmethod
    def open(cls, dialog: Dialog) -> Opened:
        """Open a session, and its first data connection: it shows that there is a way."""
        connect, where = find_way(dialog.address, dialog.offer, dialog.timeout)
        request = {"protocol": PROTOCOL_VERSION, "transport": cls.kind, "label": dialog.label}
        session = str(dialog.post(SESSION, request)["session"])
        found = cls(connect, dialog.token, session, where)
        try:
            found._idle.append(found._new_connection())
        except (GSBError, OSError) as error:
            raise TransportUnavailableError(f"no data connection to {where}: {_text(error)}") from error
        return Opened(session, found)

    def describe(self) -> str:
        """Give the address."""
        return self._where

    # ------------------------------------------------------------------------------ arrays
    def write(self, array: Array, timeout: float | None = None) -> dict[str, Any]:
        """Send an array; it lies in a slot of the server's when this returns."""
        number = next(self._ids)
        seconds = _ROOM_SECONDS if timeout is None else timeout
        self._repeatedly(lambda connection: connection.put(number, array, seconds))
        return {"$": "ref", "id": number}

    def read(self, wire: dict[str, Any], copy: bool = True) -> Array:
        """Fetch an array into memory of ours; `copy` makes no difference."""
        number = number_of(wire)
        form = wire_data.parse_form(wire)
        target = empty_array(form)
        self._repeatedly(lambda connection: connection.get(number, target))
        return target

    def release(self, wire: dict[str, Any]) -> None:
        """Tell the server that it may drop an array; what is lost of such words ends with the session."""
        number = number_of(wire)
        with contextlib.suppress(TransportError, RemoteError):
            self._with_connection(lambda connection: connection.free([number]))

    # ------------------------------------------------------------------------------ connections
    @property
    def is_usable(self) -> bool:
        """False after `close`, or in a forked child."""
        return not self._closed and self._pid == os.getpid()

    def close(self) -> None:
        """Close the connections: those in use when their transfer is over."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        _all.discard(self)

    def _repeatedly(self, transfer: Callable[[DataConnection], _T]) -> _T:
        """Do a transfer, once more over a new connection if it breaks: each may be done twice."""
        try:
            return self._with_connection(transfer)
        except ConnectionLostError:
            if self._closed:
                raise
            return self._with_connection(transfer)

    def _with_connection(self, transfer: Callable[[DataConnection], _T]) -> _T:
        if not self.is_usable:
            raise SessionLostError("the session has been closed")
        with self._room:
            connection = self._take()
            self._busy.add(connection)
            try:
                return transfer(connection)
            finally:
                self._busy.discard(connection)
                if connection.is_clean and not self._closed:
                    self._idle.append(connection)
                else:
                    connection.close()

    def _take(self) -> DataConnection:
        with contextlib.suppress(IndexError):
            while True:
                found = self._idle.pop()
                if not found.is_stale():
                    return found
                found.close()
        try:
            return self._new_connection()
        except GSBError:
            raise
        except OSError as error:
            raise ConnectionLostError(f"no data connection to {self._where}: {error.strerror or error}") from error

    def _new_connection(self) -> DataConnection:
        return DataConnection(self._connect(), self._token, self._session)

    def _forget_parent(self) -> None:
        for connection in [*self._idle, *self._busy]:
            connection.close()
        self._closed = True


class DataConnection:
    """One data connection; not to be shared by threads.

    Raises
    ------
    OSError
        It could not be opened.
    ServerNotProvenError, SessionLostError
        Nor by whom it should be.
    """

    def __init__(self, connected: socket.socket, token: str, session: str) -> None:
        self._socket = connected
        #: Whether the next frame is a new one: nothing is half sent or half received.
        self.is_clean = False
        try:
            self._open(token, session)
        except BaseException:
            connected.close()
            raise
        connected.settimeout(_SILENCE_SECONDS)
        self.is_clean = True

    def _open(self, token: str, session: str) -> None:
        seconds = self._socket.gettimeout() or _SILENCE_SECONDS
        greeting = receive_exactly(self._socket, wire_data.GREETING_NBYTES, seconds)
        if not greeting.startswith(wire_data.MAGIC):
            raise ServerNotProvenError("another program than the server listens on the data port")
        nonce, ours = bytes(greeting[len(wire_data.MAGIC) :]), secrets.token_bytes(wire_data.NONCE_NBYTES)
        proof = wire_data.data_proof(token, "client", nonce, ours, session)
        self._socket.sendall(wire_data.MAGIC + session.encode("ascii") + ours + proof)
        frame, meta = self._answer(seconds)
        expected = wire_data.data_proof(token, "server", nonce, ours, session)
        if frame.op != wire_data.WELCOME or not proofs_match(expected.hex(), bytes(meta).hex()):
            raise ServerNotProvenError("what listens on the data port does not know the token")

    def close(self) -> None:
        """Close the socket."""
        self.is_clean = False
        self._socket.close()

    def is_stale(self) -> bool:
        """Tell whether the server has hung up, or sent something that nobody asked for."""
        try:
            readable, _, _ = select.select([self._socket], [], [], 0)
        except (OSError, ValueError):
            return True
        return bool(readable)

    # ------------------------------------------------------------------------------ transfers
    def put(self, number: int, array: Array, timeout: float) -> None:
        """Send an array."""
        form = wire_data.form_of(array)
        eager = form.nbytes <= wire_data.EAGER_NBYTES
        meta = json.dumps({**form.to_dict(), "timeout": timeout}).encode()
        if len(meta) > wire_data.MAX_META_NBYTES:
            raise PayloadTooLargeError("the shape of the array is too long")
        head = wire_data.pack_frame(
            wire_data.PUT, flags=wire_data.EAGER if eager else 0, meta=meta, id=number, nbytes=form.nbytes
        )
        with self._transfer():
            if eager:
                # In one piece, so that the server wakes once.
                self._socket.sendall(head + array.tobytes("F" if form.order == "F" else "C"))
            else:
                self._socket.sendall(head)
                self._expect(wire_data.GO, timeout + _SILENCE_SECONDS)
                send_array(self._socket, array, _SILENCE_SECONDS)
            self._expect(wire_data.DONE, _SILENCE_SECONDS)

    def get(self, number: int, target: Array) -> None:
        """Fetch an array into memory of the same form, and let the server drop it."""
        with self._transfer():
            self._socket.sendall(wire_data.pack_frame(wire_data.GET, id=number))
            frame = self._expect(wire_data.ARRAY, _SILENCE_SECONDS)
            if frame.nbytes != target.nbytes:
                raise ProtocolError(f"an array of {target.nbytes} bytes came as {frame.nbytes}")
            receive_into(self._socket, wire_data.flat_bytes(target), _SILENCE_SECONDS)
        self.free([number])

    def free(self, numbers: list[int]) -> None:
        """Let the server drop arrays."""
        with self._transfer():
            for start in range(0, len(numbers), wire_data.MAX_IDS):
                some = numbers[start : start + wire_data.MAX_IDS]
                self._socket.sendall(wire_data.pack_frame(wire_data.FREE, meta=struct.pack(f"<{len(some)}Q", *some)))

    @contextlib.contextmanager
    def _transfer(self) -> Any:
        """Give errors their classes. After a refusal the connection is clean, after anything else it is not."""
        self.is_clean = False
        try:
            yield
        except RemoteError:
            raise
        except TimeoutError as error:
            raise RequestTimeoutError(f"the data connection: {error}") from error
        except TransportError:
            raise
        except OSError as error:
            raise ConnectionLostError(f"the data connection broke: {error.strerror or error}") from error
        else:
            self.is_clean = True

    def _expect(self, op: int, seconds: float) -> wire_data.Frame:
        frame, _ = self._answer(seconds)
        if frame.op != op:
            raise ProtocolError(f"frame {frame.op} came on the data connection where {op} was due")
        return frame

    def _answer(self, seconds: float) -> tuple[wire_data.Frame, bytearray]:
        self._socket.settimeout(seconds)
        try:
            head = receive_exactly(self._socket, wire_data.FRAME.size, seconds)
            frame = wire_data.unpack_frame(head)
            meta = receive_exactly(self._socket, frame.meta_nbytes, seconds)
        finally:
            self._socket.settimeout(_SILENCE_SECONDS)
        if frame.op == wire_data.ERROR:
            self.is_clean = not frame.flags & wire_data.LAST
            raise _error(wire_data.parse_meta(meta))
        return frame, meta


def _error(found: dict[str, Any]) -> Exception:
    code = str(found.get("code"))
    kind = CODE_CLASSES.get(code, RemoteError)
    return kind(str(found.get("message")), hint=str(found.get("hint") or ""), code=code)


def find_way(address: Address, offer: dict[str, Any], timeout: float) -> tuple[Callable[[], socket.socket], str]:
    """Find the data plane from here: beside the control socket, or another port of the same host."""
    name, port = offer.get("name"), offer.get("port")
    if address.path:
        if not isinstance(name, str) or not name or PurePath(name).name != name:
            raise TransportUnavailableError("the server has no data socket beside its control socket")
        path = str(PurePath(address.path).with_name(name))
        return lambda: connect_unix(path, timeout), f"unix://{path}"
    if type(port) is not int or not 0 < port < 65536:
        raise TransportUnavailableError("the server has no data port")
    host = address.name
    return lambda: connect_tcp(host, port, timeout), f"tcp://{host}:{port}"


def _text(error: Exception) -> str:
    return error.message if isinstance(error, GSBError) else getattr(error, "strerror", None) or str(error)


def number_of(wire: dict[str, Any]) -> int:
    number = wire.get("id")
    if wire.get("$") != "ref" or type(number) is not int or not 0 <= number < 2**63:
        raise ProtocolError(f"no reference to an array: {str(wire)[:200]}")
    return number


def empty_array(form: wire_data.Form) -> Array:
    """Give memory for an array: in huge pages and used again, because fresh pages cost more than the copy."""
    if form.nbytes >= SMALLEST:
        return recycler.empty(form.shape, form.dtype, form.order)
    return np.empty(form.shape, form.dtype, order=form.order)


_all: weakref.WeakSet[StreamTransport] = weakref.WeakSet()


def _after_fork() -> None:
    for transport in list(_all):
        transport._forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
