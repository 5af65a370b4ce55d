# SPDX-License-Identifier: BSD-3-Clause
"""Child processes that step in turn with a test, and cannot outlive it.

A child runs a piece of Python text. It talks with the test in lines of JSON: ``say(value)`` and ``hear()`` exist on
both sides, ``sys.argv[1:]`` are the arguments. Every wait has a deadline. ::

    child = children.start("pool = shmpool.Pool.attach(args[0]); say(pool.client.index); hear()", pool.path)
    index = child.hear()
    child.kill()

The text runs as ``__main__`` with ``np``, ``os``, ``shmpool``, ``sys``, ``time`` imported. Each child leads its own
process group, so that what it forks is ended with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

__all__ = ["DEADLINE", "Child", "ChildFailedError", "Children", "all_started", "eventually"]

# Generous: a loaded machine is slow, and a deadline is only there to turn a hang into a failure.
DEADLINE = 60.0

_PRELUDE = """\
import json as _json, os, sys, time
def say(value):
    os.write(1, _json.dumps(value).encode() + b"\\n")
def hear():
    line = sys.stdin.readline()
    if not line:
        os._exit(3)  # the test is gone
    return _json.loads(line)
args = sys.argv[1:]
import numpy as np, shmpool
"""

_started: weakref.WeakSet[Child] = weakref.WeakSet()


def all_started() -> list[Child]:
    """Every child of this session that is still referenced; unreferenced ones were reaped."""
    return list(_started)


class ChildFailedError(AssertionError):
    """A child ended, kept silent or said something else than expected."""


def eventually(condition: Callable[[], bool], what: str, timeout: float = DEADLINE) -> None:
    """Wait until `condition` holds; for what another process does in its own time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(0.002)


class Child:
    """One running child. Made by :class:`Children`."""

    def __init__(
        self, text: str, args: tuple[object, ...], env: Mapping[str, str], prefix: tuple[str, ...], prelude: bool
    ) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed with the child
        self._buffer = b""
        self._popen = subprocess.Popen(
            [*prefix, sys.executable, "-c", (_PRELUDE if prelude else "") + text, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **env},
            bufsize=0,
            start_new_session=True,
        )
        _started.add(self)

    def __repr__(self) -> str:
        return f"<Child {self.pid} {'running' if self.is_running else self._popen.returncode}>"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not been reaped yet."""
        return self._popen.poll() is None

    def stderr(self) -> str:
        """What it has written to stderr so far."""
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), min(size, 1 << 20), 0).decode(errors="replace")

    def say(self, value: object) -> None:
        """Send one value to the child's ``hear()``."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(value).encode() + b"\n")

    def hear(self, timeout: float = DEADLINE) -> Any:
        """The next value the child says."""
        assert self._popen.stdout is not None
        fd = self._popen.stdout.fileno()
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise ChildFailedError(f"{self} said nothing for {timeout:g} s.\n{self.stderr()}")
            piece = os.read(fd, 65536)
            if not piece:
                raise ChildFailedError(f"{self} ended with {self.wait(5)} unheard.\n{self.stderr()}")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def ask(self, value: object, timeout: float = DEADLINE) -> Any:
        """`say` and `hear`."""
        self.say(value)
        return self.hear(timeout)

    def wait(self, timeout: float = DEADLINE) -> int:
        """Its return code (negative: the signal that ended it)."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ChildFailedError(f"{self} did not end in {timeout:g} s.\n{self.stderr()}") from None

    def finish(self, timeout: float = DEADLINE) -> None:
        """Wait for a clean end."""
        code = self.wait(timeout)
        if code != 0:
            raise ChildFailedError(f"{self} ended with {code}.\n{self.stderr()}")

    def signal(self, number: int) -> None:
        """Send a signal to the child alone."""
        self._popen.send_signal(number)

    def stop(self) -> None:
        """SIGSTOP, and wait until it stands."""
        self.signal(signal.SIGSTOP)
        self.wait_stopped()

    def wait_stopped(self, timeout: float = DEADLINE) -> None:
        """Wait until it is stopped, by whomever."""
        eventually(lambda: self.state() in "TtZX", f"{self} stops", timeout)
        if self.state() not in "Tt":
            raise ChildFailedError(f"{self} ended with {self.wait(5)} instead of being stopped.\n{self.stderr()}")

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def state(self) -> str:
        """The kernel's one-letter state; X when it is gone."""
        try:
            with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as stat:
                return stat.read().rpartition(")")[2].split()[0]
        except OSError:
            return "X"

    def kill(self) -> int:
        """SIGKILL and reap; its return code."""
        self._popen.kill()
        return self.wait(DEADLINE)

    def end(self) -> None:
        """Kill it and all of its process group, reap it, close the pipes. Twice is harmless."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._popen.returncode is None:
            self._popen.kill()
            self._popen.wait(DEADLINE)
        for pipe in (self._popen.stdin, self._popen.stdout, self._errors):
            if pipe is not None:
                pipe.close()


class Children:
    """Starts children; at the end kills and reaps every one of them and counts that all are gone."""

    def __init__(self) -> None:
        self.started: list[Child] = []

    def start(
        self,
        text: str,
        *args: object,
        env: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        prelude: bool = True,
    ) -> Child:
        """Start a child that runs `text`.

        Parameters
        ----------
        text : str
            Python text, see the module's docstring.
        *args
            Its ``args``, as strings.
        env : mapping, optional
            Added to the environment.
        prefix : tuple of str
            A command that runs the interpreter, such as ``("unshare", "-p", "-f")``.
        prelude : bool
            False: the text gets no names for nothing.
        """
        child = Child(text, args, env or {}, prefix, prelude)
        self.started.append(child)
        return child

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for child in self.started:
            child.end()
        left = [child for child in self.started if child.is_running]
        assert not left, f"children survived SIGKILL: {left}"
