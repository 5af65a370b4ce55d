# SPDX-License-Identifier: BSD-3-Clause
"""Sessions: one per client process, bound to the link by which its arrays travel.

Whether a client lives is its link's word, and that is the kernel's (a lock or a socket that it drops at the death
of the process), not a heartbeat: a client in a long computation or under a debugger is not taken for dead, and one
that was killed is noticed at the next look.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import ServerError

if TYPE_CHECKING:
    from .transports.base import Link

__all__ = ["CallState", "Session", "SessionStore"]


# Ids of calls are remembered to refuse a second one; a client that repeats a call does so at once.
_REMEMBERED_CALLS = 1024


@dataclass(slots=True)
class CallState:
    """Where a call is, for progress bars."""

    started: float
    stage: str = "queue"
    ended: float | None = None


@dataclass(slots=True)
class Session:
    """One client."""

    id: str
    link: Link
    label: str
    opened: float
    used: float
    running: int = 0
    calls: OrderedDict[str, CallState] = field(default_factory=OrderedDict)

    def begin(self, call_id: str) -> CallState:
        """Note a call; a second one of the same id is refused."""
        state = CallState(time.monotonic())
        if self.calls.setdefault(call_id, state) is not state:
            raise ServerError(
                "duplicate_call",
                f"call {call_id[:64]!r} was received before",
                "choose a new id for each call",
            )
        while len(self.calls) > _REMEMBERED_CALLS:
            self.calls.popitem(last=False)
        return state


class SessionStore:
    """Sessions by id.

    Notes
    -----
    Concurrency: any thread.
    """

    def __init__(self, max_sessions: int, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_sessions = max_sessions
        self.ttl = ttl
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    def open(self, link: Link, label: str = "") -> Session:
        """Make a session for a client with its link."""
        now = self._clock()
        session = Session(id=link.id, link=link, label=label, opened=now, used=now)
        with self._lock:
            if len(self._sessions) >= self.max_sessions:
                raise ServerError(
                    "busy",
                    f"{self.max_sessions} sessions are open",
                    "Close some clients, or raise GSB_MAX_SESSIONS.",
                )
            self._sessions[session.id] = session
        return session

    def get(self, session_id: object) -> Session:
        """Return a session and mark it as used."""
        session = self._sessions.get(session_id) if isinstance(session_id, str) else None
        if session is None:
            raise ServerError(
                "session_lost",
                "no such session",
                "The server was started anew or the session expired; open another.",
            )
        session.used = self._clock()
        return session

    def all(self) -> list[Session]:
        """Return a snapshot."""
        with self._lock:
            return list(self._sessions.values())

    def close(self, session_id: str) -> Session | None:
        """Forget a session."""
        with self._lock:
            return self._sessions.pop(session_id, None)

    def lost(self) -> list[Session]:
        """Return sessions whose client is dead or that were not used for the time to live."""
        deadline = self._clock() - self.ttl
        return [
            session
            for session in self.all()
            if not session.link.is_alive() or (session.used < deadline and not session.running)
        ]
