# SPDX-License-Identifier: BSD-3-Clause
"""`shmpool.checksum` is XXH3-128, of whatever lies in one piece."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest

import shmpool

# As the reference implementation gives them.
KNOWN = {
    b"": 0x99AA06D3014798D86001C324468D497F,
    b"a": 0xA96FAF705AF16834E6C632B61E964E1F,
    b"abc": 0x06B05AB6733A618578AF5F94892F3950,
}


@pytest.mark.parametrize("text", KNOWN)
def test_known_values(text: bytes) -> None:
    assert shmpool.checksum(text) == KNOWN[text]


def test_every_length_agrees_with_the_reference() -> None:
    """Each branch of the algorithm by each length it takes, then lengths around stripes and blocks, and large ones."""
    xxhash = pytest.importorskip("xxhash", reason="not installed: xxhash")
    random = np.random.default_rng(20)
    data = random.integers(0, 256, 1 << 20, dtype=np.uint8)
    lengths = [*range(600), *range(1000, 1100), *range(2030, 2130), 65535, 65536, 65537, 1 << 20]
    lengths += [int(n) for n in np.exp(random.uniform(0, np.log(1 << 20), 200))]
    for nbytes in lengths:
        start = int(random.integers(0, min(9, data.size - nbytes + 1)))
        part = data[start : start + nbytes]
        seed = int(random.integers(0, 2**64, dtype=np.uint64)) if nbytes % 2 else 0
        assert shmpool.checksum(part, seed) == xxhash.xxh3_128_intdigest(part, seed), (nbytes, start, seed)
        assert shmpool.checksum(part, seed=2**64 - 1) == xxhash.xxh3_128_intdigest(part, 2**64 - 1), nbytes


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_buffers_of_any_kind(kind: Any) -> None:
    data = bytes(range(256)) * 300
    assert shmpool.checksum(kind(data)) == shmpool.checksum(np.frombuffer(data, np.float32))


@pytest.mark.parametrize("dtype", ["M8[s]", "f2", "S7", "U3", "c16", [("a", "i4"), ("b", "f8")], "?"])
def test_any_dtype_of_fixed_size(dtype: Any) -> None:
    """Also those that do not export a buffer."""
    array = np.zeros(1000, dtype)
    assert shmpool.checksum(array) == shmpool.checksum(bytes(array.nbytes))


def test_both_orders_are_hashed_as_they_lie() -> None:
    array = np.arange(60_000.0).reshape(300, 200)
    assert shmpool.checksum(np.asfortranarray(array)) == shmpool.checksum(np.ascontiguousarray(array.T))
    assert shmpool.checksum(np.asfortranarray(array)) != shmpool.checksum(array)
    assert shmpool.checksum(array[10:20]) == shmpool.checksum(array[10:20].copy())


def test_a_view_of_a_pool(small_pool: shmpool.Pool) -> None:
    array = np.arange(5000)
    handle = small_pool.put(array)
    assert shmpool.checksum(small_pool.get(handle)) == shmpool.checksum(array)


@pytest.mark.parametrize("data", [np.zeros((4, 4))[:, ::2], memoryview(bytes(20))[::2]])
def test_what_lies_in_pieces_is_refused(data: Any) -> None:
    with pytest.raises(shmpool.BufferLayoutError, match="one piece"):
        shmpool.checksum(data)


def test_objects_are_refused() -> None:
    with pytest.raises(shmpool.UnsupportedDtypeError, match="pointers"):
        shmpool.checksum(np.array([None]))
    with pytest.raises(TypeError):
        shmpool.checksum("text")  # type: ignore[arg-type]
    for seed in (-1, 2**64):
        with pytest.raises(OverflowError):
            shmpool.checksum(b"", seed)


def test_the_gil_is_free_meanwhile() -> None:
    """Another thread goes on while a large array is hashed."""
    data = np.zeros(256 << 20, np.uint8)
    turns = 0
    done = threading.Event()

    def turn() -> None:
        nonlocal turns
        while not done.wait(0.0005):
            turns += 1

    other = threading.Thread(target=turn)
    interval = sys.getswitchinterval()
    # Nobody is made to give up the GIL: the other thread runs when this one lets it.
    sys.setswitchinterval(1000)
    try:
        other.start()
        before = turns
        shmpool.checksum(data)
        after = turns
    finally:
        sys.setswitchinterval(interval)
        done.set()
        other.join(30)
    assert after > before
