# SPDX-License-Identifier: BSD-3-Clause
"""What a contender of the hop benchmark looks like."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from numpy.typing import NDArray

from bench.harness.workspace import Workspace


class Peer(abc.ABC):
    """One way to bring an array to another process, used as its own documentation recommends.

    `start` makes the other process and all buffers that outlive a hop; `hop` is what is timed: from the array in this
    process to the acknowledgement of a reader that has touched every page of it, and back to where the next hop may
    begin.
    """

    name: ClassVar[str]
    package: ClassVar[str | None] = None  # what must be installed; None for the standard library

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    @abc.abstractmethod
    def start(self, array: NDArray[Any]) -> None:
        """Prepare to move this array; its contents change between hops, its shape does not."""

    @abc.abstractmethod
    def hop(self) -> bytes | None:
        """Move it once; what the reader answered (`bench.harness.arrays.touch`), or None without a reader."""

    @abc.abstractmethod
    def close(self) -> None:
        """End the other process and remove everything."""
