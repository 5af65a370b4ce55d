# SPDX-License-Identifier: BSD-3-Clause
"""Where client and server of one user find each other: directory, socket, token.

Shared by the client, the command line and the server. Standard library only.
"""

from __future__ import annotations

import os
import secrets
import socket
import stat
import tempfile
from pathlib import Path

from gsb import wsl
from gsb.errors import AuthenticationError, GSBError

TOKEN_NBYTES = 32

#: Where the server listens on systems whose Python has no Unix sockets.
DEFAULT_PORT = 8765


class RuntimeDirectoryError(GSBError, PermissionError):
    """The runtime directory or the token in it may be read or replaced by somebody else."""

    hint = "remove it, or name a private directory with GSB_RUNTIME_DIR"


def runtime_dir(*, create: bool = False) -> Path:
    """Give the per-user directory of token and socket, mode 0700.

    ``$GSB_RUNTIME_DIR``, else ``$XDG_RUNTIME_DIR/gsb``, else ``gsb-<uid>`` in the directory for temporary
    files.

    Raises
    ------
    RuntimeDirectoryError
        It exists but is not ours, is a link, or is open to others.
    """
    named = os.environ.get("GSB_RUNTIME_DIR")
    session = os.environ.get("XDG_RUNTIME_DIR")
    if named:
        path = Path(named)
    elif session:
        path = Path(session) / "gsb"
    else:
        path = Path(tempfile.gettempdir()) / f"gsb-{_uid()}"
    if create:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() or path.is_symlink():
        _check_private(path, stat.S_ISDIR)
    return path


def socket_path() -> Path:
    """Give the path of the server's Unix socket."""
    return runtime_dir() / "server.sock"


def default_url() -> str:
    """Give the address at which clients look for a server: the socket, or a port where Python has no Unix sockets."""
    if hasattr(socket, "AF_UNIX"):
        return f"unix://{socket_path()}"
    return f"http://127.0.0.1:{DEFAULT_PORT}"


def token_path() -> Path:
    """Give the path of the token file: ``$GSB_TOKEN_FILE``, else ``token`` in the runtime directory."""
    named = os.environ.get("GSB_TOKEN_FILE")
    return Path(named) if named else runtime_dir() / "token"


def load_token() -> str | None:
    """Read the token: ``$GSB_TOKEN``, else the token file; on Windows else that of a server in WSL2. None without.

    Raises
    ------
    RuntimeDirectoryError
        The file is not ours or is open to others.
    AuthenticationError
        The file is empty.
    """
    found = _find_token()
    return None if found is None else found[0]


def token_source() -> str | None:
    """Say where `load_token` finds it: the variable's name or a path; None if it does not."""
    found = _find_token()
    return None if found is None else found[1]


def _find_token() -> tuple[str, str] | None:
    given = os.environ.get("GSB_TOKEN")
    if given:
        return given, "GSB_TOKEN"
    path = token_path()
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return wsl.find_token() if os.name == "nt" else None
    with os.fdopen(descriptor, encoding="ascii") as file:
        _check_private_stat(path, os.fstat(file.fileno()), stat.S_ISREG)
        token = file.read(1024).strip()
    if not token:
        raise AuthenticationError(f"the token file {path} is empty", hint="remove it and restart the server")
    return token, str(path)


def ensure_token() -> str:
    """Read the token, or make one (mode 0600) if there is none. For the server."""
    token = load_token()
    if token is not None:
        return token
    path = token_path()
    if not os.environ.get("GSB_TOKEN_FILE"):
        runtime_dir(create=True)
    token = secrets.token_hex(TOKEN_NBYTES)
    # Written aside and linked, so that nobody reads half a token and the first of two servers wins.
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token + "\n")
        try:
            os.link(draft, path)
        except FileExistsError:
            return load_token() or ensure_token()
    finally:
        draft.unlink(missing_ok=True)
    return token


def _uid() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _check_private(path: Path, is_kind: object) -> None:
    _check_private_stat(path, path.lstat(), is_kind)


def _check_private_stat(path: Path, found: os.stat_result, is_kind: object) -> None:
    if os.name != "posix":
        return
    if not is_kind(found.st_mode):  # type: ignore[operator]
        raise RuntimeDirectoryError(f"{path} is of the wrong kind")
    if found.st_uid != _uid():
        raise RuntimeDirectoryError(f"{path} belongs to user {found.st_uid}")
    if found.st_mode & 0o077:
        raise RuntimeDirectoryError(f"{path} is open to others (mode {stat.S_IMODE(found.st_mode):o})")
