# SPDX-License-Identifier: BSD-3-Clause
"""`file`: arrays through a mailbox on a drive that both sides see, agreed upon over HTTP (``docs/transports.md``).

An upload::

    client                              server
    begin  id, form ──────────────────▶ claim a slot, lend one or two parts of the client's half
    write a piece into a part, flush
    sent   id, at, checksum ──────────▶ read it past the cache into the slot, verify
    …                                   after the last piece: seal; the array is on the session's shelf

A download::

    fetch  id, at ────────────────────▶ lend a part of the server's half, write a piece, flush
    read it past the cache, verify ◀─── where, checksum
    …
    free   id ────────────────────────▶ forget the array, take the part back
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from gsb.errors import DamagedTransferError, MailboxError
from gsb.mailbox import GRANULE_NBYTES, Layout, Mailbox, piece_generation
from gsb.protocol.data import EAGER_NBYTES, Form, flat_bytes, parse_form

import shmpool

from ..errors import ServerError
from ..requests import field
from ..settings import Settings
from ..workers import Workers
from .base import Array, Transport
from .held import FIRST_RESULT, Held
from .parts import Part, Parts
from .stream import StreamLink, StreamTransport

__all__ = ["FILE_NAME", "FileLink", "FileTransport"]

log = logging.getLogger("gsb_server")

FILE_NAME: Final = "gsb-mailbox.bin"

# What one flush and one message are for; two of them are lent to an upload, so that a client can write ahead.
_PART_NBYTES: Final = 8 * 2**20
# A request waits this long for room; the client asks again, and a dead one does not.
_ROOM_SECONDS: Final = 0.25
# Requests wait for the drive, not for the CPU.
_THREADS: Final = 4
_MAX_WAITING: Final = 256
_MAX_PRIVATE_NBYTES: Final = 256 * 2**20
# How often a request that only shows that its client lives looks whether it is still needed.
_LOOK_SECONDS: Final = 0.5

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class _Incoming:
    """An array on its way in. Used under its own lock, except for `is_doomed` and `parts`."""

    def __init__(self, held: Held, form: Form, loan: shmpool.Loan | None, parts: list[Part]) -> None:
        self.held = held
        self.form = form
        self.parts = parts
        self.received = 0
        self.touched = time.monotonic()
        self.lock = threading.Lock()
        #: Set when it is to be dropped; whoever has the lock does it, and looks once more after giving that up.
        self.is_doomed = False
        self.has_ended = False
        self._loan = loan
        self._array: Array | None = None if loan is not None else np.empty(form.shape, form.dtype, order=form.order)

    def memory(self) -> Bytes:
        """Give where the bytes go. Nobody may keep it beyond `seal`."""
        array = self._array if self._loan is None else self._loan.array
        assert array is not None
        return _flat(array)

    def seal(self, pool: shmpool.Pool) -> None:
        """Publish the whole array."""
        if self._loan is None:
            assert self._array is not None
            self.held.publish_private(self._array)
        else:
            self.held.publish(pool, self._loan.seal())

    def abort(self) -> None:
        """Let go of the slot, if it was not sealed."""
        self._array = None
        if self._loan is not None:
            self._loan.abort()


class FileLink(StreamLink):
    """A session whose arrays travel through the mailbox, and over data connections once it has given up the file.

    The client lives as long as a request of its own is unanswered that asks for nothing (`attended`): the kernel closes
    the connection when it dies.

    Notes
    -----
    Concurrency: any thread. Crash: when the client has been gone for a moment (`GSB_DATA_GRACE`), its parts, slots and
    arrays are free. One that is alive after all and writes late spoils at most what another one is sending, which the
    checksum shows.
    """

    kind = "file"

    def __init__(self, transport: FileTransport, box: Mailbox) -> None:
        super().__init__(transport.pool, transport.settings)
        self._transport = transport
        self._box = box
        self._incoming: dict[int, _Incoming] = {}
        self._outgoing: dict[int, Part] = {}
        self._attending = 0

    # ------------------------------------------------------------------ life of the client

    @property
    def client(self) -> str:
        """How many requests and connections show that it lives."""
        return f"{self._attending + len(self._connections)} conn."

    @property
    def is_closed(self) -> bool:
        """Whether the session has ended."""
        return self._closed

    def is_alive(self) -> bool:
        """Whether a request of its own is open, or was a moment ago."""
        return self._attending > 0 or super().is_alive()

    @contextlib.contextmanager
    def attended(self) -> Iterator[None]:
        """Take the client for alive while this lasts."""
        with self._lock:
            self._attending += 1
        try:
            yield
        finally:
            with self._lock:
                self._attending -= 1
                self._alone_since = time.monotonic()

    # ------------------------------------------------------------------ messages

    def handle(self, body: dict[str, Any]) -> dict[str, Any]:
        """Do what a message asks for."""
        what = field(body, "do", str)
        action = {
            "begin": self._begin,
            "sent": self._sent,
            "fetch": self._fetch,
            "echo": self._echo,
            "free": self._free,
        }.get(what)
        if action is None:
            raise ServerError("malformed", f"unknown request {what[:40]!r} to the mailbox", "see docs/http-api.md")
        try:
            return action(body)
        except DamagedTransferError as error:
            raise ServerError("transfer_damaged", error.message, error.hint) from None
        except MailboxError as error:
            raise ServerError("mailbox_failed", error.message, error.hint) from None

    def _begin(self, body: dict[str, Any]) -> dict[str, Any]:
        number, form = _number(body), parse_form(body)
        # A repetition of a request whose answer was lost.
        self._drop(number)
        held = self.shelf.place(number, form)
        loan, parts = None, []
        try:
            # First the parts: they are at once there or not, while a slot may be waited for.
            parts = self._transport.lend_up(form.nbytes)
            if form.nbytes > EAGER_NBYTES:
                loan = self._transport.claim(form, _ROOM_SECONDS)
            elif self.shelf.private_nbytes + form.nbytes > _MAX_PRIVATE_NBYTES:
                raise ServerError("pool_full", "the session holds too many small arrays", "let go of some")
            incoming = _Incoming(held, form, loan, parts)
            with self._lock:
                if self._closed:
                    raise ServerError("session_lost", "the session has ended", "")
                self._incoming[number] = incoming
        except BaseException:
            self.shelf.drop(number, held)
            if loan is not None:
                loan.abort()
            self._transport.take_up(parts)
            raise
        if form.nbytes == 0:
            self._finish(number, incoming)
        return {"parts": [part.to_dict() for part in parts]}

    def _sent(self, body: dict[str, Any]) -> dict[str, Any]:
        number = _number(body)
        at, nbytes, which = (field(body, name, int) for name in ("at", "nbytes", "part"))
        checksum = _checksum(body)
        with self._lock:
            incoming = self._incoming.get(number)
        if incoming is None:
            # The last piece again, whose answer was lost; or an upload that was dropped, which is not on the shelf.
            whole = self.shelf.get(number).form.nbytes
            if not 0 < at + nbytes <= whole:
                raise ServerError("malformed", "that piece is not the next one", "see docs/http-api.md")
            return {"received": whole}
        try:
            with incoming.lock:
                self._receive(number, incoming, (at, nbytes, which, checksum))
        finally:
            # Whoever wanted to drop it meanwhile has found the lock taken.
            if incoming.is_doomed:
                self._end(number, incoming)
        return {"received": incoming.received}

    def _receive(self, number: int, incoming: _Incoming, piece: tuple[int, int, int, int]) -> None:
        """Read a piece into its place; the caller has the lock. A wrong one ends the upload."""
        at, nbytes, which, checksum = piece
        if incoming.is_doomed:
            raise ServerError("stale_handle", "that upload has ended", "send the array again")
        incoming.touched = time.monotonic()
        if at >= 0 and nbytes > 0 and at + nbytes <= incoming.received:
            return
        if at != incoming.received or not 0 < nbytes <= incoming.form.nbytes - at:
            raise ServerError("malformed", "that piece is not the next one", "see docs/http-api.md")
        if not 0 <= which < len(incoming.parts) or nbytes > incoming.parts[which].nbytes:
            raise ServerError("malformed", "that part was not lent for this upload", "see docs/http-api.md")
        part = incoming.parts[which]
        try:
            self._box.take(
                part.offset, incoming.memory()[at : at + nbytes], piece_generation(part.generation, at), checksum
            )
        except BaseException:
            incoming.is_doomed = True
            raise
        incoming.received += nbytes
        if incoming.received == incoming.form.nbytes and not incoming.is_doomed:
            self._finish(number, incoming)

    def _finish(self, number: int, incoming: _Incoming) -> None:
        incoming.has_ended = True
        self._remove(number, incoming)
        try:
            incoming.seal(self.pool)
        except BaseException:
            incoming.abort()
            self.shelf.drop(number, incoming.held)
            raise

    def _remove(self, number: int, incoming: _Incoming) -> None:
        """Take an upload off the list, if the id has not been used again, and its parts back."""
        with self._lock:
            if self._incoming.get(number) is incoming:
                del self._incoming[number]
        self._transport.take_up(incoming.parts)

    def _drop(self, number: int) -> None:
        """Drop an upload, now or, if a piece of it is just being read, right after that."""
        with self._lock:
            incoming = self._incoming.get(number)
        if incoming is not None:
            incoming.is_doomed = True
            self._end(number, incoming)

    def _end(self, number: int, incoming: _Incoming) -> None:
        """Let go of all that a doomed upload has, unless somebody is at it: then that one does it."""
        if incoming.lock.acquire(blocking=False):
            try:
                if not incoming.has_ended:
                    incoming.has_ended = True
                    self._remove(number, incoming)
                    self.shelf.drop(number, incoming.held)
                    incoming.abort()
            finally:
                incoming.lock.release()

    def _fetch(self, body: dict[str, Any]) -> dict[str, Any]:
        number, at = field(body, "id", int), field(body, "at", int)
        array = self.shelf.get(number).wait(_ROOM_SECONDS)
        if not 0 <= at <= array.nbytes:
            raise ServerError("malformed", f"the array has {array.nbytes} bytes", "see docs/http-api.md")
        part = self._outgoing_part(number, array.nbytes)
        piece = _flat(array)[at : at + part.nbytes]
        checksum = self._box.put(part.offset, piece, piece_generation(part.generation, at))
        return {**part.to_dict(), "nbytes": len(piece), "checksum": f"{checksum:032x}"}

    def _outgoing_part(self, number: int, nbytes: int) -> Part:
        with self._lock:
            part = self._outgoing.get(number)
            if part is None:
                if self._closed:
                    raise ServerError("session_lost", "the session has ended", "")
                part = self._outgoing[number] = self._transport.lend_down(nbytes)
            return part

    def _echo(self, body: dict[str, Any]) -> dict[str, Any]:
        """Give an array back as a result, for the handshake."""
        array = self.shelf.get(_number(body)).wait(_ROOM_SECONDS)
        return self.write(array, _ROOM_SECONDS)

    def _free(self, body: dict[str, Any]) -> dict[str, Any]:
        for number in field(body, "ids", list):
            if type(number) is int:
                self._forget(number)
        return {}

    def _forget(self, number: int) -> bool:
        self._drop(number)
        with self._lock:
            part = self._outgoing.pop(number, None)
        if part is not None:
            self._transport.take_down(part)
        return self.shelf.drop(number)

    # ------------------------------------------------------------------ of every link

    def take_back(self, wire: dict[str, Any]) -> bool:
        """Drop a result."""
        number = wire.get("id")
        return type(number) is int and self._forget(number)

    def look_after(self) -> None:
        """Drop uploads that have come to a halt."""
        limit = time.monotonic() - self._settings.data_timeout
        with self._lock:
            halted = [number for number, incoming in self._incoming.items() if incoming.touched < limit]
        for number in halted:
            self._drop(number)

    def close(self) -> None:
        """Drop everything, and take all parts back."""
        super().close()
        with self._lock:
            numbers = list(self._incoming)
            parts = list(self._outgoing.values())
            self._outgoing.clear()
        for number in numbers:
            self._drop(number)
        for part in parts:
            self._transport.take_down(part)


class FileTransport(Transport):
    """The mailbox.

    Parameters
    ----------
    pool : shmpool.Pool
        The server's.
    settings : Settings
        ``file_dir`` says where the file lies; without it this transport is not offered.
    stream : StreamTransport
        Takes over the sessions of clients that give the file up.

    Notes
    -----
    Lifetime: the file is there from the start to the end of the server; one that a killed server has left is taken
    over, with a new uuid. Blocking: on threads of its own, so that no computation waits for a drive.
    """

    kind = "file"

    def __init__(self, pool: shmpool.Pool, settings: Settings, stream: StreamTransport) -> None:
        self.pool = pool
        self.settings = settings
        self._stream = stream
        self._links: dict[str, FileLink] = {}
        self._box: Mailbox | None = None
        self._lock_fd = -1
        if settings.file_dir is None:
            return
        half = max(1, settings.file_nbytes // 2 // GRANULE_NBYTES) * GRANULE_NBYTES
        layout = Layout(secrets.token_hex(16), half)
        self._path = settings.file_dir / FILE_NAME
        try:
            self._lock_fd = _lock(self._path)
            self._box = Mailbox(self._path, layout, create=True)
        except (MailboxError, OSError) as error:
            log.error("the transport `file` is not offered: %s", error)
            self._unlock()
            return
        self._part_nbytes = min(_PART_NBYTES, max(GRANULE_NBYTES, half // 4 // GRANULE_NBYTES * GRANULE_NBYTES))
        self._up = Parts(layout.up_offset, half)
        self._down = Parts(layout.down_offset, half)
        self._workers = Workers(_THREADS, _MAX_WAITING)

    def offer(self) -> dict[str, Any] | None:
        """Name the file, and where the data connections go if it is given up."""
        if self._box is None:
            return None
        layout = self._box.layout.to_dict()
        return {**layout, "name": FILE_NAME, "dir": str(self._path.parent), "stream": self._stream.offer()}

    def open(self, body: dict[str, Any]) -> FileLink:
        """Make a link."""
        assert self._box is not None
        link = FileLink(self, self._box)
        self._links[link.id] = link
        self._stream.admit(link)
        return link

    async def run(self, link: FileLink, body: dict[str, Any]) -> dict[str, Any]:
        """Do what a message of a client asks for, on a thread."""
        answer: dict[str, Any] = await self._workers.run(link.handle, body)
        return answer

    async def attend(
        self, link: FileLink, hung_up: Callable[[], Awaitable[Any]], is_closing: Callable[[], bool]
    ) -> None:
        """Take the client for alive until it hangs up."""
        waiting = asyncio.ensure_future(hung_up())
        try:
            with link.attended():
                while not (waiting.done() or link.is_closed or is_closing()):
                    await asyncio.wait({waiting}, timeout=_LOOK_SECONDS)
        finally:
            waiting.cancel()

    def claim(self, form: Form, timeout: float) -> shmpool.Loan:
        """Wait for a slot."""
        return self._stream.claim(form, timeout)

    def lend_up(self, nbytes: int) -> list[Part]:
        """Lend parts to an upload: two if one does not do, so that the client can write ahead."""
        first = self._up.lend(min(nbytes, self._part_nbytes))
        if first is None:
            raise ServerError("pool_full", "the mailbox is full", "others are sending; raise GSB_FILE_NBYTES")
        second = self._up.lend(min(nbytes - first.nbytes, self._part_nbytes)) if nbytes > first.nbytes else None
        return [first] if second is None else [first, second]

    def take_up(self, parts: list[Part]) -> None:
        """Take parts back from an upload; twice is harmless."""
        for part in parts:
            self._up.give_back(part)

    def lend_down(self, nbytes: int) -> Part:
        """Lend a part to a download."""
        part = self._down.lend(min(nbytes, self._part_nbytes))
        if part is None:
            raise ServerError("pool_full", "the mailbox is full", "others are fetching; raise GSB_FILE_NBYTES")
        return part

    def take_down(self, part: Part) -> None:
        """Take a part back from a download."""
        self._down.give_back(part)

    def status(self) -> dict[str, Any] | None:
        """Say how things are; None where there is no mailbox."""
        if self._box is None:
            return None
        return {
            "path": str(self._path),
            "nbytes": self._box.layout.nbytes,
            "reads": self._box.how,
            "retries": self._box.retries,
            "lent_up_nbytes": self._up.lent_nbytes,
            "lent_down_nbytes": self._down.lent_nbytes,
        }

    def look_after(self) -> None:
        """Forget links that have ended, and uploads that have come to a halt."""
        for number, link in list(self._links.items()):
            if link.is_closed:
                del self._links[number]
            else:
                link.look_after()

    def close(self) -> None:
        """Remove the file."""
        if self._box is None:
            return
        for link in list(self._links.values()):
            link.close()
        self._workers.close()
        # The descriptors stay: a thread may still be reading through them. They end with the process.
        with contextlib.suppress(OSError):
            self._path.unlink()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _lock(path: Path) -> int:
    """Keep other servers off the file, where locks work; the descriptor that holds the lock, or -1."""
    if sys.platform == "win32":
        return -1
    import fcntl

    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise MailboxError(f"{path} is in use by another server", hint="give each a GSB_FILE_DIR of its own") from None
    except OSError:
        # A drive without locks: what a second server spoils fails the checksum.
        log.debug("%s cannot be locked", path)
    return fd


def _flat(array: Array) -> Bytes:
    return np.asarray(flat_bytes(array))


def _number(body: dict[str, Any]) -> int:
    """Read the id that a client has chosen."""
    number: int = field(body, "id", int)
    if not 0 <= number < FIRST_RESULT:
        raise ServerError("malformed", "an id is less than 2**48", "see docs/http-api.md")
    return number


def _checksum(body: dict[str, Any]) -> int:
    text: str = field(body, "checksum", str)
    try:
        if len(text) != 32:
            raise ValueError
        return int(text, 16)
    except ValueError:
        raise ServerError("malformed", "a checksum is 32 hex digits", "see docs/http-api.md") from None
