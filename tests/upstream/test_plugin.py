# SPDX-License-Identifier: BSD-3-Clause
"""The pytest plugin: what it sends, what it counts, and when it fails a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gsb._client import Client
from gsb._testing import expected
from gsb.cli.private_server import PrivateServer

SUITE = """
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

X = np.random.default_rng(0).standard_normal((30, 3))

def test_sent():
    assert PCA.__module__ == "gsb.decomposition"
    assert PCA(n_components=2).fit(X).transform(X).shape == (30, 2)

@pytest.mark.parametrize("n", [1, 2])
def test_sent_in_a_pipeline(n):
    make_pipeline(StandardScaler(), PCA(n_components=n)).fit(X)

def test_local():
    class Mine(PCA):
        pass

    Mine().fit(X)

def test_wrong():
    assert PCA(n_components=2).fit(X).n_components_ == 3

class TestGroup:
    def test_right(self):
        pass
"""
EXPECTED = """
- reason: it is wrong
  tests: [{module}::test_wrong]
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "test_suite.py"
    path.write_text(SUITE)
    return path


@pytest.fixture
def expect(tmp_path: Path) -> Callable[[str], str]:
    """Write a list of expected failures; gives the option."""

    def write(text: str) -> str:
        path = tmp_path / "expected.yaml"
        path.write_text(text)
        return f"--gsb-xfail-list={path}"

    return write


def test_a_run_is_sent_and_counted(run_suite: Any, suite: Path, expect: Any) -> None:
    run = run_suite(expect(EXPECTED.format(module="test_suite")), str(suite), "-rx")
    assert run.status == 0, run
    assert "5 passed, 1 xfailed" in run.output
    assert "XFAIL test_suite.py::test_wrong - it is wrong" in run.output
    # fit, transform; twice a scaler's fit_transform and a PCA's fit; the fit of the wrong test
    assert run.stats["sent"] == {"PCA.fit": 4, "StandardScaler.fit_transform": 2, "PCA.transform": 1}
    assert run.stats["calls_of_server"] == run.stats["calls_sent"] == 7
    assert run.stats["local"] == {"Mine.fit": 1} or run.stats["local"] == {"PCA.fit": 1}
    assert run.stats["share_sent"] == pytest.approx(7 / 8)
    assert "7 calls answered by the server (87.5 %), backends: sklearn" in run.output
    assert "a user's subclass runs in this process" in run.output


def test_with_xdist_one_server_serves_all_workers(run_suite: Any, suite: Path, expect: Any) -> None:
    pytest.importorskip("xdist")
    listed = expect(EXPECTED.format(module="test_suite"))
    # Imported by a conftest file, before any test module.
    (suite.parent / "conftest.py").write_text("from sklearn.decomposition import PCA\nassert hasattr(PCA, '_gsb_base')")
    run = run_suite(listed, str(suite), "-n", "2")
    assert run.status == 0, run
    assert "5 passed, 1 xfailed" in run.output
    assert run.stats["calls_of_server"] == run.stats["calls_sent"] == 7
    assert run.stats["calls_local"] == 1


def test_a_run_that_sent_nothing_fails(run_suite: Any, tmp_path: Path) -> None:
    path = tmp_path / "test_nothing.py"
    path.write_text("def test_nothing():\n    pass\n")
    run = run_suite(str(path))
    assert run.status == 1, run
    assert "1 passed" in run.output
    assert "FAILED: the server was not used" in run.output
    assert run.stats["calls_of_server"] == 0
    # Nothing was to be sent where nothing was to be run.
    assert run_suite(str(path), "--collect-only").status == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (EXPECTED.format(module="test_suite") + "- {reason: gone, tests: ['test_suite::test_gone']}", "test_gone"),
        (EXPECTED.format(module="no_such_module"), "no_such_module::test_wrong"),
        ("- {tests: ['test_suite::test_wrong']}", "no reason is given"),
    ],
    ids=["unmatched", "of-no-module", "malformed"],
)
def test_a_wrong_list_ends_the_run(run_suite: Any, suite: Path, expect: Any, text: str, said: str) -> None:
    run = run_suite(expect(text), str(suite))
    assert run.status == 4, run
    assert said in run.output
    assert "passed" not in run.output


def test_a_strict_entry_that_passes_fails_the_run(run_suite: Any, suite: Path, expect: Any) -> None:
    text = EXPECTED.format(module="test_suite") + (
        "- {reason: strict, tests: ['test_suite::test_sent_in_a_pipeline[1]']}\n"
        "- {reason: loose, strict: false, tests: ['test_suite.py::test_sent_in_a_pipeline[2]']}\n"
        "- {reason: never, run: false, tests: ['test_suite::test_local']}\n"
        "- {reason: old, condition: scikit-learn<1, tests: ['test_suite::test_sent']}\n"
        # A module that is there but not part of this run.
        "- {reason: elsewhere, tests: ['sklearn.tests.test_base::test_clone']}\n"
    )
    run = run_suite(expect(text), str(suite))
    assert run.status == 1, run
    assert "1 failed, 2 passed, 2 xfailed, 1 xpassed" in run.output
    assert "[XPASS(strict)] strict" in run.output


def test_a_server_that_runs_is_used(run_suite: Any, suite: Path) -> None:
    server = PrivateServer("--slot-size", "1M")
    try:
        run = run_suite("--gsb-server", server.url, f"{suite}::test_sent", env={"GSB_TOKEN": server.token})
        assert run.status == 0, run
        assert run.stats["server"] == server.url
        assert run.stats["calls_sent"] == 2
        # It goes on afterwards.
        assert Client(server.url, server.token).status()["status"] == "ok"
    finally:
        server.stop()


def test_no_server_is_said_before_anything_runs(run_suite: Any, suite: Path) -> None:
    run = run_suite("--gsb-server", "unix:///nowhere/server.sock", str(suite), env={"GSB_TOKEN": "0" * 64})
    assert run.status == 4, run
    assert "/nowhere/server.sock" in run.output
    run = run_suite("--gsb-backend", "abacus", str(suite))
    assert run.status == 4, run
    assert "abacus" in run.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "a list of groups"),
        ("- 3", "a mapping"),
        ("- {reason: x, tests: [a::b], strickt: true}", "unknown key 'strickt'"),
        ("- {reason: ' ', tests: [a::b]}", "no reason"),
        ("- {reason: x, tests: []}", "'tests'"),
        ("- {reason: x, tests: [a::b], strict: maybe}", "'strict'"),
        ("- {reason: x, tests: [a::b], marker: 'not one'}", "'marker'"),
        ("- {reason: x, tests: [a::b], condition: 'no < condition <'}", "condition"),
        ("- {reason: x, tests: [a::b, a::b]}", "twice"),
        ("- [", "expected.yaml"),
    ],
)
def test_what_a_list_must_be(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "expected.yaml"
    path.write_text(text)
    with pytest.raises(expected.ExpectedFailuresError, match=said):
        expected.load(path)


def test_conditions(tmp_path: Path) -> None:
    path = tmp_path / "expected.yaml"
    path.write_text(
        "- {reason: x, tests: [a::now], condition: scikit-learn>=1}\n"
        "- {reason: x, tests: [a::old], condition: scikit-learn<1}\n"
        "- {reason: x, tests: [a::absent], condition: no-such-distribution}\n"
        "- {reason: x, tests: [a::marker], condition: scikit-learn; python_version < '3'}\n"
    )
    assert list(expected.load(path)) == ["a::now"]
    path.write_text("")
    assert expected.load(path) == {}


def test_unmatched_ids() -> None:
    listed = ["sklearn.tests.test_base::gone", "sklearn.tests.test_pipeline::other", "nowhere.tests::x", "t.py::gone"]
    assert expected.unmatched(listed, set(), {"sklearn.tests.test_base", "t.py"}) == [
        "nowhere.tests::x",
        "sklearn.tests.test_base::gone",
        "t.py::gone",
    ]
    assert expected.unmatched(listed[:2], {listed[0]}, {"sklearn.tests.test_base"}) == []
