# SPDX-License-Identifier: BSD-3-Clause
"""The worker pool: bounded, off the loop, and gone at the end."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from typing import Any

import pytest
from gsb_server.errors import ServerError
from gsb_server.workers import Workers


def _run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_it_returns_and_raises() -> None:
    async def main() -> None:
        workers = Workers(2, 4)
        assert await workers.run(lambda a, b: a + b, 1, 2) == 3
        with pytest.raises(ZeroDivisionError):
            await workers.run(lambda: 1 / 0)
        assert await workers.run(threading.current_thread) is not threading.current_thread()
        assert workers.pending == 0
        workers.close()

    _run(main())


def test_no_more_than_its_threads_run_and_no_more_than_the_limit_wait() -> None:
    async def main() -> None:
        workers = Workers(2, 3)
        gate = threading.Event()
        running, peak, lock = 0, 0, threading.Lock()

        def job() -> None:
            nonlocal running, peak
            with lock:
                running += 1
                peak = max(peak, running)
            assert gate.wait(60)
            with lock:
                running -= 1

        tasks = [asyncio.create_task(workers.run(job)) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(ServerError) as caught:
            await workers.run(job)
        assert caught.value.code == "busy"
        gate.set()
        await asyncio.gather(*tasks)
        assert peak <= 2
        await workers.run(int)
        workers.close()

    _run(main())


def test_a_cancelled_request_does_not_disturb_the_thread() -> None:
    async def main() -> None:
        workers = Workers(1, 4)
        gate = threading.Event()
        task = asyncio.create_task(workers.run(gate.wait, 60))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        gate.set()
        assert await workers.run(int, "5") == 5
        workers.close()

    _run(main())


def test_nothing_of_a_call_stays_alive() -> None:
    class Thing:
        pass

    async def main() -> None:
        workers = Workers(1, 4)
        thing = Thing()
        reference = weakref.ref(thing)
        await workers.run(lambda value: None, thing)
        del thing
        await workers.run(int)  # the thread has come round
        gc.collect()
        assert reference() is None
        workers.close()

    _run(main())


def test_draining_refuses_and_waits() -> None:
    async def main() -> None:
        workers = Workers(1, 4)
        gate = threading.Event()
        task = asyncio.create_task(workers.run(gate.wait, 60))
        await asyncio.sleep(0)
        assert not await workers.drain(0.05)
        with pytest.raises(ServerError) as caught:
            await workers.run(int)
        assert caught.value.code == "shutting_down"
        gate.set()
        assert await workers.drain(30)
        assert await task
        workers.close()

    _run(main())


def test_a_full_server_says_busy(
    make_server: Any, make_peer: Any, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    from sklearn.decomposition import PCA

    server = make_server(workers=1, queue_limit=1)
    peer = make_peer(server)
    gate, inside = threading.Event(), threading.Event()
    original = PCA._fit

    def slow(self: Any, X: Any) -> Any:
        inside.set()
        assert gate.wait(60)
        return original(self, X)

    monkeypatch.setattr(PCA, "_fit", slow)
    X = np.eye(5)
    statuses: list[int] = []

    def call(timeout: float) -> None:
        statuses.append(peer.call("decomposition.PCA", "fit", X, params={}, timeout=timeout).status)

    threads = [threading.Thread(target=call, args=(timeout,)) for timeout in (60.0, 0.01)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    wait_until(lambda: server.service.workers.pending == 2, "the second call waits")
    time.sleep(0.05)
    answer = peer.call("decomposition.PCA", "fit", X, params={})
    assert (answer.status, answer.code) == (503, "busy")
    gate.set()
    for thread in threads:
        thread.join(60)
    # The second waited longer than anybody waits for it.
    assert sorted(statuses) == [200, 504]
