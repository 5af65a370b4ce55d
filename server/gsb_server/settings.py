# SPDX-License-Identifier: BSD-3-Clause
"""Settings of the server: typed, frozen, read from ``GSB_*`` variables, overridden by arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from gsb.protocol.wire import MAX_BODY_NBYTES

__all__ = ["Settings", "SettingsError"]

_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class SettingsError(ValueError):
    """A setting has a value that cannot be used; the text names it and says what is allowed."""


def parse_size(text: str) -> int:
    """Return a number of bytes from ``"268435456"``, ``"256M"``, ``"256MiB"`` or ``"4G"``.

    >>> parse_size("256M")
    268435456
    """
    body = text.strip().lower().removesuffix("b").removesuffix("i")
    factor = 1
    if body and body[-1] in _UNITS:
        factor = _UNITS[body[-1]]
        body = body[:-1]
    try:
        value = float(body)
    except ValueError:
        raise SettingsError(f"not a size: {text!r} (write 1048576, 256M or 4G)") from None
    return int(value * factor)


def _parse_bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in {"1", "true", "yes", "on"}:
        return True
    if lowered in {"0", "false", "no", "off", ""}:
        return False
    raise SettingsError(f"not a yes or no: {text!r}")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the server can be told.

    The variable of a field is ``GSB_`` and its name in capitals. Sizes take ``K``, ``M``, ``G``.

    Attributes
    ----------
    socket : Path or None
        Unix socket to listen on.
    host, port : str, int
        TCP address; port 0 means no TCP. Only loopback addresses are accepted unless ``allow_remote``.
    token : str
        Shared secret. Empty: the per-user token file is used, and made if it is missing.
    pool_path : Path or None
        The pool's file; None: the default of ``shmpool``.
    slot_nbytes, input_slots, output_slots, scratch_slots : int
        Geometry of a pool that has to be made; one that exists keeps its own.
    workers : int
        Threads that compute. 0: one per core, at most 4.
    queue_limit : int
        Calls that may wait for a worker before further ones are refused with ``busy``.
    backend : str
        ``auto`` or a backend's name.
    strict_gpu : bool
        Refuse what no GPU backend can do (``gpu_refused``) instead of doing it on the CPU. A call may ask for the same.
    gpu_host_path : str
        ``auto``: slots are pinned and read by the device directly, where the system allows it; ``ring``: everything
        through two pinned buffers; ``pageable``: neither.
    gpu_pin_nbytes : int
        The most of the pool that is pinned.
    gpu_resident_nbytes : int
        Device memory for arrays kept for the next call; -1: a quarter of what the device has.
    gpu_start_timeout : float
        Seconds the GPU worker has to start.
    parts_above : int
        Bytes from which on clients send arrays in parts. 0: as it suits the backend.
    model_nbytes : int
        Memory all models may hold together; the least recently used are evicted beyond it.
    model_ttl, session_ttl : float
        Seconds without use after which a model or a session is dropped.
    data_port : int
        TCP port of the data plane where there is a ``port``; 0: any that is free.
    data_timeout : float
        Seconds that a peer may be silent in the middle of a transfer.
    data_grace : float
        Seconds that a streaming client may be without a connection before it is taken for gone.
    max_slot_wait : float
        Seconds that an upload may wait for room in the pool, whatever its client asks for.
    max_data_connections : int
        Data connections of one session.
    file_dir : Path or None
        Directory of the mailbox of the transport ``file``, on a drive that clients see, too. None: it is not offered.
    file_nbytes : int
        Length of the mailbox; half of it for each direction.
    result_ttl : float
        Seconds a client has to free a result it was given; afterwards it is taken for lost.
    output_timeout : float
        Seconds to wait for room in the output region before ``pool_full``.
    watch_interval : float
        Seconds between two looks for dead clients.
    max_body_nbytes : int
        Largest request body; arrays do not travel in it.
    max_sessions, max_models_per_session : int
        Limits against a runaway client.
    shutdown_timeout : float
        Seconds running calls are given to end at shutdown.
    allow_remote : bool
        Accept a ``host`` that other machines can reach.
    log_level : str
        ``debug``, ``info``, ``warning`` or ``error``.
    """

    socket: Path | None = None
    host: str = "127.0.0.1"
    port: int = 0
    token: str = ""
    pool_path: Path | None = None
    slot_nbytes: int = 256 * 2**20
    input_slots: int = 4
    output_slots: int = 4
    scratch_slots: int = 8
    workers: int = 0
    queue_limit: int = 64
    backend: str = "auto"
    strict_gpu: bool = False
    gpu_host_path: str = "auto"
    gpu_pin_nbytes: int = 4 * 2**30
    gpu_resident_nbytes: int = -1
    gpu_start_timeout: float = 45.0
    parts_above: int = 0
    model_nbytes: int = 4 * 2**30
    model_ttl: float = 3600.0
    session_ttl: float = 24 * 3600.0
    data_port: int = 0
    data_timeout: float = 60.0
    data_grace: float = 10.0
    max_slot_wait: float = 300.0
    max_data_connections: int = 16
    file_dir: Path | None = None
    file_nbytes: int = 128 * 2**20
    result_ttl: float = 600.0
    output_timeout: float = 10.0
    watch_interval: float = 1.0
    max_body_nbytes: int = MAX_BODY_NBYTES
    max_sessions: int = 64
    max_models_per_session: int = 1024
    shutdown_timeout: float = 10.0
    allow_remote: bool = False
    log_level: str = "info"

    def __post_init__(self) -> None:
        """Refuse what cannot work, here rather than at the first request."""
        for name in (
            "slot_nbytes",
            "input_slots",
            "output_slots",
            "queue_limit",
            "max_body_nbytes",
            "max_sessions",
            "max_data_connections",
            "file_nbytes",
        ):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in (
            "model_ttl",
            "session_ttl",
            "result_ttl",
            "output_timeout",
            "watch_interval",
            "data_timeout",
            "max_slot_wait",
            "gpu_start_timeout",
        ):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} must be more than 0, not {getattr(self, name)}")
        if self.gpu_host_path not in ("auto", "ring", "pageable"):
            raise SettingsError(f"gpu_host_path must be auto, ring or pageable, not {self.gpu_host_path!r}")
        for name in ("port", "data_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise SettingsError(f"{name} must be 0 to 65535, not {getattr(self, name)}")
        if self.data_grace < 0:
            raise SettingsError(f"data_grace must not be negative, not {self.data_grace}")
        loopback = self.host in {"127.0.0.1", "localhost", "::1"} or self.host.startswith("127.")
        if self.port and not loopback and not self.allow_remote:
            raise SettingsError(
                f"host {self.host!r} is not a loopback address; the pool is shared memory, so clients are on "
                "this machine. Set GSB_ALLOW_REMOTE=1 only behind a tunnel or a firewall"
            )

    @property
    def worker_threads(self) -> int:
        """Number of threads that compute."""
        return self.workers or max(1, min(4, os.cpu_count() or 1))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read ``GSB_*`` variables; arguments that are not None win.

        Examples
        --------
        >>> Settings.from_env({"GSB_SLOT_NBYTES": "1M"}).slot_nbytes
        1048576
        """
        source = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        hints = get_type_hints(cls)
        for field in fields(cls):
            text = source.get(f"GSB_{field.name.upper()}")
            if text is None:
                continue
            try:
                values[field.name] = _convert(hints[field.name], field.name, text)
            except ValueError as error:
                raise SettingsError(f"GSB_{field.name.upper()}: {error}") from None
        values.update({name: value for name, value in overrides.items() if value is not None})
        return cls(**values)

    def with_(self, **changes: Any) -> Settings:
        """Return a copy with some fields changed."""
        return replace(self, **changes)


def _convert(hint: Any, name: str, text: str) -> Any:
    if hint is bool:
        return _parse_bool(text)
    if hint is int:
        return parse_size(text) if name.endswith(("_nbytes", "_above")) else int(text)
    if hint is float:
        return float(text)
    if hint is str:
        return text
    return Path(text).expanduser() if text else None
