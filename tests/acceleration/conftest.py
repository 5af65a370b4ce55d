# SPDX-License-Identifier: BSD-3-Clause
"""Installing in this process and undoing it; programs in processes of their own, plain and accelerated."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gsb.accel
import pytest
from gsb.cli.private_server import PrivateServer
from helpers.programs import DEADLINE, environment

NOWHERE = "unix:///nonexistent/gsb.sock"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def installed() -> Iterator[None]:
    """Acceleration in this process, with no server: what would be sent runs here."""
    gsb.accel.install(server=NOWHERE)
    yield
    gsb.accel.uninstall()


@pytest.fixture
def read() -> Callable[..., Any]:
    """Run statements as a module of the given name would, and give the name ``found`` of it."""

    def run(source: str, name: str = "program", **given: Any) -> Any:
        module = types.ModuleType(name)
        vars(module).update(given)
        exec(compile(source, f"<{name}>", "exec"), vars(module))
        return vars(module)["found"]

    return run


@pytest.fixture
def python(tmp_path: Path) -> Run:
    """Run Python with arguments, in the test's own folder."""

    def run(
        *arguments: str, stdin: str = "", cwd: Path = tmp_path, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            cwd=cwd,
            env=environment(**variables),
        )

    return run


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    """A server for the programs of a module."""
    server = PrivateServer("--slot-size", "4M")
    yield server
    server.stop()
