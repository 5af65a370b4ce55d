# SPDX-License-Identifier: BSD-3-Clause
"""`stream`: arrays come and go over data connections, straight into and out of slots of the server's own pool."""

from __future__ import annotations

import threading
import time
from typing import Any

from gsb.protocol.data import EAGER_NBYTES, Form, form_of
from gsb.shm_transport import ShmTransport

import shmpool

from ..errors import ServerError
from ..settings import Settings
from .base import Array, Link, Transport
from .held import Shelf
from .plane import DataConnection, DataListeners, DataPlane

__all__ = ["DataListeners", "StreamLink", "StreamTransport"]


class StreamLink(Link):
    """A session whose arrays travel over data connections.

    The client lives as long as one of its data connections is open: the kernel closes them when it dies. For a
    moment (`GSB_DATA_GRACE`) it may have none, so that it can connect again.

    Notes
    -----
    Crash: when the client has been gone for that moment, everything held for it is freed; what it was sending is freed
    at once.
    """

    kind = "stream"

    def __init__(self, pool: shmpool.Pool, settings: Settings) -> None:
        super().__init__()
        self.pool = pool
        self.shelf = Shelf()
        self._settings = settings
        self._connections: set[DataConnection] = set()
        self._alone_since = time.monotonic()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def client(self) -> str:
        """How many connections it has."""
        return f"{len(self._connections)} conn."

    def is_alive(self) -> bool:
        """Whether there is a connection, or was one a moment ago."""
        with self._lock:
            if self._connections:
                return True
            return time.monotonic() - self._alone_since < self._settings.data_grace

    def enter(self, connection: DataConnection) -> bool:
        """Note a connection that has proved itself; False if the session has ended or has too many."""
        with self._lock:
            if self._closed or len(self._connections) >= self._settings.max_data_connections:
                return False
            self._connections.add(connection)
            return True

    def leave(self, connection: DataConnection) -> None:
        """Note the end of a connection."""
        with self._lock:
            self._connections.discard(connection)
            if not self._connections:
                self._alone_since = time.monotonic()

    def read(self, wire: dict[str, Any]) -> Array:
        """View an array that the client has sent, or is just sending."""
        return self.shelf.get(_id_of(wire)).wait(self._settings.data_timeout)

    def write(self, array: Array, timeout: float) -> dict[str, Any]:
        """Keep a result until the client has fetched it: in the output region, or as it is if it is small."""
        form = form_of(array)
        number = self.shelf.new_id()
        held = self.shelf.place(number, form)
        try:
            if array.nbytes <= EAGER_NBYTES:
                # A copy: the model may go on with its own.
                held.publish_private(array.copy(order="K" if form.order == "F" else "C"))
            else:
                held.publish(self.pool, ShmTransport.get().write(array, is_output=True, timeout=timeout))
        except BaseException:
            self.shelf.drop(number, held)
            raise
        return {"$": "ref", "id": number, **form.to_dict()}

    def take_back(self, wire: dict[str, Any]) -> bool:
        """Drop a result."""
        return self.shelf.drop(wire.get("id"))

    def close(self) -> None:
        """Hang up and drop everything."""
        with self._lock:
            self._closed = True
            connections = list(self._connections)
        for connection in connections:
            connection.hang_up()
        self.shelf.close()


class StreamTransport(Transport):
    """The data plane.

    Parameters
    ----------
    pool : shmpool.Pool
        The server's.
    settings : Settings
    listeners : DataListeners, optional
        Without them it is not offered.
    """

    kind = "stream"

    def __init__(self, pool: shmpool.Pool, settings: Settings, listeners: DataListeners | None) -> None:
        self.pool = pool
        self._settings = settings
        self._links: dict[str, StreamLink] = {}
        self._listeners = listeners
        self._plane = None if listeners is None else DataPlane(listeners, self._links.get, self.claim, settings)

    def offer(self) -> dict[str, Any] | None:
        """Name the addresses."""
        return None if self._listeners is None else self._listeners.offer()

    def open(self, body: dict[str, Any]) -> StreamLink:
        """Make a link that waits for its first connection."""
        link = StreamLink(self.pool, self._settings)
        self.admit(link)
        return link

    def admit(self, link: StreamLink) -> None:
        """Let a session have data connections."""
        self._links[link.id] = link

    def look_after(self) -> None:
        """Forget links that have ended."""
        for number, link in list(self._links.items()):
            if link._closed:
                del self._links[number]

    def close(self) -> None:
        """Stop listening; all connections end."""
        for link in list(self._links.values()):
            link.close()
        if self._plane is not None:
            self._plane.close()

    def claim(self, form: Form, timeout: float) -> shmpool.Loan:
        """Wait for a slot for an array that comes in."""
        return ShmTransport.get().loan(form.shape, form.dtype, form.order, timeout=timeout)


def _id_of(wire: dict[str, Any]) -> Any:
    if wire.get("$") != "ref":
        raise ServerError("malformed", "this session's arrays are references", "see docs/http-api.md")
    return wire.get("id")
