# SPDX-License-Identifier: BSD-3-Clause
"""`shared`: clients map the pool themselves; a link is their attachment to it."""

from __future__ import annotations

from typing import Any

from gsb.shm_transport import ShmTransport

import shmpool

from ..errors import ServerError
from ..requests import field
from .base import Array, Link, Transport
from .coherence import Coherence

__all__ = ["SharedLink", "SharedTransport"]


class SharedLink(Link):
    """An attachment to the pool.

    Notes
    -----
    Crash: the kernel drops the lock of a dead client; a result is *given* to the client before the answer names it, so
    it dies with the client from then on.
    """

    kind = "shared"

    def __init__(self, pool: shmpool.Pool, client: shmpool.ClientId) -> None:
        super().__init__()
        self.pool = pool
        self.attachment = client

    @property
    def client(self) -> str:
        """The client's index in the pool."""
        return str(self.attachment.index)

    def is_alive(self) -> bool:
        """Whether the client's lock is held."""
        return self.pool.is_alive(self.attachment)

    def read(self, wire: dict[str, Any]) -> Array:
        """View the slot: sealed and owned by the client itself."""
        handle = self._handle(wire)
        if handle.pool != self.pool.uuid:
            raise ServerError("stale_handle", "the handle is of another pool", "attach to this server's pool")
        try:
            owner = self.pool.owner(handle)
        except (ValueError, OverflowError, IndexError) as error:
            raise ServerError("malformed", f"malformed handle: {error}", "see docs/http-api.md") from None
        if owner is None:
            raise ServerError("stale_handle", "the slot was freed meanwhile", "put the array into the pool again")
        if owner != self.attachment:
            raise ServerError("foreign_handle", "the slot belongs to another client", "name your own arrays only")
        return self.pool.get(handle)

    def write(self, array: Array, timeout: float) -> dict[str, Any]:
        """Write a result into the output region, unless it lies there already, and give it to the client."""
        handle = self._ours(array) or _encode_result(array, timeout)
        try:
            self.pool.give(handle, self.attachment)
        except shmpool.ClientGoneError:
            raise ServerError("session_lost", "the client ended before its answer", "") from None
        return {"$": "slot", "handle": handle.to_dict()}

    def _ours(self, array: Array) -> shmpool.Handle | None:
        """Return the handle of a result that the GPU worker has put into a slot, and only of such a one."""
        handle = self.pool.handle_of(array)
        try:
            return handle if handle is not None and self.pool.owner(handle) == self.pool.client else None
        except shmpool.StaleHandleError:
            return None  # a view of an argument that the client has freed meanwhile

    def take_back(self, wire: dict[str, Any]) -> bool:
        """Free a slot that is still the client's."""
        handle = self._handle(wire)
        try:
            # Its owner may have died, and the slot with it; a new array in the slot has another generation.
            if self.pool.owner(handle) != self.attachment:
                return False
            self.pool.free(handle)
        except shmpool.ShmPoolError:
            return False
        return True

    def close(self) -> None:
        """Nothing: the slots are the client's, and go with its attachment."""

    def _handle(self, wire: dict[str, Any]) -> shmpool.Handle:
        if wire.get("$") != "slot":
            raise ServerError("malformed", "this session's arrays are slots", "see docs/http-api.md")
        try:
            return shmpool.Handle.from_dict(wire["handle"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ServerError("malformed", f"malformed handle: {error}", "see docs/http-api.md") from None


def _encode_result(obj: Array, timeout: float | None = None) -> shmpool.Handle:
    """Write an array straight into the output region: one copy, no file."""
    return ShmTransport.get().write(obj, is_output=True, timeout=timeout)


class SharedTransport(Transport):
    """The pool."""

    kind = "shared"

    def __init__(self, pool: shmpool.Pool) -> None:
        self.pool = pool
        self.coherence = Coherence(pool)

    def offer(self) -> dict[str, Any]:
        """Name the file."""
        return {"path": str(self.pool.path), "uuid": self.pool.uuid}

    def open(self, body: dict[str, Any]) -> SharedLink:
        """Bind a session to a client that is attached to the pool."""
        if field(body, "pool", str) != self.pool.uuid:
            raise ServerError("session_lost", "the pool was made anew", "attach to the pool that /v1/hello names")
        identity = field(body, "client", list)
        if len(identity) != 2 or any(type(part) is not int or not 0 <= part < 2**64 for part in identity):
            raise ServerError("malformed", "client must be [index, nonce]", "see docs/http-api.md")
        client = shmpool.ClientId(*identity)
        try:
            alive = self.pool.is_alive(client)
        except (ValueError, OverflowError, IndexError):
            alive = False
        if not alive:
            raise ServerError("session_lost", "that client is not attached to the pool", "attach first")
        if not self.coherence.redeem(body.get("ticket")):
            raise ServerError(
                "incoherent", "the client has not shown that it sees this memory", "see docs/transports.md"
            )
        return SharedLink(self.pool, client)

    def close(self) -> None:
        """Unmap the witness area."""
        self.coherence.close()
