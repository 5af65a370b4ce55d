# SPDX-License-Identifier: BSD-3-Clause
"""The commands, as a user types them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


def _leftovers() -> set[str]:
    folders = ("/dev/shm", "/tmp")
    return {name for folder in folders if os.path.isdir(folder) for name in os.listdir(folder) if "gsb-demo" in name}


def test_help_names_every_command(gsb_command: Any) -> None:
    done = gsb_command("--help", env={})
    assert done.returncode == 0
    for name in ("serve", "demo", "status", "doctor"):
        assert name in done.stdout
        page = gsb_command(name, "--help", env={})
        assert page.returncode == 0
        assert "Usage" in page.stdout


def test_demo_runs_and_leaves_nothing(gsb_command: Any, tmp_path: Path) -> None:
    before = _leftovers()
    done = gsb_command(
        "demo", "--rows", "20000", "--columns", "50", "--runs", "2", env={"GSB_RUNTIME_DIR": str(tmp_path / "none")}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for text in ("client_encode", "compute", "total", "np.copyto", "bit for bit", "16 of 16 free", "PSS", "pool.bin"):
        assert text in done.stdout
    assert _leftovers() - before == set()
    assert not (tmp_path / "none").exists()


def test_status_of_a_running_server(server: Any, gsb_command: Any) -> None:
    done = gsb_command("status", env=server.environment)
    assert done.returncode == 0, done.stderr
    for text in ("pool.bin", "sklearn", "input 4 of 4 free", "PSS"):
        assert text in done.stdout
    found = json.loads(gsb_command("status", "--json", env=server.environment).stdout)
    assert found["pid"] == server.pid


def test_status_without_a_server(gsb_command: Any, tmp_path: Path) -> None:
    done = gsb_command("status", env={"GSB_RUNTIME_DIR": str(tmp_path), "GSB_TOKEN": "x" * 32})
    assert done.returncode == 1
    assert "gsb serve" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_with_and_without_a_server(server: Any, gsb_command: Any, tmp_path: Path) -> None:
    private = tmp_path / "runtime"
    private.mkdir(mode=0o700)
    environment = {"SHMPOOL_PATH": str(server.pool_path)}
    done = gsb_command("doctor", env={**environment, **server.environment})
    for text in ("Python", "scikit-learn", "shared memory", "token", "connected in", "backend sklearn (in use)"):
        assert text in done.stdout
    assert done.returncode == 0, done.stdout
    done = gsb_command("doctor", env={**environment, "GSB_RUNTIME_DIR": str(private)})
    assert "gsb serve" in done.stdout
    assert "Traceback" not in done.stderr


def test_doctor_finds_an_open_token(server: Any, gsb_command: Any, tmp_path: Path) -> None:
    private = tmp_path / "runtime"
    private.mkdir(mode=0o700)
    token = private / "token"
    token.write_text("secret\n")
    token.chmod(0o644)
    done = gsb_command("doctor", env={"GSB_RUNTIME_DIR": str(private), "SHMPOOL_PATH": str(server.pool_path)})
    assert done.returncode == 1
    assert "open to others" in done.stdout


@pytest.mark.parametrize("package", ["gsb.cli.commands", "gsb.cli.demo", "gsb.cli.doctor", "gsb.cli.serve"])
def test_the_command_line_does_not_import_the_server(children: Any, package: str) -> None:
    child = children.start(
        f"import importlib; importlib.import_module({package!r})\n"
        "say(sorted(name for name in sys.modules if name.split('.')[0] in ('gsb_server', 'starlette', 'uvicorn')))"
    )
    assert child.hear(120) == []
    child.finish()
