# SPDX-License-Identifier: BSD-3-Clause
"""The rigs are as bad as they are meant to be. If one of these fails, the other tests here prove nothing."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.mounts import Rig, mounted
from helpers.places import Places

PAGE = 4096


@pytest.fixture
def descriptors(rig: Rig) -> Iterator[tuple[int, int]]:
    """The same file of two pages, opened below the mount and through it."""
    (rig.under / "file.bin").write_bytes(bytes(2 * PAGE))
    below = os.open(rig.under / "file.bin", os.O_RDWR)
    through = os.open(rig.over / "file.bin", os.O_RDWR)
    yield below, through
    os.close(below)
    os.close(through)


def test_a_mapping_goes_stale(rig: Rig, descriptors: tuple[int, int]) -> None:
    below, through = descriptors
    with mmap.mmap(through, PAGE) as mapping:
        assert mapping[:4] == bytes(4)
        os.pwrite(below, b"new!", 0)
        assert mapping[:4] == bytes(4)


def test_plain_reads_go_stale(rig: Rig, descriptors: tuple[int, int]) -> None:
    below, through = descriptors
    assert os.pread(through, 4, 0) == bytes(4)
    os.pwrite(below, b"new!", 0)
    assert os.pread(through, 4, 0) == bytes(4)


def test_opening_anew_helps_on_one_of_them_only(rig: Rig, descriptors: tuple[int, int]) -> None:
    below, through = descriptors
    with mmap.mmap(through, PAGE) as mapping:
        assert mapping[:4] == bytes(4)
        os.pwrite(below, b"new!", 0)
        again = os.open(rig.over / "file.bin", os.O_RDWR)
        expected = b"new!" if rig.kind == "bindfs" else bytes(4)
        assert os.pread(again, 4, 0) == mapping[:4] == expected
        os.close(again)


@pytest.mark.parametrize("rig", ["bindfs-tmpfs"], indirect=True)
def test_plain_writes_of_bindfs_arrive_at_once(rig: Rig, descriptors: tuple[int, int]) -> None:
    below, through = descriptors
    os.pwrite(through, b"soon", 0)
    assert os.pread(below, 4, 0) == b"soon"


def test_direct_reads_are_fresh(rig: Rig, descriptors: tuple[int, int]) -> None:
    below, through = descriptors
    assert os.pread(through, 4, 0) == bytes(4)
    os.pwrite(below, b"new!", 0)
    direct = os.open(rig.over / "file.bin", os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, PAGE) as buffer:
        view = memoryview(buffer)
        assert os.preadv(direct, [view], 0) == PAGE
        assert bytes(view[:4]) == b"new!"
        view.release()
    os.close(direct)


@pytest.mark.parametrize("rig", ["writeback-tmpfs", "writeback-disk"], indirect=True)
def test_plain_writes_arrive_with_the_flush(rig: Rig, descriptors: tuple[int, int]) -> None:
    below, through = descriptors
    os.pwrite(through, b"late", 0)
    assert os.pread(below, 4, 0) == bytes(4)
    os.fdatasync(through)
    assert os.pread(below, 4, 0) == b"late"


@pytest.mark.parametrize("rig", ["writeback-tmpfs", "writeback-disk"], indirect=True)
def test_two_writers_of_one_page_lose_a_write(rig: Rig, descriptors: tuple[int, int]) -> None:
    below, through = descriptors
    assert os.pread(through, 4, 0) == bytes(4)
    os.pwrite(below, b"ours", 0)
    os.pwrite(through, b"else", 8)
    os.fdatasync(through)
    assert os.pread(below, 4, 0) == bytes(4)


def test_direct_writes_may_be_refused_where_reads_are_not(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Why the mailbox writes through the cache: seen with `passthrough_ll` above a disk."""
    program = request.getfixturevalue("passthrough")
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("not there: O_DIRECT")
    with mounted("writeback", tmp_path, program) as rig, mmap.mmap(-1, PAGE) as buffer:
        (rig.under / "file.bin").write_bytes(bytes(PAGE))
        with memoryview(buffer) as view:
            direct = os.open(rig.over / "file.bin", os.O_RDWR | os.O_DIRECT)
            try:
                assert os.preadv(direct, [view], 0) == PAGE
                with pytest.raises(OSError, match="Invalid argument"):
                    os.pwritev(direct, [view], 0)
            finally:
                os.close(direct)


def test_a_failing_test_leaves_no_mount(places: Places) -> None:
    """The daemon is reaped and the mount gone also when files were left open."""
    folder = places.new("left")
    descriptors: list[int] = []

    def leave_open() -> None:
        with mounted("bindfs", folder) as rig:
            descriptors.append(os.open(rig.over, os.O_RDONLY))

    try:
        with pytest.raises(AssertionError, match="left files open"):
            leave_open()
        assert str(folder) not in Path("/proc/self/mountinfo").read_text()
        running = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True, check=False)
        assert running.stdout == ""
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        places.discard(folder)
