# SPDX-License-Identifier: BSD-3-Clause
"""The server as a child process: started, waited for, ended, and never left behind.

Two pipes connect parent and child. On one the child says that it accepts connections. The other is never
written to: when the parent is gone, however it died, the child reads end of file and shuts down.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any

from gsb.errors import GSBError

__all__ = ["ServerProcess", "ServerStartError"]


class ServerStartError(GSBError, RuntimeError):
    """The server did not come up."""

    hint = "its own words are above; `gsb doctor` looks for causes"


class ServerProcess:
    """A server that lives no longer than this object's ``with`` block, nor than this process.

    Parameters
    ----------
    arguments : sequence of str
        For ``python -m gsb_server``.
    environment : dict, optional
        Variables set in addition to our own.
    output : file, optional
        Where its log goes; our standard error otherwise.
    start_timeout, stop_timeout : float
        Seconds to come up, and to end after it was asked to; then it is killed.

    Notes
    -----
    Blocking: entering waits for readiness. Crash: the child ends when this process does.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        output: IO[Any] | None = None,
        start_timeout: float = 60.0,
        stop_timeout: float = 15.0,
    ) -> None:
        self.arguments = list(arguments)
        self.environment = environment or {}
        self.output = output
        self.start_timeout = start_timeout
        self.stop_timeout = stop_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None

    @property
    def pid(self) -> int:
        """The process id of the server."""
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process.pid

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it accepts connections.

        Raises
        ------
        ServerStartError
            It is not installed, ended at once, or took longer than allowed.
        """
        if importlib.util.find_spec("gsb_server") is None:
            raise ServerStartError(
                "the server is not installed in this environment",
                hint="pip install 'shmpool[server]', or run `gsb serve` where it is installed",
            )
        ready, ready_child = os.pipe()
        parent_child, self._lifeline = os.pipe()
        command = [sys.executable, "-m", "gsb_server", *self.arguments]
        command += ["--ready-fd", str(ready_child), "--parent-fd", str(parent_child)]
        try:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **self.environment},
                pass_fds=(ready_child, parent_child),
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=self.output,
                # Ctrl-C goes to us alone, and we end it in order.
                process_group=0,
            )
        except BaseException:
            os.close(ready)
            os.close(self._lifeline)
            self._lifeline = None
            raise
        finally:
            os.close(ready_child)
            os.close(parent_child)
        try:
            self._await_ready(ready)
        except BaseException:
            self.stop()
            raise
        finally:
            os.close(ready)

    def _await_ready(self, ready: int) -> None:
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            if select.select([ready], [], [], 0.1)[0]:
                if os.read(ready, 16):
                    return
                break  # end of file: it has ended
        else:
            raise ServerStartError(f"the server was not ready within {self.start_timeout:.0f} s")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(5.0)
        raise ServerStartError(f"the server ended at once (exit status {self.poll()})")

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the server to end by itself."""
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process.wait(timeout)

    def stop(self) -> None:
        """Ask the server to end; kill it if it does not. Twice is harmless."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(self.stop_timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10.0)
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
