# SPDX-License-Identifier: BSD-3-Clause
"""An ``.npy`` file on tmpfs: saved, mapped by the reader, removed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness.arrays import touch
from bench.harness.child import Answer, Child
from bench.peers.base import Peer


@contextlib.contextmanager
def _reader() -> Iterator[Answer]:
    yield lambda request: touch(np.load(request.decode(), mmap_mode="r"))


class NpyFile(Peer):
    """``np.save`` and ``np.load(mmap_mode="r")``."""

    name = ".npy file on tmpfs"

    def start(self, array: NDArray[Any]) -> None:
        self._array = array
        self._child = Child(_reader)

    def hop(self) -> bytes:
        path = self.workspace.new("array.npy")
        np.save(path, self._array)
        answer = self._child.ask(str(path).encode())
        os.unlink(path)
        return answer

    def close(self) -> None:
        self._child.close()
