# SPDX-License-Identifier: BSD-3-Clause
"""The yardstick: one plain ``np.copyto`` within one process, into memory that is there already. No reader."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.peers.base import Peer


class Copyto(Peer):
    """One copy, and nothing else."""

    name = "np.copyto, one process"

    def start(self, array: NDArray[Any]) -> None:
        self._array = array
        self._target = np.ones_like(array)

    def hop(self) -> None:
        np.copyto(self._target, self._array)

    def close(self) -> None:
        del self._target
