# SPDX-License-Identifier: BSD-3-Clause
"""Servers come and go, processes fork and die: what the client does then."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gsb
import numpy as np
import pytest
from gsb import runtime
from gsb._client import Client, get_client
from gsb.cluster import KMeans
from gsb.decomposition import PCA
from gsb.ensemble import RandomForestClassifier
from gsb.errors import (
    AuthenticationError,
    ConnectError,
    ConnectionLostError,
    FallbackWarning,
    ModelLostError,
    RequestTimeoutError,
    ServerNotProvenError,
)
from gsb.linear_model import LinearRegression
from gsb.neighbors import NearestNeighbors
from gsb.preprocessing import StandardScaler
from gsb.shm_transport import ShmTransport
from gsb.svm import SVC

rng = np.random.default_rng(0)
X = rng.standard_normal((300, 8))
y = (X[:, 0] > 0).astype(int)
BIG = rng.standard_normal((5000, 8))


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


# --------------------------------------------------------------------------------- no server
def test_no_server(tmp_path: Path) -> None:
    with gsb.config(server=f"unix://{tmp_path}/none.sock", token="t"):
        with pytest.raises(ConnectError, match="no server answers") as caught:
            PCA().fit(X)
        assert "gsb serve" in str(caught.value)
        assert pickle.loads(pickle.dumps(caught.value)).hint == caught.value.hint


def test_no_server_falls_back_when_allowed(tmp_path: Path) -> None:
    with gsb.config(server=f"unix://{tmp_path}/none.sock", token="t", fallback="local"):
        estimator = PCA(2, random_state=0)
        with pytest.warns(FallbackWarning, match="no server answers") as caught:
            found = estimator.fit_transform(X)
        assert caught[0].filename == __file__
        np.testing.assert_array_equal(found, PCA(2, random_state=0).to_sklearn().fit_transform(X))
        assert estimator.gsb_report_.backend == "local"
        assert "no server" in estimator.gsb_report_.reason
        estimator.transform(X)


def test_no_token(tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("GSB_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("GSB_TOKEN", raising=False)
    with gsb.config(token=None), pytest.raises(AuthenticationError, match="no token"):
        PCA().fit(X)


@pytest.mark.parametrize("fallback", ["error", "local"])
def test_wrong_token(server: Any, fallback: str) -> None:
    with gsb.config(token="0" * 64, fallback=fallback), pytest.raises((AuthenticationError, ServerNotProvenError)):
        PCA().fit(X)


@pytest.mark.parametrize("url", ["ftp://host", "unix:", "http://", "localhost:80", "http://host/path"])
def test_nonsense_addresses(url: str) -> None:
    with pytest.raises(ConnectError, match="no address"):
        Client(url, "t").connect()


def test_found_by_the_runtime_directory(own_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = own_server()
    monkeypatch.setenv("GSB_RUNTIME_DIR", str(server.directory))
    monkeypatch.delenv("GSB_TOKEN", raising=False)
    monkeypatch.delenv("GSB_SERVER", raising=False)
    token = server.directory / "token"
    if not token.exists():
        token.touch(mode=0o600)
        token.write_text(server.token)
    with gsb.config(server=None, token=None):
        assert PCA(2).fit(X).gsb_report_.backend == "sklearn"


# --------------------------------------------------------------------------------- locations
def test_token_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "run"
    monkeypatch.setenv("GSB_RUNTIME_DIR", str(home))
    monkeypatch.delenv("GSB_TOKEN", raising=False)
    assert runtime.load_token() is None
    token = runtime.ensure_token()
    assert runtime.ensure_token() == token == runtime.load_token()
    assert len(bytes.fromhex(token)) == 32
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "token").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in home.iterdir()] == ["token"]
    (home / "token").chmod(0o644)
    with pytest.raises(runtime.RuntimeDirectoryError, match="open to others"):
        runtime.load_token()
    (home / "token").chmod(0o600)
    home.chmod(0o755)
    with pytest.raises(runtime.RuntimeDirectoryError, match="open to others"):
        runtime.load_token()
    home.chmod(0o700)
    (home / "token").write_text("\n")
    with pytest.raises(AuthenticationError, match="empty"):
        runtime.load_token()


def test_a_linked_runtime_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("GSB_RUNTIME_DIR", str(tmp_path / "link"))
    with pytest.raises(runtime.RuntimeDirectoryError, match="wrong kind"):
        runtime.socket_path()


def test_racing_servers_agree_on_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSB_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("GSB_TOKEN", raising=False)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(runtime.ensure_token())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 16
    assert len(set(found)) == 1


# --------------------------------------------------------------------------------- the server dies
def test_server_killed_while_it_computes(own_server: Any) -> None:
    server = own_server()
    with server.config():
        StandardScaler().fit(X)
        timer = threading.Timer(0.7, server.kill)
        timer.start()
        slow = rng.standard_normal((20_000, 20))
        with pytest.raises(ConnectionLostError):
            SVC(kernel="linear", max_iter=-1).fit(slow, rng.integers(0, 2, 20_000))
        timer.join(30)
        with pytest.raises(ConnectError):
            StandardScaler().fit(X)
        with gsb.config(fallback="local"), pytest.warns(FallbackWarning):
            StandardScaler().fit(X)
    gsb.disconnect()


def test_server_restarted(own_server: Any) -> None:
    server = own_server()
    with server.config():
        small = LinearRegression().fit(X, y)
        expected = small.predict(X)
        large = NearestNeighbors().fit(BIG)
        forest = RandomForestClassifier(3, random_state=0).fit(X, y)
        here = forest.predict(X)
        fetched = forest.to_sklearn()
        server.kill()
        server.start()

        # All of its state was in the answer to fit: sent back by itself.
        np.testing.assert_array_equal(small.predict(X), expected)
        assert small.gsb_report_.backend == "sklearn"
        # Its state was never fetched.
        with pytest.raises(ModelLostError, match="fit again"):
            large.kneighbors(BIG)
        # Its state is here, but does not travel back.
        with pytest.raises(ModelLostError):
            forest.predict(X)
        with gsb.config(fallback="local"), pytest.warns(FallbackWarning):
            np.testing.assert_array_equal(forest.predict(X), here)
        np.testing.assert_array_equal(fetched.predict(X), here)
        assert large.fit(BIG).kneighbors(BIG)[0].shape == (5000, 5)
    gsb.disconnect()


def test_keep_state_survives_the_server(own_server: Any) -> None:
    server = own_server()
    with server.config(keep_state=True, fallback="local"):
        model = NearestNeighbors().fit(BIG)
        expected = model.kneighbors(BIG)
        server.kill()
        with pytest.warns(FallbackWarning):
            found = model.kneighbors(BIG)
        np.testing.assert_array_equal(found[1], expected[1])
    gsb.disconnect()


def test_state_lost_with_the_server(own_server: Any) -> None:
    server = own_server()
    with server.config():
        model = NearestNeighbors().fit(BIG)
        server.kill()
        with pytest.raises(ConnectError):
            pickle.dumps(model)
        with gsb.config(fallback="local"), pytest.raises(ModelLostError):
            model.kneighbors(BIG)
    gsb.disconnect()


def test_disconnect_then_go_on(server: Any) -> None:
    model = PCA(2, random_state=0).fit(X)
    expected = model.transform(X)
    gsb.disconnect()
    np.testing.assert_array_equal(model.transform(X), expected)


def test_transport_reset_then_go_on(server: Any) -> None:
    model = PCA(2, random_state=0).fit(BIG)
    expected = model.transform(BIG)
    ShmTransport.reset()
    np.testing.assert_array_equal(StandardScaler().fit_transform(BIG).shape, BIG.shape)
    # The server may have dropped the model with the session of the closed pool; it is sent back then.
    model.to_sklearn()
    np.testing.assert_array_equal(model.transform(BIG), expected)


def test_a_deadline(server: Any) -> None:
    slow = rng.standard_normal((20_000, 20))
    with gsb.config(timeout=0.3), pytest.raises(RequestTimeoutError):
        SVC(kernel="linear").fit(slow, rng.integers(0, 2, 20_000))
    assert StandardScaler().fit(X).gsb_report_.backend == "sklearn"


# --------------------------------------------------------------------------------- processes
def in_child(work: Callable[[], Any], seconds: float = 60) -> Any:
    """Run `work` in a forked child; its value, or its exception, comes back by a pipe."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            try:
                data = pickle.dumps((True, work()))
            except BaseException as error:
                data = pickle.dumps((False, repr(error)))
            os.write(write, data)
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    try:
        readable, _, _ = select.select([read], [], [], seconds)
        if not readable:
            os.kill(pid, signal.SIGKILL)
        data = os.read(read, 1 << 20) if readable else b""
    finally:
        os.close(read)
        os.waitpid(pid, 0)
    assert data, "the child died or hung"
    good, value = pickle.loads(data)
    assert good, value
    return value


def test_fork(server: Any) -> None:
    model = PCA(2, random_state=0).fit(BIG)
    expected = model.transform(BIG)

    def work() -> Any:
        # The parent's model, a model of our own, and a large array each way.
        ours = StandardScaler().fit_transform(BIG)
        return bool((model.transform(BIG) == expected).all()), ours.shape

    assert in_child(work) == (True, BIG.shape)
    # The child's end takes nothing from the parent.
    np.testing.assert_array_equal(model.transform(BIG), expected)
    assert in_child(work) == (True, BIG.shape)


def test_fork_does_not_forget_the_parents_model(server: Any) -> None:
    model = PCA(2).fit(X)

    def work() -> None:
        nonlocal model
        del model
        StandardScaler().fit(X)

    in_child(work)
    model.transform(X)


def _fit_in_worker(seed: int) -> Any:
    return KMeans(2, n_init=1, random_state=seed).fit(X)


def test_spawned_workers_return_models(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSB_SERVER", server.url)
    monkeypatch.setenv("GSB_TOKEN", server.token)
    script = (
        "import pickle, sys, numpy as np\n"
        "from gsb.cluster import KMeans\n"
        "X = pickle.load(sys.stdin.buffer)\n"
        "model = KMeans(2, n_init=1, random_state=0).fit(X)\n"
        "assert model.gsb_report_.backend == 'sklearn'\n"
        "sys.stdout.buffer.write(pickle.dumps(model))\n"
    )
    found = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(X), capture_output=True, timeout=60)
    assert found.returncode == 0, found.stderr.decode()
    model = pickle.loads(found.stdout)
    np.testing.assert_array_equal(model.labels_, _fit_in_worker(0).labels_)


def test_killed_client_leaves_nothing(own_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = own_server()
    monkeypatch.setenv("GSB_SERVER", server.url)
    monkeypatch.setenv("GSB_TOKEN", server.token)
    script = (
        "import numpy as np, time\n"
        "from gsb.neighbors import NearestNeighbors\n"
        "model = NearestNeighbors().fit(np.random.rand(5000, 8))\n"
        "print('fitted', flush=True)\n"
        "while True: model.kneighbors(np.random.rand(5000, 8))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        readable, _, _ = select.select([child.stdout], [], [], 60)
        assert readable
        assert child.stdout.readline() == b"fitted\n"
        time.sleep(0.3)
    finally:
        child.kill()
        child.wait(10)
        child.stdout.close()  # type: ignore[union-attr]
    with server.config():
        client = get_client()
        pool = client.connect().transport.pool

        def gone() -> bool:
            pool.reclaim()
            status = client.status()
            taken = [slot for slot in pool.stat().slots if slot.state != "free"]
            return status["models"]["count"] == 0 and len(status["sessions"]) == 1 and not taken

        assert eventually(gone), (client.status(), pool.stat())
    gsb.disconnect()


def test_no_files_but_the_pools(own_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = own_server()
    before = set(server.directory.iterdir())
    with server.config():
        for _ in range(5):
            StandardScaler().fit_transform(BIG)
    gsb.disconnect()
    assert set(server.directory.iterdir()) == before
    beside = {path.name for path in server.pool.parent.glob(f"{server.pool.name}*")}
    assert beside == {server.pool.name, f"{server.pool.name}.lock"}


def test_start_methods_are_known() -> None:
    # The tests above cover what this platform offers.
    assert "spawn" in multiprocessing.get_all_start_methods()
