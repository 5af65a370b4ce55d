# SPDX-License-Identifier: BSD-3-Clause
"""Arrays on the client's side of the wire: inline below 10 KB, through the pool otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import shmpool
from gsb._config import get_config
from gsb.errors import PayloadTooLargeError, ProtocolError, ServerBusyError, StaleArrayError
from gsb.protocol import INLINE_LIMIT, decode_inline, encode_inline

if TYPE_CHECKING:
    from gsb.shm_transport import ShmTransport

Array = np.ndarray[Any, np.dtype[Any]]


def _transport() -> ShmTransport:
    from gsb.shm_transport import ShmTransport

    return ShmTransport.get()


def _encode_array(array: Array, transport: ShmTransport | None = None) -> dict[str, Any]:
    """Encode an array: base64 below 10 KB, otherwise a slot of the pool."""
    if array.nbytes < INLINE_LIMIT:
        return encode_inline(array)
    handle = (transport or _transport()).write(array)
    return {"$": "slot", "handle": handle.to_dict()}


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
    transport = transport or _transport()
    try:
        handle = shmpool.Handle.from_dict(wire["handle"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"malformed handle: {error}") from error
    try:
        return transport.read(handle, copy=not get_config().zero_copy if copy is None else copy)
    except shmpool.StaleHandleError as error:
        raise StaleArrayError(str(error)) from error
    except shmpool.HandleError as error:
        raise ProtocolError(str(error)) from error
    finally:
        # With a view outstanding the slot is freed when the last one goes.
        transport.free(handle)


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


class Outbox:
    """The arrays that one message has put into the pool, to be freed when it is answered.

    Parameters
    ----------
    transport : ShmTransport
        Where they go.
    timeout : float, optional
        Seconds to wait for a slot.
    """

    def __init__(self, transport: ShmTransport, timeout: float | None = None) -> None:
        self._transport = transport
        self._timeout = timeout
        # The same object twice in one message travels once: X used as y, a weight used twice.
        self._sent: dict[int, tuple[Array, dict[str, Any]]] = {}
        self.handles: list[shmpool.Handle] = []

    def write(self, array: Array) -> dict[str, Any]:
        """Put an array into the pool, as `encode_value` wants it."""
        found = self._sent.get(id(array))
        if found is not None:
            return found[1]
        try:
            handle = self._transport.write(array, timeout=self._timeout)
        except shmpool.PayloadTooLargeError as error:
            raise PayloadTooLargeError(str(error)) from error
        except (shmpool.PoolFullError, shmpool.PoolSpaceError) as error:
            raise ServerBusyError(
                str(error), hint="let go of results held with zero_copy=True, or send less"
            ) from error
        self.handles.append(handle)
        wire = {"$": "slot", "handle": handle.to_dict()}
        self._sent[id(array)] = (array, wire)
        return wire

    @property
    def nbytes(self) -> int:
        """Bytes put into the pool."""
        return sum(int(handle.nbytes) for handle in self.handles)

    def close(self) -> None:
        """Free the slots. A server that still reads one has pinned it."""
        for handle in self.handles:
            self._transport.free(handle)


class Inbox:
    """The arrays of one answer."""

    def __init__(self, transport: ShmTransport, copy: bool | None = None) -> None:
        self._transport = transport
        self._copy = copy
        self.handles: list[dict[str, Any]] = []

    def read(self, wire: dict[str, Any]) -> Array:
        """Take an array out of the pool, as `decode_value` wants it."""
        if wire.get("$") == "slot":
            self.handles.append(wire.get("handle") or {})
        return _decode_array(wire, self._transport, self._copy)
