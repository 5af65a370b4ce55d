# SPDX-License-Identifier: BSD-3-Clause
"""Kill GPU workers over stand-ins, again and again, under clients that look at every byte.

``python tests/soak/soak_gpu.py --seconds 60``. Fails if a result is wrong, an error is not one of those that a death
may cause, a thread is stuck, or anything stays taken: slots, device memory, the turn, file descriptors.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("src", "python", "server")]

import numpy as np  # noqa: E402
from gsb_server.backends.base import Job, StreamedArray, StreamSpec  # noqa: E402
from gsb_server.errors import ServerError  # noqa: E402
from gsb_server.gpu.supervisor import SupervisedBackend  # noqa: E402

import shmpool  # noqa: E402

SLOT = 1 << 20
PATIENCE = 20.0
# What the death of a worker, or a deadline, may do to a call.
EXPECTED = frozenset({"worker_lost", "stale_handle", "timeout"})


class Soak:
    """One run."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.pool = shmpool.Pool.open(folder / "pool.bin", slot_nbytes=SLOT, prefault_nbytes=0)
        paths = [ROOT / "tests" / "standins", ROOT / "tests" / "standins" / "fake"]
        paths += [ROOT / part for part in ("src", "python", "server")]
        self.backend = SupervisedBackend(
            self.pool,
            device="gsb_server.gpu.device:CupyDevice",
            backends=("trial_backend:TrialBackend",),
            environment={"PYTHONPATH": os.pathsep.join(map(str, paths)), "FAKE_CUPY_TOTAL": str(64 << 20)},
            longest_pause=0.05,
        )
        self.until = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def run_job(self, method: str, *args: Any, timeout: float = PATIENCE) -> Any:
        """Run one job of the trial backend."""
        return self.backend.run(Job("trial.Trial", {}, None, method, args, {}, {}, timeout=timeout))

    def client(self, seed: int) -> None:
        """Call until the time is up."""
        chance = random.Random(seed)
        with shmpool.Pool.attach(self.pool.path, prefault_nbytes=0) as pool:
            for number in range(seed, sys.maxsize):
                if time.monotonic() > self.until:
                    return
                array = np.full(chance.choice([100, 5000, 100_000, 250_000]), float(number))
                kind = chance.choices(["slot", "stream", "memory", "harm"], [5, 3, 1, 1])[0]
                try:
                    getattr(self, f"_{kind}")(pool, array, chance)
                    self.counts[kind] += 1
                except ServerError as error:
                    self.counts[error.code] += 1
                    if error.code not in EXPECTED:
                        self.faults.append(f"{kind}: {error.code}: {error}")
                except BaseException as error:
                    self.faults.append(f"{kind}: {type(error).__name__}: {error}")

    def _slot(self, pool: shmpool.Pool, array: Any, chance: random.Random) -> None:
        method = chance.choice(["echo", "shared", "spoil"])
        handle = pool.put(array, timeout=PATIENCE)
        try:
            outcome = self.run_job(method, self.pool.get(handle))
            if not np.array_equal(outcome.result, array + (method == "spoil")):
                self.faults.append(f"a wrong result of {method}")
        finally:
            pool.free(handle)

    def _stream(self, pool: shmpool.Pool, array: Any, chance: random.Random) -> None:
        spec = StreamSpec(f"{id(pool)}/{array[0]}", array.shape, array.dtype.str, "C")
        flat = array.view(np.uint8)
        try:
            for offset in range(0, flat.size, SLOT):
                handle = pool.put(flat[offset : offset + SLOT], timeout=PATIENCE)
                try:
                    self.backend.stream(spec, offset, handle, PATIENCE)
                finally:
                    pool.free(handle)
            outcome = self.run_job("echo", StreamedArray(spec, self.backend.fetch))
            if not np.array_equal(outcome.result, array):
                self.faults.append("a wrong array in parts")
        finally:
            self.backend.drop([spec.key])

    def _memory(self, pool: shmpool.Pool, array: Any, chance: random.Random) -> None:
        self.run_job("need", array, 40 << 20)

    def _harm(self, pool: shmpool.Pool, array: Any, chance: random.Random) -> None:
        method, *args = chance.choice([("die",), ("exit", 3), ("sticky", 700), ("sleep", 60.0)])
        self.run_job(method, *args, timeout=0.3 if method == "sleep" else PATIENCE)

    def run(self) -> None:
        """Kill until the time is up, then look at what is left."""
        probe = self.backend.probe()
        assert probe.available, probe.reason
        descriptors = len(os.listdir("/proc/self/fd"))
        threads = [threading.Thread(target=self.client, args=(10_000 * seed,)) for seed in range(1, 5)]
        for thread in threads:
            thread.start()
        chance = random.Random(0)
        while time.monotonic() < self.until:
            time.sleep(chance.uniform(0.2, 1.5))
            pid = self.backend.status()["pid"]
            if pid is not None:
                try:
                    os.kill(pid, chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV]))
                    self.counts["kills"] += 1
                except ProcessLookupError:
                    continue
        for thread in threads:
            thread.join(3 * PATIENCE)
        self.faults += [f"{thread.name} is stuck" for thread in threads if thread.is_alive()]
        gc.collect()
        assert self.backend.probe().available
        self.pool.reclaim()
        self.faults += [f"slot {slot}" for slot in self.pool.stat().slots if slot.state != "free"]
        status = self.backend.status()
        self.faults += [f"{name}: {status[name]}" for name in ("admitted_nbytes", "waiting", "streams") if status[name]]
        if len(os.listdir("/proc/self/fd")) > descriptors + 4:  # the clients' pools take a few for a moment
            self.faults.append(f"{len(os.listdir('/proc/self/fd'))} descriptors, {descriptors} at first")
        print(f"{dict(self.counts)}, {self.backend.restarts} workers buried, {len(self.faults)} faults")
        self.backend.close()
        self.pool.close()


def main() -> int:
    """Run; the exit status says whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="gsb-soak-", dir="/dev/shm"))
    try:
        soak = Soak(folder, options.seconds)
        soak.run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for fault in soak.faults[:20]:
        print(fault)
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
