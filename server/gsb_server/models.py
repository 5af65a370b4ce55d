# SPDX-License-Identifier: BSD-3-Clause
"""Fitted models the server keeps between calls: owner, time to live, memory limit, eviction.

Losing a model is not an error of anybody's: the client has, or can make, the state, and is told in one
word why it is gone.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .errors import ServerError

__all__ = ["ModelEntry", "ModelStore"]

_REMEMBERED = 4096


@dataclass(slots=True)
class ModelEntry:
    """One model.

    ``lock`` is held by calls that change the fitted state in place (``partial_fit``, warm starts);
    reading calls share the model as threads share an estimator.
    """

    id: str
    session: str
    estimator: str
    backend: str
    model: Any
    nbytes: int
    used: float
    lock: threading.Lock = field(default_factory=threading.Lock)


class ModelStore:
    """Models by id.

    Parameters
    ----------
    max_nbytes : int
        Limit for all models together. A single larger model is kept until the next one comes: refusing
        it would make large fits useless.
    ttl : float
        Seconds without use after which a model is dropped.
    max_per_session : int
        Limit against a client that never lets go.
    clock : callable
        For tests.

    Notes
    -----
    Concurrency: any thread.
    """

    def __init__(
        self,
        max_nbytes: int,
        ttl: float,
        max_per_session: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_nbytes = max_nbytes
        self.ttl = ttl
        self.max_per_session = max_per_session
        self.evictions = 0
        self._clock = clock
        self._entries: OrderedDict[str, ModelEntry] = OrderedDict()
        self._per_session: dict[str, int] = {}
        self._nbytes = 0
        # Why a model is gone, for a while: "it was evicted" helps, "unknown" does not.
        self._gone: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held by all models."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, session: str, estimator: str, backend: str, model: Any, nbytes: int) -> ModelEntry:
        """Keep a model; older ones may be evicted for it."""
        entry = ModelEntry(
            id=secrets.token_hex(8),
            session=session,
            estimator=estimator,
            backend=backend,
            model=model,
            nbytes=nbytes,
            used=self._clock(),
        )
        with self._lock:
            self._entries[entry.id] = entry
            self._nbytes += nbytes
            self._per_session[session] = self._per_session.get(session, 0) + 1
            self._evict(keep=entry.id)
        return entry

    def get(self, model_id: object) -> ModelEntry:
        """Return a model and mark it as used.

        Any session that knows the id may use it: a forked child has its parent's models.
        """
        if not isinstance(model_id, str):
            raise ServerError("malformed", "model must be text", "see docs/http-api.md")
        with self._lock:
            entry = self._entries.get(model_id)
            if entry is not None:
                now = self._clock()
                if now - entry.used <= self.ttl:
                    entry.used = now
                    self._entries.move_to_end(model_id)
                    return entry
                self._drop(model_id, "its time to live is over")
            reason = self._gone.get(model_id, "the server does not know it")
        raise ServerError(
            "model_lost", f"model {model_id[:64]!r} is gone: {reason}", "send its state again, or fit again"
        )

    def resize(self, entry: ModelEntry, nbytes: int) -> None:
        """Note that a model was changed in place."""
        with self._lock:
            if entry.id in self._entries:
                self._nbytes += nbytes - entry.nbytes
                entry.nbytes = nbytes
                self._evict(keep=entry.id)

    def remove(self, model_id: str, session: str) -> bool:
        """Drop a model on its owner's word; False if it was gone already."""
        with self._lock:
            entry = self._entries.get(model_id)
            if entry is None or entry.session != session:
                return False
            self._drop(model_id, "it was deleted")
            return True

    def drop_session(self, session: str) -> int:
        """Drop all models of a session."""
        with self._lock:
            doomed = [key for key, entry in self._entries.items() if entry.session == session]
            for key in doomed:
                self._drop(key, "the session that made it has ended")
            return len(doomed)

    def expire(self) -> int:
        """Drop what has not been used for the time to live."""
        with self._lock:
            deadline = self._clock() - self.ttl
            doomed = [key for key, entry in self._entries.items() if entry.used < deadline]
            for key in doomed:
                self._drop(key, "its time to live is over")
            return len(doomed)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()
            self._per_session.clear()
            self._nbytes = 0

    def _evict(self, keep: str) -> None:
        newest = self._entries[keep]
        if self._per_session[newest.session] > self.max_per_session:
            oldest = next(key for key, entry in self._entries.items() if entry.session == newest.session)
            if oldest != keep:
                self._drop(oldest, "the session holds too many models")
                self.evictions += 1
        while self._nbytes > self.max_nbytes and len(self._entries) > 1:
            oldest = next(key for key in self._entries if key != keep)
            self._drop(oldest, "it was the least recently used when memory ran short")
            self.evictions += 1

    def _drop(self, key: str, reason: str) -> None:
        entry = self._entries.pop(key)
        self._nbytes -= entry.nbytes
        left = self._per_session[entry.session] - 1
        if left:
            self._per_session[entry.session] = left
        else:
            del self._per_session[entry.session]
        self._gone[key] = reason
        if len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)
