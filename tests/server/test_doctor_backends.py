# SPDX-License-Identifier: BSD-3-Clause
"""What ``gsb doctor`` says of the backends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gsb.cli import doctor_backends
from gsb_server.backends import hardware

ROOT = Path(__file__).parents[2]


def test_this_machine() -> None:
    found = list(doctor_backends.would_compute())
    assert [subject for _, subject, _, _ in found] == [
        "backend cuml",
        "backend array_api",
        "backend sklearn",
        "backends",
    ]
    assert found[2][0] == "ok"
    if hardware.missing():
        assert {mark for mark, *_ in found[:2]} == {"note"}
        assert all(text == hardware.missing() for _, _, text, _ in found[:2])
        assert all(hint for *_, hint in found[:2])
        assert found[3][2] == "a server here asks sklearn"


def _answer(monkeypatch: pytest.MonkeyPatch, stdout: str, status: int = 0, stderr: str = "") -> None:
    def run(command: Any, **given: Any) -> Any:
        assert given["env"]["SCIPY_ARRAY_API"] == "1"
        return subprocess.CompletedProcess(command, status, stdout, stderr)

    monkeypatch.setattr(subprocess, "run", run)


def test_a_gpu_without_cuml(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = {
        "available": True,
        "reason": "scikit-learn 1.9.1 on the arrays of NVIDIA H100",
        "device": "",
        "versions": {},
    }
    none = {"available": False, "reason": "cuML is not installed", "device": "", "versions": {}}
    body = {
        "names": ["array_api", "sklearn"],
        "probes": {"cuml": none, "array_api": {**probe, "versions": {"numpy": "2.4"}}},
        "advice": "pip install 'shmpool[cuda13]'",
    }
    _answer(monkeypatch, "a library says hello\n" + json.dumps(body))
    assert list(doctor_backends.would_compute()) == [
        ("note", "backend cuml", "cuML is not installed", "pip install 'shmpool[cuda13]'"),
        ("ok", "backend array_api", "scikit-learn 1.9.1 on the arrays of NVIDIA H100 (numpy 2.4)", ""),
        ("ok", "backends", "a server here asks array_api, then sklearn", ""),
    ]


@pytest.mark.parametrize(
    ("stdout", "status", "stderr", "expected"),
    [
        ("", 1, "Traceback\nImportError: no", "ImportError: no"),
        ("", -11, "", "exit status -11"),
        ("{", 0, "", "Expecting"),
    ],
)
def test_a_trial_that_dies_is_named(
    monkeypatch: pytest.MonkeyPatch, stdout: str, status: int, stderr: str, expected: str
) -> None:
    _answer(monkeypatch, stdout, status, stderr)
    (found,) = doctor_backends.would_compute()
    assert found[:2] == ("bad", "backends")
    assert expected in found[2]


def test_the_command_prints_json_on_its_last_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gsb_server.backends"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["names"][-1] == "sklearn"
    assert set(found["probes"]) == {"cuml", "array_api", "sklearn"}
