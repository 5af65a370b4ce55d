# SPDX-License-Identifier: BSD-3-Clause
"""Worker processes that get arrays and return arrays through the pool; queues carry handles only.

The point to see is ownership. An array dies with the client that owns it, so a worker gives its result to the parent
before it says where it lies. A worker may then end, or be killed, and the result stays. What a killed worker had not
given away is freed by itself.

    python examples/worker_pool.py
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np

import shmpool

Tasks = SimpleQueue[shmpool.Handle | None]
Results = SimpleQueue[tuple[shmpool.Handle, shmpool.Handle]]


def work(path: Path, boss: shmpool.ClientId, tasks: Tasks, results: Results) -> None:
    """Take handles until there is a None; answer each with the handle of a result that belongs to the boss."""
    with shmpool.Pool.attach(path, prefault_nbytes=0) as pool:
        while (task := tasks.get()) is not None:
            rows: np.ndarray[Any, Any] = pool.get(task)  # no copy
            with pool.loan(rows.shape[:1], rows.dtype, region="output") as loan:
                np.sqrt((rows * rows).sum(axis=1), out=loan.array)  # computed straight into the pool
                result = loan.seal()
            del rows  # or the slot stays pinned while we wait for the next task
            pool.give(result, boss)
            results.put((task, result))


def main(n_workers: int = 2, n_tasks: int = 12) -> float:
    """Send `n_tasks` arrays through `n_workers` workers; the sum of all results."""
    context = multiprocessing.get_context("spawn")
    tasks: Tasks = context.SimpleQueue()
    results: Results = context.SimpleQueue()
    random = np.random.default_rng(7)
    total = 0.0
    with shmpool.Pool.open() as pool:
        arguments = (pool.path, pool.client, tasks, results)
        workers = [context.Process(target=work, args=arguments, daemon=True) for _ in range(n_workers)]
        for worker in workers:
            worker.start()
        waiting = 0
        for _ in range(n_tasks):
            if waiting == n_workers:  # two slots per worker are enough to keep all of them busy
                total += collect(pool, results)
                waiting -= 1
            tasks.put(pool.put(random.normal(size=(2000, 8))))
            waiting += 1
        for _ in range(waiting):
            total += collect(pool, results)
        for _ in workers:
            tasks.put(None)
        for worker in workers:
            worker.join(30)
    print(f"{n_tasks} tasks, {n_workers} workers, sum of the norms: {total:.3f}")
    return total


def collect(pool: shmpool.Pool, results: Results) -> float:
    """Wait for one result, add it up, and free both arrays."""
    task, result = results.get()
    total = float(pool.get(result).sum())
    pool.free(task)
    pool.free(result)
    return total


if __name__ == "__main__":
    main()
