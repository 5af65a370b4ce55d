# SPDX-License-Identifier: BSD-3-Clause
"""The other process of a benchmark: answers requests over a Pipe until it is told to stop."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

Answer = Callable[[bytes], bytes]
Factory = Callable[..., AbstractContextManager[Answer]]

# Spawned, not forked: what the parent has mapped must not be warm in the child by accident.
CONTEXT = multiprocessing.get_context("spawn")

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 10.0


def _serve(conn: Connection, factory: Factory, args: tuple[Any, ...]) -> None:
    with factory(*args) as answer:
        conn.send_bytes(b"ready")
        while True:
            try:
                request = conn.recv_bytes()
            except EOFError:  # the parent is gone
                return
            if not request:
                return
            conn.send_bytes(answer(request))


class Child:
    """A process in which ``factory(*args)`` makes the function that answers each request.

    The request loop waits without limit, because polling would cost more than the shortest hops measured with it;
    pytest-timeout is the deadline, and a child that dies ends the wait.
    """

    def __init__(self, factory: Factory, *args: Any) -> None:
        self.conn, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_serve, args=(theirs, factory, args), daemon=True)
        self.process.start()
        theirs.close()
        if not self.conn.poll(_START_TIMEOUT) or self.conn.recv_bytes() != b"ready":
            self.kill()
            raise RuntimeError(f"{factory} did not start")

    @property
    def pid(self) -> int:
        """The process id."""
        assert self.process.pid is not None
        return self.process.pid

    def ask(self, request: bytes) -> bytes:
        """Send one request, wait for its answer."""
        self.conn.send_bytes(request)
        return self.conn.recv_bytes()

    def tell(self, request: bytes) -> None:
        """Send one request; the caller takes the answer with `answer`."""
        self.conn.send_bytes(request)

    def answer(self) -> bytes:
        """The answer to the last `tell`."""
        return self.conn.recv_bytes()

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self.process.kill()
        self._reap()

    def close(self) -> None:
        """End the process; kill it when it does not listen."""
        if self.process.is_alive():
            try:
                self.conn.send_bytes(b"")
            except OSError:  # died meanwhile
                pass
            else:
                self.process.join(_STOP_TIMEOUT)
        self.process.kill()
        self._reap()

    def _reap(self) -> None:
        self.process.join(_STOP_TIMEOUT)
        self.process.close()
        self.conn.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
