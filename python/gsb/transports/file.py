# SPDX-License-Identifier: BSD-3-Clause
"""`file`: arrays through a mailbox on a drive that both sides see, agreed upon over HTTP (``docs/transports.md``)."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import secrets
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np

from gsb._config import get_config
from gsb._control import exchange, introduce
from gsb._http import Connection
from gsb.errors import (
    ConnectionLostError,
    GSBError,
    MailboxError,
    ProtocolError,
    RemoteError,
    ServerBusyError,
    SessionLostError,
    TransportError,
    TransportUnavailableError,
)
from gsb.mailbox import Layout, Mailbox, piece_generation
from gsb.protocol.data import flat_bytes, form_of, parse_form
from gsb.protocol.wire import ATTEND, FILE, PROTOCOL_VERSION, SESSION
from gsb.transports._sockets import pieces
from gsb.transports.base import Array, Dialog, Opened, Transport
from gsb.transports.stream import StreamTransport, empty_array, find_way, number_of

_log = logging.getLogger("gsb")

#: Seconds that the server may take for a piece: its drive may have to wake up.
_ANSWER_SECONDS: Final = 60.0

#: Seconds to wait for room at the server when the call itself has no deadline.
_ROOM_SECONDS: Final = 300.0

#: Between two questions for room.
_PAUSE_SECONDS: Final = 0.02

#: Sizes of the arrays of the handshake: less than a page, more than the server keeps outside of its pool, odd ones.
_PROBE_NBYTES: Final = (100, 70_000, 300_001, 4096)


Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class _Part(NamedTuple):
    offset: int
    nbytes: int
    generation: int


class FileTransport(Transport):
    """A file on a drive that both sides see. Wire: ``{"$": "ref", "id": ...}``; in answers with the array's form.

    Every array is verified by its receiver. One that is wrong also at the second try, or a drive that fails, ends the
    use of the file: this array and all later ones of the session go by `stream`.

    Parameters
    ----------
    dialog : Dialog
        How to reach the server.
    box : Mailbox
        The file.
    session : str
        The session's id.

    Notes
    -----
    Concurrency: any thread; each transfer has parts of the file and a control connection for itself. Nobody may change
    an array while it is being written: that looks like a damaged transfer.
    Blocking: for the drive; 60 s for an answer of the server; `write` and `read` also for room.
    Fork: the sockets are closed in the child.
    Crash: a request of ours that is never answered tells the server that we live; when the kernel closes its socket,
    the server frees what it holds for us. Nothing is claimed in the file itself.
    """

    kind = "file"

    def __init__(self, dialog: Dialog, box: Mailbox, session: str) -> None:
        self._dialog = dialog
        self._box = box
        self._session = session
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._attendance: Connection | None = None
        self._stream: StreamTransport | None = None
        self._users = 0
        self._closed = False
        self._pid = os.getpid()
        _all.add(self)

    @classmethod
    def open(cls, dialog: Dialog) -> Opened:
        """Find the file, open a session, and see random arrays come back through it unharmed."""
        box = _open_box(dialog.offer)
        try:
            request = {"protocol": PROTOCOL_VERSION, "transport": cls.kind, "label": dialog.label}
            session = str(dialog.post(SESSION, request)["session"])
        except BaseException:
            box.close()
            raise
        found = cls(dialog, box, session)
        try:
            found._attend()
            found._prove()
        except GSBError as error:
            found._end_session()
            found.close()
            raise TransportUnavailableError(f"{box.path}: {error.message}") from error
        except BaseException:
            found.close()
            raise
        return Opened(session, found)

    def describe(self) -> str:
        """Name the file, or what has replaced it."""
        if self._stream is not None:
            return f"{self._stream.describe()}, {self.reason}"
        return f"{self._box.path} by {self._box.how}"

    @property
    def retries(self) -> int:
        """Reads of this side that were right only at the second try."""
        return self._box.retries

    # ------------------------------------------------------------------------------ arrays
    def write(self, array: Array, timeout: float | None = None) -> dict[str, Any]:
        """Send an array; it lies in the server's memory, verified, when this returns."""
        if self._stream is None:
            try:
                return self._write(array, _deadline(timeout))
            except MailboxError as error:
                self._give_up(error)
        assert self._stream is not None
        return self._stream.write(array, timeout)

    def read(self, wire: dict[str, Any], copy: bool = True) -> Array:
        """Fetch an array into memory of ours; `copy` makes no difference."""
        if self._stream is None:
            try:
                return self._read(wire, _deadline(None))
            except MailboxError as error:
                self._give_up(error)
        assert self._stream is not None
        try:
            return self._stream.read(wire, copy)
        finally:
            # The server still keeps the part of the file out of which it could not be read.
            self._free(number_of(wire))

    def release(self, wire: dict[str, Any]) -> None:
        """Tell the server that it may drop an array; what is lost of such words ends with the session."""
        self._free(number_of(wire))

    def _write(self, array: Array, deadline: float) -> dict[str, Any]:
        form, number = form_of(array), next(self._ids)
        answer = self._ask_for_room({"do": "begin", "id": number, **form.to_dict()}, deadline)
        parts = _parts(answer.get("parts"))
        for part in parts:
            self._box.layout.check_up(part.offset, part.nbytes)
        try:
            with self._in_use(), _Ahead(len(parts) > 1) as ahead:
                for turn, at, piece in _turns(array, parts):
                    part = parts[turn]
                    checksum = self._box.put(part.offset, piece, piece_generation(part.generation, at))
                    message = {"do": "sent", "id": number, "at": at, "nbytes": len(piece), "part": turn}
                    ahead.run(self._post, {**message, "checksum": f"{checksum:032x}"})
                ahead.wait()
        except BaseException:
            self._free(number)
            raise
        return {"$": "ref", "id": number}

    def _read(self, wire: dict[str, Any], deadline: float) -> Array:
        number, target = number_of(wire), empty_array(parse_form(wire))
        flat = np.asarray(flat_bytes(target))
        at = 0
        with self._in_use():
            while at < len(flat):
                answer = self._ask_for_room({"do": "fetch", "id": number, "at": at}, deadline)
                (part,) = _parts([answer])
                self._box.layout.check_down(part.offset, part.nbytes)
                if not 0 < part.nbytes <= len(flat) - at:
                    raise ProtocolError(f"a piece of {part.nbytes} bytes came where {len(flat) - at} were missing")
                piece = flat[at : at + part.nbytes]
                self._box.take(part.offset, piece, piece_generation(part.generation, at), _checksum(answer))
                at += part.nbytes
        self._free(number)
        return target

    def _free(self, number: int) -> None:
        with contextlib.suppress(TransportError, RemoteError):
            self._post({"do": "free", "ids": [number]})

    # ------------------------------------------------------------------------------ opening
    def _prove(self) -> None:
        """Send random arrays there and back, to the same places of the file again and again.

        Each is verified by both receivers. A drive that serves what it has cached fails here.
        """
        deadline = time.monotonic() + self._dialog.timeout
        for nbytes in _PROBE_NBYTES:
            sent = np.frombuffer(secrets.token_bytes(nbytes), np.uint8)
            wire = self._write(sent, deadline)
            answer = self._post({"do": "echo", "id": wire["id"]})
            if not np.array_equal(self._read(answer, deadline), sent):
                raise MailboxError("an array came back changed, though its checksums hold")
            self._free(wire["id"])

    def _end_session(self) -> None:
        with contextlib.suppress(GSBError), self._control() as control:
            control.request("DELETE", f"{SESSION}/{self._session}", timeout=self._dialog.timeout)

    def _give_up(self, error: MailboxError) -> None:
        """Go on by `stream`; raises `error` if the server has none."""
        with self._lock:
            if self._stream is not None:
                return
            dialog, offer = self._dialog, self._dialog.offer.get("stream")
            if not isinstance(offer, dict):
                raise error
            try:
                connect, where = find_way(dialog.address, offer, dialog.timeout)
            except TransportUnavailableError:
                raise error from None
            self.reason = f"the file was given up: {error.message}"
            self.kind = StreamTransport.kind  # type: ignore[misc]  # what reports say of this session from now on
            self._stream = StreamTransport(connect, dialog.token, self._session, where, self._ids)
        _log.warning("[gsb] transport stream (%s): %s", where, self.reason)

    # ------------------------------------------------------------------------------ messages
    def _ask_for_room(self, message: dict[str, Any], deadline: float) -> dict[str, Any]:
        while True:
            try:
                return self._post(message)
            except ServerBusyError:
                # The server waits for a moment only, so that it never waits for a client that is gone.
                if time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE_SECONDS)

    def _post(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message, once more over a new connection if that breaks: each may be carried out twice."""
        body = {"session": self._session, **message}
        self._stay_attended()
        for attempt in (1, 2):
            try:
                with self._control() as control:
                    return exchange(control, "POST", FILE, body, _ANSWER_SECONDS)
            except ConnectionLostError:
                if attempt == 2 or self._closed:
                    raise
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _control(self) -> Iterator[Connection]:
        """Lend a control connection; one that breaks is not used again."""
        if not self.is_usable:
            raise SessionLostError("the session has been closed")
        control = None
        with contextlib.suppress(IndexError):
            while control is None:
                control = self._idle.pop()
                if control.is_stale():
                    control.close()
                    control = None
        if control is None:
            control = self._connect()
        try:
            yield control
        except TransportError:
            control.close()
            raise
        except GSBError:
            # An answer, though not a welcome one.
            self._idle.append(control)
            raise
        except BaseException:
            control.close()
            raise
        if self._closed:
            control.close()
        else:
            self._idle.append(control)

    def _connect(self) -> Connection:
        control = Connection(self._dialog.address, self._dialog.timeout)
        try:
            introduce(control, self._dialog.token, self._dialog.timeout)
            if control.server != self._dialog.server:
                raise SessionLostError("another server answers now")
        except BaseException:
            control.close()
            raise
        return control

    # ------------------------------------------------------------------------------ life
    def _attend(self) -> None:
        """Leave a request with the server, to be answered never: while its connection is open, we live."""
        control = self._connect()
        body = json.dumps({"session": self._session}).encode()
        control.begin("POST", ATTEND, body, self._dialog.timeout)
        self._attendance = control

    def _stay_attended(self) -> None:
        with self._lock:
            attendance = self._attendance
            if self._closed or (attendance is not None and not attendance.is_stale()):
                return
            if attendance is not None:
                attendance.close()
            self._attend()

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep the file open while it is read or written."""
        with self._lock:
            if self._closed:
                raise SessionLostError("the session has been closed")
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._closed and not self._users:
                    self._box.close()

    @property
    def is_usable(self) -> bool:
        """False after `close`, or in a forked child."""
        return not self._closed and self._pid == os.getpid()

    def close(self) -> None:
        """Close the file and the connections: those in use when their transfer is over."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if not self._users:
                self._box.close()
        for control in (*self._idle, self._attendance):
            if control is not None:
                control.close()
        self._idle.clear()
        if self._stream is not None:
            self._stream.close()
        _all.discard(self)

    def _forget_parent(self) -> None:
        # The lock may have been held by another thread of the parent.
        self._lock = threading.Lock()
        self.close()


class _Ahead:
    """Has the server read one piece while the next one is written to another part of the file.

    Parameters
    ----------
    is_ahead : bool
        False: everything is done at once, for arrays of one part.
    """

    def __init__(self, is_ahead: bool) -> None:
        self._executor = ThreadPoolExecutor(1, "gsb-file") if is_ahead else None
        self._pending: Future[Any] | None = None

    def run(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Do something as soon as what was begun before is done; its errors are raised by the next call."""
        if self._executor is None:
            function(*arguments)
        else:
            self.wait()
            self._pending = self._executor.submit(function, *arguments)

    def wait(self) -> None:
        """Wait for what was begun."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown()


def _turns(array: Array, parts: list[_Part]) -> Iterator[tuple[int, int, Bytes]]:
    """Give the pieces of an array for the parts in turn: which part, where in the array, and the bytes."""
    turns = itertools.cycle(range(len(parts)))
    at = 0
    with contextlib.closing(pieces(array)) as found:
        for whole in found:
            rest = np.asarray(whole)
            while len(rest):
                turn = next(turns)
                piece, rest = rest[: parts[turn].nbytes], rest[parts[turn].nbytes :]
                yield turn, at, piece
                at += len(piece)


def _deadline(timeout: float | None) -> float:
    return time.monotonic() + (_ROOM_SECONDS if timeout is None else timeout)


def _parts(found: Any) -> list[_Part]:
    """Read where something is, from the server."""
    try:
        parts = [_Part(part["offset"], part["nbytes"], part["generation"]) for part in found]
        if not parts or any(type(number) is not int for part in parts for number in part):
            raise ValueError(found)
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"malformed answer about the mailbox: {error!r}") from error
    return parts


def _checksum(answer: dict[str, Any]) -> int:
    try:
        return int(answer["checksum"], 16)
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"malformed answer about the mailbox: {error!r}") from error


def _open_box(offer: dict[str, Any]) -> Mailbox:
    name, folder = offer.get("name"), offer.get("dir")
    if not isinstance(name, str) or not name or PurePath(name).name != name or not isinstance(folder, str):
        raise TransportUnavailableError("the server does not say where its mailbox is")
    place = get_config().file_dir or local_name(folder)
    try:
        return Mailbox(Path(place) / name, Layout.from_dict(offer))
    except MailboxError as error:
        raise TransportUnavailableError(f"{error.message}; is GSB_FILE_DIR the server's {folder}?") from error


def local_name(folder: str, platform: str = sys.platform) -> str:
    """Translate the name of a folder on a Windows drive between Windows and WSL2; other names stay.

    >>> local_name("/mnt/c/shm", "win32")
    'c:\\\\shm'
    >>> local_name("C:\\\\shm", "linux")
    '/mnt/c/shm'
    """
    if platform == "win32":
        found = re.fullmatch(r"/mnt/([a-z])(/.*)?", folder)
        return f"{found[1]}:{(found[2] or '/')}".replace("/", "\\") if found else folder
    found = re.fullmatch(r"([A-Za-z]):([\\/].*)?", folder)
    return f"/mnt/{found[1].lower()}{(found[2] or '')}".replace("\\", "/") if found else folder


_all: weakref.WeakSet[FileTransport] = weakref.WeakSet()


def _after_fork() -> None:
    for transport in list(_all):
        transport._forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
