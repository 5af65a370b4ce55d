# SPDX-License-Identifier: BSD-3-Clause
"""The server's half of `file` by itself: uploads that are dropped at the worst moments."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gsb.mailbox import piece_generation
from gsb_server.errors import ServerError
from gsb_server.settings import Settings
from gsb_server.transports.file import FileLink, FileTransport
from gsb_server.transports.stream import StreamTransport

import shmpool

FORM = {"dtype": "|u1", "shape": [100_000], "order": "C"}


@pytest.fixture
def transport(small_pool: shmpool.Pool, tmp_path: Path) -> Iterator[FileTransport]:
    settings = Settings(token="t", file_dir=tmp_path, file_nbytes=1 << 20)
    stream = StreamTransport(small_pool, settings, None)
    found = FileTransport(small_pool, settings, stream)
    yield found
    found.close()
    stream.close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def link(transport: FileTransport) -> FileLink:
    return transport.open({})


def lent(transport: FileTransport) -> tuple[int, int]:
    status = transport.status()
    assert status is not None
    return status["lent_up_nbytes"], status["lent_down_nbytes"]


def sent(link: FileLink, answer: dict[str, Any], number: int = 1, nbytes: int = 100_000) -> dict[str, Any]:
    """Write a piece as a client does; the message that says so."""
    (part, *_) = answer["parts"]
    data = np.full(nbytes, 7, np.uint8)
    checksum = link._box.put(part["offset"], data, piece_generation(part["generation"], 0))
    return {"do": "sent", "id": number, "at": 0, "nbytes": nbytes, "part": 0, "checksum": f"{checksum:032x}"}


def test_an_upload(transport: FileTransport, link: FileLink) -> None:
    message = sent(link, link.handle({"do": "begin", "id": 1, **FORM}))
    assert lent(transport) == (131072, 0)
    assert link.handle(message) == {"received": 100_000}
    assert lent(transport) == (0, 0)
    # The answer may have been lost.
    assert link.handle(message) == {"received": 100_000}
    assert np.array_equal(link.read({"$": "ref", "id": 1}), np.full(100_000, 7, np.uint8))


class Meanwhile:
    """A lock that does something before, or after, its owner gives it up, as another thread would."""

    def __init__(self, lock: Any, before: Callable[[], None], after: Callable[[], None]) -> None:
        self.lock, self.before, self.after = lock, before, after

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self.before()
        self.lock.release()
        self.after()

    def acquire(self, blocking: bool = True) -> bool:
        return bool(self.lock.acquire(blocking))

    def release(self) -> None:
        self.lock.release()


def nothing() -> None:
    """Do nothing."""


@pytest.mark.parametrize("when", ["while it is read", "before the lock is given up", "after"])
@pytest.mark.parametrize("nbytes", [50_000, 100_000], ids=["a piece", "the last piece"])
@pytest.mark.parametrize("how", ["closed", "begun again"])
def test_an_upload_that_is_dropped_meanwhile(
    transport: FileTransport, link: FileLink, monkeypatch: pytest.MonkeyPatch, when: str, nbytes: int, how: str
) -> None:
    def drop() -> None:
        if how == "closed":
            link.close()
        else:
            link.handle({"do": "begin", "id": 1, **FORM})

    message = sent(link, link.handle({"do": "begin", "id": 1, **FORM}), nbytes=nbytes)
    incoming = link._incoming[1]
    real = link._box.take

    def take(*arguments: Any) -> None:
        real(*arguments)
        drop()

    if when == "while it is read":
        monkeypatch.setattr(link._box, "take", take)
    else:
        before, after = (drop, nothing) if when.startswith("before") else (nothing, drop)
        incoming.lock = Meanwhile(incoming.lock, before, after)  # type: ignore[assignment]
    # Too late, or just in time.
    with contextlib.suppress(ServerError):
        link.handle(message)
    assert incoming.has_ended
    if how == "begun again":
        # The second upload under the same id is the one that counts.
        assert lent(transport) == (131072, 0)
        assert list(link._incoming) == [1]
        assert link._incoming[1] is not incoming
        monkeypatch.undo()
        link.close()
    assert lent(transport) == (0, 0)
    assert link._incoming == {}
    assert len(link.shelf) == 0


def test_parts_are_lent_once(transport: FileTransport) -> None:
    whole = transport._up
    parts = []
    while (part := whole.lend(60_000)) is not None:
        parts.append(part)
    assert len(parts) == 8
    assert len({part.offset for part in parts}) == 8
    whole.give_back(parts[3])
    whole.give_back(parts[3])
    whole.give_back(parts[4])
    assert whole.lend(3 * 65536) is None
    again = whole.lend(2 * 65536)
    assert again is not None
    assert (again.offset, again.nbytes) == (parts[3].offset, 131072)
    # A part that was given back is not given back once more by whoever had it before.
    whole.give_back(parts[3])
    assert whole.lent_nbytes == 8 * 65536
