# SPDX-License-Identifier: BSD-3-Clause
"""Arrays through the transport `file`, between a server and a client that see one drive through different mounts."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gsb
import gsb.mailbox.box as box_module
import gsb.transports.file as file_module
import numpy as np
import pytest
from gsb._client import Client
from gsb.errors import ConnectionLostError, DamagedTransferError, GSBError, TransportError, TransportUnavailableError
from gsb.mailbox import Mailbox
from gsb.protocol.data import form_of
from gsb.transports.file import FileTransport, local_name
from helpers.far_server import FarServer
from helpers.mounts import Rig
from helpers.places import Places
from helpers.processes import Children, eventually
from helpers.transfers import echo, random_array, run

import shmpool

SIDES = {"client-on-the-mount": ("under", "over"), "server-on-the-mount": ("over", "under")}


@pytest.fixture(scope="module")
def home(places: Places) -> Iterator[Path]:
    """A drive that both sides of `server` see alike."""
    folder = places.new("drive")
    yield folder
    places.discard(folder)


@pytest.fixture(scope="module")
def shared_server(home: Path, places: Places) -> Iterator[FarServer]:
    folder = places.new("pool")
    with FarServer(home, folder / "pool.bin", GSB_FILE_NBYTES="4M") as server:
        yield server
    assert list(home.iterdir()) == []
    places.discard(folder)


@pytest.fixture
def server(shared_server: FarServer) -> Iterator[FarServer]:
    """A server with a small mailbox in `home`, in which a test leaves nothing."""
    yield shared_server
    shared_server.disconnect()
    eventually(lambda: shared_server.status()["sessions"] == [], "all sessions have ended")
    assert nothing_is_held(shared_server)


@pytest.fixture
def own_home(pool_dir: Path) -> Path:
    """A drive for a server of the test's own."""
    (pool_dir / "drive").mkdir()
    return pool_dir / "drive"


def connected(server: FarServer, folder: Path, transport: str | None = "file") -> Client:
    client = server.client(transport)
    with gsb.config(file_dir=str(folder)):
        client.connect()
    return client


def transport_of(client: Client) -> FileTransport:
    found = client.connect().transport
    assert isinstance(found, FileTransport)
    return found


def nothing_is_held(server: FarServer) -> bool:
    """Neither parts of the file nor slots of the pool."""
    status = server.status()
    box = status["mailbox"]
    slots = [slot for slot in status["pool"]["stat"]["slots"] if slot["state"] != "free"]
    return box["lent_up_nbytes"] == box["lent_down_nbytes"] == 0 and slots == []


# ------------------------------------------------------------------------------ what arrives
@pytest.mark.parametrize("sides", SIDES)
def test_what_arrives_is_what_was_sent(rig: Rig, sides: str, pool_dir: Path) -> None:
    theirs, ours = (getattr(rig, name) for name in SIDES[sides])
    with FarServer(theirs, pool_dir / "pool.bin", GSB_FILE_NBYTES="4M") as server:
        client = connected(server, ours)
        assert client.connect().transport.kind == "file"
        assert run(transport_of(client), n=60, most=2 << 20, seed=4) == 0
        eventually(lambda: nothing_is_held(server), "all parts and slots are free")
        assert server.status()["mailbox"]["reads"] == "O_DIRECT"
        client.close()


@pytest.mark.parametrize("dtype", ["f8", "c8", "?", "i2", "M8[s]", "S3", "U2"])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_every_form_of_array(server: FarServer, home: Path, dtype: str, order: str) -> None:
    transport = transport_of(connected(server, home))
    array = random_array(np.random.default_rng(1), 90_000, dtype).reshape(30, -1)
    sent = {"C": array, "F": np.asfortranarray(array), "strided": array[::2, 1::3]}[order]
    found = echo(transport, sent)
    assert found.dtype == sent.dtype
    assert found.shape == sent.shape
    assert found.tobytes() == sent.tobytes()
    assert form_of(found).order == form_of(sent).order


def test_arrays_of_several_pieces(server: FarServer, home: Path) -> None:
    """A mailbox of 4 MiB, halves of 2 MiB, pieces of half a MiB."""
    transport = transport_of(connected(server, home))
    for nbytes in (0, 1, 524_287, 524_288, 524_289, 7_000_001):
        sent = np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8)
        assert np.array_equal(echo(transport, sent), sent)
    eventually(lambda: nothing_is_held(server), "all parts and slots are free")


def test_estimators_use_it(server: FarServer, home: Path) -> None:
    from gsb.preprocessing import StandardScaler
    from sklearn.preprocessing import StandardScaler as Plain

    X = np.random.default_rng(0).standard_normal((40_000, 8))
    with gsb.config(server=server.url, token=server.token, transport="file", file_dir=str(home)):
        scaler = StandardScaler().fit(X)
        assert np.array_equal(scaler.transform(X), Plain().fit(X).transform(X))
        assert scaler.gsb_report_.transport == "file"
        gsb.disconnect()
    eventually(lambda: nothing_is_held(server), "all parts and slots are free")


def test_threads_share_it(server: FarServer, home: Path) -> None:
    transport = transport_of(connected(server, home))
    wrong: list[Any] = []

    def work(seed: int) -> None:
        try:
            wrong.append(run(transport, n=12, most=1 << 20, seed=seed))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == [0] * 5
    eventually(lambda: nothing_is_held(server), "all parts and slots are free")


def test_a_full_mailbox_is_waited_for(own_home: Path, pool_dir: Path) -> None:
    """Halves of 64 KiB: one transfer at a time."""
    with FarServer(own_home, pool_dir / "pool.bin", GSB_FILE_NBYTES="192K") as server:
        first, second = (transport_of(connected(server, own_home)) for _ in range(2))
        held = first._post({"do": "begin", "id": 77, "dtype": "|u1", "shape": [100], "order": "C"})
        with pytest.raises(gsb.errors.ServerBusyError, match="mailbox is full"):
            second.write(np.zeros(100, np.uint8), timeout=0.1)
        assert len(held["parts"]) == 1
        later = threading.Timer(0.3, first._free, (77,))
        later.start()
        sent = np.arange(200_000)
        assert np.array_equal(echo(second, sent), sent)
        later.join()


# ------------------------------------------------------------------------------ giving up
def stale_reads(monkeypatch: pytest.MonkeyPatch, after: int = 0) -> list[int]:
    """Have this process read zeros instead of what lies in the file, from the given read on."""
    calls: list[int] = []
    real = box_module.DirectFile.read

    def read(self: Any, offset: int, memory: memoryview) -> int:
        calls.append(offset)
        got = real(self, offset, memory)
        if len(calls) > after:
            memory[:] = bytes(len(memory))
        return got

    monkeypatch.setattr(box_module.DirectFile, "read", read)
    return calls


def test_a_drive_that_is_stale_is_refused_when_it_is_opened(
    server: FarServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale_reads(monkeypatch, after=1)  # the page by which the file is known is read first
    with pytest.raises(TransportUnavailableError, match="not those that were written"):
        connected(server, home)
    eventually(lambda: nothing_is_held(server), "all parts and slots are free")
    assert server.status()["sessions"] == []


def test_a_drive_that_goes_stale_is_given_up_for_stream(
    server: FarServer, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = connected(server, home)
    transport = transport_of(client)
    sent = np.arange(400_000)
    with monkeypatch.context() as patch:
        stale_reads(patch)
        assert np.array_equal(echo(transport, sent), sent)
    assert transport.kind == "stream"
    assert "read twice by O_DIRECT" in transport.reason
    assert any("the file was given up" in record.message for record in caplog.records)
    # The session is the same, and so is what lies in it.
    assert [session["transport"] for session in server.status()["sessions"]] == ["file"]
    assert np.array_equal(echo(transport, sent), sent)
    eventually(lambda: nothing_is_held(server), "all parts and slots are free")


def test_what_the_server_reads_wrong_is_sent_again_by_stream(
    server: FarServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = transport_of(connected(server, home))
    sent = np.arange(400_000)

    def spoil(self: Mailbox, offset: int, data: Any, generation: int) -> int:
        damaged = data.copy()
        damaged[-1] ^= 1
        put(self, offset, damaged, generation)
        return shmpool.checksum(data, generation)

    put = Mailbox.put
    with monkeypatch.context() as patch:
        patch.setattr(Mailbox, "put", spoil)
        assert np.array_equal(echo(transport, sent), sent)
    assert transport.kind == "stream"
    assert "not those that were written" in transport.reason
    eventually(lambda: nothing_is_held(server), "all parts and slots are free")


def test_without_a_stream_the_damage_is_raised(server: FarServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = transport_of(connected(server, home))
    transport._dialog.offer["stream"] = None
    stale_reads(monkeypatch)
    with pytest.raises(DamagedTransferError, match="read twice"):
        echo(transport, np.arange(400_000))
    assert transport.kind == "file"


def test_a_drive_that_fails_is_given_up(server: FarServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = transport_of(connected(server, home))

    def fail(self: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(box_module.DirectFile, "flush", fail)
    sent = np.arange(400_000)
    assert np.array_equal(echo(transport, sent), sent)
    assert "Input/output error" in transport.reason


# ------------------------------------------------------------------------------ opening
def test_without_the_drive_it_is_unavailable(server: FarServer, tmp_path: Path) -> None:
    with pytest.raises(TransportUnavailableError, match="GSB_FILE_DIR"):
        connected(server, tmp_path)


def test_another_drive_with_such_a_file_is_refused(server: FarServer, home: Path, tmp_path: Path) -> None:
    (tmp_path / "gsb-mailbox.bin").write_bytes((home / "gsb-mailbox.bin").read_bytes())
    # It is a copy: its first page is right, and what is written to it arrives nowhere.
    with pytest.raises(TransportUnavailableError, match="not those that were written"):
        connected(server, tmp_path)


def test_a_server_without_a_folder_does_not_offer_it(pool_dir: Path, tmp_path: Path) -> None:
    with FarServer(tmp_path / "nowhere", pool_dir / "pool.bin") as server:
        with pytest.raises(TransportUnavailableError, match="does not offer"):
            connected(server, tmp_path)
        assert server.status()["mailbox"] is None
        assert "`file` is not offered" in server.log_text()


def test_a_second_server_keeps_off(server: FarServer, home: Path, pool_dir: Path) -> None:
    first = transport_of(connected(server, home))
    with FarServer(home, pool_dir / "other.bin") as second:
        assert second.status()["mailbox"] is None
        assert "in use by another server" in second.log_text()
    sent = np.arange(100_000)
    assert np.array_equal(echo(first, sent), sent)


@pytest.mark.parametrize(
    ("folder", "platform", "expected"),
    [
        ("/mnt/c/gsb/shm", "win32", "c:\\gsb\\shm"),
        ("/mnt/d", "win32", "d:\\"),
        ("/mnt/data/x", "win32", "/mnt/data/x"),
        ("C:\\gsb\\shm", "linux", "/mnt/c/gsb/shm"),
        ("/mnt/c/gsb", "linux", "/mnt/c/gsb"),
        ("/srv/box", "linux", "/srv/box"),
    ],
)
def test_names_of_windows_drives(folder: str, platform: str, expected: str) -> None:
    assert local_name(folder, platform) == expected


# ------------------------------------------------------------------------------ deaths
CLIENT = """
import gsb
from gsb._client import Client
url, token, folder, place = args
client = Client(url, token, "file")
with gsb.config(file_dir=folder):
    transport = client.connect().transport
from gsb.mailbox import Mailbox
sent = np.arange(500_000)
if place == "idle":
    say("there")
    hear()
elif place == "uploading":
    put, count = Mailbox.put, 0
    def stop(self, *arguments):
        global count
        count += 1
        if count == 3:
            say("there")
            hear()
        return put(self, *arguments)
    Mailbox.put = stop
    transport.write(sent)
elif place == "sent":
    transport.write(sent)
    say("there")
    hear()
elif place == "fetching":
    answer = transport._post({"do": "echo", "id": transport.write(sent)["id"]})
    take, count = Mailbox.take, 0
    def stop(self, *arguments):
        global count
        count += 1
        if count == 3:
            say("there")
            hear()
        return take(self, *arguments)
    Mailbox.take = stop
    transport.read(answer)
"""


@pytest.mark.parametrize("place", ["idle", "uploading", "sent", "fetching"])
def test_a_killed_client_leaves_nothing(server: FarServer, home: Path, children: Children, place: str) -> None:
    child = children.start(CLIENT, server.url, server.token, home, place)
    assert child.hear() == "there"
    assert len(server.status()["sessions"]) == 1
    if place in ("uploading", "fetching"):
        assert not nothing_is_held(server)
    # Longer than the grace: a client that does nothing lives, because a request of its own is open.
    time.sleep(0.5)
    assert len(server.status()["sessions"]) == 1
    child.kill()
    eventually(lambda: server.status()["sessions"] == [] and nothing_is_held(server), "the dead client holds nothing")


def test_a_killed_server_is_a_typed_error(own_home: Path, pool_dir: Path) -> None:
    with FarServer(own_home, pool_dir / "pool.bin", GSB_FILE_NBYTES="4M") as server:
        transport = transport_of(connected(server, own_home))
        killed = threading.Timer(0.3, server.kill)
        killed.start()
        sent = np.arange(200_000)
        deadline = time.monotonic() + 60

        def go_on() -> None:
            while time.monotonic() < deadline:
                assert np.array_equal(echo(transport, sent), sent)

        with pytest.raises(TransportError) as caught:
            go_on()
        killed.join()
        assert isinstance(caught.value, ConnectionError)
        # The file of the dead server is there, and claimed by nobody: the next one takes it over.
        assert [path.name for path in own_home.iterdir()] == ["gsb-mailbox.bin"]
    with FarServer(own_home, pool_dir / "pool.bin", GSB_FILE_NBYTES="4M") as server:
        assert np.array_equal(echo(transport_of(connected(server, own_home)), sent), sent)
        assert nothing_is_held(server)
    assert list(own_home.iterdir()) == []


def test_a_client_that_stood_still_and_comes_back(server: FarServer, home: Path, children: Children) -> None:
    """A stopped client keeps its session: the kernel keeps its socket open."""
    child = children.start(CLIENT, server.url, server.token, home, "idle")
    assert child.hear() == "there"
    child.stop()
    time.sleep(0.6)
    assert len(server.status()["sessions"]) == 1
    child.resume()
    child.say("go on")
    child.finish()
    eventually(lambda: server.status()["sessions"] == [], "the session has ended")


def test_a_lost_attendance_is_taken_up_again(server: FarServer, home: Path) -> None:
    transport = transport_of(connected(server, home))
    assert transport._attendance is not None
    transport._attendance.close()
    sent = np.arange(50_000)
    assert np.array_equal(echo(transport, sent), sent)
    time.sleep(0.5)
    assert len(server.status()["sessions"]) == 1
    assert np.array_equal(echo(transport, sent), sent)


def test_a_broken_control_connection_is_replaced(
    server: FarServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to every third message is lost; each may be carried out twice."""
    transport = transport_of(connected(server, home))
    real, calls = file_module.exchange, 0

    def lossy(*arguments: Any) -> Any:
        nonlocal calls
        answer = real(*arguments)
        # A repeated echo is another result, which nobody would fetch.
        calls += arguments[3]["do"] != "echo"
        if calls % 3 == 0 and arguments[3]["do"] != "echo":
            raise ConnectionLostError("the answer was lost")
        return answer

    monkeypatch.setattr(file_module, "exchange", lossy)
    for number in range(6):
        sent = np.arange(300_000) + number
        wire = transport.write(sent)
        answer = transport._post({"do": "echo", "id": wire["id"]})
        assert np.array_equal(transport.read(answer), sent)
        transport.release(wire)
    assert calls > 30
    monkeypatch.undo()
    transport._end_session()
    eventually(lambda: nothing_is_held(server), "all parts and slots are free")


def test_an_upload_that_halts_is_dropped(own_home: Path, pool_dir: Path) -> None:
    with FarServer(own_home, pool_dir / "pool.bin", GSB_DATA_TIMEOUT="0.3") as server:
        transport = transport_of(connected(server, own_home))
        transport._post({"do": "begin", "id": 5, "dtype": "|u1", "shape": [9_000_000], "order": "C"})
        assert not nothing_is_held(server)
        eventually(lambda: nothing_is_held(server), "the upload is dropped")
        assert len(server.status()["sessions"]) == 1


def test_a_forked_child_keeps_its_hands_off(server: FarServer, home: Path) -> None:
    transport = transport_of(connected(server, home))
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            usable = transport.is_usable
            try:
                transport.write(np.zeros(10, np.uint8))
            except GSBError:
                status = 10 + usable
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 10
    sent = np.arange(50_000)
    assert np.array_equal(echo(transport, sent), sent)


# ------------------------------------------------------------------------------ what is malformed
@pytest.mark.parametrize(
    "message",
    [
        {},
        {"do": "nonsense"},
        {"do": "begin", "id": -1, "dtype": "|u1", "shape": [10], "order": "C"},
        {"do": "begin", "id": 2**48, "dtype": "|u1", "shape": [10], "order": "C"},
        {"do": "begin", "id": 1, "dtype": "|O", "shape": [10], "order": "C"},
        {"do": "begin", "id": 1, "dtype": "|u1", "shape": [-10], "order": "C"},
        {"do": "sent", "id": 1, "at": 0, "nbytes": 10, "part": 0, "checksum": "00"},
        {"do": "sent", "id": 1, "at": 0, "nbytes": 10, "part": 0, "checksum": "0" * 32},
        {"do": "fetch", "id": 1, "at": 0},
        {"do": "fetch", "id": "1", "at": 0},
        {"do": "echo", "id": 3},
        {"do": "free", "ids": "all"},
    ],
)
def test_malformed_messages_are_refused(server: FarServer, home: Path, message: dict[str, Any]) -> None:
    transport = transport_of(connected(server, home))
    with pytest.raises(GSBError):
        transport._post(message)
    sent = np.arange(50_000)
    assert np.array_equal(echo(transport, sent), sent)
    eventually(lambda: nothing_is_held(server), "all parts and slots are free")


def test_pieces_out_of_place_are_refused(server: FarServer, home: Path) -> None:
    transport = transport_of(connected(server, home))
    form = {"dtype": "|u1", "shape": [1_000_000], "order": "C"}
    transport._post({"do": "begin", "id": 5, **form})
    good = {"do": "sent", "id": 5, "at": 0, "nbytes": 1000, "part": 0, "checksum": "0" * 32}
    for change in ({"at": 1}, {"at": -1}, {"nbytes": 0}, {"nbytes": 10**7}, {"part": 2}, {"part": -1}, {"id": 6}):
        with pytest.raises(GSBError):
            transport._post({**good, **change})
    with pytest.raises(DamagedTransferError):
        transport._post(good)
    # A damaged upload is over.
    with pytest.raises(GSBError):
        transport._post(good)
    eventually(lambda: nothing_is_held(server), "all parts and slots are free")


def test_a_session_of_another_kind_has_no_mailbox(server: FarServer, home: Path) -> None:
    transport = transport_of(connected(server, home))
    other = connected(server, home, "stream").connect()
    for message in ({"do": "free", "ids": []}, {"do": "echo", "id": 1}):
        with pytest.raises(GSBError, match="no mailbox"):
            transport._post({**message, "session": other.id})
