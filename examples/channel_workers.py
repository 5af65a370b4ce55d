# SPDX-License-Identifier: BSD-3-Clause
"""A pool of worker processes around two queues: multiprocessing's own code, with one import replaced."""

from multiprocessing import Process
from typing import Any

import numpy as np

from shmpool import Queue

N_WORKERS = 2
N_TASKS = 12


def work(tasks: Any, results: Any) -> None:
    while (task := tasks.get()) is not None:
        number, matrix = task
        results.put((number, np.linalg.norm(matrix, axis=1)))


def main() -> None:
    tasks: Any = Queue(4)
    results: Any = Queue()
    workers = [Process(target=work, args=(tasks, results)) for _ in range(N_WORKERS)]
    for worker in workers:
        worker.start()
    matrix = np.arange(2_000.0 * 8).reshape(2_000, 8)
    total = 0.0
    for number in range(N_TASKS):
        tasks.put((number, matrix))
        if number >= 2:
            total += results.get()[1].sum()
    for _ in range(2):
        total += results.get()[1].sum()
    for _ in workers:
        tasks.put(None)
    for worker in workers:
        worker.join()
    expected = N_TASKS * np.linalg.norm(matrix, axis=1).sum()
    print(f"{N_TASKS} tasks, {N_WORKERS} workers, {'right' if np.isclose(total, expected) else 'WRONG'}")


if __name__ == "__main__":
    main()
