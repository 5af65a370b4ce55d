# SPDX-License-Identifier: BSD-3-Clause
"""``gsb doctor --report``: in one go, what anybody would ask who is to help from afar. Plain text, no secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import shmpool
from gsb import runtime, wsl
from gsb._client import Client
from gsb._config import get_config
from gsb.cli.machine import available_memory, format_bytes, space
from gsb.cli.ways import choice, ways
from gsb.errors import GSBError
from shmpool.mounts import filesystem_magic, find_incoherent
from shmpool.space import mount_of

__all__ = ["report_lines"]

_PACKAGES = ("shmpool", "numpy", "scipy", "scikit-learn", "starlette", "uvicorn", "uvloop", "httptools", "cupy", "cuml")
_SECONDS = 5.0


def report_lines() -> Iterator[str]:
    """Give the report line by line, as it is found."""
    for title, section in _SECTIONS:
        yield f"== {title}"
        try:
            yield from section()
        except Exception as error:
            yield f"{type(error).__name__}: {error}"
        yield ""


def _system() -> Iterator[str]:
    yield f"system: {platform.platform()}, {platform.machine()}, {os.cpu_count()} cores"
    if kind := wsl.kind():
        yield f"WSL: {kind}, distribution {os.environ.get('WSL_DISTRO_NAME', 'unknown')}"
        yield f"networking: {_output('wslinfo', '--networking-mode')}"
        yield f"WSL version: {_output('wslinfo', '--wsl-version')}"
    if sys.platform == "win32":
        yield f"Windows: {platform.version()}"
        yield f"running distributions: {', '.join(wsl.distributions()) or 'none, or no wsl.exe'}"
    if Path("/.dockerenv").exists():
        yield "container: docker"
    memory = available_memory()
    yield f"memory: {format_bytes(memory) if memory is not None else 'unknown'} available"


def _versions() -> Iterator[str]:
    yield f"Python: {sys.version.split()[0]}, {platform.python_implementation()}, {sys.executable}"
    for name in _PACKAGES:
        try:
            yield f"{name}: {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue


def _settings() -> Iterator[str]:
    for name in sorted(os.environ):
        if name.startswith(("GSB_", "SHMPOOL_")):
            yield f"{name}={'(set)' if 'TOKEN' in name and name != 'GSB_TOKEN_FILE' else os.environ[name]}"
    settings = get_config()
    yield f"transport: {settings.transport or 'chosen'}; fallback: {settings.fallback}; timeout: {settings.timeout}"
    yield f"runtime directory: {runtime.runtime_dir()}"
    yield f"token: {runtime.token_source() or 'none found'}"
    path = runtime.socket_path()
    yield f"socket: {path} ({'there' if path.exists() else 'not there'})"
    yield f"server: {_url()}"


def _mounts() -> Iterator[str]:
    pool = shmpool.default_path(create=False)
    for what, path in (("pool", pool), ("/dev/shm", Path("/dev/shm")), ("here", Path.cwd())):
        if what == "pool" or path.exists():
            yield f"{what}: {path}: {_mount(path)}"
            if found := space(path):
                yield f"  {format_bytes(found[0])}, {format_bytes(found[1])} free"
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        left, _, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        point = fields[4].replace("\\040", " ")
        if find_incoherent(point) is not None:
            # The options tell how it caches.
            yield f"{point}: {_mount(Path(point))}; {tail[1]}; {fields[5]}; {tail[2] if len(tail) > 2 else ''}"


def _mount(path: Path) -> str:
    mount, magic = mount_of(path), filesystem_magic(path)
    bad = find_incoherent(path) is not None
    kind = f"f_type 0x{magic:x}" if magic is not None else "f_type unknown"
    return f"{mount.filesystem} on {mount.point}, {kind}, {'no shared mappings' if bad else 'not known to be bad'}"


def _connection() -> Iterator[str]:
    url, token = _url(), get_config().token
    client = Client(url, token)
    try:
        found = client.status()
    except GSBError as error:
        yield f"{url}: {type(error).__name__}: {error.message}"
        return
    finally:
        client.close()
    yield f"{url}: version {found['version']}, scikit-learn {found['sklearn']}, NumPy {found['numpy']}"
    backend = found["backend"]
    yield f"backend: {', then '.join(backend['names'])} on {backend['device']}: {backend['reason']}"
    pool = found["pool"]
    yield f"its pool: {pool['path']}, {format_bytes(pool['nbytes'])} on {pool['filesystem']}"
    yield f"from here: {_mount(Path(pool['path']))}"
    for way in ways(url, token):
        if way.works:
            yield (
                f"{way.kind}: works: {way.text}; opened in {way.opened * 1e3:.2f} ms, "
                f"{way.there:.0f} MB/s there, {way.back:.0f} MB/s back"
            )
        else:
            yield f"{way.kind}: {way.text}"
    kind, reason = choice(url, token)
    yield f"chosen: {kind} ({reason})"


def _url() -> str:
    return get_config().server or runtime.default_url()


def _output(*command: str) -> str:
    """Return what a program prints, if it is there and answers."""
    if shutil.which(command[0]) is None:
        return f"unknown (no {command[0]})"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({error})"
    return done.stdout.strip() or "unknown"


_SECTIONS: tuple[tuple[str, Callable[[], Iterator[str]]], ...] = (
    ("system", _system),
    ("versions", _versions),
    ("settings", _settings),
    ("mounts", _mounts),
    ("connection", _connection),
)
