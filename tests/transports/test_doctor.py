# SPDX-License-Identifier: BSD-3-Clause
"""`gsb doctor` tries and measures every transport; its report has all that is asked for, and no token."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gsb.cli import ways as ways_module
from gsb.cli.ways import choice, ways
from gsb.errors import TransportUnavailableError
from gsb.transports import shared


def run(server: Any, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GSB_SERVER": server.http, "GSB_TOKEN": server.token, "COLUMNS": "400"}
    command = [sys.executable, "-m", "gsb.cli", "doctor", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_every_way(shared_server: Any) -> None:
    found = {way.kind: way for way in ways(shared_server.http, shared_server.token)}
    assert list(found) == ["shared", "stream", "file"]
    for kind in ("shared", "stream"):
        way = found[kind]
        assert way.works, way
        assert way.there > 10
        assert way.back > 10
        assert 0 < way.opened < 30
    assert found["shared"].text == f"{shared_server.pool} on {_filesystem(shared_server.pool)}"
    assert found["stream"].text.startswith("tcp://127.0.0.1:")
    assert not found["file"].works
    assert choice(shared_server.http, shared_server.token) == ("shared", "both sides see the same memory")


def _filesystem(path: Path) -> str:
    from shmpool.space import mount_of

    return mount_of(path).filesystem


def test_ways_that_do_not_work(shared_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise TransportUnavailableError("the server does not see it")

    monkeypatch.setattr(shared, "prove_coherence", refuse)
    found = {way.kind: way for way in ways(shared_server.url, shared_server.token)}
    assert (found["shared"].works, found["shared"].text) == (False, "the server does not see it")
    assert choice(shared_server.url, shared_server.token) == ("stream", "not shared: the server does not see it")
    monkeypatch.setattr(ways_module.np, "array_equal", lambda one, other: False)
    assert (
        "not the one that was sent"
        in {way.kind: way for way in ways(shared_server.url, shared_server.token)}["stream"].text
    )


def test_doctor_prints_them(shared_server: Any) -> None:
    done = run(shared_server)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "transport shared (in use)" in done.stdout
    assert "transport stream" in done.stdout
    assert done.stdout.count("MB/s there") == 2


def test_the_report(shared_server: Any) -> None:
    done = run(shared_server, "--report")
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert shared_server.token not in text
    for part in (
        "== system",
        "== versions",
        "shmpool: ",
        "numpy: ",
        "GSB_TOKEN=(set)",
        f"GSB_SERVER={shared_server.http}",
        "token: GSB_TOKEN",
        "f_type 0x",
        f"its pool: {shared_server.pool}",
        "shared: works",
        "stream: works",
        "MB/s back",
        "file: ",
        "chosen: shared (both sides see the same memory)",
    ):
        assert part in text, f"{part!r} is not in\n{text}"


def test_the_report_without_a_server(tmp_path: Path) -> None:
    environment = {**os.environ, "GSB_RUNTIME_DIR": str(tmp_path / "none")}
    for name in ("GSB_SERVER", "GSB_TOKEN"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "gsb.cli", "doctor", "--report"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "token: none found" in done.stdout
    assert "ConnectError: no server answers" in done.stdout
    assert list(tmp_path.iterdir()) == []
