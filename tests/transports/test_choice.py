# SPDX-License-Identifier: BSD-3-Clause
"""Which transport is taken, why, and that results do not depend on it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gsb
import numpy as np
import pytest
from gsb._client import Client, get_client
from gsb._config import ConfigError
from gsb._control import exchange
from gsb.decomposition import PCA
from gsb.errors import ConnectError, ConnectionLostError, TransportUnavailableError
from gsb.preprocessing import StandardScaler
from gsb.transports import choice, shared
from gsb.transports.base import Dialog, Opened, Transport
from helpers.mounts import mounted, require_fuse
from helpers.places import Places
from helpers.processes import Children, eventually
from helpers.servers import Server

X = np.random.default_rng(0).standard_normal((4000, 20))


class Fake(Transport):
    """Opens, or says why not."""

    excuse = ""

    @classmethod
    def open(cls, dialog: Dialog) -> Opened:
        if cls.excuse:
            raise TransportUnavailableError(cls.excuse)
        return Opened("s", cls())

    def write(self, array: Any, timeout: float | None = None) -> dict[str, Any]:
        raise AssertionError

    def read(self, wire: Any, copy: bool = True) -> Any:
        raise AssertionError

    def release(self, wire: Any) -> None:
        raise AssertionError

    @property
    def is_usable(self) -> bool:
        return True

    def close(self) -> None:
        pass


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Fake]]:
    made = {kind: type(kind, (Fake,), {"kind": kind}) for kind in choice.KINDS}
    monkeypatch.setattr(choice, "transport_class", made.__getitem__)
    return made  # type: ignore[return-value]


def no_dialog(offer: dict[str, Any]) -> Any:
    return None


ALL: dict[str, Any] = {"shared": {}, "stream": {}, "file": {}}


def test_order_and_reasons(fakes: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gsb"):
        assert choice.choose(ALL, no_dialog).transport.kind == "shared"
    assert [record.getMessage() for record in caplog.records] == [
        "[gsb] transport shared (shared): both sides see the same memory"
    ]
    fakes["shared"].excuse = "9p"
    found = choice.choose(ALL, no_dialog).transport
    assert (found.kind, found.reason) == ("stream", "not shared: 9p")
    fakes["stream"].excuse = "no port"
    found = choice.choose(ALL, no_dialog).transport
    assert (found.kind, found.reason) == ("file", "not shared: 9p; not stream: no port")
    with pytest.raises(TransportUnavailableError, match="shared: 9p; stream: no port; file: the server does not offer"):
        choice.choose({"shared": {}, "stream": {}}, no_dialog)


def test_asked_for(fakes: Any) -> None:
    found = choice.choose(ALL, no_dialog, "file").transport
    assert (found.kind, found.reason) == ("file", "it was asked for")
    fakes["stream"].excuse = "no port"
    with pytest.raises(TransportUnavailableError, match="stream: no port"):
        choice.choose(ALL, no_dialog, "stream")


def test_settings() -> None:
    with pytest.raises(ConfigError, match="transport"):
        gsb.config(transport="smoke")


# ------------------------------------------------------------------------------------ with a server
@pytest.fixture(params=["unix", "http"])
def url(request: pytest.FixtureRequest, shared_server: Any) -> str:
    return str(shared_server.url if request.param == "unix" else shared_server.http)


@contextlib.contextmanager
def using(server: Any, url: str, transport: str | None) -> Iterator[Client]:
    with gsb.config(server=url, token=server.token, transport=transport):
        try:
            yield get_client()
        finally:
            gsb.disconnect()


def test_results_do_not_depend_on_it(shared_server: Any, url: str) -> None:
    found = {}
    for transport in ("shared", "stream", None):
        with using(shared_server, url, transport) as client:
            model = PCA(n_components=3).fit(X)
            found[transport] = [model.transform(X), model.components_, model.to_sklearn().transform(X)]
            report = gsb.last_report()
            assert report is not None
            used = client.connect().transport.kind
            assert used == (transport or "shared")
            assert report.transport == used
            assert used in str(report)
            assert report.nbytes_sent == X.nbytes
            assert report.nbytes_received == found[transport][0].nbytes
            assert bool(report.slots_sent) == (used == "shared")
    for transport in ("shared", "stream"):
        for one, other in zip(found[transport], found[None], strict=True):
            np.testing.assert_array_equal(one, other)


def test_status_shows_it(shared_server: Any) -> None:
    with using(shared_server, shared_server.url, "stream") as client:
        client.connect()
        assert "stream" in [session["transport"] for session in client.status()["sessions"]]


def test_a_mapping_that_is_refused(shared_server: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise TransportUnavailableError("the server does not see what this process writes")

    monkeypatch.setattr(shared, "prove_coherence", refuse)
    with using(shared_server, url, None) as client:
        StandardScaler().fit_transform(X)
        transport = client.connect().transport
        assert transport.kind == "stream"
        assert transport.reason == "not shared: the server does not see what this process writes"
    with using(shared_server, url, "shared"), pytest.raises(TransportUnavailableError, match="does not see"):
        StandardScaler().fit(X)


def test_no_session_without_a_proof(shared_server: Any) -> None:
    with using(shared_server, shared_server.url, "shared") as client:
        pool = client.connect().transport.pool  # type: ignore[attr-defined]
        request = {
            "protocol": 1,
            "transport": "shared",
            "pool": pool.uuid,
            "client": [pool.client.index, pool.client.nonce],
            "ticket": "0" * 32,
        }
        with pytest.raises(TransportUnavailableError, match="has not shown"):
            exchange(client._connection(), "POST", "/v1/session", request, 5.0)


ELSEWHERE = """
import json, os, socket, sys
import numpy as np
import sklearn.decomposition
# What Windows' Python lacks, and what a client there may lack.
del socket.AF_UNIX, os.register_at_fork, os.fork, os.getuid
sys.modules["shmpool"] = None
import gsb, gsb.runtime
from gsb.decomposition import PCA
X = np.random.default_rng(0).standard_normal((4000, 20))
model = PCA(n_components=3).fit(X)
print(json.dumps([gsb.last_report().transport, float(np.abs(model.transform(X)).sum())]))
print(json.dumps(gsb.runtime.default_url()))
try:
    gsb.config(server="unix:///tmp/none")
    PCA().fit(X)
except gsb.errors.ConnectError as error:
    print(json.dumps(str(error)))
"""


def test_a_client_without_unix_sockets_forks_and_the_extension(shared_server: Any) -> None:
    environment = {**os.environ, "GSB_SERVER": shared_server.http, "GSB_TOKEN": shared_server.token}
    command = [sys.executable, "-c", ELSEWHERE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    first, default, second = (json.loads(line) for line in done.stdout.splitlines())
    with using(shared_server, shared_server.url, None):
        expected = float(np.abs(PCA(n_components=3).fit(X).transform(X)).sum())
    assert first == ["stream", expected]
    assert "no Unix sockets" in second
    assert default == "http://127.0.0.1:8765"


CLIENT = """
import gsb, threading
from gsb.preprocessing import StandardScaler
gsb.config(server=args[0], token=args[1], transport="stream")
X = np.zeros((40000, 20))
model = StandardScaler().fit(X)
say("ready")
while True:
    model.transform(X)
"""


def sessions(server: Any) -> int:
    with using(server, server.url, "stream") as client:
        return len(client.status()["sessions"])


def test_kill_9_of_the_client(
    shared_server: Any, url: str, children: Children, is_empty: Callable[[Path], bool]
) -> None:
    child = children.start(CLIENT, url, shared_server.token)
    assert child.hear() == "ready"
    time.sleep(0.05)
    child.kill()
    eventually(lambda: sessions(shared_server) == 0, "the session is gone")
    eventually(lambda: is_empty(shared_server.pool), "all slots are free")


def test_kill_9_of_the_server(is_empty: Callable[[Path], bool]) -> None:
    server = Server()
    try:
        with using(server, server.url, "stream"):
            scaler = StandardScaler().fit(X)
            big = np.zeros((100_000, 60))
            killer = threading.Timer(0.05, server.process.kill)
            killer.start()

            def for_ever() -> None:
                while True:
                    StandardScaler().fit_transform(big)

            with pytest.raises((ConnectionLostError, ConnectError)):
                for_ever()
            killer.join()
            server.process.wait(20)
            assert is_empty(server.pool)
            server._close_files()
            server.start()
            StandardScaler().fit(X)
            np.testing.assert_allclose(scaler.transform(X), (X - X.mean(0)) / X.std(0))
    finally:
        server.stop()
        assert not server.directory.exists()


def test_a_pool_on_a_bad_mount_is_refused_at_the_start(places: Places, request: pytest.FixtureRequest) -> None:
    require_fuse()
    folder = places.new(request.node.name)
    try:
        with mounted("bindfs", folder) as rig:
            command = [sys.executable, "-m", "gsb_server", "--pool", str(rig.over / "pool"), "--socket", f"{folder}/s"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 3
            assert "lies on fuse" in done.stderr
            assert "Traceback" not in done.stderr
            assert list(rig.under.iterdir()) == []
    finally:
        shutil.rmtree(folder)


def test_the_sockets_of_a_server_are_removed_with_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = Server("--port", str(port))
    try:
        data = server.socket.with_name("server.sock.data")
        assert data.is_socket()
        assert data.stat().st_mode & 0o777 == 0o600
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(20)
        assert not server.socket.exists()
        assert not data.exists()
    finally:
        server.stop()


def test_a_session_that_was_given_up_is_replaced(shared_server: Any, url: str) -> None:
    """As after a sleep, in which all connections were lost."""
    with using(shared_server, url, "stream") as client:
        model = StandardScaler().fit(X)
        expected = model.transform(X)
        for use in (lambda: StandardScaler().fit(X).transform(X), lambda: model.transform(X)):
            former = client.connect()
            for connection in former.transport._idle:  # type: ignore[attr-defined]
                connection.close()
            eventually(
                lambda former=former: former.id[:8] not in session_ids(shared_server), "the server has given it up"
            )
            np.testing.assert_array_equal(use(), expected)
            assert client.connect().id != former.id


def session_ids(server: Any) -> list[str]:
    with gsb.config(server=server.url, token=server.token, transport="shared"):
        return [session["id"] for session in get_client().status()["sessions"]]


def test_a_forked_child_has_a_session_of_its_own(shared_server: Any, url: str) -> None:
    with using(shared_server, url, "stream") as client:
        model = StandardScaler().fit(X)
        expected = model.transform(X)
        mine = client.connect().id
        pid = os.fork()
        if pid == 0:
            good = False
            try:
                good = bool((model.transform(X) == expected).all()) and client.connect().id != mine
            finally:
                os._exit(0 if good else 1)
        assert os.waitpid(pid, 0)[1] == 0
        np.testing.assert_array_equal(model.transform(X), expected)
        assert client.connect().id == mine
