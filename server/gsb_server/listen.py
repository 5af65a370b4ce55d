# SPDX-License-Identifier: BSD-3-Clause
"""Listening sockets, uvicorn, and the tie to the process that started the server.

The server may be a child of ``gsb serve``, ``gsb demo`` or a test. Two pipes connect them: on one the
server says that it accepts connections, on the other it learns, by end of file, that its parent is gone,
however the parent died.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from gsb import runtime

import shmpool
from shmpool.mounts import refuse_incoherent

from .settings import Settings
from .transports.plane import DataListeners

__all__ = ["ListenError", "serve"]

log = logging.getLogger("gsb_server")

# The data plane's Unix socket is called like the control socket, with this behind it.
_DATA_SUFFIX = ".data"


class ListenError(RuntimeError):
    """The server cannot listen where it was told to."""


def _unix_socket(path: Path) -> socket.socket:
    """Bind a Unix socket of mode 0600, replacing one that nobody listens on."""
    if len(os.fsencode(path)) > 107:
        raise ListenError(f"the path of the socket is longer than 107 bytes: {path}; choose a shorter one")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISSOCK(mode):
            raise ListenError(f"{path} exists and is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2.0)
            try:
                probe.connect(os.fspath(path))
            except (ConnectionRefusedError, FileNotFoundError):
                path.unlink(missing_ok=True)
            except OSError as error:
                raise ListenError(f"{path} is in the way: {error}") from None
            else:
                raise ListenError(f"a server is listening on {path} already; `gsb status` shows it")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode of a socket file is the umask's; between bind and chmod it would be open.
    previous = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
    except OSError as error:
        listener.close()
        raise ListenError(f"cannot bind {path}: {error}") from None
    finally:
        os.umask(previous)
    listener.listen(128)
    return listener


def _tcp_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ListenError(f"cannot listen on {host}:{port}: {error}") from None
    listener.listen(128)
    return listener


class _Server(uvicorn.Server):
    """uvicorn, saying when it is ready."""

    ready_fd: int | None = None
    #: Called before it waits for the requests that are under way.
    on_shutdown: Callable[[], None] = staticmethod(lambda: None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.on_shutdown()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Shut down at SIGINT and SIGTERM, and stop there.

        uvicorn's own raises the signal again afterwards, which would end the process before the socket file
        is removed.
        """
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self.ready_fd is not None:
            os.write(self.ready_fd, b"ready\n")
            os.close(self.ready_fd)
            self.ready_fd = None


def _watch_parent(parent_fd: int, grace: float) -> None:
    """End the process when the other end of the pipe is closed."""
    try:
        while os.read(parent_fd, 1):
            pass
    except OSError:
        pass
    log.warning("the process that started the server is gone: shutting down")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace + 3.0)
    os._exit(1)


def serve(settings: Settings, ready_fd: int | None = None, parent_fd: int | None = None) -> int:
    """Listen and serve until a signal.

    Parameters
    ----------
    settings : Settings
    ready_fd : int, optional
        Written to, then closed, once connections are accepted.
    parent_fd : int, optional
        Read end of a pipe; its end of file stops the server.

    Notes
    -----
    Blocking: until SIGINT or SIGTERM. Crash: a killed server leaves its socket file, which the next one
    replaces, and no slots: the pool takes them back.
    """
    # Imported late: scikit-learn takes a second, and a wrong address should not.
    paths: list[tuple[Path, int]] = []
    sockets: list[socket.socket] = []
    data = None
    from .app import create_app, default_socket

    socket_path = settings.socket
    if socket_path is None and not settings.port:
        if hasattr(socket, "AF_UNIX"):
            socket_path = default_socket()
        else:
            settings = settings.with_(port=runtime.DEFAULT_PORT)
    try:
        pool = settings.pool_path or shmpool.default_path(create=False)
        refuse_incoherent(pool)
    except shmpool.UnsupportedFilesystemError as error:
        raise ListenError(f"the pool cannot be used: {error}") from None
    try:
        if socket_path is not None:
            sockets.append(_unix_socket(socket_path))
            paths.append((socket_path, socket_path.stat().st_ino))
        if settings.port:
            sockets.append(_tcp_socket(settings.host, settings.port))
        data = _data_listeners(settings, socket_path)
        if parent_fd is not None:
            threading.Thread(
                target=_watch_parent,
                args=(parent_fd, settings.shutdown_timeout),
                name="gsb-parent",
                daemon=True,
            ).start()
        app = create_app(settings.with_(socket=socket_path), data)
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            # Clients keep one connection per thread; a connection closed under them costs them a call.
            timeout_keep_alive=24 * 3600,
            timeout_graceful_shutdown=max(1, int(settings.shutdown_timeout)),
        )
        server = _Server(config)
        server.ready_fd = ready_fd
        server.on_shutdown = app.state.service.leave
        for listener in sockets:
            log.info("listening on %s", _address(listener))
        server.run(sockets=sockets)
    finally:
        for listener in sockets:
            listener.close()
        if data is not None:
            data.close()
        for path, inode in paths:
            try:
                if path.lstat().st_ino == inode:
                    path.unlink()
            except OSError:
                pass
    sys.stderr.flush()
    return 0 if server.started else 1


def _data_listeners(settings: Settings, socket_path: Path | None) -> DataListeners:
    """Listen for arrays beside each address at which messages are listened for."""
    found: list[socket.socket] = []
    unix = None
    try:
        if socket_path is not None:
            unix = socket_path.with_name(socket_path.name + _DATA_SUFFIX)
            found.append(_unix_socket(unix))
        if settings.port:
            found.append(_tcp_socket(settings.host, settings.data_port))
    except BaseException:
        DataListeners(found, unix if found else None).close()
        raise
    return DataListeners(found, unix)


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return str(name) if isinstance(name, str) else f"http://{name[0]}:{name[1]}"
