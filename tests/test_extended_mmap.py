# SPDX-License-Identifier: BSD-3-Clause
"""The extended mmap transport in five groups: small, medium, large, consecutive, and compared with .npy files.

Under pytest each group is a test. ``python tests/test_extended_mmap.py`` runs the same groups and prints a numbered
report with sizes, slots, stage times and throughput.

The other side is a process of its own that attaches to the pool, takes the array without copying it, and answers
with an array of the same size, as a server would.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    # Beside this file lie folders of tests named like the packages; a script would find those first.
    sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

import numpy as np
import pytest
from gsb._codec import _decode_array, _encode_array
from gsb.protocol import INLINE_LIMIT
from gsb.shm_transport import ShmTransport

import shmpool

MB = 2**20

Array = np.ndarray[Any, np.dtype[Any]]


class Trip(NamedTuple):
    """One array there and back."""

    nbytes: int
    slots: list[int]
    stages: dict[str, float]
    sum: float
    best: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.stages.values())

    @property
    def rate(self) -> float:
        """GB per second, of the bytes there and back."""
        return 2 * self.nbytes / self.total / 1e9

    def line(self) -> str:
        slots = ",".join(map(str, self.slots)) or "none"
        stages = "  ".join(f"{name} {seconds * 1e3:7.2f}" for name, seconds in self.stages.items())
        size, total = f"{self.nbytes / MB:9.3f} MiB", f"total {self.total * 1e3:8.2f} ms"
        if self.best:
            total += f" (best {self.best * 1e3:.2f})"
        return f"{size}  slots {slots:<4} {stages}  {total}  {self.rate:5.2f} GB/s"


# ------------------------------------------------------------------------------------- the other side
def serve(directory: str) -> None:
    """Answer each line of standard input; an array comes back as it is."""
    transport = ShmTransport.get()
    for line in sys.stdin:
        message = json.loads(line)
        begun = time.perf_counter()
        if "path" in message:
            array = np.load(message["path"], allow_pickle=False)
            read = time.perf_counter()
            path = Path(directory) / f"{uuid.uuid4()}.npy"
            np.save(path, array)
            answer: dict[str, Any] = {"path": str(path)}
        else:
            wire = message["array"]
            if wire["$"] == "slot":
                handle = shmpool.Handle.from_dict(wire["handle"])
                array = transport.read(handle, copy=False)
                read = time.perf_counter()
                back = transport.write(array, is_output=True)
                transport.pool.give(back, shmpool.ClientId(*message["client"]))
                answer = {"array": {"$": "slot", "handle": back.to_dict()}}
            else:
                array = _decode_array(wire)
                read = time.perf_counter()
                answer = {"array": _encode_array(array)}
        ended = time.perf_counter()
        total = float(array.sum())
        del array
        checked = time.perf_counter() - ended
        answer |= {"server read": read - begun, "server write": ended - read, "sum": total, "checked": checked}
        print(json.dumps(answer), flush=True)
    ShmTransport.reset()


class Rig:
    """A pool of this run's own, and the process on the other side."""

    def __init__(self) -> None:
        shared = Path("/dev/shm") if os.path.isdir("/dev/shm") else Path(tempfile.gettempdir())
        self.directory = Path(tempfile.mkdtemp(prefix="gsb-mmap-", dir=shared))
        self.files = Path(tempfile.mkdtemp(prefix="gsb-npy-"))
        self.peer: subprocess.Popen[str] | None = None

    def open(self) -> None:
        pool = self.directory / "pool.bin"
        ShmTransport.reset()
        ShmTransport.configure(path=pool)
        self.transport = ShmTransport.get()
        command = [sys.executable, __file__, "--serve", str(self.files)]
        environment = {**os.environ, "SHMPOOL_PATH": str(pool)}
        self.peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self.peer is not None
        assert self.peer.stdin is not None
        assert self.peer.stdout is not None
        self.peer.stdin.write(json.dumps(message) + "\n")
        self.peer.stdin.flush()
        line = self.peer.stdout.readline()
        assert line, "the other side has died"
        found: dict[str, Any] = json.loads(line)
        return found

    def trip(self, array: Array) -> Trip:
        """Send an array through the pool and back; check that it is the same."""
        client = self.transport.pool.client
        begun = time.perf_counter()
        wire = _encode_array(array, self.transport)
        written = time.perf_counter()
        answer = self.ask({"array": wire, "client": [client.index, client.nonce]})
        received = time.perf_counter()
        back = _decode_array(answer["array"], self.transport)
        ended = time.perf_counter()
        slots = []
        for part in (wire, answer["array"]):
            if part["$"] == "slot":
                slots.append(part["handle"]["slot"])
        if wire["$"] == "slot":
            self.transport.free(shmpool.Handle.from_dict(wire["handle"]))
        assert np.array_equal(back, array)
        stages = _stages(answer, begun, written, received, ended)
        return Trip(array.nbytes, slots, stages, answer["sum"])

    def older_trip(self, array: Array) -> Trip:
        """The same by the older design: a uuid, np.save, np.load, and remove the file."""
        begun = time.perf_counter()
        path = self.files / f"{uuid.uuid4()}.npy"
        np.save(path, array)
        written = time.perf_counter()
        answer = self.ask({"path": str(path)})
        received = time.perf_counter()
        back = np.load(answer["path"], allow_pickle=False)
        path.unlink()
        os.unlink(answer["path"])
        ended = time.perf_counter()
        assert np.array_equal(back, array)
        stages = _stages(answer, begun, written, received, ended)
        return Trip(array.nbytes, [], stages, answer["sum"])

    def all_free(self) -> bool:
        return all(slot.state == "free" for slot in self.transport.pool.stat().slots)

    def close(self) -> None:
        if self.peer is not None:
            assert self.peer.stdin is not None
            assert self.peer.stdout is not None
            with suppress(BrokenPipeError):
                self.peer.stdin.close()
            try:
                self.peer.wait(15)
            except subprocess.TimeoutExpired:
                self.peer.kill()
                self.peer.wait(15)
            self.peer.stdout.close()
        ShmTransport.reset()
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.rmtree(self.files, ignore_errors=True)


@contextmanager
def rig() -> Iterator[Rig]:
    found = Rig()
    try:
        found.open()
        yield found
    finally:
        found.close()


def data(nbytes: int, dtype: str = "f4") -> Array:
    """Random numbers; a short block repeated, so that making them takes no time."""
    size = nbytes // np.dtype(dtype).itemsize
    block = np.random.default_rng(size).standard_normal(min(size, 1 << 16)).astype(dtype)
    return np.resize(block, size)


# ------------------------------------------------------------------------------------- the groups
def small(rig: Rig) -> list[Trip]:
    """Below 10 KB: inside the message, no slot."""
    before = dict(rig.transport.pool.counters)
    trips = [rig.trip(data(nbytes)) for nbytes in (0, 4, 96, 1024, INLINE_LIMIT - 4)]
    assert all(trip.slots == [] for trip in trips)
    assert rig.transport.pool.counters == before
    return trips


def medium(rig: Rig) -> list[Trip]:
    """10 KB to 256 MB: one slot each way."""
    sizes = (INLINE_LIMIT, MB, 16 * MB, 64 * MB, 256 * MB)
    trips = [rig.trip(data(nbytes)) for nbytes in sizes]
    transport = rig.transport
    for trip in trips:
        sent, received = trip.slots
        assert transport.SLOT_INPUT_START <= sent < transport.SLOT_INPUT_END
        assert transport.SLOT_INPUT_END <= received < transport.SLOT_OUTPUT_END
    assert rig.all_free()
    return trips


def large(rig: Rig) -> list[Trip]:
    """256 MB to 1 GB: several adjacent slots each way."""
    trips = []
    for nbytes in (256 * MB + 4, 500 * 10**6, 1024 * MB):
        array = data(nbytes)
        handle = rig.transport.write(array)
        assert handle.span == -(-nbytes // rig.transport.SLOT_SIZE)
        rig.transport.free(handle)
        trips.append(rig.trip(array))
    assert rig.all_free()
    return trips


def consecutive(rig: Rig, n: int = 10) -> list[Trip]:
    """One after another: slots 0, 1, 2, 3, 0, 1 and so on, each array its own."""
    transport = rig.transport
    first = {"input": transport._input_counter, "output": transport._output_counter}
    arrays = [np.full(MB // 4, index, "f4") for index in range(n)]
    trips = [rig.trip(array) for array in arrays]
    inputs, outputs = transport.SLOT_INPUT_END, transport.SLOT_OUTPUT_END - transport.SLOT_INPUT_END
    assert [trip.slots[0] for trip in trips] == [(first["input"] + index) % inputs for index in range(n)]
    assert [trip.slots[1] - inputs for trip in trips] == [(first["output"] + index) % outputs for index in range(n)]
    assert [trip.sum for trip in trips] == [float(array.sum()) for array in arrays]
    assert transport._input_counter == first["input"] + n
    return trips


def comparison(rig: Rig, sizes: tuple[int, ...], rounds: int) -> list[tuple[Trip, Trip]]:
    """The older design and the pool, in turn, in one run; the median of the rounds each."""
    pairs = []
    for nbytes in sizes:
        array = data(nbytes)
        older, newer = [], []
        for _ in range(rounds):
            older.append(rig.older_trip(array))
            newer.append(rig.trip(array))
        pairs.append((_median(older), _median(newer)))
    assert rig.all_free()
    assert not list(rig.files.iterdir())
    assert sorted(path.name for path in rig.directory.iterdir()) == ["pool.bin", "pool.bin.lock"]
    return pairs


def _stages(answer: dict[str, Any], begun: float, written: float, received: float, ended: float) -> dict[str, float]:
    there = answer["server read"] + answer["server write"] + answer["checked"]
    return {
        "client write": written - begun,
        "request": received - written - there,
        "server read": answer["server read"],
        "server write": answer["server write"],
        "client read": ended - received,
    }


def _median(trips: list[Trip]) -> Trip:
    stages = {name: statistics.median(trip.stages[name] for trip in trips) for name in trips[0].stages}
    return trips[-1]._replace(stages=stages, best=min(trip.total for trip in trips))


# ------------------------------------------------------------------------------------- pytest
@pytest.fixture(scope="module")
def the_rig() -> Iterator[Rig]:
    with rig() as found:
        yield found


def test_the_users_names(the_rig: Rig) -> None:
    transport = ShmTransport.get()
    assert transport is the_rig.transport
    assert ShmTransport.POOL_SIZE == transport.POOL_SIZE == 4 * 2**30
    assert ShmTransport.SLOT_SIZE == transport.SLOT_SIZE == 256 * MB
    assert ShmTransport.SLOT_INPUT_START == transport.SLOT_INPUT_START == 0
    assert ShmTransport.SLOT_INPUT_END == transport.SLOT_INPUT_END == 4
    assert ShmTransport.SLOT_OUTPUT_END == transport.SLOT_OUTPUT_END == 8
    assert ShmTransport.SLOT_SCRATCH_END == transport.SLOT_SCRATCH_END == 16


def test_small_arrays_are_inline(the_rig: Rig) -> None:
    small(the_rig)


@pytest.mark.big
def test_medium_arrays_take_one_slot(the_rig: Rig) -> None:
    medium(the_rig)


@pytest.mark.big
def test_large_arrays_take_several_slots(the_rig: Rig) -> None:
    large(the_rig)


def test_consecutive_requests_rotate(the_rig: Rig) -> None:
    consecutive(the_rig)


def test_comparison_with_files(the_rig: Rig) -> None:
    # What it measures is no test; that both ways work, and that ours leaves no file, is.
    comparison(the_rig, (MB, 4 * MB), rounds=2)


# ------------------------------------------------------------------------------------- the report
def report() -> None:
    """Run all groups and print what they found."""
    print("Extended mmap transport: report\n")
    with rig() as found:
        transport = found.transport
        print(f"  pool {transport.pool.path} on {transport.pool.filesystem}, {transport.POOL_SIZE / 2**30:.1f} GiB,")
        print(f"  {transport.SLOT_SCRATCH_END} slots of {transport.SLOT_SIZE / MB:.0f} MiB; times in ms\n")
        groups = (
            ("Small arrays (< 10 KB): inline", small),
            ("Medium arrays (10 KB to 256 MB): one slot", medium),
            ("Large arrays (256 MB to 1 GB): several slots", large),
            ("Consecutive requests: slots in rotation", consecutive),
        )
        for number, (title, group) in enumerate(groups, 1):
            print(f"[{number}/5] {title}")
            for trip in group(found):
                print(f"  ok {trip.line()}")
            print()
        print("[5/5] Compared with the older design (uuid, np.save, np.load), medians of 9 rounds in turn")
        for older, newer in comparison(found, (MB, 16 * MB, 100 * 10**6, 500 * 10**6), rounds=9):
            print(f"  .npy {older.line()}")
            print(f"  pool {newer.line()}")
            ratios = older.total / newer.total, older.best / newer.best
            print("       {:.1f} times as fast (best: {:.1f})\n".format(*ratios))
        print("All groups passed; all slots are free; no file was left.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        report()
