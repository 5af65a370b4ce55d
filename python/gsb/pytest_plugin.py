# SPDX-License-Identifier: BSD-3-Clause
"""A pytest plugin that runs a test-suite written for scikit-learn through the bridge.

::

    pytest -p gsb.pytest_plugin tests/

Before conftest files and test modules are imported, `gsb.accel` is installed, and a server is started for the length
of the session. All calls go to it, however small. The run fails if the server was not used. With pytest-xdist one
server serves all workers. See ``docs/scikit-learn.md``.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gsb
from gsb import accel
from gsb._client import get_client
from gsb._report import tally
from gsb._testing import expected
from gsb._testing.tally import SessionTally
from gsb.cli.private_server import PrivateServer
from gsb.errors import GSBError
from gsb.shm_transport import ShmTransport

_NAME = "gsb.pytest_plugin"
# Tells a worker process of pytest-xdist that the server of the controlling process is in the environment.
_WORKER = "GSB_PYTEST_WORKER"
# Tests move little; an array larger than a slot takes several.
_GEOMETRY = ("--slot-size", "16M", "--input-slots", "8", "--output-slots", "8", "--scratch-slots", "1")


class Bridge:
    """What the plugin does in one process of a session: in pytest's own, or in a worker of pytest-xdist.

    Parameters
    ----------
    options
        The command line.
    """

    def __init__(self, options: Any) -> None:
        self.tally = SessionTally()
        self.is_worker = os.environ.pop(_WORKER, None) is not None
        # Only looking for tests: nothing will run, and no server is needed.
        self.only_collects = bool(options.collectonly)
        self.stats_path: str | None = options.gsb_stats
        self.expected = expected.load(Path(options.gsb_xfail_list)) if options.gsb_xfail_list else {}
        self.own: PrivateServer | None = None
        self.pool: str | None = None
        self.calls = 0
        self.trouble: str | None = None
        self._calls_before = 0
        self._environment: dict[str, str | None] = {}
        self._given_server: str | None = options.gsb_server
        self._backend: str = options.gsb_backend

    # ------------------------------------------------------------------------------ life
    def start(self) -> None:
        """Find or start the server, and send everything of this process to it."""
        if self.is_worker:
            self._forget_plugin_variable()
        elif self._given_server is not None:
            self._set("GSB_SERVER", self._given_server)
        elif not self.only_collects:
            self._start_server()
        # An answer comes from the server or not at all; children read the environment.
        self._set("GSB_FALLBACK", "error")
        accel.install(server=os.environ.get("GSB_SERVER"), fallback="error", local_nbytes=0)
        if not self.only_collects:
            self._calls_before = self._server_calls()

    def _start_server(self) -> None:
        with tempfile.TemporaryFile() as log:
            try:
                self.own = PrivateServer("--backend", self._backend, *_GEOMETRY, output=log)
            except GSBError as error:
                log.seek(0)
                words = log.read().decode(errors="replace")[-4000:]
                raise type(error)(f"{error.message}\n{words}", hint=error.hint) from error
        self._set("GSB_SERVER", self.own.url)
        self._set("GSB_TOKEN", self.own.token)

    def finish(self) -> None:
        """Gather what was counted."""
        self.tally.add(tally())
        if self.is_worker or self.only_collects:
            return
        try:
            self.calls = self._server_calls() - self._calls_before
            self.pool = str(get_client().status()["pool"]["path"])
        except GSBError as error:
            self.trouble = f"the server does not answer any more: {error}"
            return
        # The counter of a server that others use as well proves nothing; answers that have come here do.
        if self.calls <= 0 or (self.own is None and self.tally.n_sent == 0):
            self.trouble = "the server was not used: the tests have proved nothing about the bridge"

    def close(self) -> None:
        """Undo everything."""
        accel.uninstall()
        gsb.disconnect()
        ShmTransport.reset()
        if self.own is not None:
            self.own.stop()
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._environment.clear()

    def hand_to_workers(self) -> None:
        """Let workers of pytest-xdist load this plugin before conftest files, as this process has done."""
        self._set(_WORKER, "1")
        self._set("PYTEST_PLUGINS", ",".join(filter(None, [os.environ.get("PYTEST_PLUGINS"), _NAME])))

    def _forget_plugin_variable(self) -> None:
        # A pytest that a test starts is none of ours.
        names = [name for name in os.environ.get("PYTEST_PLUGINS", "").split(",") if name not in ("", _NAME)]
        os.environ["PYTEST_PLUGINS"] = ",".join(names)

    def _set(self, name: str, value: str) -> None:
        self._environment.setdefault(name, os.environ.get(name))
        os.environ[name] = value

    def _server_calls(self) -> int:
        metrics = get_client().status()["metrics"]
        # An exception of the estimator is an answer, too.
        return int(metrics["calls"]) + int(metrics["errors"].get("estimator_error", 0))

    # ------------------------------------------------------------------------------ marking
    def mark(self, items: list[pytest.Item], *, whole_modules: bool) -> None:
        """Mark the expected failures; an id that no test has is an error."""
        matched: set[str] = set()
        homes: set[str] = set()
        for item in items:
            ids = [item.nodeid]
            module = getattr(item, "module", None)
            if module is not None:
                ids.append(f"{module.__name__}::{item.name}")
            for test in ids:
                homes.add(test.partition("::")[0])
                entry = self.expected.get(test)
                if entry is None:
                    continue
                matched.add(test)
                item.add_marker(pytest.mark.xfail(reason=entry.reason, strict=entry.strict, run=entry.run))
                if entry.marker is not None:
                    item.add_marker(entry.marker)
        unmatched = expected.unmatched(self.expected, matched, homes) if whole_modules else []
        if unmatched:
            shown = "\n  ".join(unmatched[:20])
            more = f"\n  and {len(unmatched) - 20} more" if len(unmatched) > 20 else ""
            raise pytest.UsageError(f"{_NAME}: ids of --gsb-xfail-list that no test has:\n  {shown}{more}")

    # ------------------------------------------------------------------------------ reporting
    def to_dict(self) -> dict[str, Any]:
        """Give the statistics of the session."""
        import sklearn

        return {
            "sklearn": sklearn.__version__,
            "server": "own" if self.own is not None else os.environ.get("GSB_SERVER"),
            "pool": self.pool,
            "calls_of_server": self.calls,
            "calls_sent": self.tally.n_sent,
            "calls_local": self.tally.n_local,
            "share_sent": self.tally.share,
            **self.tally.to_dict(),
        }

    def lines(self) -> Iterator[str]:
        """Give the summary for the terminal."""
        backends = ", ".join(sorted(self.tally.backends)) or "none"
        yield f"{self.tally.n_sent} calls answered by the server ({100 * self.tally.share:.1f} %), backends: {backends}"
        yield f"{self.calls} calls counted by the server: with those of child processes, and those that raised"
        yield f"{self.tally.n_local} calls in this process"
        yield from (f"  {count:7} {reason}" for reason, count in self.tally.reasons.most_common())


_bridge = pytest.StashKey[Bridge]()


def _of(config: pytest.Config) -> Bridge | None:
    return config.stash.get(_bridge, None)


# ---------------------------------------------------------------------------------- hooks
def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the options."""
    group = parser.getgroup("gsb", "scikit-learn through the bridge")
    group.addoption(
        "--gsb-backend",
        default="sklearn",
        metavar="NAME",
        help="backend of the server that is started, as `gsb serve --backend`; default: sklearn, on the CPU",
    )
    group.addoption(
        "--gsb-server",
        metavar="URL",
        help="use a server that is running, such as unix:///run/user/1000/gsb/server.sock, and start none",
    )
    group.addoption(
        "--gsb-xfail-list",
        metavar="FILE",
        help="YAML file of tests that are expected to fail, in groups with a reason",
    )
    group.addoption("--gsb-stats", metavar="FILE", help="write what ran where, as JSON")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Install the proxies, before any module of the user is imported."""
    options = early_config.known_args_namespace
    if getattr(options, "help", False) or getattr(options, "version", 0):
        return
    try:
        bridge = Bridge(options)
        early_config.stash[_bridge] = bridge
        # Also where pytest ends before it has begun: a wrong option, a conftest file that cannot be imported.
        early_config.add_cleanup(bridge.close)
        bridge.start()
    except GSBError as error:
        raise pytest.UsageError(f"{_NAME}: {error}") from error


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Prepare the environment that the workers inherit."""
    if (bridge := _of(config)) is not None:
        bridge.hand_to_workers()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the expected failures."""
    if (bridge := _of(config)) is not None:
        # Where single tests were asked for, the others of their module are not missing.
        bridge.mark(items, whole_modules=not any("::" in argument for argument in config.args))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Add what a worker of pytest-xdist has counted."""
    found = getattr(node, "workeroutput", {}).get("gsb")
    if found is not None and (bridge := _of(node.config)) is not None:
        bridge.tally.add(found)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if the server was not used; write the statistics."""
    bridge = _of(session.config)
    if bridge is None:
        return
    if bridge.is_worker:
        session.config.workeroutput["gsb"] = [list(row) for row in tally()]  # type: ignore[attr-defined]
        return
    bridge.finish()
    if bridge.stats_path:
        Path(bridge.stats_path).write_text(json.dumps(bridge.to_dict(), indent=1) + "\n", encoding="utf-8")
    if bridge.trouble is not None and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what ran where."""
    bridge = _of(config)
    if bridge is None or bridge.only_collects:
        return
    terminalreporter.section("gsb")
    for line in bridge.lines():
        terminalreporter.write_line(line)
    if bridge.trouble is not None:
        terminalreporter.write_line(f"FAILED: {bridge.trouble}", red=True)
