# SPDX-License-Identifier: BSD-3-Clause
"""A server as a process of its own, with everything of its own in temporary places."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import gsb

__all__ = ["Server"]

START_SECONDS = 60
STOP_SECONDS = 15


class Server:
    """A server process. It ends with this process, whatever happens (``--parent-fd``)."""

    def __init__(
        self, *options: str, token: str | None = None, pool: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        # A short path: a Unix socket's name has room for 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="gsb-"))
        shared = Path("/dev/shm" if os.path.isdir("/dev/shm") else self.directory)
        self.pool = pool or shared / f"gsb-{secrets.token_hex(6)}"
        self.env = dict(env or {})
        self.token = token or secrets.token_hex(32)
        self.socket = self.directory / "server.sock"
        self.url = f"unix://{self.socket}"
        self.options = options
        self.start()

    def start(self) -> None:
        environment = {
            **os.environ,
            "GSB_RUNTIME_DIR": str(self.directory),
            "GSB_TOKEN": self.token,
            "PYTHONWARNINGS": "",
            **self.env,
        }
        ready, ready_end = os.pipe()
        parent_end, self._parent = os.pipe()
        command = [sys.executable, "-m", "gsb_server", "--socket", str(self.socket), "--pool", str(self.pool)]
        command += ["--slot-size", "4M", "--ready-fd", str(ready_end), "--parent-fd", str(parent_end)]
        self.log = (self.directory / "log").open("ab")
        try:
            self.process = subprocess.Popen(
                [*command, *self.options],
                env=environment,
                pass_fds=(ready_end, parent_end),
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
            )
        finally:
            os.close(ready_end)
            os.close(parent_end)
        try:
            readable, _, _ = select.select([ready], [], [], START_SECONDS)
            if not readable or not os.read(ready, 16):
                self.stop()
                raise RuntimeError(f"the server has not started:\n{(self.directory / 'log').read_text()}")
        finally:
            os.close(ready)

    def kill(self) -> None:
        """As kill -9."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)
        self._close_files()

    def stop(self) -> None:
        """End the process, if it still runs, and remove what it has left."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(STOP_SECONDS)
        self._close_files()
        for path in (self.pool, Path(f"{self.pool}.lock")):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _close_files(self) -> None:
        self.log.close()
        with contextlib.suppress(OSError):
            os.close(self._parent)
        self._parent = -1

    def config(self, **settings: object) -> contextlib.AbstractContextManager[object]:
        """Settings that make the client use this server."""
        return gsb.config(server=self.url, token=self.token, **settings)
