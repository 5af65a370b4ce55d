# SPDX-License-Identifier: BSD-3-Clause
"""What the server and its worker say to each other over two pipes.

A message is a header (magic, length) and a pickle. Only these two processes have the pipes' ends, and one started the
other, so they trust each other as one program; what is checked is that a broken worker's bytes are noticed. Large
arrays are not in the pickle: they lie in slots of the pool, and the message has their handles, apart from the rest, so
that slots can be pinned, or given back, without reading it.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import select
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

import shmpool

from ..backends.base import StreamSpec

__all__ = [
    "Answer",
    "Channel",
    "Failure",
    "GarbledError",
    "ModelReference",
    "Placed",
    "Ready",
    "Request",
    "WorkerConfig",
    "pack",
    "unpack",
]

_MAGIC = b"gsbW"
_HEADER = struct.Struct("<4sQ")
_LARGEST = 2**32
_PIECE = 2**20


class GarbledError(RuntimeError):
    """The bytes on the pipe are not a message."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker is told at its start.

    Attributes
    ----------
    pool_path : str
        The pool to attach to.
    server : (int, int)
        The server's client in the pool: results are given to it.
    device, device_options
        For `device.make_device`.
    backends : tuple of str
        ``"module:Class"``, best first; each is called with the device.
    pin_nbytes : int
        The most of the pool that is pinned; 0 for none.
    resident_nbytes : int
        Limit of what stays on the device for the next call; -1: a quarter of its memory.
    output_timeout : float
        Seconds to wait for room for a result.
    log_level : int
    """

    pool_path: str
    server: tuple[int, int]
    device: str
    device_options: dict[str, Any]
    backends: tuple[str, ...]
    pin_nbytes: int
    resident_nbytes: int
    output_timeout: float
    log_level: int


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model that lives in the worker."""

    number: int


@dataclass(frozen=True, slots=True)
class Placed:
    """An array that lies in a slot: the number of its handle in the message."""

    index: int


@dataclass(frozen=True, slots=True)
class Request:
    """Something to do. ``body`` is the pickle of what ``kind`` needs; ``handles`` are the slots it names."""

    number: int
    kind: str
    body: bytes = b""
    handles: tuple[shmpool.Handle, ...] = ()
    forget: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed.

    Attributes
    ----------
    kind : str
        ``refused``, ``estimator``, ``server`` or ``lost``.
    code, message, hint : str
        As of `ServerError`; the reason of a refusal is the message.
    exception : dict
        Class and text of the estimator's exception.
    """

    kind: str
    message: str
    code: str = "internal"
    hint: str = ""
    exception: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request.

    Attributes
    ----------
    number : int
    body : bytes
    handles : tuple of Handle
        Slots of results, already the server's.
    failure : Failure or None
    free_nbytes : int
        Device memory for jobs, what is resident included; -1: not known.
    resident : (int, int, int, int)
        Arrays and bytes that stay on the device; how often one was found there, how often not.
    """

    number: int
    body: bytes = b""
    handles: tuple[shmpool.Handle, ...] = ()
    failure: Failure | None = None
    free_nbytes: int = -1
    resident: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker can take requests, or says why it never will.

    Attributes
    ----------
    error : str
        Empty, or the reason.
    device, versions
        As in a `Probe`.
    pin_path, pin_reason : str
        See `PinReport`.
    total_nbytes, free_nbytes : int
        Memory of the device.
    probes : dict of str to Probe
        What the backends found.
    seconds : float
        From its start.
    """

    error: str = ""
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    pin_path: str = ""
    pin_reason: str = ""
    pinned_nbytes: int = 0
    total_nbytes: int = 0
    free_nbytes: int = 0
    probes: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class Channel:
    """Both directions of a conversation.

    Notes
    -----
    Concurrency: any number of senders, one receiver. Blocking: both, until the bytes are through.
    Crash: the end of the other process is `EOFError` for the receiver and `BrokenPipeError` for a sender.
    """

    def __init__(self, reader: int, writer: int, *, patient: bool = True) -> None:
        self._reader = reader
        self._writer = writer
        self._sending = threading.Lock()
        self._closed = False
        # A peer that is stopped does not empty its pipe: whoever has deadlines must not be caught in a write.
        self._poll = None
        if not patient and hasattr(select, "poll"):
            os.set_blocking(writer, False)
            self._poll = select.poll()
            self._poll.register(writer, select.POLLOUT)

    def send(self, message: object, deadline: float = math.inf) -> None:
        """Send one message, whole.

        Raises
        ------
        BrokenPipeError
            The other end is closed, or `close_writer` was called.
        TimeoutError
            The deadline, on ``time.monotonic()``, passed; nobody can be talked to on this channel any more.
        """
        body = pickle.dumps(message, protocol=5)
        with self._sending:
            if self._closed:
                raise BrokenPipeError("the conversation is over")
            self._write(_HEADER.pack(_MAGIC, len(body)), deadline)
            self._write(body, deadline)

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            if self._poll is not None:
                left = None if deadline == math.inf else max(0.0, deadline - time.monotonic()) * 1000
                if not self._poll.poll(left):
                    raise TimeoutError("the other process does not read")
            try:
                view = view[os.write(self._writer, view[:_PIECE]) :]
            except BlockingIOError:
                continue

    def close_writer(self, file: IO[bytes]) -> None:
        """Close the file that the writer's descriptor belongs to, not under the hands of a sender.

        A sender that is stuck in a write is let go by the death of the other process, so that is to come first where
        the other side may have stopped reading; otherwise the file stays open.
        """
        if self._sending.acquire(timeout=1.0):
            try:
                self._closed = True
                file.close()
            finally:
                self._sending.release()

    def receive(self) -> Any:
        """Wait for one message.

        Raises
        ------
        EOFError
            The other end is closed.
        GarbledError
            What came is not a message.
        """
        magic, length = _HEADER.unpack(self._read(_HEADER.size))
        if magic != _MAGIC or length > _LARGEST:
            raise GarbledError(f"a message began with {magic!r} and claimed {length} bytes")
        body = self._read(length)
        try:
            return pickle.loads(body)
        except Exception as error:
            raise GarbledError(f"a message of {length} bytes cannot be read: {error}") from error

    def _read(self, length: int) -> bytearray:
        data = bytearray()
        while len(data) < length:
            piece = os.read(self._reader, min(length - len(data), _PIECE))
            if not piece:
                raise EOFError("the other process has ended")
            data += piece
        return data


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, refer: Callable[[Any], Any]) -> None:
        super().__init__(file, protocol=5)
        self._refer = refer

    def persistent_id(self, value: Any) -> Any:
        return self._refer(value)


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, find: Callable[[Any], Any]) -> None:
        super().__init__(file)
        self._find = find

    def persistent_load(self, reference: Any) -> Any:
        return self._find(reference)


def pack(
    value: object, handle_of: Callable[[np.ndarray[Any, Any]], shmpool.Handle | None] | None = None
) -> tuple[bytes, tuple[shmpool.Handle, ...]]:
    """Pickle a value, with references in place of arrays that lie in slots.

    Parameters
    ----------
    value : object
        May contain `Placed`, `StreamSpec` and `ModelReference`, which the other side resolves.
    handle_of : callable, optional
        Gives the handle of an array that lies in the pool, or None.
    """
    handles: list[shmpool.Handle] = []
    places: dict[int, int] = {}

    def refer(item: Any) -> Any:
        kind = type(item)
        if kind is np.ndarray:
            if id(item) in places:
                return "slot", places[id(item)]
            if handle_of is not None and (handle := handle_of(item)) is not None:
                places[id(item)] = len(handles)
                handles.append(handle)
                return "slot", places[id(item)]
        if kind is Placed:
            return "slot", item.index
        if kind is StreamSpec:
            return "stream", item.key
        if kind is ModelReference:
            return "model", item.number
        return None

    file = io.BytesIO()
    _Packer(file, refer).dump(value)
    return file.getvalue(), tuple(handles)


def unpack(body: bytes, find: Callable[[tuple[str, Any]], Any]) -> Any:
    """Undo `pack`; ``find`` is given ``(kind, which)`` for every reference."""
    return _Unpacker(io.BytesIO(body), find).load()
