# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 of working clients at random instants, thousands of times.

Workers open a pool and put, loan, seal, abort, get, hold, free, give, adopt, reclaim and close, as chance will have it.
They tell each other of arrays on a board in shared memory, and check of every array they get that it is the one that
the board promised, whole, and unchanged as long as they look at it. Meanwhile they are killed, stopped for a while,
killed all at once; the abandoned pool is taken over, or removed and created anew by all at once. Every few dozen kills
a lone survivor must be able to use every slot. ::

    python tests/soak/soak_kills.py --kills 10000 --seconds 600

The last line says ``N kills, N operations, 0 errors``; the exit status is 1 if there were any.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import shmpool

# Behind everything else: no folder of tests/ may be found in the place of a package.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from helpers.pools import REGIONS, SLOT, check_progress, check_stamped, small, stamped

N_WORKERS = 5
N_ENTRIES = 32
ENTRY = struct.Struct("<44sQ")
ENTRY_NBYTES = 64
BOARD_NBYTES = N_ENTRIES * ENTRY_NBYTES


class Board:
    """Where workers publish handles. An entry that its writer did not finish fails its checksum."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1 << 16)
        self.operations = np.frombuffer(self._memory, np.uint64, N_WORKERS * 8, BOARD_NBYTES)[::8]

    def publish(self, place: int, handle: shmpool.Handle, seed: int) -> None:
        entry = ENTRY.pack(handle.to_bytes(), seed)
        start = place * ENTRY_NBYTES
        self._memory[start : start + len(entry) + 4] = entry + zlib.crc32(entry).to_bytes(4, "little")

    def read(self, place: int) -> tuple[shmpool.Handle, int] | None:
        start = place * ENTRY_NBYTES
        raw = self._memory[start : start + ENTRY.size + 4]
        entry, crc = raw[: ENTRY.size], raw[ENTRY.size :]
        if zlib.crc32(entry).to_bytes(4, "little") != crc or not any(entry):
            return None
        handle, seed = ENTRY.unpack(entry)
        return shmpool.Handle.from_bytes(handle), seed


class Worker:
    """One client's life, until somebody kills it."""

    def __init__(self, index: int, path: Path, board: Board, seed: int) -> None:
        self.index, self.path, self.board = index, path, board
        self.random = random.Random(seed)
        self.pool = small(path)
        self.mine: list[shmpool.Handle] = []
        self.views: list[tuple[Any, int]] = []
        self.steps = (
            [self.put] * 5
            + [self.read] * 8
            + [self.free] * 4
            + [self.loan, self.adopt, self.give, self.drop, self.drop, self.copy]
        )

    def run(self) -> None:
        while True:
            try:
                self.random.choice(self.steps)()
                if self.random.random() < 0.005:
                    self.reopen()
            except shmpool.PoolFullError:
                self.rest()
            except (shmpool.StaleHandleError, shmpool.ClientGoneError):
                pass  # somebody freed it, or died
            except shmpool.HandleError as error:
                if "names pool" not in str(error):  # of the pool that was here before
                    raise
            self.board.operations[self.index] += 1

    def new(self) -> tuple[int, int]:
        """Seed and size of a new array: small, one whole slot, or a span."""
        size = self.random.choice([256, 256, 4096, SLOT, SLOT + 8, 2 * SLOT])
        return self.random.getrandbits(60), size

    def announce(self, handle: shmpool.Handle, seed: int) -> None:
        self.mine.append(handle)
        self.board.publish(self.random.randrange(N_ENTRIES), handle, seed)
        if len(self.mine) > 2:
            self.pool.free(self.mine.pop(0))

    def put(self) -> None:
        seed, size = self.new()
        handle = self.pool.put(stamped(seed, size), self.random.choice(REGIONS), 0.05)
        self.announce(handle, seed)

    def loan(self) -> None:
        seed, size = self.new()
        with self.pool.loan((size // 8,), "u8", region=self.random.choice(REGIONS), timeout=0.05) as loan:
            loan.array[...] = stamped(seed, size)
            time.sleep(self.random.choice([0, 0, 0.002]))  # or nearly nobody would ever die while writing
            if self.random.random() < 0.7:
                self.announce(loan.seal(), seed)

    def found(self) -> tuple[shmpool.Handle, int]:
        while True:
            entry = self.board.read(self.random.randrange(N_ENTRIES))
            if entry is not None:
                return entry
            self.put()

    def read(self) -> None:
        handle, seed = self.found()
        view = self.pool.get(handle)
        check_stamped(view, seed)
        if self.random.random() < 0.3:
            self.views.append((view, seed))
            if len(self.views) > 2:
                # What was looked at for a while must be as it was.
                check_stamped(*self.views.pop(0))

    def copy(self) -> None:
        handle, seed = self.found()
        array = self.pool.get(handle, copy=True)
        check_stamped(array, seed)

    def free(self) -> None:
        if self.mine and self.random.random() < 0.7:
            self.pool.free(self.mine.pop())
        else:
            self.pool.free(self.found()[0])

    def adopt(self) -> None:
        handle = self.found()[0]
        self.pool.adopt(handle)
        self.mine.append(handle)

    def give(self) -> None:
        clients = [client for client in self.pool.stat().clients if client.index != self.pool.client.index]
        if clients and self.mine:
            client = self.random.choice(clients)
            self.pool.give(self.mine.pop(), shmpool.ClientId(client.index, client.nonce))

    def drop(self) -> None:
        for view, seed in self.views:
            check_stamped(view, seed)
        self.views.clear()

    def rest(self) -> None:
        """Let go of everything: the pool is full, perhaps with what we hold."""
        self.drop()
        for handle in self.mine:
            with contextlib.suppress(shmpool.StaleHandleError):
                self.pool.free(handle)
        self.mine.clear()

    def reopen(self) -> None:
        self.rest()
        self.pool.close()
        self.pool = small(self.path)


class Soak:
    """Starts, kills and replaces workers; counts."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.path = folder / "pool.bin"
        self.random = random.Random(seed)
        self.board = Board()
        self.workers: dict[int, int] = {}  # index: pid
        self.kills = 0
        self.errors = 0

    def fork(self, work: Any) -> int:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        return pid

    def start(self, index: int) -> None:
        seed = self.random.getrandbits(60)
        self.workers[index] = self.fork(lambda: Worker(index, self.path, self.board, seed).run())

    def kill(self, index: int) -> None:
        pid = self.workers.pop(index)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        self.kills += 1
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            self.errors += 1
            print(f"worker {index} had ended with status {status} before it was killed", file=sys.stderr)

    def kill_all(self) -> None:
        for index in list(self.workers):
            self.kill(index)

    def pause(self, index: int) -> None:
        pid = self.workers[index]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.005)
        os.kill(pid, signal.SIGCONT)

    def audit(self) -> None:
        """Everybody is dead: one survivor must be able to use all of the pool."""

        def work() -> None:
            with small(self.path, timeout=10.0) as pool:
                check_progress(pool, self.random.getrandbits(40))

        _, status = os.waitpid(self.fork(work), 0)
        if status != 0:
            self.errors += 1
            print(f"the audit after {self.kills} kills ended with status {status}", file=sys.stderr)

    def round(self, n: int) -> None:
        """Some workers, n kills of single ones, then of all."""
        for index in range(N_WORKERS):
            self.start(index)
        for _ in range(n):
            # Short lives die while they open, long ones in full work.
            time.sleep(self.random.choice([0.0, 0.005, 0.02, 0.08]) * self.random.random())
            victim = self.random.randrange(N_WORKERS)
            if self.random.random() < 0.1:
                self.pause(self.random.randrange(N_WORKERS))
            self.kill(victim)
            self.start(victim)
        time.sleep(0.02)
        self.kill_all()

    def run(self, kills: int, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while self.kills < kills and time.monotonic() < deadline and not self.errors:
            self.round(min(40, max(0, kills - self.kills - N_WORKERS)))
            self.audit()
            if self.random.random() < 0.3:
                shmpool.Pool.remove(self.path)  # the next ones race to create it
        operations = int(self.board.operations.sum())
        if operations < 10 * self.kills:
            self.errors += 1
            print("the workers did next to nothing between the kills", file=sys.stderr)
        print(f"{self.kills} kills, {operations} operations, {self.errors} errors")
        return 1 if self.errors else 0


def main() -> NoReturn:
    parser = argparse.ArgumentParser(description="kill -9 of working clients at random instants")
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop after this time, however many it were")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=None, help="where the pool lies; default: a new one on tmpfs")
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", file=sys.stderr)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="shmpool-soak-", dir="/dev/shm"))
    soak = Soak(folder, seed)
    try:
        code = soak.run(options.kills, options.seconds)
    finally:
        for pid in soak.workers.values():
            os.kill(pid, signal.SIGKILL)
        if options.folder is None:
            shutil.rmtree(folder)
    sys.exit(code)


if __name__ == "__main__":
    main()
