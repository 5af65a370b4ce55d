# SPDX-License-Identifier: BSD-3-Clause
"""The server's half of the coherence handshake (``docs/transports.md``)."""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from gsb.protocol.wire import WITNESS_ROUNDS

import shmpool
from shmpool.witness import LANES, NONCE_NBYTES, Witness

from ..errors import ServerError
from ..requests import field

__all__ = ["Coherence"]

log = logging.getLogger("gsb_server")

# A client that needs longer has been stopped or is gone: its lane goes to the next.
_SECONDS: Final = 5.0
# A proof is good for opening one session, soon.
_PROVED_SECONDS: Final = 30.0
_MAX_PROVED: Final = 1024


class _Trial:
    """One client on its lane."""

    def __init__(self, lane: int, deadline: float) -> None:
        self.lane = lane
        self.deadline = deadline
        self.round = 0
        self.wrote = secrets.token_bytes(NONCE_NBYTES)


class Coherence:
    """Who is just proving that it sees this server's memory, and who has.

    Notes
    -----
    Concurrency: any thread. Blocking: never; no system call but locks.
    Crash: lanes of clients that stop or die are used again after 5 s. What such a client writes later can only make the
    handshake of another one fail, never pass: nonces are not repeated.
    """

    def __init__(self, pool: shmpool.Pool, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._clock = clock
        self._witness: Witness | None = None
        self._trials: dict[str, _Trial] = {}
        self._proved: dict[str, float] = {}
        self._lock = threading.Lock()

    def handle(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer ``POST /v1/witness``."""
        with self._lock:
            self._expire()
            if "ticket" not in body:
                return self._begin(field(body, "pool", str))
            ticket = field(body, "ticket", str)
            trial = self._trials.get(ticket)
            if trial is None:
                raise ServerError("session_lost", "the handshake has ended, or took too long", "begin another")
            if "failed" in body:
                log.info("a client does not share the pool: %s", str(body["failed"])[:300])
                self._end(ticket)
                return {}
            return self._round(ticket, trial, body)

    def redeem(self, ticket: object) -> bool:
        """Take a proof, once."""
        with self._lock:
            self._expire()
            return isinstance(ticket, str) and self._proved.pop(ticket, None) is not None

    def close(self) -> None:
        """Unmap."""
        with self._lock:
            self._trials.clear()
            if self._witness is not None:
                self._witness.close()
                self._witness = None

    # ------------------------------------------------------------------ rounds

    def _begin(self, pool: str) -> dict[str, Any]:
        if pool != self._pool.uuid:
            raise ServerError("session_lost", "the pool was made anew", "ask /v1/hello again")
        if self._witness is None:
            self._witness = Witness(self._pool.path, self._pool.uuid)
        used = {trial.lane for trial in self._trials.values()}
        for lane in range(LANES):
            if lane in used or not self._is_quiet(lane):
                continue
            self._witness.reserve(lane)
            trial = _Trial(lane, self._clock() + _SECONDS)
            self._witness.lock(lane, "server")
            self._witness.write(lane, "server", trial.wrote)
            ticket = secrets.token_hex(16)
            self._trials[ticket] = trial
            return {"ticket": ticket, "lane": lane, "rounds": WITNESS_ROUNDS}
        raise ServerError("busy", f"{LANES} clients are just connecting", "try again in a moment")

    def _is_quiet(self, lane: int) -> bool:
        """Whether nobody is left on a lane: a client that was stopped in the middle still has its lock."""
        assert self._witness is not None
        if not self._witness.lock(lane, "client"):
            return False
        self._witness.unlock(lane, "client")
        return True

    def _round(self, ticket: str, trial: _Trial, body: dict[str, Any]) -> dict[str, Any]:
        witness = self._witness
        assert witness is not None
        first = trial.round == 0
        saw, wrote, excluded = field(body, "saw", str), field(body, "wrote", str), field(body, "excluded", bool)
        ours = witness.read(trial.lane, "client")
        if not hmac.compare_digest(saw.encode(), trial.wrote.hex().encode()):
            self._refuse(ticket, "the client does not see what the server writes to the pool file")
        if not hmac.compare_digest(wrote.encode(), ours.hex().encode()):
            self._refuse(ticket, "the server does not see what the client writes to the pool file")
        if excluded is not first:
            what = "the client is granted" if first else "the client is still refused"
            self._refuse(ticket, f"locks do not cross: {what} a lock that the server {'holds' if first else 'dropped'}")
        granted = witness.lock(trial.lane, "client")
        if granted:
            witness.unlock(trial.lane, "client")
        if granted is first:
            what = "is granted" if first else "is still refused"
            self._refuse(ticket, f"locks do not cross: the server {what} a lock that the client has")
        witness.unlock(trial.lane, "server")
        trial.round += 1
        if trial.round == WITNESS_ROUNDS:
            self._end(ticket)
            self._proved[ticket] = self._clock() + _PROVED_SECONDS
            while len(self._proved) > _MAX_PROVED:
                del self._proved[next(iter(self._proved))]
        else:
            trial.wrote = secrets.token_bytes(NONCE_NBYTES)
            witness.write(trial.lane, "server", trial.wrote)
        return {"saw": ours.hex()}

    def _refuse(self, ticket: str, reason: str) -> None:
        self._end(ticket)
        raise ServerError("incoherent", reason, "the bytes can be sent instead: the transport `stream`")

    def _end(self, ticket: str) -> None:
        trial = self._trials.pop(ticket, None)
        if trial is not None and self._witness is not None:
            self._witness.unlock(trial.lane, "server")

    def _expire(self) -> None:
        now = self._clock()
        for ticket in [ticket for ticket, trial in self._trials.items() if trial.deadline < now]:
            self._end(ticket)
        for ticket in [ticket for ticket, deadline in self._proved.items() if deadline < now]:
            del self._proved[ticket]
