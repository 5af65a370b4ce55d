# SPDX-License-Identifier: BSD-3-Clause
"""A server process whose drive the client sees under another name, as WSL2 shows a Windows drive."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import gsb._client
from gsb._client import Client
from gsb._http import Connection
from gsb.cli.server_process import ServerProcess
from helpers.mounts import Rig

__all__ = ["FarServer", "pool_seen_through"]

DEADLINE = 60.0


class FarServer:
    """A server with a mailbox in a folder.

    Parameters
    ----------
    folder : Path
        ``GSB_FILE_DIR`` of the server.
    pool_path : Path
        Its pool.
    environment : str
        Further ``GSB_*`` variables.
    """

    def __init__(self, folder: Path, pool_path: Path, **environment: str) -> None:
        # Not below a test's folder: the name of a socket has room for 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="gsb-far-"))
        self.token = secrets.token_hex(16)
        self.url = f"unix://{self.folder / 's.sock'}"
        self._log = (self.folder / "log").open("wb")
        variables = {
            "GSB_RUNTIME_DIR": str(self.folder),
            "GSB_TOKEN": self.token,
            "GSB_FILE_DIR": str(folder),
            "GSB_WATCH_INTERVAL": "0.05",
            "GSB_DATA_GRACE": "0.2",
            **environment,
        }
        arguments = ["--socket", str(self.folder / "s.sock"), "--pool", str(pool_path), "--slot-size", "8M"]
        self._process = ServerProcess([*arguments, "--workers", "2"], variables, output=self._log)
        self._clients: list[Client] = []
        try:
            self._process.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def client(self, transport: str | None) -> Client:
        """A client, to be connected with ``gsb.config(file_dir=...)`` in force."""
        self._clients.append(Client(self.url, self.token, transport))
        return self._clients[-1]

    def disconnect(self) -> None:
        """Close all clients."""
        while self._clients:
            self._clients.pop().close()

    def status(self) -> dict[str, Any]:
        """What the server says of itself."""
        client = Client(self.url, self.token)
        try:
            return client.status()
        finally:
            client.close()

    def kill(self) -> None:
        """As kill -9."""
        assert self._process._process is not None
        self._process._process.kill()
        self._process.wait(DEADLINE)

    def log_text(self) -> str:
        """What the server has logged."""
        return (self.folder / "log").read_text(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()
        self._process.stop()
        self._log.close()
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def pool_seen_through(rig: Rig, *, reverse: bool = False) -> Iterator[None]:
    """Have the clients of this process find the server's pool on the mount instead of below it (`reverse`: below it).

    That is what they would do in another kernel, where the server's own name for it leads through the mount.
    """
    theirs, ours = (rig.over, rig.under) if reverse else (rig.under, rig.over)
    introduce = gsb._client.introduce

    def renamed(connection: Connection, token: str, timeout: float) -> None:
        introduce(connection, token, timeout)
        shared = connection.offers["shared"]
        path = Path(shared["path"])
        shared["path"] = str(ours / path.relative_to(theirs))

    gsb._client.introduce = renamed
    try:
        yield
    finally:
        gsb._client.introduce = introduce
