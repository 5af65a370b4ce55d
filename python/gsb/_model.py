# SPDX-License-Identifier: BSD-3-Clause
"""A fitted model that lives on the server, as the proxy sees it."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gsb._client import Answer, Client, Summary


class RemoteModel:
    """A fitted model on the server: its id, the attributes known so far, and how to get the others.

    Notes
    -----
    ``kept`` names what the constructor sets: the proxy has it itself, so it is no fitted state.

    Concurrency: any thread. Lifetime: when the last reference goes, the server is told to forget the model,
    unless this is a forked child of the process that made it.
    """

    def __init__(self, client: Client, answer: Answer, params: dict[str, Any], kept: frozenset[str]) -> None:
        assert answer.model is not None
        assert answer.summary is not None
        self.client = client
        self.id = answer.model
        self.session = answer.session
        self.params = params
        self._kept = kept
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._attrs: dict[str, Any] = {}
        self._missing: frozenset[str] = frozenset()
        self._opaque: frozenset[str] = frozenset()
        self._twin: Any = None
        # Arrays that the user has seen, and their content then: the user may write to them.
        self._seen: dict[str, tuple[np.ndarray[Any, Any], int]] = {}
        self.update(answer.summary)

    def update(self, summary: Summary) -> None:
        """Take over what an answer says about the attributes."""
        kept = self._kept
        self._attrs = {name: value for name, value in summary.attrs.items() if name not in kept}
        self._missing = (summary.large | summary.opaque) - kept
        self._opaque = summary.opaque - kept
        self._twin = None
        self._seen = {}

    def __del__(self) -> None:
        if getattr(self, "_pid", None) == os.getpid():
            self.client.forget(self.session, self.id)

    def replaced(self, model: str, session: str) -> None:
        """Note that the model now lives under another id."""
        self.id, self.session, self._pid = model, session, os.getpid()

    def names(self) -> set[str]:
        """Names of all fitted attributes; costs nothing."""
        return {*self._attrs, *self._missing}

    def __contains__(self, name: str) -> bool:
        return name in self._attrs or name in self._missing

    def attr(self, name: str) -> Any:
        """Give a fitted attribute, asking the server if need be. KeyError if there is none of that name."""
        value = self._find(name)
        if type(value) is np.ndarray and name not in self._seen and not value.dtype.hasobject:
            self._seen[name] = (value, _digest(value))
        return value

    def changed_by_hand(self) -> bool:
        """Tell whether the user has written to an array that `attr` gave, so that the server's is another one."""
        return any(_digest(array) != digest for array, digest in list(self._seen.values()))

    def _find(self, name: str) -> Any:
        try:
            return self._attrs[name]
        except KeyError:
            if name not in self._missing:
                raise
        with self._lock:
            if name in self._attrs:
                return self._attrs[name]
            if name in self._opaque:
                self.attributes()
            else:
                self._attrs.update(self.client.attrs(self.id, [name]))
                self._missing -= {name}
            return self._attrs[name]

    def twin(self, make: Callable[[], Any]) -> Any:
        """Give the plain estimator kept for small data; ``make`` is called for the first time of each fit."""
        with self._lock:
            if self._twin is None:
                self._twin = make()
            return self._twin

    @property
    def complete(self) -> bool:
        """Whether all fitted attributes are here already."""
        return not self._missing

    def attributes(self) -> dict[str, Any]:
        """Give all fitted attributes, fetching what is missing."""
        with self._lock:
            if self._missing:
                found = vars(self.client.state(self.id))
                for name in self._missing:
                    self._attrs[name] = found[name]
                self._missing = self._opaque = frozenset()
            return dict(self._attrs)


def _digest(array: np.ndarray[Any, Any]) -> int:
    data: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8) if array.nbytes else b""
    try:
        from shmpool import checksum
    except ImportError:  # a client without the extension
        return zlib.crc32(data)
    return checksum(data)
