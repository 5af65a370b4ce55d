# SPDX-License-Identifier: BSD-3-Clause
"""A server of one program: with a directory, a token and a pool of its own, gone when the program is."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any

import shmpool
from gsb.cli.server_process import ServerProcess

__all__ = ["PrivateServer"]


class PrivateServer:
    """A running server that nobody else finds.

    Parameters
    ----------
    *options : str
        For ``python -m gsb_server``, besides the socket and the pool.
    output : file, optional
        Where its log goes; our standard error otherwise.

    Attributes
    ----------
    url, token : str
        How to reach it: ``gsb.config(server=url, token=token)``.

    Raises
    ------
    ServerStartError
        It did not come up.

    Notes
    -----
    Blocking: until it is ready. Crash: the server ends with this process, however it dies; its directory and pool
    then stay behind, and `python -m shmpool gc --remove` removes the pool.
    """

    def __init__(self, *options: str, output: IO[Any] | None = None) -> None:
        # Beside the pool: tmpfs, and a short path, since the name of a Unix socket has room for 107 bytes.
        parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(shmpool.default_path().parent.parent)
        self._folder = Path(tempfile.mkdtemp(prefix="gsb-private-", dir=parent))
        self.token = secrets.token_hex(32)
        socket = self._folder / "server.sock"
        self.url = f"unix://{socket}"
        # The user's own server and settings are left alone.
        environment = {
            "GSB_RUNTIME_DIR": str(self._folder),
            "GSB_TOKEN": self.token,
            "GSB_SOCKET": "",
            "GSB_PORT": "0",
            "GSB_POOL_PATH": "",
        }
        arguments = ["--socket", str(socket), "--pool", str(self._folder / "pool.bin"), "--log-level", "warning"]
        self.process = ServerProcess([*arguments, *options], environment, output=output)
        try:
            self.process.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it and remove what it had; twice is harmless."""
        self.process.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
