# SPDX-License-Identifier: BSD-3-Clause
"""Arrays on the client's side of the wire: inline below 10 KB, by the session's transport otherwise."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gsb._config import get_config
from gsb.errors import ProtocolError
from gsb.protocol import INLINE_LIMIT, decode_inline, encode_inline
from gsb.protocol.data import flat_bytes, form_of

if TYPE_CHECKING:
    from gsb.shm_transport import ShmTransport
    from gsb.transports import Transport

Array = np.ndarray[Any, np.dtype[Any]]


def _shared(shm: ShmTransport | None) -> Transport:
    # Imported late: a client that streams needs no pool.
    from gsb.shm_transport import ShmTransport
    from gsb.transports.shared import SharedTransport

    return SharedTransport(shm or ShmTransport.get())


def _encode_array(array: Array, transport: ShmTransport | None = None) -> dict[str, Any]:
    """Encode an array: base64 below 10 KB, otherwise a slot of the pool."""
    if array.nbytes < INLINE_LIMIT:
        return encode_inline(array)
    return _shared(transport).write(array)


def _decode_array(wire: dict[str, Any], transport: ShmTransport | None = None, copy: bool | None = None) -> Array:
    """Decode an array: inline, from a slot (which is freed), or from an older peer's ``.npy`` file.

    Parameters
    ----------
    wire : dict
        An object tagged ``array``, ``slot`` or ``npy``.
    transport : ShmTransport, optional
        Default: that of the process.
    copy : bool, optional
        Whether to copy it out of the slot. Default: the opposite of ``gsb.config(zero_copy=...)``.
    """
    tag = wire.get("$")
    if tag == "array":
        return decode_inline(wire)
    if tag == "npy":
        return _load_npy(wire.get("path"))
    if tag != "slot":
        raise ProtocolError(f"unknown kind of array {tag!r}")
    return _shared(transport).read(wire, copy=_copies() if copy is None else copy)


def _copies() -> bool:
    return not get_config().zero_copy


def _load_npy(path: object) -> Array:
    """Read the file that an older server wrote for its result.

    Only inside the configured directory, links resolved, and never a pickle: otherwise a message could make
    the client read any file or run code.
    """
    directory = get_config().npy_dir
    if directory is None or not isinstance(path, str):
        raise ProtocolError(
            "the server sent a .npy path",
            hint="it is an older one; set gsb.config(npy_dir=...) to its directory",
        )
    base = Path(directory).resolve()
    target = (base / path).resolve()
    if not target.is_relative_to(base) or target.suffix != ".npy":
        raise ProtocolError(f"the .npy path {path!r} lies outside {base}")
    try:
        return np.asarray(np.load(target, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise ProtocolError(f"cannot read {target}: {error}") from error


class Parts(NamedTuple):
    """How arrays travel in parts.

    Attributes
    ----------
    above : int
        Arrays of more bytes do.
    nbytes : int
        Of one part.
    post : callable
        Sends a message ``POST /v1/part``.
    forget : callable
        Tells the server to drop an array.
    """

    above: int
    nbytes: int
    post: Callable[[dict[str, Any]], object]
    forget: Callable[[str], object]


class Outbox:
    """The arrays that one message has sent ahead, to be let go of when it is answered.

    Parameters
    ----------
    transport : Transport
        How they travel.
    timeout : float, optional
        Seconds to wait for room.
    parts : Parts, optional
        How arrays are sent that are too large for one piece; without it there are none.
    """

    def __init__(self, transport: Transport, timeout: float | None = None, parts: Parts | None = None) -> None:
        self._transport = transport
        self._timeout = timeout
        self._parts = parts
        # The same object twice in one message travels once: X used as y, a weight used twice.
        self._sent: dict[int, tuple[Array, dict[str, Any]]] = {}
        self.nbytes = 0

    def write(self, array: Array) -> dict[str, Any]:
        """Send an array ahead, as `encode_value` wants it."""
        found = self._sent.get(id(array))
        if found is not None:
            return found[1]
        if self._parts is not None and array.nbytes > self._parts.above:
            wire = self._in_parts(array, self._parts)
        else:
            wire = self._transport.write(array, self._timeout)
        self._sent[id(array)] = (array, wire)
        self.nbytes += array.nbytes
        return wire

    def _in_parts(self, array: Array, parts: Parts) -> dict[str, Any]:
        """Send an array piece by piece: the server takes one away while the next is copied."""
        if not (array.flags.c_contiguous or array.flags.f_contiguous):
            array = np.ascontiguousarray(array)
        form = form_of(array).to_dict()
        key = secrets.token_hex(16)
        flat = np.frombuffer(flat_bytes(array), np.uint8)
        try:
            for offset in range(0, array.nbytes, parts.nbytes):
                wire = self._transport.write(flat[offset : offset + parts.nbytes], self._timeout)
                try:
                    parts.post({"array": key, "offset": offset, "part": wire, **form})
                finally:
                    self._transport.release(wire)
        except BaseException:
            with contextlib.suppress(Exception):
                parts.forget(key)
            raise
        return {"$": "parts", "array": key, **form}

    @property
    def slots(self) -> tuple[int, ...]:
        """The first slot of each array, where the transport knows it."""
        return _slots(wire for _, wire in self._sent.values())

    def __len__(self) -> int:
        return len(self._sent)

    def close(self) -> None:
        """Let go of the arrays. A server that still reads one keeps it until it is done."""
        for _, wire in self._sent.values():
            if wire["$"] != "parts":  # those went away with the call
                self._transport.release(wire)


class Inbox:
    """The arrays of one answer."""

    def __init__(self, transport: Transport, copy: bool | None = None) -> None:
        self._transport = transport
        self._copy = copy
        self._received: list[dict[str, Any]] = []
        self.nbytes = 0

    def read(self, wire: dict[str, Any]) -> Array:
        """Take an array, as `decode_value` wants it."""
        if wire.get("$") == "npy":
            return _load_npy(wire.get("path"))
        array = self._transport.read(wire, _copies() if self._copy is None else self._copy)
        self._received.append(wire)
        self.nbytes += array.nbytes
        return array

    @property
    def slots(self) -> tuple[int, ...]:
        """The first slot of each array, where the transport knows it."""
        return _slots(self._received)


def _slots(wires: Iterable[dict[str, Any]]) -> tuple[int, ...]:
    return tuple(int(wire["handle"]["slot"]) for wire in wires if wire.get("$") == "slot")
