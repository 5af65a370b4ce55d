# SPDX-License-Identifier: BSD-3-Clause
"""The data plane of `stream`: listeners, and a thread per connection that moves bytes between sockets and slots.

uvicorn hands a body over in small pieces of bytes, each a copy under the GIL. Here the kernel copies straight from the
socket into the slot, or from the slot into the socket, with the GIL released.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from gsb.errors import ProtocolError
from gsb.protocol import data as wire
from gsb.protocol.wire import proofs_match
from gsb.transports._sockets import HungUpError, receive_exactly, receive_into, send_all, send_array

import shmpool

from ..errors import ServerError, from_exception
from ..settings import Settings
from .held import FIRST_RESULT, Held

if TYPE_CHECKING:
    from .stream import StreamLink

__all__ = ["DataConnection", "DataListeners", "DataPlane"]

log = logging.getLogger("gsb_server")

# Seconds that a connection has to prove itself, and how many may be at it. A stranger gets no further.
_OPENING_SECONDS: Final = 5.0
_MAX_OPENING: Final = 64
# How often a connection that waits for room looks whether its client is still there.
_LOOK_SECONDS: Final = 0.1
_MAX_PRIVATE_NBYTES: Final = 256 * 2**20


class DataListeners:
    """Listening sockets of the data plane.

    Parameters
    ----------
    sockets : list of socket
        Bound and listening. They are closed with this object.
    unix : Path, optional
        Where the Unix socket among them lies.
    """

    def __init__(self, sockets: list[socket.socket], unix: Path | None = None) -> None:
        self.sockets = sockets
        self.unix = unix
        self._inode = None if unix is None else unix.lstat().st_ino

    def offer(self) -> dict[str, Any]:
        """Return what a client needs: the name beside the control socket, and the port on the control host."""
        offer: dict[str, Any] = {}
        if self.unix is not None:
            offer["name"] = self.unix.name
        for listener in self.sockets:
            if not hasattr(socket, "AF_UNIX") or listener.family != socket.AF_UNIX:
                offer["port"] = listener.getsockname()[1]
        return offer

    def close(self) -> None:
        """Stop listening; remove the socket's file if it is still ours."""
        if self.unix is not None:
            with contextlib.suppress(OSError):
                if self.unix.lstat().st_ino == self._inode:
                    self.unix.unlink()
        for listener in self.sockets:
            # Wakes the thread that accepts.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


class DataPlane:
    """Accepts data connections and serves each in a thread of its own.

    Parameters
    ----------
    listeners : DataListeners
    find : callable
        Gives the link of a session, or None.
    claim : callable
        ``claim(form, timeout)`` gives a loan of the pool.
    settings : Settings

    Notes
    -----
    Concurrency: threads of its own; daemons, so that none keeps the process alive.
    """

    def __init__(
        self,
        listeners: DataListeners,
        find: Callable[[str], StreamLink | None],
        claim: Callable[[wire.Form, float], shmpool.Loan],
        settings: Settings,
    ) -> None:
        self.find = find
        self.claim = claim
        self.settings = settings
        self.closing = False
        self._listeners = listeners
        self._lock = threading.Lock()
        self._opening: collections.deque[DataConnection] = collections.deque()
        self._all: set[DataConnection] = set()
        self._acceptors = [
            threading.Thread(target=self._accept, args=(listener,), name="gsb-data-accept", daemon=True)
            for listener in listeners.sockets
        ]
        for thread in self._acceptors:
            thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while not self.closing:
            try:
                found, _ = listener.accept()
            except OSError:
                if self.closing or listener.fileno() < 0:
                    return
                time.sleep(0.05)  # out of descriptors, for instance: it may pass
                continue
            try:
                self._start(DataConnection(self, found))
            except (OSError, RuntimeError):
                log.exception("a data connection could not be served")
                found.close()

    def _start(self, connection: DataConnection) -> None:
        with self._lock:
            self._all.add(connection)
            self._opening.append(connection)
            surplus = self._opening.popleft() if len(self._opening) > _MAX_OPENING else None
        if surplus is not None:
            surplus.hang_up()
        connection.start()

    def proved(self, connection: DataConnection) -> None:
        """Note that a connection is no stranger any more."""
        with self._lock, contextlib.suppress(ValueError):
            self._opening.remove(connection)

    def ended(self, connection: DataConnection) -> None:
        """Forget a connection."""
        self.proved(connection)
        with self._lock:
            self._all.discard(connection)

    def close(self) -> None:
        """Stop listening and end all connections."""
        self.closing = True
        self._listeners.close()
        with self._lock:
            connections = list(self._all)
        for connection in connections:
            connection.hang_up()
        for thread in [*self._acceptors, *(connection.thread for connection in connections)]:
            thread.join(2.0)


class DataConnection:
    """One connection of one session.

    Notes
    -----
    Concurrency: its thread alone reads and writes; `hang_up` may come from any other.
    Blocking: without limit between two frames, because the kernel says when the client is gone; inside of one for
    `GSB_DATA_TIMEOUT` seconds without a byte, or as long as the bytes take at a MiB a second.
    """

    def __init__(self, plane: DataPlane, connected: socket.socket) -> None:
        self._plane = plane
        self._socket = connected
        self._link: StreamLink | None = None
        self._seconds = plane.settings.data_timeout
        self.thread = threading.Thread(target=self._run, name="gsb-data", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self.thread.start()

    def hang_up(self) -> None:
        """End it from outside: whatever the thread waits for fails at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            _tune(self._socket)
            if self._open():
                self._plane.proved(self)
                assert self._link is not None
                self._serve(self._link)
        except HungUpError:
            pass
        except (OSError, ProtocolError) as error:
            log.debug("a data connection has ended: %s", error)
        except Exception:
            log.exception("a data connection stumbled and is closed")
        finally:
            self._socket.close()
            if self._link is not None:
                self._link.leave(self)
            self._plane.ended(self)

    # ------------------------------------------------------------------ opening

    def _open(self) -> bool:
        """Prove to each other that both know the token; nothing is done for a stranger."""
        self._socket.settimeout(_OPENING_SECONDS)
        nonce = secrets.token_bytes(wire.NONCE_NBYTES)
        self._socket.sendall(wire.MAGIC + nonce)
        opening = bytes(receive_exactly(self._socket, wire.OPENING_NBYTES, _OPENING_SECONDS))
        start = len(wire.MAGIC)
        session = opening[start : start + wire.SESSION_NBYTES].decode("ascii", "replace")
        theirs = opening[start + wire.SESSION_NBYTES : -wire.PROOF_NBYTES]
        proof = opening[-wire.PROOF_NBYTES :]
        token = self._plane.settings.token
        expected = wire.data_proof(token, "client", nonce, theirs, session)
        if opening[:start] != wire.MAGIC or not proofs_match(expected.hex(), proof.hex()):
            self._refuse("unauthorized", "the proof on the data connection is wrong", last=True)
            return False
        link = self._plane.find(session)
        if link is None or not link.enter(self):
            self._refuse("session_lost", "no such session on the data plane, or it has too many connections", last=True)
            return False
        self._link = link
        welcome = wire.data_proof(token, "server", nonce, theirs, session)
        self._socket.sendall(wire.pack_frame(wire.WELCOME, meta=welcome))
        return True

    # ------------------------------------------------------------------ frames

    def _serve(self, link: StreamLink) -> None:
        head = bytearray(wire.FRAME.size)
        seconds = self._seconds
        while True:
            self._socket.settimeout(None)
            count = self._socket.recv_into(head)
            if not count:
                return
            self._socket.settimeout(seconds)
            receive_into(self._socket, memoryview(head)[count:], seconds)
            frame = wire.unpack_frame(head)
            meta = receive_exactly(self._socket, frame.meta_nbytes, seconds)
            if frame.op == wire.PUT:
                self._put(link, frame, wire.parse_meta(meta))
            elif frame.op == wire.GET:
                self._get(link, frame)
            elif frame.op == wire.FREE and len(meta) % 8 == 0:
                for number in struct.unpack(f"<{len(meta) // 8}Q", meta):
                    link.shelf.drop(number)
            else:
                self._refuse("malformed", "unknown frame on the data connection", last=True)
                return

    def _put(self, link: StreamLink, frame: wire.Frame, meta: dict[str, Any]) -> None:
        eager = bool(frame.flags & wire.EAGER)
        try:
            form = wire.parse_form(meta)
            if form.nbytes != frame.nbytes or frame.id >= FIRST_RESULT or eager != (form.nbytes <= wire.EAGER_NBYTES):
                raise ProtocolError("a frame contradicts itself")
            timeout = float(meta.get("timeout", 0.0))
            if not timeout >= 0.0:
                raise ProtocolError("a time to wait that is none")
        except (ProtocolError, TypeError, ValueError, OverflowError) as error:
            self._refuse("malformed", f"malformed upload: {error}", last=True)
            raise HungUpError("malformed upload") from None
        try:
            held = link.shelf.place(frame.id, form)
        except ServerError as error:
            self._decline(error, frame, eager)
            return
        try:
            if eager:
                self._receive_small(link, held, form)
            else:
                self._receive_large(link, held, form, frame.id, timeout)
        except (ServerError, shmpool.ShmPoolError) as error:
            link.shelf.drop(frame.id, held)
            self._decline(from_exception(error), frame, eager)
        except BaseException:
            link.shelf.drop(frame.id, held)
            raise
        else:
            self._socket.sendall(wire.pack_frame(wire.DONE, id=frame.id))

    def _receive_small(self, link: StreamLink, held: Held, form: wire.Form) -> None:
        if link.shelf.private_nbytes + form.nbytes > _MAX_PRIVATE_NBYTES:
            raise ServerError("pool_full", "the session holds too many small arrays", "let go of some")
        array: np.ndarray[Any, np.dtype[Any]] = np.empty(form.shape, form.dtype, order=form.order)
        receive_into(self._socket, wire.flat_bytes(array), self._seconds)
        held.publish_private(array)

    def _receive_large(self, link: StreamLink, held: Held, form: wire.Form, number: int, timeout: float) -> None:
        loan = self._claim(form, timeout)
        try:
            self._socket.sendall(wire.pack_frame(wire.GO, id=number))
            flat = wire.flat_bytes(loan.array)
            try:
                receive_into(self._socket, flat, self._seconds)
            finally:
                # A view that lives would keep the slot from being sealed or freed.
                flat.release()
                del flat
            handle = loan.seal()
        finally:
            loan.abort()
        held.publish(link.pool, handle)

    def _claim(self, form: wire.Form, timeout: float) -> shmpool.Loan:
        """Wait for room, but not for a client that has hung up."""
        deadline = time.monotonic() + min(timeout, self._plane.settings.max_slot_wait)
        while True:
            left = deadline - time.monotonic()
            try:
                return self._plane.claim(form, max(0.0, min(left, _LOOK_SECONDS)))
            except shmpool.PoolFullError as error:
                if left <= _LOOK_SECONDS:
                    hint = "send less at once, or start the server with more slots"
                    raise ServerError("pool_full", error.message, hint) from None
            if self._has_hung_up():
                raise HungUpError("the client has hung up while it waited for room")

    def _has_hung_up(self) -> bool:
        try:
            self._socket.setblocking(False)
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self._socket.settimeout(self._seconds)

    def _get(self, link: StreamLink, frame: wire.Frame) -> None:
        try:
            array = link.shelf.get(frame.id).wait(self._seconds)
        except (ServerError, shmpool.ShmPoolError) as error:
            self._decline(from_exception(error), frame, eager=False)
            return
        send_all(self._socket, wire.pack_frame(wire.ARRAY, id=frame.id, nbytes=array.nbytes), self._seconds)
        send_array(self._socket, array, self._seconds)

    # ------------------------------------------------------------------ refusals

    def _decline(self, error: ServerError, frame: wire.Frame, eager: bool) -> None:
        """Say no to one frame; the connection goes on."""
        if eager:
            # The bytes are on their way already; at most EAGER_NBYTES.
            receive_exactly(self._socket, frame.nbytes, self._seconds)
        self._refuse(error.code, error.message, error.hint)

    def _refuse(self, code: str, message: str, hint: str = "", *, last: bool = False) -> None:
        meta = json.dumps({"code": code, "message": message[:300], "hint": hint[:300]}).encode()
        flags = wire.LAST if last else 0
        self._socket.sendall(wire.pack_frame(wire.ERROR, flags=flags, meta=meta))


def _tune(connected: socket.socket) -> None:
    if connected.family in (socket.AF_INET, socket.AF_INET6):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer whose machine or relay is gone never closes: ask it now and then.
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
            if hasattr(socket, name):
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
