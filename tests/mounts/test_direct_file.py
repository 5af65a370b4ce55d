# SPDX-License-Identifier: BSD-3-Clause
"""Explicit I/O past the cache, by whatever this system has for it. Nothing here is about one system alone."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gsb.mailbox.box import DirectFile

NBYTES = 1 << 20
PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "box.bin")


@pytest.fixture
def file(path: str) -> Iterator[DirectFile]:
    found = DirectFile(path, NBYTES)
    yield found
    found.close()
    found.close()


def aligned(nbytes: int) -> memoryview:
    return memoryview(mmap.mmap(-1, nbytes))


def test_what_one_writes_another_reads(file: DirectFile, path: str) -> None:
    data = np.random.default_rng(0).integers(0, 256, 100 * PAGE, dtype=np.uint8)
    # An array of the user's may be read-only.
    data.flags.writeable = False
    file.write(2 * PAGE, data.data)
    file.flush()
    other = DirectFile(path)
    try:
        memory = aligned(100 * PAGE)
        assert other.read(2 * PAGE, memory) == 100 * PAGE
        assert memory == data.data
        other.refresh(2 * PAGE, PAGE)
        assert other.read(3 * PAGE, memory[:PAGE]) == PAGE
        assert memory[:PAGE] == data[PAGE : 2 * PAGE].data
    finally:
        other.close()


def test_the_end(file: DirectFile) -> None:
    assert file.nbytes() == NBYTES
    memory = aligned(NBYTES)
    assert file.read(NBYTES - PAGE, memory) == PAGE
    assert file.read(NBYTES, memory) == 0


def test_a_file_that_is_there_gets_the_length(file: DirectFile, path: str) -> None:
    file.write(0, b"x" * PAGE)  # type: ignore[arg-type]  # bytes have all that is needed of a memoryview
    longer = DirectFile(path, 2 * NBYTES)
    try:
        assert longer.nbytes() == 2 * NBYTES
        memory = aligned(PAGE)
        assert longer.read(0, memory) == PAGE
        assert memory == b"x" * PAGE
    finally:
        longer.close()


def test_no_file(path: str) -> None:
    with pytest.raises(FileNotFoundError):
        DirectFile(path)
