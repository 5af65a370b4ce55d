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
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Any, Self

__all__ = ["DEADLINE", "KILLED", "Child", "ChildFailedError", "Children", "all_started", "eventually"]

WINDOWS = sys.platform == "win32"
# The return code of a child that was killed.
KILLED = 1 if WINDOWS else -9

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


class _Stream:
    """What comes out of a pipe. A thread reads: pipes of Windows cannot be waited for otherwise."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.text = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._pipe.fileno(), 65536)
            except (OSError, ValueError):
                piece = b""
            self._pieces.put(piece)
            if not piece:
                return

    def more(self, timeout: float) -> bool:
        """Wait for more text; False at the end. Raises queue.Empty when nothing comes in time."""
        piece = self._pieces.get(timeout=max(0.0, timeout))
        self.text += piece
        return bool(piece)

    def close(self) -> None:
        """After the end of the child."""
        self._thread.join(5)
        self._pipe.close()


class Child:
    """One running child. Made by :class:`Children`."""

    def __init__(
        self, text: str, args: tuple[object, ...], env: Mapping[str, str], prefix: tuple[str, ...], prelude: bool
    ) -> None:
        self._popen = subprocess.Popen(
            [*prefix, sys.executable, "-c", (_PRELUDE if prelude else "") + text, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **env},
            bufsize=0,
            start_new_session=True,
        )
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self._output, self._errors = _Stream(self._popen.stdout), _Stream(self._popen.stderr)
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
        with contextlib.suppress(queue.Empty):
            while self._errors.more(0.1 if self.is_running else 1.0):
                pass
        return self._errors.text.decode(errors="replace")

    def said(self) -> bytes:
        """What it has written to stdout so far, where nobody hears it line by line."""
        with contextlib.suppress(queue.Empty):
            while self._output.more(0.0):
                pass
        return self._output.text

    def say(self, value: object) -> None:
        """Send one value to the child's ``hear()``."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(value).encode() + b"\n")

    def hear(self, timeout: float = DEADLINE) -> Any:
        """The next value the child says."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._output.text:
            try:
                if not self._output.more(deadline - time.monotonic()):
                    raise ChildFailedError(f"{self} ended with {self.wait(5)} unheard.\n{self.stderr()}")
            except queue.Empty:
                raise ChildFailedError(f"{self} said nothing for {timeout:g} s.\n{self.stderr()}") from None
        line, _, self._output.text = self._output.text.partition(b"\n")
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
        """SIGSTOP (on Windows its like), and wait until it stands."""
        if WINDOWS:
            self._nt("NtSuspendProcess")
            return
        self.signal(signal.SIGSTOP)
        self.wait_stopped()

    def _nt(self, function: str) -> None:
        import ctypes

        status = getattr(ctypes.WinDLL("ntdll"), function)(ctypes.c_void_p(int(self._popen._handle)))
        assert status == 0, f"{function}: {status & 0xFFFFFFFF:#x}"

    def wait_stopped(self, timeout: float = DEADLINE) -> None:
        """Wait until it is stopped, by whomever."""
        eventually(lambda: self.state() in "TtZX", f"{self} stops", timeout)
        if self.state() not in "Tt":
            raise ChildFailedError(f"{self} ended with {self.wait(5)} instead of being stopped.\n{self.stderr()}")

    def resume(self) -> None:
        """SIGCONT."""
        if WINDOWS:
            self._nt("NtResumeProcess")
            return
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
        if not WINDOWS:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        if self._popen.returncode is None:
            self._popen.kill()
            self._popen.wait(DEADLINE)
        if self._popen.stdin is not None:
            with contextlib.suppress(OSError):
                self._popen.stdin.close()
        self._output.close()
        self._errors.close()


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
