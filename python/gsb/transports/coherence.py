# SPDX-License-Identifier: BSD-3-Clause
"""The client's half of the coherence handshake: do this process and the server see one memory?

See ``docs/transports.md``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import shmpool
from gsb.errors import GSBError, ProtocolError, TransportUnavailableError
from gsb.protocol.wire import WITNESS
from shmpool.witness import LANES, NONCE_NBYTES, Witness

Post = Callable[[str, dict[str, Any]], dict[str, Any]]


def prove_coherence(path: str, uuid: str, post: Post) -> str:
    """Go through the rounds with the server.

    Parameters
    ----------
    path, uuid : str
        The pool file as the server names it.
    post : callable
        Sends a message over HTTP and gives the answer.

    Returns
    -------
    str
        A ticket for opening a session.

    Raises
    ------
    TransportUnavailableError
        They do not see one memory, or locks do not cross; the message says what was noticed.

    Notes
    -----
    Blocking: four round trips. The pool is not attached to: only pages made for this are touched.
    """
    try:
        with Witness(path, uuid) as witness:
            return _Handshake(witness, uuid, post).run()
    except shmpool.ShmPoolError as error:
        raise TransportUnavailableError(error.message) from error
    except OSError as error:
        if isinstance(error, GSBError):
            raise
        raise TransportUnavailableError(f"{path} cannot be mapped: {error.strerror or error}") from error


class _Handshake:
    def __init__(self, witness: Witness, uuid: str, post: Post) -> None:
        self._witness = witness
        self._post = post
        begun = post(WITNESS, {"pool": uuid})
        try:
            self._ticket, self._lane, self._rounds = str(begun["ticket"]), begun["lane"], begun["rounds"]
        except KeyError as error:
            raise ProtocolError(f"malformed answer to witness: {error!r}") from error
        if type(self._lane) is not int or not 0 <= self._lane < LANES or type(self._rounds) is not int:
            raise ProtocolError("malformed answer to witness")

    def run(self) -> str:
        """Do the rounds. Each one finds pages that the one before has cached."""
        try:
            self._witness.reserve(self._lane)
            for number in range(self._rounds):
                self._round(number)
        except (TransportUnavailableError, shmpool.ShmPoolError, OSError) as error:
            self._give_up(str(error))
            raise
        return self._ticket

    def _round(self, number: int) -> None:
        saw = self._witness.read(self._lane, "server")
        wrote = secrets.token_bytes(NONCE_NBYTES)
        self._witness.write(self._lane, "client", wrote)
        excluded = self._locks(number)
        answer = self._post(
            WITNESS, {"ticket": self._ticket, "saw": saw.hex(), "wrote": wrote.hex(), "excluded": excluded}
        )
        if answer.get("saw") != wrote.hex():
            raise TransportUnavailableError("the server does not see what this process writes to the pool file")

    def _locks(self, number: int) -> bool:
        """Ask for the server's lock, which it holds in the first round; hold ours in the same one."""
        if number == 0:
            excluded = not self._witness.lock(self._lane, "server")
            if not self._witness.lock(self._lane, "client"):
                raise TransportUnavailableError("somebody else holds the lock of this handshake")
            return excluded
        self._witness.unlock(self._lane, "client")
        excluded = not self._witness.lock(self._lane, "server")
        self._witness.unlock(self._lane, "server")
        return excluded

    def _give_up(self, reason: str) -> None:
        try:
            self._post(WITNESS, {"ticket": self._ticket, "failed": reason[:300]})
        except GSBError:
            return  # the server has noticed by itself, or will by the time
