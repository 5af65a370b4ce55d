# SPDX-License-Identifier: BSD-3-Clause
"""The data plane: arrays there and back, room, deadlines, strangers."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gsb.errors import (
    AuthenticationError,
    ConnectionLostError,
    GSBError,
    PayloadTooLargeError,
    ProtocolError,
    ServerBusyError,
    ServerNotProvenError,
    SessionLostError,
    StaleArrayError,
    TransportUnavailableError,
)
from gsb.protocol import data as wire
from gsb.transports import _sockets
from gsb.transports.stream import DataConnection, find_way
from gsb_server.errors import ServerError
from helpers.processes import Children, eventually

Array = np.ndarray[Any, np.dtype[Any]]
MAKE = Callable[..., Any]
KIB = 1024


def arrays() -> dict[str, Array]:
    random_ = np.random.default_rng(0)
    return {
        "small": random_.random(2000),
        "eager": np.arange(wire.EAGER_NBYTES, dtype=np.uint8),
        "just not eager": np.arange(wire.EAGER_NBYTES + 1, dtype=np.uint8),
        "slots": random_.random((3 * (1 << 20) // 8) + 5),
        "pieces": random_.integers(0, 255, wire.CHUNK_NBYTES + 17, np.uint8),
        "fortran": np.asfortranarray(random_.random((700, 300))),
        "three": np.asfortranarray(random_.random((40, 50, 60))),
        "strides": random_.random((900, 900))[::2, ::-3],
        "small strides": random_.random((90, 90))[::2, ::3],
        "read only": np.broadcast_to(random_.random(3000), (60, 3000)),
        "times": np.arange(100_000).astype("M8[s]"),
        "text": np.array(["ä", "longer"] * 40_000),
        "other order": np.arange(90_000, dtype=">i4"),
        "flags": random_.random(400_000) > 0.5,
        "complex": random_.random(60_000) + 1j,
    }


def wire_of(client: Any, array: Array) -> dict[str, Any]:
    """Send an array; a wire by which it can be fetched again."""
    return {**client.write(array, 5.0), **wire.form_of(array).to_dict()}


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_there_and_back(make_plane: MAKE, kind: str) -> None:
    plane = make_plane(kind)
    link = plane.link()
    client = plane.client(link)
    for name, array in arrays().items():
        sent = client.write(array, 5.0)
        view = link.read(sent)
        np.testing.assert_array_equal(view, array, strict=True, err_msg=name)
        assert not view.flags.writeable
        # What the server has of a client can be referred to again.
        np.testing.assert_array_equal(link.read(sent), array, strict=True)
        del view
        answer = link.write(array, 5.0)
        back = client.read(answer)
        np.testing.assert_array_equal(back, array, strict=True, err_msg=name)
        assert back.flags.writeable
        assert back.flags.f_contiguous or not array.flags.f_contiguous
        client.release(sent)
        with pytest.raises(StaleArrayError):
            client.read(answer)
    eventually(lambda: len(link.shelf) == 0, "everything was released")
    eventually(lambda: not plane.busy, "every slot is free")


def test_a_released_array_stays_for_those_who_read_it(plane: Any) -> None:
    link = plane.link()
    client = plane.client(link)
    array = np.random.default_rng(0).random(100_000)
    sent = client.write(array)
    view = link.read(sent)
    client.release(sent)
    eventually(lambda: len(link.shelf) == 0, "released")
    with pytest.raises(ServerError):
        link.read(sent)
    for _ in range(20):
        client.release(client.write(np.zeros(100_000)))
    np.testing.assert_array_equal(view, array)
    del view


def opened(plane: Any, link: Any) -> socket.socket:
    """A bare connection that has proved itself."""
    connection = DataConnection(plane.connect(), "ab" * 32, link.id)
    return connection._socket


def put_frame(number: int, array: Array, **changes: Any) -> bytes:
    form = {**wire.form_of(array).to_dict(), "timeout": 1.0, **changes.pop("form", {})}
    values = {"id": number, "nbytes": array.nbytes, "meta": json.dumps(form).encode(), **changes}
    return wire.pack_frame(wire.PUT, **values)


def read_frame(connected: socket.socket) -> tuple[wire.Frame, bytes]:
    connected.settimeout(20)
    frame = wire.unpack_frame(_sockets.receive_exactly(connected, wire.FRAME.size, 20))
    return frame, bytes(_sockets.receive_exactly(connected, frame.meta_nbytes, 20))


def test_a_message_may_name_what_is_still_arriving(plane: Any) -> None:
    link = plane.link()
    array = np.random.default_rng(0).random(200_000)
    body = array.tobytes()
    with opened(plane, link) as connected:
        connected.sendall(put_frame(7, array))
        assert read_frame(connected)[0].op == wire.GO
        connected.sendall(body[:100_000])
        found: list[Array] = []
        thread = threading.Thread(target=lambda: found.append(link.read({"$": "ref", "id": 7})))
        thread.start()
        time.sleep(0.05)
        assert thread.is_alive()
        connected.sendall(body[100_000:])
        thread.join(20)
        np.testing.assert_array_equal(found.pop(), array)
        assert read_frame(connected)[0].op == wire.DONE
    link.close()


# ------------------------------------------------------------------------------------ strangers
def test_who_may_connect(plane: Any) -> None:
    link = plane.link()
    with pytest.raises(AuthenticationError):
        plane.client(link, token="cd" * 32).write(np.zeros(5000))
    link.id = "0" * 32
    with pytest.raises(SessionLostError):
        plane.client(link).write(np.zeros(5000))
    assert link._connections == set()


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH\r\n" + b" " * 60, wire.MAGIC + bytes(32) + bytes(200)])
def test_who_may_listen(greeting: bytes) -> None:
    """The array goes to nobody who does not know the token."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(greeting)
        theirs.shutdown(socket.SHUT_WR)
        ours.settimeout(5)
        with pytest.raises((OSError, GSBError)) as caught:
            DataConnection(ours, "ab" * 32, "0" * 32)
        if greeting:
            assert isinstance(caught.value, (ServerNotProvenError, ProtocolError))
        theirs.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert len(theirs.recv(1 << 16)) in (0, wire.OPENING_NBYTES)


def test_garbage(plane: Any) -> None:
    """Strangers and clients that talk nonsense are hung up on, and do nobody any harm."""
    link = plane.link()
    client = plane.client(link)
    source = random.Random(0)
    array = np.zeros(100_000)
    frames = [
        put_frame(1, array, nbytes=2**62),
        put_frame(1, array, form={"shape": [2**40, 2**40]}, nbytes=0),
        put_frame(1, array, form={"shape": [-1]}),
        put_frame(1, array, form={"shape": [2**59]}, nbytes=2**62),
        put_frame(1, array, form={"dtype": "O"}),
        put_frame(1, array, form={"dtype": "<f8, <f8"}),
        put_frame(1, array, form={"order": "K"}),
        put_frame(1, array, form={"timeout": "soon"}),
        put_frame(1, array, form={"timeout": float("nan")}),
        put_frame(1, array, form={"timeout": -1}),
        put_frame(2**48, array),
        put_frame(1, array, flags=wire.EAGER),
        put_frame(1, array, meta=b"[]"),
        put_frame(1, array, meta=b"{"),
        wire.pack_frame(99),
        wire.pack_frame(wire.GO),
        wire.pack_frame(wire.FREE, meta=b"123"),
        wire.FRAME.pack(wire.PUT, 0, 0, 2**32 - 1, 0, 0),
        wire.FRAME.pack(wire.PUT, 0, 1, 0, 0, 0),
    ]
    for frame in frames:
        with opened(plane, link) as connected:
            connected.sendall(frame)
            connected.settimeout(20)
            with contextlib.suppress(ConnectionError):
                while connected.recv(1 << 16):
                    pass
    for _ in range(30):
        with plane.connect() as connected, contextlib.suppress(ConnectionError):
            connected.sendall(source.randbytes(source.randrange(1, 400)))
            connected.settimeout(0.01)
            with contextlib.suppress(TimeoutError):
                while connected.recv(1 << 16):
                    pass
    np.testing.assert_array_equal(client.read(link.write(array, 1.0)), array)
    eventually(lambda: not plane.busy, "every slot is free")


def test_silent_strangers_do_not_keep_others_out(plane: Any) -> None:
    link = plane.link()
    with contextlib.ExitStack() as silent:
        for _ in range(80):
            silent.enter_context(plane.connect())
        client = plane.client(link)
        client.release(client.write(np.zeros(5000)))


def test_a_session_has_only_so_many_connections(make_plane: MAKE) -> None:
    plane = make_plane(max_data_connections=2)
    link = plane.link()
    with opened(plane, link), opened(plane, link), pytest.raises(SessionLostError):
        opened(plane, link)


# ------------------------------------------------------------------------------------ room
def test_refusals_leave_the_connection_as_it_was(plane: Any) -> None:
    link = plane.link()
    client = plane.client(link)
    client.release(client.write(np.zeros(5000)))
    (connection,) = client._idle
    with pytest.raises(PayloadTooLargeError):
        client.write(np.zeros(33 << 20, np.uint8))
    with pytest.raises(StaleArrayError):
        client.read({"$": "ref", "id": 99, "dtype": "<f8", "shape": [5000]})
    held = [client.write(np.zeros(1 << 20, np.uint8), 1.0) for _ in range(4)]
    begun = time.monotonic()
    with pytest.raises(ServerBusyError):
        client.write(np.zeros(1 << 20, np.uint8), 0.1)
    assert time.monotonic() - begun < 5
    # What is small needs no slot.
    client.release(client.write(np.zeros(5000)))
    threading.Timer(0.2, client.release, [held.pop()]).start()
    held.append(client.write(np.ones(1 << 20, np.uint8), 10.0))
    assert link.read(held[-1]).all()
    for sent in held:
        client.release(sent)
    assert connection in client._idle


def test_small_arrays_are_bounded(plane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gsb_server.transports import held
    from gsb_server.transports import plane as module

    monkeypatch.setattr(module, "_MAX_PRIVATE_NBYTES", 100_000)
    link = plane.link()
    client = plane.client(link)
    kept = [client.write(np.zeros(5000)), client.write(np.zeros(5000))]
    with pytest.raises(ServerBusyError):
        client.write(np.zeros(5000))
    client.release(kept.pop())
    client.write(np.zeros(5000))
    monkeypatch.setattr(held, "_MAX_HELD", 2)
    with pytest.raises(ServerBusyError):
        client.write(np.zeros(5))


def test_a_client_that_waits_for_room_and_leaves(plane: Any) -> None:
    link = plane.link()
    client = plane.client(link)
    held = [client.write(np.zeros(1 << 20, np.uint8)) for _ in range(4)]
    with opened(plane, link) as connected:
        connected.sendall(put_frame(10**6, np.zeros(100_000), form={"timeout": 60.0}))
        time.sleep(0.15)
        before = len(link._connections)
    eventually(lambda: len(link._connections) == before - 1, "the waiting connection ends")
    for sent in held:
        client.release(sent)


# ------------------------------------------------------------------------------------ deadlines
def test_a_peer_that_falls_silent(make_plane: MAKE) -> None:
    plane = make_plane("tcp", data_timeout=0.2)
    link = plane.link()
    array = np.zeros(3 << 20, np.uint8)
    with opened(plane, link) as connected:
        connected.sendall(put_frame(1, array))
        assert read_frame(connected)[0].op == wire.GO
        connected.sendall(bytes(1 << 20))
        eventually(lambda: not plane.busy, "the slot of the unfinished upload is free")
        assert connected.recv(1) == b""
    answer = link.write(np.zeros(12 << 20, np.uint8), 1.0)
    with opened(plane, link) as connected:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected.sendall(wire.pack_frame(wire.GET, id=answer["id"]))
        eventually(lambda: not link._connections, "a reader that does not read is hung up on")
    # Nothing is lost by it: the result can be fetched again.
    assert not plane.client(link).read(answer).any()


def test_a_peer_that_dribbles(make_plane: MAKE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sockets, "MIN_RATE", 2**40)
    plane = make_plane(data_timeout=0.3)
    link = plane.link()
    with opened(plane, link) as connected, contextlib.suppress(ConnectionError):
        connected.sendall(put_frame(1, np.zeros(100_000)))
        assert read_frame(connected)[0].op == wire.GO
        for _ in range(100):
            connected.sendall(b"x")
            time.sleep(0.02)
        raise AssertionError("it was waited for")
    eventually(lambda: not plane.busy, "the slot is free")


# ------------------------------------------------------------------------------------ breaking off
def test_a_broken_connection_is_replaced(plane: Any) -> None:
    link = plane.link()
    client = plane.client(link)
    array = np.random.default_rng(0).integers(0, 255, 4 << 20, np.uint8)
    stop = threading.Event()
    broken = 0

    def saw() -> None:
        nonlocal broken
        source = random.Random(1)
        while not stop.is_set():
            time.sleep(0.002 + 0.03 * source.random())
            for connection in list(link._connections)[:1]:
                connection.hang_up()
                broken += 1

    plane.transport._settings = plane.transport._settings.with_(data_grace=60.0)
    link._settings = plane.transport._settings
    thread = threading.Thread(target=saw)
    thread.start()
    done = 0
    try:
        deadline = time.monotonic() + 60
        while done < 10 and time.monotonic() < deadline:
            try:
                sent = client.write(array, 10.0)
                answer = link.write(link.read(sent), 10.0)
                np.testing.assert_array_equal(client.read(answer), array)
                done += 1
            except ConnectionLostError:
                continue  # twice in a row
            finally:
                for number in list(link.shelf._held):
                    link.shelf.drop(number)
    finally:
        stop.set()
        thread.join()
    assert done == 10
    assert broken > 5


def test_the_end_of_a_session_takes_everything_along(plane: Any) -> None:
    link = plane.link()
    client = plane.client(link)
    client.write(np.zeros(1 << 19))
    link.write(np.zeros(1 << 19), 1.0)
    with opened(plane, link) as connected:
        connected.sendall(put_frame(50, np.zeros(100_000)))
        assert read_frame(connected)[0].op == wire.GO
        connected.sendall(b"x" * 1000)
        assert len(plane.busy) == 5  # 2 of each array, 1 of the unfinished one
        link.close()
        eventually(lambda: not plane.busy, "all slots are free")
    with pytest.raises((SessionLostError, ConnectionLostError)):
        client.write(np.zeros(1 << 20))
    with pytest.raises(ServerError):
        link.write(np.zeros(1 << 20), 1.0)


CLIENT = """
import socket
from gsb.transports.stream import StreamTransport
def connect():
    s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(args[0]); return s
client = StreamTransport(connect, args[1], args[2], "test")
array = np.zeros(6 << 20, np.uint8)
say("ready")
while True:
    sent = client.write(array, 10.0)
    client.read({**sent, "dtype": "|u1", "shape": [6 << 20]})
"""


@pytest.mark.parametrize("stopped_first", [False, True])
def test_kill_9_of_the_client(make_plane: MAKE, children: Children, stopped_first: bool) -> None:
    plane = make_plane(data_timeout=0.3)
    source = random.Random(5)
    for _ in range(3):
        link = plane.link()
        child = children.start(CLIENT, plane.path, "ab" * 32, link.id)
        assert child.hear() == "ready"
        time.sleep(0.1 * source.random())
        assert link.is_alive()
        if stopped_first:
            os.kill(child.pid, signal.SIGSTOP)
            time.sleep(0.05)
        child.kill()
        eventually(lambda link=link: not link.is_alive(), "the kernel has closed its connections")
        link.close()
        plane.settle()


def test_a_child_of_the_client_does_not_keep_the_session_alive(make_plane: MAKE, children: Children) -> None:
    plane = make_plane()
    link = plane.link()
    text = (
        CLIENT.partition("say(")[0]
        + """
if os.fork() == 0:
    say([client.is_usable, len(client._idle)])
    time.sleep(60)
    os._exit(0)
client.write(array, 10.0)
say("ready")
time.sleep(60)
"""
    )
    child = children.start(text, plane.path, "ab" * 32, link.id)
    heard = [child.hear(), child.hear()]
    assert "ready" in heard
    assert [False, 0] in heard
    os.kill(child.pid, signal.SIGKILL)
    eventually(lambda: not link.is_alive(), "only the parent's sockets count")
    link.close()


SERVER = """
import socket
from pathlib import Path
from gsb.shm_transport import ShmTransport
from gsb_server.settings import Settings
from gsb_server.transports.stream import DataListeners, StreamTransport
ShmTransport.configure(path=args[0], slot_nbytes=1 << 20)
listener = socket.socket(socket.AF_UNIX); listener.bind(args[1]); listener.listen()
found = StreamTransport(ShmTransport.get().pool, Settings(token=args[2]), DataListeners([listener], Path(args[1])))
say(found.open({}).id)
time.sleep(60)
"""


def test_kill_9_of_the_server(shm: Any, children: Children, tmp_path: Any) -> None:
    from gsb._http import connect_unix
    from gsb.transports.stream import StreamTransport

    source = random.Random(7)
    for attempt in range(3):
        path = f"{tmp_path}/{attempt}"
        child = children.start(SERVER, shm.pool.path, path, "ab" * 32)
        client = StreamTransport(lambda path=path: connect_unix(path, 5.0), "ab" * 32, child.hear(), "test")
        array = np.zeros(6 << 20, np.uint8)
        client.release(client.write(array, 10.0))
        killer = threading.Timer(0.1 * source.random(), os.kill, [child.pid, signal.SIGKILL])
        killer.start()

        def for_ever(client: Any = client, array: Array = array) -> None:
            while True:
                client.read({**client.write(array, 10.0), "dtype": "|u1", "shape": [6 << 20]})

        with pytest.raises(ConnectionLostError):
            for_ever()
        killer.join()
        client.close()
        child.wait()
        shm.pool.reclaim()
        assert all(slot.state == "free" for slot in shm.pool.stat().slots)


# ------------------------------------------------------------------------------------ the client's side
def test_ways(plane: Any) -> None:
    from gsb._http import Address

    unix, tcp = Address("unix:///tmp/x/server.sock"), Address("http://127.0.0.1:8765")
    assert find_way(unix, {"name": "server.sock.data"}, 1.0)[1] == "unix:///tmp/x/server.sock.data"
    assert find_way(tcp, {"port": 8766}, 1.0)[1] == "tcp://127.0.0.1:8766"
    for address, offer in [
        (unix, {}),
        (unix, {"port": 5}),
        (unix, {"name": "../../etc/x"}),
        (unix, {"name": ""}),
        (unix, {"name": 5}),
        (tcp, {}),
        (tcp, {"name": "x"}),
        (tcp, {"port": 0}),
        (tcp, {"port": "80"}),
        (tcp, {"port": 70000}),
    ]:
        with pytest.raises(TransportUnavailableError):
            find_way(address, offer, 1.0)


def test_malformed_references(plane: Any) -> None:
    client = plane.client(plane.link())
    for found in ({}, {"$": "slot", "id": 1}, {"$": "ref"}, {"$": "ref", "id": True}, {"$": "ref", "id": -1}):
        with pytest.raises(ProtocolError):
            client.read({"dtype": "<f8", "shape": [3], **found})
    for form in ({}, {"dtype": "O", "shape": [3]}, {"dtype": "<f8", "shape": "3"}, {"dtype": "<f8", "shape": [2**61]}):
        with pytest.raises(ProtocolError):
            client.read({"$": "ref", "id": 1, **form})


def test_many_threads(plane: Any) -> None:
    link = plane.link()
    client = plane.client(link)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            source = np.random.default_rng(seed)
            for _ in range(10):
                array = source.integers(0, 255, int(source.integers(1, 400_000)), np.uint8)
                sent = client.write(array, 20.0)
                np.testing.assert_array_equal(client.read(link.write(link.read(sent), 20.0)), array)
                client.release(sent)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert 1 <= len(client._idle) <= 8
    readable, _, _ = select.select([connection._socket for connection in client._idle], [], [], 0)
    assert readable == []
