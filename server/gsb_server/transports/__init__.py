# SPDX-License-Identifier: BSD-3-Clause
"""The ways an array takes between server and clients (``docs/transports.md``)."""

from __future__ import annotations

from typing import Any

import shmpool

from ..errors import ServerError
from ..settings import Settings
from .base import Link, Transport
from .file import FileTransport
from .shared import SharedTransport
from .stream import DataListeners, StreamTransport

__all__ = ["DataListeners", "Transports"]


class Transports:
    """All transports of one server.

    Parameters
    ----------
    pool : shmpool.Pool
        The server's.
    settings : Settings
    data : DataListeners, optional
        Listening sockets of the data plane.
    """

    def __init__(self, pool: shmpool.Pool, settings: Settings, data: DataListeners | None) -> None:
        self.shared = SharedTransport(pool)
        stream = StreamTransport(pool, settings, data)
        self.file = FileTransport(pool, settings, stream)
        found: list[Transport] = [self.shared, stream, self.file]
        self._by_kind = {transport.kind: transport for transport in found}

    def offers(self) -> dict[str, dict[str, Any]]:
        """Return what hello says: kind and offer of each that can be had."""
        offers = {kind: transport.offer() for kind, transport in self._by_kind.items()}
        return {kind: offer for kind, offer in offers.items() if offer is not None}

    def open(self, body: dict[str, Any]) -> Link:
        """Make the link of a new session by the kind that the message names."""
        kind = body.get("transport")
        transport = self._by_kind.get(kind) if isinstance(kind, str) else None
        if transport is None or transport.offer() is None:
            raise ServerError("malformed", f"there is no transport {str(kind)[:40]!r}", "hello names those there are")
        return transport.open(body)

    def look_after(self) -> None:
        """Do what has to be done now and then."""
        for transport in self._by_kind.values():
            transport.look_after()

    def close(self) -> None:
        """End them all."""
        for transport in self._by_kind.values():
            transport.close()
