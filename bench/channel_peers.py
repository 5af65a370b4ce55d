# SPDX-License-Identifier: BSD-3-Clause
"""Ping-pong of one array between two processes, each way as its own documentation recommends.

The other process sends back what it received; half of the round trip is one way. Receivers wait as a program would:
where the library can block they block, and where it cannot (iceoryx2's Python bindings) they poll.
"""

from __future__ import annotations

import abc
import contextlib
import os
import signal
import socket
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import shmpool
from bench.harness.child import CONTEXT
from bench.harness.workspace import TMPFS, Workspace

SLOT_NBYTES = 64 << 20


class Pong(abc.ABC):
    """One way to send an array there and back."""

    name: ClassVar[str]
    package: ClassVar[str | None] = None
    loaned: ClassVar[bool] = False
    polls: ClassVar[bool] = False  # its other process must be stopped while others are measured

    def __init__(self, workspace: Workspace, array: NDArray[Any]) -> None:
        self.array = array
        self.workspace = workspace
        self.process: Any = None

    def run(self, target: Any, *args: Any) -> None:
        """Start the other process."""
        self.process = CONTEXT.Process(target=target, args=args, daemon=True)
        self.process.start()

    def pause(self, on: bool) -> None:
        """Stop a polling peer, or let it go on."""
        if self.polls:
            os.kill(self.process.pid, signal.SIGSTOP if on else signal.SIGCONT)

    @abc.abstractmethod
    def start(self) -> None:
        """Make both ends; the first `trip` may be slow."""

    @abc.abstractmethod
    def trip(self) -> None:
        """There and back."""

    def close(self) -> None:
        """End the other process."""
        self.process.kill()
        self.process.join()


def _echo_channel(path: str) -> None:
    with shmpool.Pool.attach(path, prefault_nbytes=0) as pool:
        there, back = (shmpool.Channel.attach(name, pool, timeout=30) for name in ("there", "back"))
        for array in there:
            back.send(array)


class OurChannel(Pong):
    """`send` and `recv` of `shmpool.Channel`: copied each way."""

    name = "shmpool Channel"

    def start(self) -> None:
        self.path = self.workspace.new("pool.bin")
        slot = max(SLOT_NBYTES, -(-self.array.nbytes // 4096) * 4096)
        self.pool = shmpool.Pool.open(self.path, slot_nbytes=slot, input_slots=1, output_slots=1, prefault_nbytes=0)
        self.there = shmpool.Channel.open("there", self.pool)
        self.back = shmpool.Channel.open("back", self.pool)
        self.run(_echo_channel, str(self.path))

    def trip(self) -> None:
        self.there.send(self.array)
        self.back.recv(60)

    def close(self) -> None:
        super().close()
        self.there.close()
        self.back.close()
        self.pool.close()
        shmpool.Pool.remove(self.path)


def _echo_loan(path: str) -> None:
    with shmpool.Pool.attach(path, prefault_nbytes=0) as pool:
        there, back = (shmpool.Channel.attach(name, pool, timeout=30) for name in ("there", "back"))
        for array in there:
            assert array[0] == array[-1]
            shape, dtype = array.shape, array.dtype
            del array
            with back.loan(shape, dtype) as loan:
                loan.array[0] = loan.array[-1] = 1
                loan.seal()


class OurLoan(OurChannel):
    """`loan` each way: first and last element written and read, whatever the size."""

    name = "shmpool Channel, loan"
    loaned = True

    def start(self) -> None:
        super().start()
        self.process.kill()
        self.process.join()
        self.pool.reclaim()
        self.run(_echo_loan, str(self.path))

    def trip(self) -> None:
        with self.there.loan(self.array.shape, self.array.dtype) as loan:
            loan.array[0] = loan.array[-1] = 1
            loan.seal()
        got = self.back.recv(60)
        assert got[0] == got[-1]


def _echo_pipe(conn: Connection) -> None:
    with contextlib.suppress(EOFError):
        while True:
            conn.send(conn.recv())


class Pipe(Pong):
    """`send` and `recv` of objects."""

    name = "multiprocessing Pipe"

    def start(self) -> None:
        self.ours, theirs = CONTEXT.Pipe()
        self.run(_echo_pipe, theirs)
        theirs.close()

    def trip(self) -> None:
        self.ours.send(self.array)
        self.ours.recv()

    def close(self) -> None:
        super().close()
        self.ours.close()


def _receive(sock: socket.socket, room: memoryview) -> None:
    have = 0
    while have < len(room):
        got = sock.recv_into(room[have:])
        if got == 0:
            raise EOFError
        have += got


def _echo_socket(sock: socket.socket, nbytes: int) -> None:
    room = memoryview(bytearray(nbytes))
    with contextlib.suppress(EOFError):
        while True:
            _receive(sock, room)
            sock.sendall(room)


class UnixSocket(Pong):
    """Bare bytes of a known length into a buffer that is kept."""

    name = "Unix socket"

    def start(self) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX)
        for end in (self.ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.bytes = self.array.data.cast("B")
        self.room = memoryview(bytearray(self.array.nbytes))
        self.run(_echo_socket, theirs, self.array.nbytes)
        theirs.close()

    def trip(self) -> None:
        self.ours.sendall(self.bytes)
        _receive(self.ours, self.room)

    def close(self) -> None:
        super().close()
        self.ours.close()
        self.bytes.release()


def _echo_zmq(address: str) -> None:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PAIR) as pair:
        pair.connect(address)
        while True:
            pair.send(pair.recv(copy=False), copy=False)


class Pyzmq(Pong):
    """PAIR sockets over ipc://, copy=False."""

    name = "pyzmq, ipc"
    package = "zmq"

    def start(self) -> None:
        import zmq

        address = f"ipc://{self.workspace.new('zmq')}"
        self.context = zmq.Context()
        self.pair = self.context.socket(zmq.PAIR)
        self.pair.bind(address)
        self.run(_echo_zmq, address)

    def trip(self) -> None:
        self.pair.send(self.array, copy=False)
        np.frombuffer(self.pair.recv(copy=False).buffer, self.array.dtype)

    def close(self) -> None:
        super().close()
        self.pair.close(0)
        self.context.term()


def _poll(subscriber: Any) -> Any:
    while True:
        sample = subscriber.receive()
        if sample is not None:
            return sample


def _iceoryx_ends(folder: Path, there: str, back: str, nbytes: int) -> tuple[Any, Any, Any]:
    import ctypes
    import importlib

    from bench.peers.iceoryx2_pubsub import _service

    iceoryx2: Any = importlib.import_module("iceoryx2")  # has no types
    node, _ = _service(folder)
    made = []
    for name in (there, back):
        builder = node.service_builder(iceoryx2.ServiceName.new(name))
        made.append(builder.publish_subscribe(iceoryx2.Slice[ctypes.c_uint8]).open_or_create())
    publisher = made[0].publisher_builder().initial_max_slice_len(nbytes).create()
    return node, publisher, made[1].subscriber_builder().create()


def _publish(publisher: Any, array: NDArray[Any]) -> None:
    sample = publisher.loan_slice_uninit(array.nbytes)
    np.copyto(np.frombuffer(sample.payload().as_memory_view(), np.uint8), array)
    sample.assume_init().send()


def _echo_iceoryx(folder: Path, nbytes: int) -> None:
    _node, publisher, subscriber = _iceoryx_ends(folder, "back", "there", nbytes)
    while True:
        sample = _poll(subscriber)
        _publish(publisher, np.frombuffer(sample.payload().as_memory_view(), np.uint8))
        sample.delete()


class Iceoryx2(Pong):
    """Publish-subscribe, both receivers polling."""

    name = "iceoryx2, polling"
    polls = True
    package = "iceoryx2"

    def start(self) -> None:
        folder = self.workspace.new("iceoryx2")
        folder.mkdir()
        self.bytes = self.array.reshape(-1).view(np.uint8)
        self.node, self.publisher, self.subscriber = _iceoryx_ends(folder, "there", "back", self.array.nbytes)
        self.run(_echo_iceoryx, folder, self.array.nbytes)
        # Until the other is there, what is published goes nowhere.
        sample = None
        while sample is None:
            _publish(self.publisher, self.bytes)
            time.sleep(0.1)
            sample = self.subscriber.receive()
        while sample is not None:
            sample.delete()
            time.sleep(0.1)
            sample = self.subscriber.receive()

    def trip(self) -> None:
        _publish(self.publisher, self.bytes)
        _poll(self.subscriber).delete()

    def close(self) -> None:
        super().close()
        del self.publisher, self.subscriber, self.node
        # iceoryx2 keeps a segment of each node's global state
        for left_over in TMPFS.glob(f"{self.workspace.path.name}-*"):
            left_over.unlink()


PEERS: tuple[type[Pong], ...] = (OurChannel, OurLoan, UnixSocket, Pipe, Pyzmq, Iceoryx2)
