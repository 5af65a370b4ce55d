# SPDX-License-Identifier: BSD-3-Clause
"""Several client processes at once: every byte verified, nothing left, whoever is killed."""

from __future__ import annotations

import time
from typing import Any

import pytest

CLIENTS = 4
REQUESTS = 50


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        pytest.param(8_000, (), id="512KB"),
        pytest.param(1_000_000, ("--slot-size", "64M"), id="64MB", marks=[pytest.mark.big, pytest.mark.timeout(600)]),
    ],
)
def test_four_clients_at_once(
    run_server: Any, children: Any, worker: str, slots_free: Any, wait_until: Any, rows: int, options: tuple[str, ...]
) -> None:
    server = run_server(*options)
    clients = [children.start(worker, seed, REQUESTS, rows, env=server.environment) for seed in range(CLIENTS)]
    for client in clients:
        assert client.hear(120) == "ready"
    for client in clients:
        client.say("go")
    for client in clients:
        said = client.hear(500)
        assert said["wrong"] == 0
        assert said["backend"] == "sklearn"
        assert said["slots"], "the arrays must have gone through the pool"
    found = server.status()
    assert found["metrics"]["methods"] == {
        "StandardScaler.fit": CLIENTS,
        "StandardScaler.transform": CLIENTS * REQUESTS,
    }
    assert found["metrics"]["errors"] == {}
    for client in clients:
        client.say("end")
        client.finish()
    slots_free(server)
    wait_until(lambda: not server.status()["sessions"], "all sessions end")
    assert server.status()["models"]["count"] == 0


def test_the_same_while_one_is_killed_every_second(
    server: Any, children: Any, worker: str, slots_free: Any, wait_until: Any
) -> None:
    def start(seed: int) -> Any:
        client = children.start(worker, seed, 100_000 if seed >= 100 else REQUESTS * 4, 8_000, env=server.environment)
        assert client.hear(120) == "ready"
        client.say("go")
        return client

    survivors = [start(seed) for seed in range(3)]
    killed = 0
    for seed in range(100, 105):
        victim = start(seed)
        time.sleep(1.0)
        assert victim.is_running, victim.stderr()
        victim.kill()
        killed += 1
    for client in survivors:
        assert client.hear(300)["wrong"] == 0
        client.say("end")
        client.finish()
    slots_free(server)
    wait_until(lambda: not server.status()["sessions"], "all sessions end")
    found = server.status()
    assert found["metrics"]["sessions_lost"] >= killed
    assert found["models"]["count"] == 0
    assert server.process.poll() is None


def test_a_client_stopped_in_the_middle_does_not_stop_the_others(
    server: Any, children: Any, worker: str, slots_free: Any
) -> None:
    stopped = children.start(worker, 100, 100_000, 8_000, env=server.environment)
    assert stopped.hear(120) == "ready"
    stopped.say("go")
    time.sleep(0.3)
    stopped.stop()
    other = children.start(worker, 1, REQUESTS, 8_000, env=server.environment)
    assert other.hear(120) == "ready"
    other.say("go")
    assert other.hear(120)["wrong"] == 0
    other.say("end")
    other.finish()
    stopped.kill()
    slots_free(server)


def test_threads_of_one_client(server: Any, children: Any, slots_free: Any) -> None:
    child = children.start(
        """
import threading
from gsb.decomposition import PCA
from sklearn.decomposition import PCA as Plain
wrong = []
def work(seed):
    X = np.random.default_rng(seed).standard_normal((4000, 5))
    for _ in range(10):
        ours, plain = PCA(2).fit(X), Plain(2).fit(X)
        if not np.array_equal(ours.components_, plain.components_):
            wrong.append(seed)
        if not np.array_equal(ours.transform(X), plain.transform(X)):
            wrong.append(seed)
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
say(wrong)
""",
        env=server.environment,
    )
    assert child.hear(120) == []
    child.finish()
    slots_free(server)
