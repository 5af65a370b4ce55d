# SPDX-License-Identifier: BSD-3-Clause
"""``--start-server``: a server for the length of the program, unless one answers."""

from __future__ import annotations

import atexit
import contextlib
import os

import gsb
from gsb._client import Client, disconnect
from gsb.cli.private_server import PrivateServer
from gsb.errors import ConnectError

__all__ = ["ensure"]


def ensure(url: str | None, backend: str | None) -> dict[str, str]:
    """Start a server if none answers.

    Parameters
    ----------
    url : str or None
        The server that is preferred; the one of the settings if None.
    backend : str or None
        For the server that is started.

    Returns
    -------
    dict
        Settings for `gsb.config`; empty if a server answers.

    Raises
    ------
    ServerStartError
        It did not come up.
    """
    with gsb.config(**({"server": url} if url is not None else {})), contextlib.suppress(ConnectError):
        from gsb._client import get_client

        client: Client = get_client()
        client.status()
        return {}
    server = PrivateServer(*(["--backend", backend] if backend is not None else []))
    owner = os.getpid()

    def stop() -> None:
        # Not in children that were forked with this handler.
        if os.getpid() == owner:
            disconnect()
            server.stop()

    atexit.register(stop)
    return {"server": server.url, "token": server.token}
