# SPDX-License-Identifier: BSD-3-Clause
"""What every transport offers to the rest of the server: one `Transport` per kind, one `Link` per session."""

from __future__ import annotations

import abc
import secrets
from typing import Any, ClassVar, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Link(abc.ABC):
    """The way between the server and one client, and the arrays under way on it.

    Notes
    -----
    Concurrency: any thread. Lifetime: until `close`; arrays given out by `read` stay good beyond it.
    """

    kind: ClassVar[str]

    def __init__(self) -> None:
        #: The id of the session, 32 hex digits.
        self.id: str = secrets.token_hex(16)

    @property
    def client(self) -> str:
        """Name the client, for people."""
        return ""

    def greeting(self) -> dict[str, Any]:
        """Return what the answer to ``POST /v1/session`` says besides the id."""
        return {}

    @abc.abstractmethod
    def is_alive(self) -> bool:
        """Whether the client lives, by the kernel's word."""

    @abc.abstractmethod
    def read(self, wire: dict[str, Any]) -> Array:
        """Give an array that a request names, as a read-only view.

        Raises
        ------
        ServerError
            ``malformed``, ``stale_handle``, ``foreign_handle``: it is not the session's, or not there.
        """

    @abc.abstractmethod
    def write(self, array: Array, timeout: float) -> dict[str, Any]:
        """Store a result for the client; returns its wire. From then on it dies with the client.

        Raises
        ------
        ServerError
            ``session_lost``: the client has ended.
        shmpool.PoolFullError, shmpool.PayloadTooLargeError, shmpool.PoolSpaceError
            There is no room.

        Notes
        -----
        Blocking: `timeout` seconds for room.
        """

    @abc.abstractmethod
    def take_back(self, wire: dict[str, Any]) -> bool:
        """Free a result that was not delivered or not fetched; False if it was gone. Never raises."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free everything under way. Twice is harmless."""


class Given(NamedTuple):
    """A result that an answer names."""

    link: Link
    wire: dict[str, Any]


class Transport(abc.ABC):
    """One kind of transport."""

    kind: ClassVar[str]

    @abc.abstractmethod
    def offer(self) -> dict[str, Any] | None:
        """Return what a client needs to know to try it; None if it cannot be had."""

    @abc.abstractmethod
    def open(self, body: dict[str, Any]) -> Link:
        """Make the link of a new session.

        Parameters
        ----------
        body : dict
            The message ``POST /v1/session``; not trusted.

        Raises
        ------
        ServerError
            The client has not shown what this transport needs.
        """

    def look_after(self) -> None:  # noqa: B027
        """Do what has to be done now and then; called by the watcher."""

    def close(self) -> None:  # noqa: B027
        """End it. The links are closed already."""
