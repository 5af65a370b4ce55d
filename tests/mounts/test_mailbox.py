# SPDX-License-Identifier: BSD-3-Clause
"""The mailbox on mounts that go stale: what arrives is what was sent, or it is refused."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gsb.mailbox._posix as posix
import numpy as np
import pytest
from gsb.errors import DamagedTransferError, MailboxError
from gsb.mailbox import GRANULE_NBYTES, PAGE_NBYTES, Layout, Mailbox
from helpers.mounts import Rig

HALF_NBYTES = 8 << 20
UUID = "0123456789abcdef" * 2

#: How the server and the client see the folder: under the mount or through it.
SIDES = {"client-on-the-mount": ("under", "over"), "server-on-the-mount": ("over", "under")}


class Boxes:
    """Both sides of one mailbox, in one process: the two names are two inodes with a cache each."""

    def __init__(self, server: Path, client: Path, half_nbytes: int = HALF_NBYTES) -> None:
        self.layout = Layout(UUID, half_nbytes)
        self.server = Mailbox(server / "box.bin", self.layout, create=True)
        self.client = Mailbox(client / "box.bin", self.layout)

    def close(self) -> None:
        self.server.close()
        self.client.close()


@pytest.fixture(params=SIDES)
def boxes(rig: Rig, request: pytest.FixtureRequest) -> Iterator[Boxes]:
    server, client = (getattr(rig, name) for name in SIDES[request.param])
    found = Boxes(server, client)
    yield found
    found.close()


@pytest.fixture
def local(pool_dir: Path) -> Iterator[Boxes]:
    """On a file system that is coherent."""
    found = Boxes(pool_dir, pool_dir)
    yield found
    found.close()


class Spoiler:
    """Somebody else on either side who has the file mapped and has read it: every page is cached, and may be stale."""

    def __init__(self, *paths: Path) -> None:
        self._descriptors = [os.open(path, os.O_RDWR) for path in paths]
        self._mappings = [mmap.mmap(fd, 0, prot=mmap.PROT_READ) for fd in self._descriptors]

    def look(self, offset: int, nbytes: int) -> None:
        for mapping in self._mappings:
            assert len(mapping[offset : offset + nbytes : PAGE_NBYTES]) > 0
        for fd in self._descriptors:
            os.pread(fd, nbytes, offset)

    def close(self) -> None:
        for mapping in self._mappings:
            mapping.close()
        for fd in self._descriptors:
            os.close(fd)


def lengths(random: np.random.Generator, n: int, most: int) -> list[int]:
    """Log-uniform from 1 to `most`, the ends included."""
    some = np.exp(random.uniform(0, np.log(most), n - 2)).astype(int)
    return [1, most, *(int(x) for x in some)]


def transfer(boxes: Boxes, random: np.random.Generator, generation: int, nbytes: int, spoiler: Spoiler) -> bool:
    """One transfer in a random direction, to one of few places, so that each is used again and again."""
    up = bool(random.integers(2))
    start = boxes.layout.up_offset if up else boxes.layout.down_offset
    offset = start + GRANULE_NBYTES * int(random.integers(0, 4))
    sender, receiver = (boxes.client, boxes.server) if up else (boxes.server, boxes.client)
    data = random.integers(0, 256, nbytes, dtype=np.uint8)
    # Starts at a page border as a slot does, or not, as the end of an odd piece does.
    memory = np.frombuffer(mmap.mmap(-1, nbytes + 64), np.uint8)
    into = memory[:nbytes] if random.integers(2) else memory[64:]
    spoiler.look(offset, nbytes)
    checksum = sender.put(offset, data, generation)
    receiver.take(offset, into, generation, checksum)
    return bool(np.array_equal(into, data))


def run(boxes: Boxes, rig: Rig, n: int, most: int, seed: int) -> int:
    """`n` transfers; the number of wrong ones."""
    random = np.random.default_rng(seed)
    spoiler = Spoiler(rig.under / "box.bin", rig.over / "box.bin")
    try:
        return sum(
            not transfer(boxes, random, generation, nbytes, spoiler)
            for generation, nbytes in enumerate(lengths(random, n, most))
        )
    finally:
        spoiler.close()


def test_what_arrives_is_what_was_sent(rig: Rig, boxes: Boxes) -> None:
    assert run(boxes, rig, 100, 2 << 20, seed=1) == 0


def test_without_direct_reads_the_checksum_decides(rig: Rig, boxes: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where O_DIRECT is refused, a transfer is right or raises; with pages that others have mapped some must raise."""
    monkeypatch.setattr(posix, "_DIRECT", 0)
    server, client = Mailbox(boxes.server.path, boxes.layout), Mailbox(boxes.client.path, boxes.layout)
    assert {server.how, client.how} == {"fresh descriptor"}
    plain = Boxes.__new__(Boxes)
    plain.layout, plain.server, plain.client = boxes.layout, server, client
    random = np.random.default_rng(5)
    spoiler = Spoiler(boxes.server.path, boxes.client.path)
    right = refused = 0
    try:
        for generation, nbytes in enumerate(lengths(random, 60, 1 << 20)):
            plain = Boxes.__new__(Boxes)
            plain.layout, plain.server, plain.client = boxes.layout, server, client
            try:
                assert transfer(plain, random, generation, nbytes, spoiler)
                right += 1
            except DamagedTransferError:
                refused += 1
    finally:
        spoiler.close()
        server.close()
        client.close()
    assert right > 0
    if rig.kind == "writeback":
        assert refused > 0, "the mount was fresher than it is meant to be: this test proves nothing"


def test_stale_pages_are_refused_not_believed(rig: Rig, boxes: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel whose unbuffered reads were stale too: nothing but the checksum stands between it and wrong numbers."""
    through = boxes.client if boxes.client.path.is_relative_to(rig.over) else boxes.server
    below = boxes.server if through is boxes.client else boxes.client
    offset = boxes.layout.up_offset if through is boxes.server else boxes.layout.down_offset
    old, new = np.zeros(50_000, np.uint8), np.ones(50_000, np.uint8)
    into = np.empty_like(new)
    with open(through.path, "rb") as plain, mmap.mmap(plain.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        below.put(offset, old, 1)
        assert mapping[offset : offset + 50_000] == bytes(50_000)

        def stale(self: Any, offset: int, memory: memoryview) -> int:
            memory[:] = mapping[offset : offset + len(memory)]
            return len(memory)

        monkeypatch.setattr(posix.DirectFile, "read", stale)
        checksum = below.put(offset, new, 2)
        if rig.kind == "bindfs":
            # Opening a file anew makes it forget its pages, and the second try does that.
            through.take(offset, into, 2, checksum)
            assert np.array_equal(into, new)
            assert through.retries == 1
        else:
            with pytest.raises(DamagedTransferError, match="read twice"):
                through.take(offset, into, 2, checksum)


def test_a_late_page_is_right_at_the_second_try(local: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.arange(10_000, dtype=np.uint8)
    into = np.empty_like(data)
    checksum = local.client.put(local.layout.up_offset, data, 3)
    real, calls = posix.DirectFile.read, 0

    def late(self: Any, offset: int, memory: memoryview) -> int:
        nonlocal calls
        calls += 1
        got = real(self, offset, memory)
        if calls == 1:
            memory[:] = bytes(len(memory))
        return got

    monkeypatch.setattr(posix.DirectFile, "read", late)
    local.server.take(local.layout.up_offset, into, 3, checksum)
    assert np.array_equal(into, data)
    assert local.server.retries == 1


def test_a_former_generation_is_refused(local: Boxes) -> None:
    data = np.arange(5000, dtype=np.uint8)
    checksum = local.client.put(local.layout.up_offset, data, 1)
    with pytest.raises(DamagedTransferError):
        local.server.take(local.layout.up_offset, np.empty_like(data), 2, checksum)


def test_short_reads_are_continued(local: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read may give less than it was asked for, and less than a page at its end."""
    data = np.random.default_rng(3).integers(0, 256, 300_000, dtype=np.uint8)
    checksum = local.server.put(local.layout.down_offset, data, 1)
    real = posix.DirectFile.read
    monkeypatch.setattr(
        posix.DirectFile, "read", lambda self, offset, memory: min(real(self, offset, memory), 3 * PAGE_NBYTES + 100)
    )
    for shift in (0, 64):
        into = np.frombuffer(mmap.mmap(-1, len(data) + 64), np.uint8)[shift:][: len(data)]
        local.client.take(local.layout.down_offset, into, 1, checksum)
        assert np.array_equal(into, data)


def test_nothing_is_a_transfer_too(local: Boxes) -> None:
    nothing = np.empty(0, np.uint8)
    checksum = local.client.put(local.layout.up_offset, nothing, 9)
    local.server.take(local.layout.up_offset, nothing, 9, checksum)


# ------------------------------------------------------------------------------ which file
def test_another_mailbox_is_refused(pool_dir: Path) -> None:
    with Mailbox(pool_dir / "box.bin", Layout(UUID, HALF_NBYTES), create=True):
        other = Layout("f" * 32, HALF_NBYTES)
        with pytest.raises(MailboxError, match="the server's is ffff"):
            Mailbox(pool_dir / "box.bin", other)
        # A server that starts anew takes the file over: the former one's clients are refused.
        with Mailbox(pool_dir / "box.bin", other, create=True):
            Mailbox(pool_dir / "box.bin", other).close()
            with pytest.raises(MailboxError, match="the server's is 0123"):
                Mailbox(pool_dir / "box.bin", Layout(UUID, HALF_NBYTES))


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(PAGE_NBYTES), b"gsb mailbox 1\n\0\0" + bytes(9000)])
def test_what_is_no_mailbox_is_refused(pool_dir: Path, content: bytes) -> None:
    (pool_dir / "box.bin").write_bytes(content)
    with pytest.raises(MailboxError):
        Mailbox(pool_dir / "box.bin", Layout(UUID, HALF_NBYTES))
    assert (pool_dir / "box.bin").read_bytes() == content


def test_errors_of_the_drive_have_a_type(local: Boxes, monkeypatch: pytest.MonkeyPatch, pool_dir: Path) -> None:
    with pytest.raises(MailboxError, match="opening"):
        Mailbox(pool_dir / "nowhere" / "box.bin", local.layout)

    def full(fd: int, data: Any, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(posix.os, "pwritev", full)
    with pytest.raises(MailboxError, match="No space left") as caught:
        local.client.put(local.layout.up_offset, np.zeros(10, np.uint8), 1)
    assert "free some space" in caught.value.hint
    assert isinstance(caught.value, OSError)


def test_a_replaced_file_is_noticed_where_it_is_opened_anew(local: Boxes, pool_dir: Path) -> None:
    checksum = local.client.put(local.layout.up_offset, np.zeros(10, np.uint8), 1)
    (pool_dir / "box.bin").rename(pool_dir / "old.bin")
    (pool_dir / "box.bin").write_bytes(bytes(local.layout.nbytes))
    # What is open goes on with the file that was agreed on; the retry of a damaged read finds another.
    local.server.take(local.layout.up_offset, np.empty(10, np.uint8), 1, checksum)
    with pytest.raises(MailboxError, match="replaced"):
        local.server.take(local.layout.up_offset, np.empty(10, np.uint8), 1, checksum + 1)


def test_a_file_that_was_cut_short(local: Boxes) -> None:
    os.truncate(local.server.path, GRANULE_NBYTES)
    with pytest.raises(MailboxError, match="ends at 65536 bytes"):
        local.server.take(local.layout.down_offset, np.empty(100, np.uint8), 1, 0)


@pytest.mark.parametrize("half_nbytes", [0, -65536, 100, 65536 + 4096, 2**60])
def test_layouts_that_make_no_sense(half_nbytes: int) -> None:
    with pytest.raises(MailboxError):
        Layout(UUID, half_nbytes)


@pytest.mark.parametrize("value", [None, {}, {"uuid": UUID}, {"uuid": 3, "half_nbytes": 65536}, {"uuid": "x" * 32}])
def test_layouts_that_came_malformed(value: Any) -> None:
    with pytest.raises(MailboxError):
        Layout.from_dict(value)


def test_places_outside_of_a_half_are_refused() -> None:
    layout = Layout(UUID, 65536)
    assert (layout.up_offset, layout.down_offset, layout.nbytes) == (65536, 131072, 196608)
    assert Layout.from_dict(layout.to_dict()) == layout == Layout.parse(layout.page())
    layout.check_up(65536, 65536)
    layout.check_down(131072 + 4096, 65536 - 4096)
    wrong: list[tuple[Any, Any]] = [
        (0, 1),
        (65537, 1),
        (65536, 65537),
        (65536, -1),
        (65536.0, 1),
        (True, 1),
    ]
    for offset, nbytes in wrong:
        with pytest.raises(MailboxError):
            layout.check_up(offset, nbytes)
