# SPDX-License-Identifier: BSD-3-Clause
"""The coherence handshake, and mounts that are refused by name."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gsb.errors import ServerBusyError, SessionLostError, TransportUnavailableError
from gsb.shm_transport import ShmTransport
from gsb.transports import coherence as client_half
from gsb.transports.coherence import prove_coherence
from gsb_server.errors import ServerError
from gsb_server.transports.coherence import Coherence
from helpers.mounts import mounted, require_fuse
from helpers.places import Places
from helpers.processes import Children

import shmpool
from shmpool import mounts
from shmpool.space import MountInfo
from shmpool.witness import LANES, NONCE_NBYTES, Witness

Post = Callable[[str, dict[str, Any]], dict[str, Any]]


class Both:
    """Both halves in this process; the messages go by call."""

    def __init__(self, pool: shmpool.Pool) -> None:
        self.pool = pool
        self.now = 0.0
        self.server = Coherence(pool, clock=lambda: self.now)
        self.messages = 0

    def post(self, path: str, message: dict[str, Any]) -> dict[str, Any]:
        self.messages += 1
        classes = {"busy": ServerBusyError, "session_lost": SessionLostError}
        try:
            return self.server.handle(message)
        except ServerError as error:
            raise classes.get(error.code, TransportUnavailableError)(error.message) from None

    def prove(self, path: Path | None = None) -> str:
        return prove_coherence(str(path or self.pool.path), self.pool.uuid, self.post)


@pytest.fixture
def both(shm: ShmTransport) -> Any:
    found = Both(shm.pool)
    yield found
    found.server.close()


def test_one_memory(both: Both) -> None:
    for _ in range(2 * LANES):
        before = both.messages
        ticket = both.prove()
        assert both.messages - before == 4
        assert both.server.redeem(ticket)
        assert not both.server.redeem(ticket)
    assert both.server._trials == {}
    assert not both.server.redeem(None)
    late = both.prove()
    both.now += 31
    assert not both.server.redeem(late)


def test_all_at_once(both: Both) -> None:
    tickets: list[str] = []

    def one() -> None:
        while True:
            with contextlib.suppress(ServerBusyError):
                tickets.append(both.prove())
                return

    threads = [threading.Thread(target=one) for _ in range(3 * LANES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(tickets)) == 3 * LANES


class Stale(Witness):
    """Shows for ever what it has seen once, as a cached page does."""

    def read(self, lane: int, side: Any) -> bytes:
        seen: dict[tuple[int, str], bytes] = self.__dict__.setdefault("seen", {})
        return seen.setdefault((lane, side), super().read(lane, side))


class Deaf(Witness):
    """Keeps what it writes to itself, as a page does that is not written back."""

    def write(self, lane: int, side: Any, nonce: bytes) -> None:
        pass


class Loose(Witness):
    """Locks that exclude nobody."""

    def lock(self, lane: int, side: Any) -> bool:
        return True

    def unlock(self, lane: int, side: Any) -> None:
        pass


class Own(Witness):
    """Locks that the other side never gets, or never lets go of."""

    def lock(self, lane: int, side: Any) -> bool:
        return side == "client"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Stale, "does not see what the server writes"),
        (Deaf, "does not see what the client writes"),
        (Loose, "locks do not cross: the client is granted"),
        (Own, "locks do not cross"),
    ],
)
def test_what_is_not_one_memory(both: Both, monkeypatch: pytest.MonkeyPatch, kind: Any, text: str) -> None:
    monkeypatch.setattr(client_half, "Witness", kind)
    for _ in range(LANES + 1):  # a failure frees its lane
        with pytest.raises(TransportUnavailableError, match=text):
            both.prove()
    assert both.server._trials == {}
    assert both.server._proved == {}
    monkeypatch.undo()
    both.prove()


def test_a_server_that_sees_nothing(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client checks too: an answer that repeats what it was told proves nothing."""

    def post(path: str, message: dict[str, Any]) -> dict[str, Any]:
        return {"ticket": "t", "lane": 0, "rounds": 3} if "pool" in message else {"saw": "00" * NONCE_NBYTES}

    with pytest.raises(TransportUnavailableError, match="server does not see"):
        prove_coherence(str(both.pool.path), both.pool.uuid, post)


def test_clients_that_stop_or_die_in_the_middle(both: Both, children: Children) -> None:
    text = """
from gsb.transports import coherence
def post(path, message):
    say(message); return hear()
try:
    coherence.prove_coherence(args[0], args[1], post)
except Exception as error:
    say({"error": str(error)})
"""
    stopped = []
    for _ in range(LANES):
        child = children.start(text, both.pool.path, both.pool.uuid)
        child.say(both.server.handle(child.hear()))
        round_one = child.hear()  # it holds its lock now
        stopped.append((child, round_one))
    with pytest.raises(ServerBusyError):
        both.prove()
    both.now += 6
    with pytest.raises(ServerBusyError):
        both.prove()  # the time of all is over, but their locks are held
    with pytest.raises(ServerError):
        both.server.handle(stopped[0][1])  # too late
    for child, _ in stopped[1:]:
        child.kill()
    assert both.server.redeem(both.prove())
    child = stopped[0][0]
    child.say({"saw": "00"})
    while "failed" not in (heard := child.hear()):
        pass
    with pytest.raises(ServerError):
        both.server.handle(heard)
    child.kill()
    both.prove()


@pytest.mark.parametrize(
    "change",
    [
        {"saw": None},
        {"saw": 5},
        {"wrote": "zz"},
        {"wrote": ""},
        {"excluded": "yes"},
        {"excluded": False},
        {"ticket": "0" * 32},
        {"ticket": 7},
    ],
)
def test_nonsense(both: Both, change: dict[str, Any]) -> None:
    begun = both.server.handle({"pool": both.pool.uuid})
    with Witness(both.pool.path, both.pool.uuid) as witness:
        saw = witness.read(begun["lane"], "server").hex()
        message = {"ticket": begun["ticket"], "saw": saw, "wrote": "00" * NONCE_NBYTES, "excluded": True}
        with pytest.raises(ServerError):
            both.server.handle({**message, **change})
    assert both.server._proved == {}


def test_another_pool_and_none(both: Both, tmp_path: Path) -> None:
    with pytest.raises(ServerError):
        both.server.handle({"pool": "0" * 32})
    with pytest.raises(TransportUnavailableError, match="there is no pool"):
        both.prove(tmp_path / "none")
    (tmp_path / "other").write_bytes(b"something else")
    (tmp_path / "other").chmod(0o600)
    with pytest.raises(TransportUnavailableError, match="is not a pool"):
        both.prove(tmp_path / "other")
    with shmpool.Pool.create(tmp_path / "second", slot_nbytes=4096, prefault_nbytes=0) as second:
        with pytest.raises(TransportUnavailableError, match="is pool"):
            both.prove(second.path)
        shutil.copyfile(both.pool.path, tmp_path / "copy")
        (tmp_path / "copy").chmod(0o600)
        (tmp_path / "copy.lock").touch(0o600)
    # A copy has the same uuid, and that is all.
    with pytest.raises(TransportUnavailableError, match="does not see"):
        both.prove(tmp_path / "copy")


def test_the_pool_is_not_touched(pool_path: Path) -> None:
    with shmpool.Pool.create(pool_path, slot_nbytes=4096, max_channels=0, channel_nbytes=0, prefault_nbytes=0) as pool:
        both = Both(pool)
        witness = pool.geometry.witness_offset
        before = pool_path.read_bytes()
        both.prove()
        after = pool_path.read_bytes()
        assert before[:witness] == after[:witness]
        assert before[witness:] != after[witness:]
        both.server.close()


def test_real_mounts_that_go_stale(places: Places, request: pytest.FixtureRequest) -> None:
    require_fuse()
    folder = places.new(request.node.name)
    try:
        with mounted("bindfs", folder) as rig, shmpool.Pool.create(rig.under / "pool", slot_nbytes=4096) as pool:
            both = Both(pool)
            for _ in range(3):
                with pytest.raises(TransportUnavailableError, match="does not see"):
                    both.prove(rig.over / "pool")
            both.prove()
            both.server.close()
            for attach in (shmpool.Pool.attach, shmpool.Pool.open, shmpool.Pool.create):
                with pytest.raises(shmpool.UnsupportedFilesystemError, match="fuse"):
                    attach(rig.over / "pool")
            with pytest.raises(shmpool.UnsupportedFilesystemError):
                shmpool.Pool.open(rig.over / "new" / "pool")
    finally:
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------------ by name
@pytest.mark.parametrize("name", ["9p", "nfs4", "cifs", "virtiofs", "fuse.sshfs", "fuseblk", "drvfs"])
def test_known_bad_mounts(pool_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(mounts, "mount_of", lambda path: MountInfo("/mnt/c", name, "C:\\"))
    for attach in (shmpool.Pool.attach, shmpool.Pool.open, shmpool.Pool.create):
        with pytest.raises(shmpool.UnsupportedFilesystemError, match=name) as caught:
            attach(pool_path)
        assert "SHMPOOL_PATH" in caught.value.hint
    assert not pool_path.exists()
    with shmpool.Pool.open(pool_path, slot_nbytes=4096, trust_mount=True) as pool, pool_copy(pool) as again:
        assert again.uuid == pool.uuid


def pool_copy(pool: shmpool.Pool) -> shmpool.Pool:
    import pickle

    found: shmpool.Pool = pickle.loads(pickle.dumps(pool))
    return found


@pytest.mark.parametrize(("magic", "name"), [(0x01021997, "9p"), (0x65735546, "fuse"), (0xFF534D42, "cifs")])
def test_the_type_counts_where_the_name_lies(
    pool_path: Path, monkeypatch: pytest.MonkeyPatch, magic: int, name: str
) -> None:
    monkeypatch.setattr(mounts, "filesystem_magic", lambda path: magic)
    with pytest.raises(shmpool.UnsupportedFilesystemError, match=f"lies on {name}"):
        shmpool.Pool.open(pool_path)


def test_the_type_is_that_of_statfs(tmp_path: Path) -> None:
    assert mounts.filesystem_magic("/proc") == 0x9FA0
    assert mounts.filesystem_magic(tmp_path / "not" / "there") == mounts.filesystem_magic(tmp_path)
    if os.path.ismount("/dev/shm"):
        assert mounts.filesystem_magic("/dev/shm") == 0x01021994
