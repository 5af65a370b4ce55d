# SPDX-License-Identifier: BSD-3-Clause
"""The server is killed, restarted, orphaned, asked to end: clients learn it in one word, nothing stays."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

import pytest

CLIENT = """
import gsb
from gsb.decomposition import PCA
X = np.random.default_rng(0).standard_normal((30_000, 4))
model = PCA(2).fit(X)
first = model.transform(X)
say("fitted")
hear()
def attempt(action):
    try:
        action()
        return "done"
    except Exception as error:
        return [type(error).__name__, isinstance(error, gsb.GSBError), bool(getattr(error, "hint", ""))]
say(attempt(lambda: PCA(2).fit(X)))
hear()
again = PCA(2)
say([attempt(lambda: again.fit(X)), bool(np.array_equal(again.transform(X), first))])
hear()
"""


def test_killed_with_nine_and_restarted(server: Any, children: Any, slots_free: Any) -> None:
    client = children.start(CLIENT, env=server.environment)
    assert client.hear(120) == "fitted"
    server.kill()
    name, ours, hint = client.ask("try")
    assert name in {"ConnectError", "ConnectionLostError"}
    assert ours
    assert hint
    server.start()  # replaces the socket file the other one left, and takes the pool over
    assert client.ask("again", 120) == ["done", True]
    client.say("end")
    client.finish()
    slots_free(server)


def test_killed_during_a_call(server: Any, children: Any, wait_until: Any) -> None:
    client = children.start(
        """
import gsb
from gsb.ensemble import RandomForestClassifier
X = np.random.default_rng(0).standard_normal((4000, 20))
y = (X[:, 0] > 0).astype(int)
say("go")
try:
    RandomForestClassifier(n_estimators=100_000).fit(X, y)
except Exception as error:
    say([type(error).__name__, isinstance(error, ConnectionError)])
""",
        env=server.environment,
    )
    assert client.hear(120) == "go"
    wait_until(lambda: server.status()["workers"]["pending"] == 1, "the call runs")
    server.kill()
    assert client.hear(120) == ["ConnectionLostError", True]
    client.finish()


def test_it_ends_when_asked_and_leaves_no_socket(run_server: Any) -> None:
    server = run_server()
    path = server.folder / "server.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    server.process.stop()
    assert server.process.poll() == 0
    assert not path.exists()


def test_it_ends_with_the_process_that_started_it(children: Any, pool_dir: Any, wait_until: Any) -> None:
    """The starter is killed with nine, so it cannot tell the server anything."""
    child = children.start(
        """
import tempfile
from gsb.cli.server_process import ServerProcess
folder = tempfile.mkdtemp(prefix="gsb-e2e-")
server = ServerProcess(["--socket", folder + "/s", "--pool", args[0] + "/pool.bin", "--slot-size", "1M"],
                       {"GSB_RUNTIME_DIR": folder, "GSB_TOKEN": "x" * 32})
server.start()
say([server.pid, folder])
hear()
""",
        pool_dir,
    )
    pid, folder = child.hear(120)
    child.kill()

    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        # An orphan may have nobody who reaps it here.
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"

    wait_until(gone, "the orphaned server ends")
    assert not os.path.exists(folder + "/s")
    os.rmdir(folder)


def test_a_second_server_on_the_same_socket_is_refused(server: Any, gsb_command: Any) -> None:
    done = gsb_command("serve", "--pool", str(server.pool_path), env=server.environment)
    assert done.returncode == 1
    assert "already" in done.stderr + done.stdout
    assert server.process.poll() is None


def test_the_wrong_token_is_refused(server: Any, gsb_command: Any) -> None:
    done = gsb_command("status", env={**server.environment, "GSB_TOKEN": "wrong"})
    assert done.returncode == 1
    assert "token" in done.stderr


def test_tcp_as_well(run_server: Any, children: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = run_server("--port", str(port))
    text = (
        "from gsb.decomposition import PCA\n"
        "X = np.random.default_rng(0).standard_normal((30_000, 4))\n"
        "say(list(PCA(2).fit_transform(X).shape))"
    )
    for url in (f"http://127.0.0.1:{port}", f"http://localhost:{port}", server.url):
        client = children.start(text, env={**server.environment, "GSB_SERVER": url})
        assert client.hear(120) == [30_000, 2]
        client.finish()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_in_order(children: Any, pool_dir: Any, tmp_path: Any, number: int, wait_until: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="gsb-e2e-") as folder:
        child = children.start(
            "import runpy\n"
            "sys.argv = ['gsb', 'serve', '--pool', args[0] + '/pool.bin', '--slot-size', '1M']\n"
            "runpy.run_module('gsb.cli', run_name='__main__')",
            pool_dir,
            env={"GSB_RUNTIME_DIR": folder, "COLUMNS": "200", "TERM": "dumb"},
        )
        wait_until(lambda: os.path.exists(f"{folder}/server.sock"), "the server listens")
        wait_until(lambda: b"gsb server" in child.said(), "the card is shown")
        assert os.stat(f"{folder}/token").st_mode & 0o777 == 0o600
        child.signal(number)
        assert child.wait(60) == 0
        assert sorted(os.listdir(folder)) == ["token"]
