# SPDX-License-Identifier: BSD-3-Clause
"""One keep-alive HTTP/1.1 connection over a Unix socket or TCP.

Only what our own server sends: a status line, headers, a body of known length. A general client costs several
times the server's own work for a message of 100 bytes.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import Any, Final
from urllib.parse import urlsplit

from gsb.errors import ConnectError, ConnectionLostError, ProtocolError, RequestTimeoutError, TransportError
from gsb.protocol.wire import MAX_BODY_NBYTES, UNIX_HOST

_MAX_HEAD: Final = 64 * 1024


class Address:
    """Where the server is: ``unix:///path`` or ``http://host:port``."""

    def __init__(self, url: str) -> None:
        self.url: Final = url
        parts = urlsplit(url)
        self.path = ""
        self.port = 0
        if parts.scheme == "unix" and parts.path:
            self.path = parts.path
            self.host = UNIX_HOST
        elif parts.scheme == "http" and parts.hostname and parts.path in ("", "/"):
            self.port = parts.port or 80
            self.name = parts.hostname
            self.host = f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"
        else:
            raise ConnectError(
                f"{url!r} is no address of a server",
                hint="it is unix:///path/to.sock or http://127.0.0.1:8765",
            )

    def connect(self, timeout: float) -> socket.socket:
        """Connect, or raise `ConnectError`."""
        try:
            if self.path:
                return connect_unix(self.path, timeout)
            return connect_tcp(self.name, self.port, timeout)
        except OSError as error:
            raise ConnectError(f"no server answers at {self.url}: {error.strerror or error}") from error


def connect_unix(path: str, timeout: float) -> socket.socket:
    """Connect to a Unix socket, or raise OSError."""
    if not hasattr(socket, "AF_UNIX"):
        raise OSError("this Python has no Unix sockets; name the server with GSB_SERVER=http://127.0.0.1:port")
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        found.settimeout(timeout)
        found.connect(path)
    except BaseException:
        found.close()
        raise
    return found


def connect_tcp(host: str, port: int, timeout: float) -> socket.socket:
    """Connect by TCP, or raise OSError. Small messages leave at once."""
    found = socket.create_connection((host, port), timeout)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


class Connection:
    """A connection; not to be shared by threads.

    Parameters
    ----------
    address : Address
        The server.
    timeout : float
        Seconds for connecting.
    """

    def __init__(self, address: Address, timeout: float) -> None:
        self.address: Final = address
        self.pid: Final = os.getpid()
        self.server = ""
        #: What the server's hello offers, by kind of transport.
        self.offers: dict[str, Any] = {}
        self.token = ""
        self._socket = address.connect(timeout)
        self._head = f"Host: {address.host}\r\nContent-Type: application/json\r\n"

    def authorize(self, token: str) -> None:
        """Show the token from now on; only to a server that has proved itself."""
        self.token = token
        self._head += f"Authorization: Bearer {token}\r\n"

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._socket.close()

    def is_stale(self) -> bool:
        """Tell whether the server has hung up, or sent something that nobody asked for."""
        try:
            readable, _, _ = select.select([self._socket], [], [], 0)
        except (OSError, ValueError):
            return True
        return bool(readable)

    def request(self, method: str, path: str, body: bytes = b"", timeout: float | None = None) -> tuple[int, bytes]:
        """Send a request and read the answer; returns status and body.

        Raises
        ------
        ConnectionLostError
            The connection broke; nobody knows whether the request has reached the server.
        RequestTimeoutError
            No answer in time.
        ProtocolError
            The answer is malformed.

        Notes
        -----
        Blocking: until the answer is there, or for `timeout` seconds without a byte. After any error the
        connection is closed: what comes next on it could be the answer to this request.
        """
        try:
            self._send(method, path, body, timeout)
            return self._read_answer()
        except TransportError:
            self.close()
            raise
        except TimeoutError as error:
            self.close()
            raise RequestTimeoutError(f"the server has not answered within {timeout} s") from error
        except OSError as error:
            self.close()
            raise ConnectionLostError(
                f"the connection to {self.address.url} broke: {error.strerror or error}"
            ) from error
        except BaseException:
            self.close()
            raise

    def begin(self, method: str, path: str, body: bytes, timeout: float) -> None:
        """Send a request and leave it at that: the open connection is the message. `is_stale` once it is answered.

        Raises
        ------
        ConnectionLostError
            The connection broke.
        """
        try:
            self._send(method, path, body, timeout)
        except OSError as error:
            self.close()
            raise ConnectionLostError(
                f"the connection to {self.address.url} broke: {error.strerror or error}"
            ) from error

    def _send(self, method: str, path: str, body: bytes, timeout: float | None) -> None:
        head = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        self._socket.settimeout(timeout)
        # In one piece, so that the server wakes once.
        self._socket.sendall(head.encode("latin-1") + body)

    def _read_answer(self) -> tuple[int, bytes]:
        data = bytearray()
        end = -1
        while end < 0:
            searched = max(0, len(data) - 3)
            self._receive(data, 65536)
            end = data.find(b"\r\n\r\n", searched)
            if end < 0 and len(data) > _MAX_HEAD:
                raise ProtocolError("the answer's head is too long")
        status, length = _parse_head(bytes(data[:end]))
        start = end + 4
        missing = start + length - len(data)
        while missing > 0:
            self._receive(data, min(missing, 1 << 20))
            missing = start + length - len(data)
        if missing < 0:
            raise ProtocolError("the answer is longer than it says")
        return status, bytes(data[start:])

    def _receive(self, data: bytearray, limit: int) -> None:
        chunk = self._socket.recv(limit)
        if not chunk:
            raise ConnectionLostError(f"the server at {self.address.url} hung up before it had answered")
        data += chunk


def _parse_head(head: bytes) -> tuple[int, int]:
    lines = head.split(b"\r\n")
    first = lines[0].split(b" ", 2)
    if len(first) < 2 or not first[0].startswith(b"HTTP/1.") or not first[1].isdigit():
        raise ProtocolError("the answer is no HTTP/1.1", hint="another program may be listening there")
    status = int(first[1])
    length = 0 if status in (204, 304) else -1
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            value = value.strip()
            if not value.isdigit():
                raise ProtocolError("malformed Content-Length")
            length = int(value)
    if length < 0:
        raise ProtocolError("the answer does not say how long it is", hint="another program may be listening there")
    if length > MAX_BODY_NBYTES:
        raise ProtocolError(f"the answer is {length} bytes long; {MAX_BODY_NBYTES} are allowed")
    return status, length
