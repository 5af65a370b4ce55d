# SPDX-License-Identifier: BSD-3-Clause
"""Settings of the client: ``gsb.config(...)``."""

from __future__ import annotations

import dataclasses
import os
from types import TracebackType
from typing import Literal

from gsb.errors import GSBError


class ConfigError(GSBError, ValueError):
    """A setting has a value that makes no sense."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings; see `config`."""

    server: str | None = None
    token: str | None = None
    fallback: Literal["error", "local", "quiet"] = "error"
    timeout: float | None = None
    connect_timeout: float = 5.0
    zero_copy: bool = False
    keep_state: bool = False
    local_nbytes: int = 0
    npy_dir: str | None = None
    transport: Literal["shared", "stream", "file"] | None = None
    file_dir: str | None = None

    def __post_init__(self) -> None:
        if self.fallback not in ("error", "local", "quiet"):
            raise ConfigError(f"fallback={self.fallback!r}", hint="it is 'error', 'local' or 'quiet'")
        if self.transport not in (None, "shared", "stream", "file"):
            raise ConfigError(
                f"transport={self.transport!r}", hint="it is 'shared', 'stream' or 'file', or None to choose"
            )
        for name in ("timeout", "connect_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value!r}", hint="it is a positive number of seconds")
        if type(self.local_nbytes) is not int or self.local_nbytes < 0:
            raise ConfigError(f"local_nbytes={self.local_nbytes!r}", hint="it is a number of bytes, 0 or more")


class _Restore:
    """What `config` returns: leaving a ``with`` block puts the former settings back."""

    def __init__(self, former: Config) -> None:
        self._former = former

    def __enter__(self) -> Config:
        return _current

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _current
        _current = self._former


def _from_environment() -> Config:
    fallback = os.environ.get("GSB_FALLBACK", "error")
    return Config(
        server=os.environ.get("GSB_SERVER") or None,
        fallback=fallback,  # type: ignore[arg-type]  # checked in __post_init__
        local_nbytes=_bytes_from_environment("GSB_LOCAL_NBYTES"),
        npy_dir=os.environ.get("GSB_NPY_DIR") or None,
        transport=os.environ.get("GSB_TRANSPORT") or None,  # type: ignore[arg-type]  # checked in __post_init__
        file_dir=os.environ.get("GSB_FILE_DIR") or None,
    )


def _bytes_from_environment(name: str) -> int:
    text = os.environ.get(name) or "0"
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r}", hint="it is a number of bytes")
    return int(text)


_current = _from_environment()


def get_config() -> Config:
    """Give the settings in force."""
    return _current


def config(**settings: object) -> _Restore:
    """Change settings for the whole process, or for a ``with`` block.

    Parameters
    ----------
    server : str, optional
        ``unix:///path/to.sock`` or ``http://127.0.0.1:8765``. Default: ``$GSB_SERVER``, else the socket in
        the runtime directory (on Windows: port 8765).
    token : str, optional
        Default: ``$GSB_TOKEN``, else the token file.
    fallback : {"error", "local", "quiet"}
        What to do when no server answers: raise; run scikit-learn in this process with a `FallbackWarning`; or
        do so with one warning for all, and ask again only after some seconds. Default: ``$GSB_FALLBACK``, else
        ``"error"``.
    timeout : float or None
        Seconds that one call may take; None (default) waits as long as the server lives.
    connect_timeout : float
        Seconds for connecting and opening a session. Default 5.
    zero_copy : bool
        Return large results as read-only views of the pool instead of private copies. The slot stays
        taken until the last view is gone. Default False.
    keep_state : bool
        Fetch the whole fitted state after each fit, so that the model outlives the server. Default False.
    transport : {"shared", "stream", "file"}, optional
        How arrays travel. Default: ``$GSB_TRANSPORT``, else the first of these that works with the server.
    file_dir : str, optional
        For the transport ``file``: the server's directory of that name, as it is called on this side. Default:
        ``$GSB_FILE_DIR``, else where WSL2 would show it, else the server's own name for it.
    local_nbytes : int
        Calls whose data has fewer bytes run in this process. A model that the server has made stays there; for
        small data a copy of it is fetched once. Default: ``$GSB_LOCAL_NBYTES``, else 0: everything is sent.
    npy_dir : str, optional
        Directory from which ``.npy`` results of an older server are read. Default: ``$GSB_NPY_DIR``, else
        none are read.

    Returns
    -------
    context manager
        Puts the former settings back when used in a ``with`` statement.

    Notes
    -----
    Concurrency: the settings are those of the process, not of the thread.

    Examples
    --------
    >>> import gsb
    >>> with gsb.config(fallback="local"):
    ...     pass
    """
    global _current
    former = _current
    known = {field.name for field in dataclasses.fields(Config)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigError(f"unknown setting {unknown[0]!r}", hint=f"there are {', '.join(sorted(known))}")
    _current = dataclasses.replace(former, **settings)  # type: ignore[arg-type]
    return _Restore(former)
