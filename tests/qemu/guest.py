# SPDX-License-Identifier: BSD-3-Clause
"""What runs in the guest: the client, with the server in another kernel, and the drive between them by 9P.

Started by `run_9p.py` with the packages in ``PYTHONPATH`` and one argument, a JSON object: `url`, `ports`, `token`,
`drive`, `rounds`. Says what it finds in lines of JSON. The server is found at this machine's own address, through a
relay, as Windows finds one in WSL2.
"""

from __future__ import annotations

import json
import mmap
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gsb
import numpy as np
from gsb._client import Call, Client
from gsb.errors import TransportUnavailableError
from gsb.transports.file import FileTransport

import shmpool.mounts

#: The host, as QEMU's network shows it.
HOST = "10.0.2.2"


def say(**found: Any) -> None:
    print(json.dumps(found), flush=True)


def relay(port: int) -> None:
    """Pass on what comes to a port of this machine to the same port of the host."""
    listener = socket.create_server(("127.0.0.1", port))

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()

    def accept() -> None:
        while True:
            near, _ = listener.accept()
            far = socket.create_connection((HOST, port))
            for connected in (near, far):
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


class Guest:
    """The tests, one after the other."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.rounds: int = job["rounds"]
        self.random = np.random.default_rng(9)

    def client(self, transport: str | None) -> Client:
        return Client(self.job["url"], self.job["token"], transport)

    def count_wrong(self, least: int, there_and_back: Callable[[Any], Any]) -> dict[str, Any]:
        """Send arrays there and back, of log-uniform lengths up to 1 MiB."""
        begun = time.monotonic()
        some = np.exp(self.random.uniform(np.log(least), np.log(1 << 20), self.rounds - 2))
        wrong = 0
        for nbytes in (least, 1 << 20, *(int(n) for n in some)):
            sent = self.random.integers(0, 256, nbytes, dtype=np.uint8)
            wrong += not np.array_equal(there_and_back(sent), sent)
        return {"rounds": self.rounds, "wrong": wrong, "seconds": round(time.monotonic() - begun, 1)}

    def choose(self, label: str) -> None:
        """What is chosen without being told, and whether arrays are unharmed by it."""
        client = self.client(None)
        transport = client.connect().transport
        params = {"with_mean": False, "with_std": False}

        def call(sent: Any) -> Any:
            """Have an estimator return what it is given."""
            column = sent.astype(float).reshape(-1, 1)
            estimator = "sklearn.preprocessing.StandardScaler"
            answer = client.call(Call(estimator, "fit_transform", (column,), {}, params))
            return answer.result.ravel().astype(np.uint8)

        found = {"choice": label, "transport": transport.kind, "reason": transport.reason}
        try:
            say(**found, **self.count_wrong(10 << 10, call))
        except Exception as error:
            say(**found, error=repr(error))
        client.close()

    def ask_for_shared(self) -> None:
        """Ask for the mapping, again and again: the name of the mount does not count then, only the handshake."""
        refused, reason = 0, ""
        for _ in range(self.rounds):
            try:
                self.client("shared").connect()
            except TransportUnavailableError as error:
                refused, reason = refused + 1, error.message
        say(asked_for_shared=self.rounds, refused=refused, reason=reason)

    def use_file(self) -> None:
        """Arrays through the mailbox, and what its pages look like by other ways of reading."""
        client = self.client("file")
        with gsb.config(file_dir=self.job["drive"]):
            transport = client.connect().transport
        assert isinstance(transport, FileTransport)

        def echo(sent: Any) -> Any:
            wire = transport.write(sent, timeout=60.0)
            try:
                return transport.read(transport._post({"do": "echo", "id": wire["id"]}))
            finally:
                transport.release(wire)

        counted = self.count_wrong(1, echo)
        found = {"kind": transport.kind, "how": transport.describe(), "retries": transport.retries}
        say(file=found, **counted)
        self.compare_reads(transport, echo)
        client.close()

    def compare_reads(self, transport: FileTransport, echo: Callable[[Any], Any]) -> None:
        """Why nothing is mapped: a page that the server has written anew, seen in three ways."""
        path, at = transport._box.path, transport._box.layout.down_offset
        plain, direct = os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            mapping: Any = mmap.mmap(plain, at + 4096)
        except OSError:
            mapping = None
        memory = mmap.mmap(-1, 4096)
        for content in (1, 2):
            echo(np.full(4096, content, np.uint8))
            found = {
                "server_wrote": content,
                "mapping": None if mapping is None else mapping[at],
                "plain_read": os.pread(plain, 1, at)[0],
                "direct_read": memory[0] if os.preadv(direct, [memory], at) else None,
            }
        say(**found)


def main() -> None:
    """Run all tests."""
    job = json.loads(sys.argv[1])
    for port in job["ports"]:
        relay(port)
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    drive = [(kind, options) for _, point, kind, options, *_ in mounts if point == job["drive"]]
    say(kernel=platform.release(), python=platform.python_version(), drive=drive)
    guest = Guest(job)
    guest.choose("as it is")
    # A mount that says that it is another one: what is left is to try it.
    shmpool.mounts.find_incoherent = lambda path, mount=None: None
    guest.choose("statfs lies")
    guest.ask_for_shared()
    guest.use_file()
    say(done=True)


if __name__ == "__main__":
    main()
