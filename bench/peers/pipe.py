# SPDX-License-Identifier: BSD-3-Clause
"""multiprocessing.Pipe: the array is sent as an object, pickled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from numpy.typing import NDArray

from bench.harness.arrays import touch
from bench.harness.child import CONTEXT, Answer, Child
from bench.peers.base import Peer


@contextlib.contextmanager
def _reader(data: Connection) -> Iterator[Answer]:
    with data:
        yield lambda _: touch(data.recv())


class Pipe(Peer):
    """``send(array)`` and ``recv()``."""

    name = "multiprocessing Pipe"

    def start(self, array: NDArray[Any]) -> None:
        self._array = array
        theirs, self._ours = CONTEXT.Pipe(duplex=False)
        self._child = Child(_reader, theirs)
        theirs.close()

    def hop(self) -> bytes:
        self._child.tell(b"go")
        self._ours.send(self._array)
        return self._child.answer()

    def close(self) -> None:
        self._child.close()
        self._ours.close()
