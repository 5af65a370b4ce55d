# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 of producers and consumers at random instants, and every message accounted for.

Producers send numbered arrays, small ones and such that need a slot; consumers receive. Each notes in shared memory
what it is about to do and what it has done: a producer the number it begins to send, and then that it is sent; a
consumer the number it got. They are killed at random and replaced. In the end of a round one survivor receives what
is left; then for every message exactly one of these must hold: it was received once and whole; its producer died
between the two notes; or a consumer died between the acceptance and its note, of which there are at most as many as
dead consumers. After that every slot of the pool must be usable. Every other round is a broadcast, where each
consumer must get an ascending run of numbers from each producer. ::

    python tests/soak/soak_channels.py --kills 100000 --seconds 7200

The last line says ``N kills, N messages, 0 errors``; the exit status is 1 if there were any.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.pools import check_all_free, check_progress, check_stamped, small, stamped

import shmpool

N_PRODUCERS = 2
N_CONSUMERS = 2
N_MESSAGES = 200_000  # numbers per round; a round ends before they do
CELL = 1024


class Notes:
    """What became of each message: shared by everybody, written by one process per byte and message."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 4 * N_MESSAGES + 4096)
        self.next = np.frombuffer(self._memory, np.uint64, 1)
        self.begun = np.frombuffer(self._memory, np.uint8, N_MESSAGES, 4096)
        self.sent = np.frombuffer(self._memory, np.uint8, N_MESSAGES, 4096 + N_MESSAGES)
        self.received = np.frombuffer(self._memory, np.uint8, N_MESSAGES, 4096 + 2 * N_MESSAGES)

    def clear(self) -> None:
        self._memory[:] = bytes(len(self._memory))


class Round:
    """One channel, from its creation to its end."""

    def __init__(self, folder: Path, seed: int, broadcast: bool) -> None:
        self.path = folder / "pool.bin"
        self.random = random.Random(seed)
        self.broadcast = broadcast
        self.notes = Notes()
        self.kills = 0
        self.dead_consumers = 0
        self.errors = 0
        self.pids: dict[int, int] = {}

    def fork(self, work: Callable[[], None]) -> int:
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

    def produce(self, place: int, first: int, seed: int) -> None:
        """Send numbers of this producer's own stretch until killed."""
        chance = random.Random(seed)
        notes = self.notes
        with small(self.path, scratch_slots=4) as pool, shmpool.Channel.attach("c", pool, role="send", timeout=10) as c:
            for number in range(first, first + N_MESSAGES // 400):
                array = stamped(number, chance.choice([256, 256, 256, 4096]))
                notes.begun[number] = 1
                c.send(array, 30)
                notes.sent[number] = 1
            time.sleep(60)

    def consume(self, place: int) -> None:
        notes = self.notes
        last: dict[int, int] = {}
        with small(self.path, scratch_slots=4) as pool, shmpool.Channel.attach("c", pool, role="recv", timeout=10) as c:
            while True:
                try:
                    number = check_stamped(c.recv(1.0))
                except shmpool.ChannelEmptyError:
                    continue
                if self.broadcast:
                    stretch = number // (N_MESSAGES // 400)
                    assert number > last.get(stretch, -1), f"{number} after {last[stretch]}"
                    last[stretch] = number
                else:
                    assert notes.received[number] == 0, f"{number} received twice"
                    notes.received[number] = 1

    def start(self, place: int, first: int) -> None:
        seed = self.random.getrandbits(60)
        if place < N_PRODUCERS:
            self.pids[place] = self.fork(lambda: self.produce(place, first, seed))
        else:
            self.pids[place] = self.fork(lambda: self.consume(place))

    def kill(self, place: int) -> None:
        pid = self.pids.pop(place)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        self.kills += 1
        self.dead_consumers += place >= N_PRODUCERS
        if not os.WIFSIGNALED(status):
            self.errors += 1
            print(f"process {place} had ended with status {status} before it was killed", file=sys.stderr)

    def run(self, kills: int) -> int:
        """Kill; then account for everything. How many messages there were."""
        n = N_PRODUCERS + N_CONSUMERS
        stretch = N_MESSAGES // 400
        used = 0
        keeper = small(self.path, scratch_slots=4)
        channel = shmpool.Channel.open("c", keeper, 8, cell_nbytes=CELL, broadcast=self.broadcast, role="both")
        try:
            # The keeper is attached so that the channel lives on, and forgets what it is sent (broadcast).
            self.pids = {}
            for place in range(n):
                self.start(place, used * stretch)
                used += place < N_PRODUCERS
            for _ in range(min(kills, 390)):
                end = time.monotonic() + self.random.choice([0.0, 0.002, 0.01, 0.03]) * self.random.random()
                while time.monotonic() < end or (self.broadcast and not channel.empty()):
                    if self.broadcast and not channel.empty():
                        check_stamped(channel.recv(0))
                    else:
                        time.sleep(0.0005)
                place = self.random.randrange(n)
                if self.random.random() < 0.1:  # a while with nobody at one end
                    os.kill(self.pids[place], signal.SIGSTOP)
                    time.sleep(0.002)
                    os.kill(self.pids[place], signal.SIGCONT)
                self.kill(place)
                self.start(place, used * stretch)
                used += place < N_PRODUCERS
            for place in list(self.pids):
                self.kill(place)
            keeper.reclaim()
            while not channel.empty():
                number = check_stamped(channel.recv(1.0))
                if not self.broadcast:
                    self.errors += int(self.notes.received[number])
                    self.notes.received[number] = 1
        finally:
            for place in list(self.pids):
                self.kill(place)
            channel.close()
        keeper.reclaim()
        check_all_free(keeper)
        check_progress(keeper)
        keeper.close()
        notes = self.notes
        if not self.broadcast:
            lost = int(((notes.sent == 1) & (notes.received == 0)).sum())
            if lost > self.dead_consumers:
                self.errors += 1
                print(f"{lost} messages lost, {self.dead_consumers} consumers died", file=sys.stderr)
            if int(((notes.begun == 0) & (notes.received == 1)).sum()):
                self.errors += 1
                print("a message was received that nobody sent", file=sys.stderr)
        return int(notes.begun.sum())


def soak(kills: int, seconds: float, seed: int, folder: Path) -> tuple[int, int, int]:
    """Rounds until there were enough kills, or the time is over: (kills, messages, errors)."""
    chance = random.Random(seed)
    deadline = time.monotonic() + seconds
    done = messages = errors = 0
    while done < kills and time.monotonic() < deadline and not errors:
        one = Round(folder, chance.getrandbits(60), broadcast=chance.random() < 0.4)
        messages += one.run(max(1, min(200, kills - done)))
        done += one.kills
        errors += one.errors
    if messages < 5 * done:
        errors += 1
        print("next to nothing was sent between the kills", file=sys.stderr)
    return done, messages, errors


def main() -> NoReturn:
    parser = argparse.ArgumentParser(description="kill -9 of producers and consumers at random instants")
    parser.add_argument("--kills", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=7200.0, help="stop after this time, however many it were")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", file=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="shmpool-soak-", dir="/dev/shm"))
    try:
        kills, messages, errors = soak(options.kills, options.seconds, seed, folder)
    finally:
        shutil.rmtree(folder)
    print(f"{kills} kills, {messages} messages, {errors} errors")
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
