# SPDX-License-Identifier: BSD-3-Clause
"""Damage to pool files, more often plausible than not. Run in a child process by test_fuzz_file.py."""

from __future__ import annotations

import functools
import gc
import mmap
import os
import random
import traceback
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

import shmpool
from shmpool import Handle, Loan, Pool

REGIONS = (4, 2, 2)
N, SLOT, CLIENTS = sum(REGIONS), 65536, 4
# places in such a pool (docs/format.md)
SLOT_TABLE = 8192
CLIENT_TABLE = SLOT_TABLE + N * 1024
PIN_TABLE = CLIENT_TABLE + CLIENTS * 256
TABLES_END = PIN_TABLE + N * 64

# (offset, bits) of the fields of a slot's descriptor, and of the geometry in the header
DESCRIPTOR = (
    (128, 64),
    (136, 64),
    (192, 64),
    (200, 64),
    (208, 64),
    (216, 32),
    (220, 16),
    (222, 8),
    (223, 8),
    (224, 64),
)
GEOMETRY = [(40, 64), (48, 32), (52, 32), (56, 32), (60, 32), (64, 64), (72, 64), (80, 64), (88, 64), (96, 64)]

EDGES = [0, 1, 2, 3, 7, 8, 15, 255, 4095, 4096, 65535, 65536]
EDGES += [2**bits + step for bits in (31, 32, 47, 48, 63, 64) for step in (-1, 0)]
TEXTS = [b"<f4", b"O", b"|O", b"<U99", b"|V0", b"<f8,<f8", b"{}", b'{"base":"<f4","shape":[2]}', b"[1]", b"a3", b"T"]
TEXTS += [b'{"names":["a"],"formats":["<f4"],"offsets":[999999],"itemsize":4}', b"\xff\xfe", b"{" * 200, b"<M8[s]"]

ARRAYS: list[np.ndarray[Any, Any]] = [
    np.arange(10.0),
    np.zeros(SLOT * 2, "u1"),
    np.zeros((3, 4), [("a", "<i4"), ("b", "U3")]),
    np.zeros((0, 3)),
    np.zeros(2, [(f"field_with_a_long_name_{k:03d}", "u1") for k in range(64)]),
    np.array(1),
]


class Fuzzer:
    """Counts what worked, what was refused in the proper way, and collects what was not."""

    def __init__(self, path: str, seed: int) -> None:
        self.path = path
        self.rng = random.Random(seed)
        self.worked = 0
        self.refused = 0
        self.wrong: list[str] = []

    def number(self, bits: int) -> int:
        chosen = self.rng.choice(EDGES) if self.rng.random() < 0.7 else self.rng.getrandbits(bits)
        return int(chosen % 2**bits)

    def open(self) -> Pool:
        options = dict(zip(("input_slots", "output_slots", "scratch_slots"), REGIONS, strict=True))
        return Pool.open(
            self.path,
            slot_nbytes=SLOT,
            max_clients=CLIENTS,
            max_channels=1,  # the file is read and written whole many times
            channel_nbytes=1 << 19,
            prefault_nbytes=0,
            timeout=0,
            attach_timeout=0.2,
            **options,
        )

    def attempt(self, call: Callable[[], Any]) -> Any:
        """What the call returns; None when it raised. Anything but a ShmPoolError is wrong."""
        try:
            value = call()
        except shmpool.ShmPoolError as error:
            self.refused += 1
            str(error)
            return None
        except BaseException:
            self.wrong.append(traceback.format_exc()[-1500:])
            return None
        self.worked += 1
        return value

    def remove(self) -> None:
        for name in (self.path, self.path + ".lock"):
            if os.path.exists(name):
                os.unlink(name)

    def result(self) -> list[Any]:
        self.remove()
        return [self.worked, self.refused, len(self.wrong), self.wrong[:3]]


class LiveFuzzer(Fuzzer):
    """Calls on a pool whose tables are damaged between them, through another mapping."""

    def run(self, rounds: int) -> None:
        for _ in range(rounds):
            self.remove()
            self.pools = [self.open(), self.open()]
            self.handles: list[Handle] = []
            self.views: list[Any] = []
            self.loans: list[Loan] = []
            with open(self.path, "r+b") as file:
                self.memory = mmap.mmap(file.fileno(), TABLES_END)
            for _ in range(250):
                if self.rng.random() < 0.4:
                    self.damage()
                self.act()
                del self.handles[:-12]
            self.views.clear()
            self.loans.clear()
            for pool in self.pools:
                self.attempt(pool.close)
            self.memory.close()
            gc.collect()

    def poke(self, at: int, bits: int, value: int) -> None:
        self.memory[at : at + bits // 8] = value.to_bytes(bits // 8, "little")

    def damage(self) -> None:
        rng = self.rng
        slot = SLOT_TABLE + rng.randrange(N) * 1024
        match rng.randrange(12):
            case 0:
                self.poke(slot, 64, self.number(64))
            case 1:  # a plausible word: the right generation, another owner and state
                word = int.from_bytes(self.memory[slot : slot + 8], "little")
                self.poke(slot, 64, word >> 16 << 16 | rng.randrange(8) << 4 | rng.randrange(7))
            case 2:
                self.poke(slot + 64, 64, self.number(64))
                self.poke(slot + 72, 32, self.number(32))
            case 3:
                at, bits = rng.choice(DESCRIPTOR)
                self.poke(slot + at, bits, self.number(bits))
            case 4:
                self.poke(slot + 232 + 8 * rng.randrange(4), 64, self.number(64))
                self.poke(slot + 222, 8, rng.randrange(4))
            case 5:
                text = rng.choice(TEXTS) if rng.random() < 0.7 else rng.randbytes(rng.randrange(280))
                self.memory[slot + 744 : slot + 744 + len(text)] = text
                self.poke(slot + 220, 16, len(text))
            case 6:  # a shape that fits an empty array, or any array after an overflow
                self.poke(slot + 222, 8, 3)
                self.poke(slot + 200, 64, 0)
                for k in range(3):
                    self.poke(slot + 232 + 8 * k, 64, rng.choice([0, 1, 2**21, 2**62, 2**63 - 1]))
            case 7:
                self.memory[rng.randrange(PIN_TABLE, TABLES_END)] = rng.randrange(256)
            case 8:
                self.memory[rng.randrange(CLIENT_TABLE, PIN_TABLE)] = rng.randrange(256)
            case 9:
                self.poke(4096 + rng.choice([0, 128, 256]), 64, self.number(64))
                self.poke(4096 + rng.choice([384, 512, 640]), 32, self.number(32))
            case 10:
                self.memory[rng.randrange(4096)] = rng.randrange(256)
            case _:
                at = rng.randrange(SLOT_TABLE, TABLES_END - 64)
                self.memory[at : at + 64] = rng.randbytes(64)

    def act(self) -> None:
        rng = self.rng
        pool, other = rng.sample(self.pools, 2)
        handle = rng.choice(self.handles) if self.handles else None
        region: Any = rng.choice(["input", "output", "scratch"])
        match rng.randrange(14):
            case 0 | 1 | 2:
                array = rng.choice(ARRAYS)
                self.keep(self.attempt(lambda: pool.put(array, region)))
            case 3:
                loan = self.attempt(lambda: pool.loan(rng.randrange(20000), "f8", region=region))
                self.loans += [loan] if loan is not None else []
            case 4 if self.loans:
                self.keep(self.attempt(self.loans.pop().seal))
            case 5 | 6 | 7 if handle is not None:
                copy: Any = rng.choice([False, True, "auto"])
                view = self.attempt(lambda: pool.get(handle, copy=copy))
                if view is not None:  # every byte that it claims to have can be read
                    view.tobytes()
                    repr(view.dtype)
                    self.views.append(view)
            case 8 if handle is not None:
                self.attempt(lambda: pool.free(handle))
            case 9 if handle is not None:
                self.attempt(lambda: pool.adopt(handle))
                self.attempt(lambda: pool.owner(handle))
                self.attempt(lambda: pool.give(handle, other.client))
            case 10:
                self.attempt(pool.stat)
                self.attempt(pool.reclaim)
                self.attempt(lambda: pool.is_alive(other.client))
                self.attempt(lambda: pool.counters)
            case 11 if self.views:
                self.views.pop(rng.randrange(len(self.views)))
            case 12:
                third = self.attempt(self.open)
                if third is not None:
                    self.attempt(lambda: third.put(ARRAYS[0]))
                    self.attempt(third.stat)
                    self.attempt(third.close)
            case 13:
                self.attempt(pool.reattach)

    def keep(self, handle: Handle | None) -> None:
        if handle is not None:
            self.handles.append(handle)


class FileFuzzer(Fuzzer):
    """Opening, creating, attaching to and removing files that are not, or not quite, a pool."""

    def run(self, rounds: int) -> None:
        self.open().close()
        with open(self.path, "rb") as file:
            good = file.read()
        for _ in range(rounds * 50):
            kind = self.rng.choice([self.noise, self.truncated, self.flipped, self.newer, self.nonsense, self.tables])
            raw = bytes(kind(bytearray(good)))
            with open(self.path, "wb") as file:
                file.write(raw)
            os.chmod(self.path, 0o600)
            name = self.rng.choice(["open", "create", "attach", "remove"])
            pool = self.attempt(functools.partial(self.call, name, raw))
            if pool is not None:
                self.attempt(pool.stat)
                self.attempt(functools.partial(self.round_trip, pool))
                pool.close()
                if kind in (self.noise, self.newer, self.truncated) and raw != good:
                    self.wrong.append(f"{name} accepted a file of kind {kind.__name__}")

    def round_trip(self, pool: Pool) -> None:
        pool.get(pool.put(np.arange(5)), copy=True)

    def call(self, name: str, raw: bytes) -> Pool | None:
        try:
            if name == "open":
                return self.open()
            if name == "create":
                return Pool.create(
                    self.path, slot_nbytes=4096, max_channels=1, channel_nbytes=1 << 19, prefault_nbytes=0
                )
            if name == "attach":
                return Pool.attach(self.path, prefault_nbytes=0, attach_timeout=0.2)
            return Pool.remove(self.path)
        except (shmpool.PoolFormatError, shmpool.PoolCorruptedError):
            with open(self.path, "rb") as file:
                if file.read() != raw:
                    self.wrong.append(f"{name} refused a file and changed it: {raw[:136]!r}")
            raise

    def noise(self, raw: bytearray) -> bytearray:
        return bytearray(b"\x01" + self.rng.randbytes(self.rng.randrange(6000)))

    def truncated(self, raw: bytearray) -> bytearray:
        return raw[: self.rng.choice([self.rng.randrange(1, 4096), self.rng.randrange(1, len(raw))])]

    def flipped(self, raw: bytearray) -> bytearray:
        raw[self.rng.randrange(128)] ^= 1 << self.rng.randrange(8)
        return raw

    def newer(self, raw: bytearray) -> bytearray:
        at = self.rng.choice([8, 12])
        raw[at : at + 4] = self.number(32).to_bytes(4, "little")
        return raw

    def nonsense(self, raw: bytearray) -> bytearray:
        """Impossible geometry under a checksum that holds."""
        at, bits = self.rng.choice(GEOMETRY)
        raw[at : at + bits // 8] = self.number(bits).to_bytes(bits // 8, "little")
        raw[20:24] = zlib.crc32(bytes(raw[24:128])).to_bytes(4, "little")
        return raw

    def tables(self, raw: bytearray) -> bytearray:
        """Damage behind the header is found when it is met, not at the door."""
        for _ in range(50):
            raw[self.rng.randrange(4096, TABLES_END)] = self.rng.randrange(256)
        return raw


def main(kind: str, path: str, seed: int, rounds: int) -> list[Any]:
    """[worked, refused, wrong, tracebacks] of one run."""
    warnings.simplefilter("error")
    fuzzer = LiveFuzzer(path, seed) if kind == "live" else FileFuzzer(path, seed)
    fuzzer.run(rounds)
    return fuzzer.result()
