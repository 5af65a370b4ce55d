# SPDX-License-Identifier: BSD-3-Clause
"""`shared`: the array lies in the pool file, which both sides map."""

from __future__ import annotations

import random
import time
from typing import Any

import shmpool
from gsb.errors import PayloadTooLargeError, ProtocolError, ServerBusyError, StaleArrayError, TransportUnavailableError
from gsb.protocol.wire import PROTOCOL_VERSION, SESSION
from gsb.shm_transport import ShmTransport
from gsb.transports.base import Array, Dialog, Opened, Transport
from gsb.transports.coherence import prove_coherence
from shmpool.mounts import refuse_incoherent


class SharedTransport(Transport):
    """The pool. Wire: ``{"$": "slot", "handle": {...}}``.

    Parameters
    ----------
    shm : ShmTransport
        The process's attachment to the server's pool.

    Notes
    -----
    Lifetime: the attachment is that of the process; it outlives the session.
    Crash: the kernel drops the lock of a dead client, and its slots are free for the next claim.
    """

    kind = "shared"

    def __init__(self, shm: ShmTransport) -> None:
        self.shm = shm

    @property
    def pool(self) -> shmpool.Pool:
        """The pool."""
        return self.shm.pool

    @classmethod
    def open(cls, dialog: Dialog) -> Opened:
        """Make sure that both sides see one memory, attach to the pool, open a session bound to the attachment.

        A mount known to be bad is refused by its name, unless this transport was asked for: then the handshake alone
        decides.
        """
        path, uuid = str(dialog.offer.get("path")), str(dialog.offer.get("uuid"))
        try:
            if not dialog.asked_for:
                refuse_incoherent(path)
            ticket = _prove(path, uuid, dialog)
            shm = ShmTransport.attach(path, uuid, trust_mount=dialog.asked_for)
        except shmpool.ShmPoolError as error:
            raise TransportUnavailableError(error.message) from error
        if shm.pool.uuid != uuid:
            raise TransportUnavailableError(f"{path} is another pool than the server's")
        client = shm.pool.client
        request = {
            "protocol": PROTOCOL_VERSION,
            "transport": cls.kind,
            "pool": uuid,
            "client": [client.index, client.nonce],
            "ticket": ticket,
            "label": dialog.label,
        }
        answer = dialog.post(SESSION, request)
        return Opened(str(answer["session"]), cls(shm))

    def write(self, array: Array, timeout: float | None = None) -> dict[str, Any]:
        """Copy an array into a slot."""
        try:
            handle = self.shm.write(array, timeout=timeout)
        except shmpool.PayloadTooLargeError as error:
            raise PayloadTooLargeError(str(error)) from error
        except (shmpool.PoolFullError, shmpool.PoolSpaceError) as error:
            raise ServerBusyError(
                str(error), hint="let go of results held with zero_copy=True, or send less"
            ) from error
        return {"$": "slot", "handle": handle.to_dict()}

    def read(self, wire: dict[str, Any], copy: bool = True) -> Array:
        """Copy an array out of its slot, or view it there."""
        handle = _handle(wire)
        try:
            return self.shm.read(handle, copy=copy)
        except shmpool.StaleHandleError as error:
            raise StaleArrayError(str(error)) from error
        except shmpool.HandleError as error:
            raise ProtocolError(str(error)) from error
        finally:
            # With a view outstanding the slot is freed when the last one goes.
            self.shm.free(handle)

    def release(self, wire: dict[str, Any]) -> None:
        """Free the slot. A server that still reads it has pinned it."""
        self.shm.free(_handle(wire))

    @property
    def is_usable(self) -> bool:
        """False once `ShmTransport.reset` has closed the pool under us."""
        return not self.shm.pool.closed

    def close(self) -> None:
        """Nothing: the attachment is the process's."""

    def describe(self) -> str:
        """Name the file."""
        return f"{self.pool.path} on {self.pool.filesystem}"


def _prove(path: str, uuid: str, dialog: Dialog) -> str:
    """Do the handshake; wait for one's turn where many connect at once."""
    deadline = time.monotonic() + dialog.timeout
    while True:
        try:
            return prove_coherence(path, uuid, dialog.post)
        except ServerBusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.002 + 0.008 * random.random())


def _handle(wire: dict[str, Any]) -> shmpool.Handle:
    try:
        return shmpool.Handle.from_dict(wire["handle"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"malformed handle: {error}") from error
