# SPDX-License-Identifier: BSD-3-Clause
"""What a Windows client finds of a server in WSL2, with folders in the place of Windows' shares."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from pathlib import Path

import pytest
from gsb import wsl


@pytest.fixture
def share(tmp_path: Path) -> Path:
    for name in ("Ubuntu", "Debian", "docker-desktop"):
        (tmp_path / name).mkdir()
    return tmp_path


def put(path: Path, text: str, age: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)


def test_the_newest_token_counts(share: Path) -> None:
    def find() -> tuple[str, str] | None:
        return wsl.find_token(lambda: ["Ubuntu", "Debian", "gone"], [share / "not there", share], 20.0)

    assert find() is None
    put(share / "Ubuntu/tmp/gsb-1000/token", "older\n", 60)
    put(share / "Ubuntu/tmp/gsb-1001/token", "", 0)
    put(share / "docker-desktop/tmp/gsb-0/token", "not asked for", 0)
    assert find() == ("older", str(share / "Ubuntu/tmp/gsb-1000/token"))
    put(share / "Debian/run/user/1000/gsb/token", "newer\n", 5)
    assert find() == ("newer", str(share / "Debian/run/user/1000/gsb/token"))
    (share / "Debian/run/user/1000/gsb/token").write_bytes(b"\xff\xfe\0")
    assert find() == ("older", str(share / "Ubuntu/tmp/gsb-1000/token"))


def test_a_share_that_hangs_or_fails() -> None:
    def hang() -> list[str]:
        time.sleep(1.0)
        return []

    def fail() -> list[str]:
        raise RuntimeError

    begun = time.monotonic()
    assert wsl.find_token(hang, [], 0.05) is None
    assert time.monotonic() - begun < 0.9
    assert wsl.find_token(fail, [], 20.0) is None


def test_which_distributions_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "wsl.exe"
    log = tmp_path / "log"
    listed = "Ubuntu-24.04\r\ndocker-desktop\r\nMy Linux\r\n".encode("utf-16-le")
    (tmp_path / "list").write_bytes(listed)
    program.write_text(f'#!/bin/sh\necho "$@" > {log}\ncat {tmp_path}/list\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert wsl.distributions() == ["Ubuntu-24.04", "My Linux"]
    assert log.read_text().split() == ["--list", "--running", "--quiet"]
    (tmp_path / "list").write_text("﻿Ubuntu\n")
    assert wsl.distributions() == ["Ubuntu"]
    program.write_text("#!/bin/sh\nexit 1\n")
    assert wsl.distributions() == []
    monkeypatch.setattr(wsl, "_SECONDS", 0.05)
    program.write_text("#!/bin/sh\nexec sleep 5\n")
    assert wsl.distributions() == []
    program.unlink()
    assert wsl.distributions() == []


@pytest.mark.parametrize(
    ("release", "kind"),
    [
        ("4.4.0-19041-Microsoft", "wsl1"),
        ("5.15.167.4-microsoft-standard-WSL2", "wsl2"),
        ("6.6.87.2-microsoft-standard-WSL2+", "wsl2"),
        ("4.19.128-microsoft-standard", "wsl2"),
        ("6.12.0-amd64", ""),
    ],
)
def test_kinds(release: str, kind: str) -> None:
    assert wsl.kind_of_release(release) == kind


def test_here() -> None:
    release = subprocess.run(["uname", "-r"], capture_output=True, text=True, check=True).stdout.strip()
    assert wsl.kind() == wsl.kind_of_release(release)
