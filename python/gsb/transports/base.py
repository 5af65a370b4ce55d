# SPDX-License-Identifier: BSD-3-Clause
"""What every transport can do, and what it may ask of the connection while it is opened."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gsb._http import Address

Array = np.ndarray[Any, np.dtype[Any]]


class Dialog(NamedTuple):
    """The control connection, as a transport sees it while it is opened.

    Attributes
    ----------
    address : Address
        Of the server.
    token : str
        The shared secret; never sent.
    server : str
        Id of the server process.
    offer : dict
        What the server's hello says about this kind of transport.
    post : callable
        ``post(path, message)`` sends a message and returns the answer; errors are those of `gsb.errors`.
    label : str
        Names the program in the server's lists.
    timeout : float
        Seconds that opening may take.
    asked_for : bool
        Whether the user wants this very transport.
    """

    address: Address
    token: str
    server: str
    offer: dict[str, Any]
    post: Callable[[str, dict[str, Any]], dict[str, Any]]
    label: str
    timeout: float
    asked_for: bool


class Opened(NamedTuple):
    """A transport in use: the session's id and the transport."""

    session: str
    transport: Transport


class Transport(abc.ABC):
    """Arrays between this process and one session of one server.

    A *wire* is what stands for an array in a message: a JSON object with the key ``$`` (``docs/http-api.md``).

    Notes
    -----
    Concurrency: any thread. Fork: a child must not use its parent's; it opens one of its own.
    Crash: whatever a dead client has written or not fetched is freed by the server.
    """

    #: The name by which it is chosen.
    kind: ClassVar[str]

    #: Why this one was chosen; set by `choose`.
    reason: str = ""

    @classmethod
    @abc.abstractmethod
    def open(cls, dialog: Dialog) -> Opened:
        """Open a session that uses this transport.

        Raises
        ------
        TransportUnavailableError
            It cannot be used here; the message says why. Another kind may be tried.
        """

    @abc.abstractmethod
    def write(self, array: Array, timeout: float | None = None) -> dict[str, Any]:
        """Make an array readable for the server; returns its wire. `release` it when the call is answered.

        Raises
        ------
        PayloadTooLargeError
            It is larger than the server's pool.
        ServerBusyError
            No room became free within `timeout` seconds.
        TransportError
            The way is broken.
        """

    @abc.abstractmethod
    def read(self, wire: dict[str, Any], copy: bool = True) -> Array:
        """Take an array of an answer. The server's room for it is free afterwards.

        Parameters
        ----------
        wire : dict
            As the answer has it. Not trusted.
        copy : bool, default True
            False: a read-only view is good enough, where the transport has one.

        Raises
        ------
        StaleArrayError
            It is gone.
        ProtocolError
            The wire is malformed.
        TransportError
            The way is broken.
        """

    @abc.abstractmethod
    def release(self, wire: dict[str, Any]) -> None:
        """Let go of an array that was written; never raises for one that is gone."""

    @property
    @abc.abstractmethod
    def is_usable(self) -> bool:
        """Whether the next call can use it. False makes the client open another session."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything on this side. Twice is harmless."""

    def describe(self) -> str:
        """Say in a few words where the bytes go, for people."""
        return self.kind
