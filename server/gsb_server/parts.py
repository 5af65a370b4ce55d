# SPDX-License-Identifier: BSD-3-Clause
"""Arrays that arrive in parts: larger than the pool, or on their way to a device while the client still copies.

Every part is an ordinary array of bytes by the session's transport. Where a backend has a device, the part goes there
straight from its slot; otherwise the whole is put together in the server's memory. A call then names the array by the
id that the client chose.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from gsb.protocol.data import Form, parse_form

import shmpool

from .backends.base import StreamedArray, StreamSpec
from .errors import ServerError

__all__ = ["PartStore", "StreamingBackend", "streaming_backend"]

Array = np.ndarray[Any, np.dtype[Any]]

# Of the memory that is free when an array begins, it and the others like it may take this part.
_SHARE = 0.5
_PART_NBYTES = 64 * 2**20


class StreamingBackend(Protocol):
    """A backend that takes the parts itself."""

    def stream(self, spec: StreamSpec, offset: int, handle: shmpool.Handle, timeout: float | None) -> None:
        """Take a part; returns when its slot is pinned."""
        ...

    def drop(self, keys: list[str]) -> None:
        """Forget arrays."""
        ...

    def fetch(self, spec: StreamSpec) -> Array:
        """Bring an array to the host."""
        ...


def streaming_backend(backend: Any) -> StreamingBackend | None:
    """Return the backend that takes parts: the one given, or a link of the chain that it is."""
    for one in getattr(backend, "backends", (backend,)):
        if hasattr(one, "stream"):
            found: StreamingBackend = one
            return found
    return None


@dataclass(slots=True)
class _Arriving:
    """One array: what it will be, how much of it is there, and where, if that is our memory."""

    spec: StreamSpec
    target: Array | None
    received: int = 0
    used: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def host_nbytes(self) -> int:
        return self.spec.nbytes if self.target is not None else 0


def _available_nbytes() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 2**62


class PartStore:
    """Arrays in parts, by session and id.

    Parameters
    ----------
    pool : shmpool.Pool
        The server's.
    backend : StreamingBackend or None
        Takes the parts; None: they are put together here.
    ttl : float
        Seconds without another part, or a call, after which an array is dropped.
    above : int
        Bytes from which on clients are to send parts; 0: as it suits the backend.

    Notes
    -----
    Concurrency: any thread; the parts of one array come one after the other.
    Blocking: the first part waits for memory of the device, up to the request's deadline.
    """

    def __init__(self, pool: shmpool.Pool, backend: StreamingBackend | None, ttl: float, above: int = 0) -> None:
        self.pool = pool
        self.backend = backend
        self.ttl = ttl
        self.above = above
        self._arrays: dict[tuple[str, str], _Arriving] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def greeting(self) -> dict[str, int]:
        """Say to a client from which size on arrays are to be sent in parts, and how large a part is."""
        geometry = self.pool.geometry
        part = min(_PART_NBYTES, geometry.slot_nbytes)
        if self.above:
            return {"above": self.above, "nbytes": part}
        if self.backend is not None:
            # The upload of one part runs while the client copies the next.
            return {"above": 2 * part, "nbytes": part}
        slots = max(geometry.input_slots, geometry.scratch_slots)
        return {"above": slots * geometry.slot_nbytes, "nbytes": part}

    def receive(self, session: str, body: dict[str, Any], read: Callable[[Any], Array], timeout: float | None) -> int:
        """Take one part.

        Parameters
        ----------
        session : str
        body : dict
            The request; not trusted.
        read : callable
            Gives the array of a wire.
        timeout : float or None
            Seconds.

        Returns
        -------
        int
            Bytes received so far.

        Raises
        ------
        ServerError
            ``malformed``: parts are sent one after the other, from the first byte on. ``stale_handle``: those before
            are gone. ``out_of_memory``, ``timeout``, ``worker_lost``.
        """
        key, offset, form = body.get("array"), body.get("offset"), parse_form(body)
        if type(key) is not str or not 1 <= len(key) <= 64 or type(offset) is not int or offset < 0:
            raise ServerError("malformed", "array must be text and offset a number", "see docs/http-api.md")
        view = read(body.get("part"))
        if not isinstance(view, np.ndarray) or view.dtype != np.uint8 or view.ndim != 1 or not view.size:
            raise ServerError("malformed", "a part must be an array of bytes", "see docs/http-api.md")
        arriving = self._begin(session, key, form) if offset == 0 else self._arrays.get((session, key))
        if arriving is None:
            raise ServerError("stale_handle", "the parts that came before are gone", "send the array again")
        if not arriving.lock.acquire(blocking=False):
            raise ServerError("malformed", "parts of one array at the same time", "send one after the other")
        try:
            spec = arriving.spec
            if offset != arriving.received or offset + view.nbytes > spec.nbytes or spec != _spec(session, key, form):
                raise ServerError(
                    "malformed",
                    f"{view.nbytes} bytes at {offset} do not go on from {arriving.received} of {spec.nbytes}",
                    "see docs/http-api.md",
                )
            if arriving.target is not None:
                flat = arriving.target.reshape(-1, order="A").view(np.uint8)
                flat[offset : offset + view.nbytes] = view
            else:
                self._send_on(spec, offset, view, timeout)
            arriving.received += view.nbytes
            arriving.used = time.monotonic()
            return arriving.received
        except BaseException:
            self.drop(session, [key])
            raise
        finally:
            arriving.lock.release()

    def _begin(self, session: str, key: str, form: Form) -> _Arriving:
        spec = _spec(session, key, form)
        target: Array | None = None
        with self._lock:
            if (session, key) in self._arrays:
                raise ServerError("malformed", "an array of this id is there already", "choose a new id")
            if self.backend is None:
                held = sum(arriving.host_nbytes for arriving in self._arrays.values())
                if held + spec.nbytes > (_available_nbytes() + held) * _SHARE:
                    raise ServerError(
                        "out_of_memory",
                        f"an array of {spec.nbytes >> 20} MiB does not fit into the server's memory",
                        "Send less at once.",
                    )
                target = np.empty(form.shape, form.dtype, order=form.order)
            arriving = self._arrays[session, key] = _Arriving(spec, target, used=time.monotonic())
        return arriving

    def _send_on(self, spec: StreamSpec, offset: int, view: Array, timeout: float | None) -> None:
        assert self.backend is not None
        handle = self.pool.handle_of(view)
        if handle is not None:
            self.backend.stream(spec, offset, handle, timeout)
            return
        # Received into private memory: by a transport whose arrays are no slots.
        handle = self.pool.put(view, "scratch", timeout)
        try:
            self.backend.stream(spec, offset, handle, timeout)
        finally:
            self.pool.free(handle)

    def take(self, session: str, wire: dict[str, Any]) -> Any:
        """Return the array that a call names: a read-only array, or a `StreamedArray`.

        Raises
        ------
        ServerError
            ``stale_handle``: it is not there, or not whole.
        """
        key = wire.get("array")
        arriving = self._arrays.get((session, key)) if isinstance(key, str) else None
        if arriving is None or arriving.received < arriving.spec.nbytes:
            raise ServerError("stale_handle", "an array in parts is not there, or not whole", "send it again")
        arriving.used = time.monotonic()
        if arriving.target is not None:
            array = arriving.target.view()
            array.flags.writeable = False
            return array
        assert self.backend is not None
        return StreamedArray(arriving.spec, self.backend.fetch)

    def drop(self, session: str, keys: list[str]) -> None:
        """Forget arrays, whole or not; unknown ones are ignored."""
        with self._lock:
            found = [arriving for key in keys if (arriving := self._arrays.pop((session, key), None)) is not None]
        if self.backend is not None and found:
            self.backend.drop([arriving.spec.key for arriving in found])

    def drop_session(self, session: str) -> None:
        """Forget all arrays of a session."""
        self.drop(session, [key for owner, key in list(self._arrays) if owner == session])

    def expire(self) -> None:
        """Forget what nobody has used for the time to live."""
        before = time.monotonic() - self.ttl
        for (session, key), arriving in list(self._arrays.items()):
            if arriving.used < before:
                self.drop(session, [key])


def _spec(session: str, key: str, form: Form) -> StreamSpec:
    # The backend's arrays are of all sessions.
    return StreamSpec(f"{session}/{key}", form.shape, form.dtype.str, form.order)
