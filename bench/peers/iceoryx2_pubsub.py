# SPDX-License-Identifier: BSD-3-Clause
"""iceoryx2 publish-subscribe: loan a slice, copy the array in, send; the subscriber reads it in place.

A pipe tells the subscriber when to look, as it does for the others, so that nobody polls.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness.arrays import touch
from bench.harness.child import Answer, Child
from bench.peers.base import Peer


def _service(folder: Path) -> tuple[Any, Any]:
    iceoryx2: Any = importlib.import_module("iceoryx2")  # has no types

    iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
    config = iceoryx2.config.default()
    config.global_cfg.root_path = iceoryx2.Path.new(str(folder))
    # segments of a node lie in /dev/shm; the workspace removes what begins with its name
    config.global_cfg.prefix = iceoryx2.FileName.new(f"{folder.parent.name}-")
    builder = iceoryx2.NodeBuilder.new().config(config)
    builder = builder.signal_handling_mode(iceoryx2.SignalHandlingMode.Disabled)
    node = builder.create(iceoryx2.ServiceType.Ipc)
    service = node.service_builder(iceoryx2.ServiceName.new("hop"))
    return node, service.publish_subscribe(iceoryx2.Slice[ctypes.c_uint8]).open_or_create()


@contextlib.contextmanager
def _reader(folder: Path) -> Iterator[Answer]:
    node, service = _service(folder)  # the node must outlive the rest
    subscriber = service.subscriber_builder().create()

    def answer(_: bytes) -> bytes:
        sample = subscriber.receive()
        result = touch(np.frombuffer(sample.payload().as_memory_view(), np.uint8))
        sample.delete()
        return result

    try:
        yield answer
    finally:
        subscriber.delete()
        del service, node


class Iceoryx2(Peer):
    """One publisher, one subscriber, the memory of a sample used again and again."""

    name = "iceoryx2"
    package = "iceoryx2"

    def start(self, array: NDArray[Any]) -> None:
        self._array = array.reshape(-1).view(np.uint8)
        folder = self.workspace.new("iceoryx2")
        folder.mkdir()
        self._node, self._service = _service(folder)
        builder = self._service.publisher_builder().initial_max_slice_len(array.nbytes)
        self._publisher = builder.create()
        self._child = Child(_reader, folder)

    def hop(self) -> bytes:
        sample = self._publisher.loan_slice_uninit(self._array.nbytes)
        np.copyto(np.frombuffer(sample.payload().as_memory_view(), np.uint8), self._array)
        sample.assume_init().send()
        return self._child.ask(b"go")

    def close(self) -> None:
        self._child.close()
        del self._publisher, self._service, self._node
