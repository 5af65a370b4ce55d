# SPDX-License-Identifier: BSD-3-Clause
"""Random arrays there and back through the transport `file`, compared byte by byte."""

from __future__ import annotations

from typing import Any

import numpy as np
from gsb.transports.file import FileTransport
from numpy.typing import NDArray

__all__ = ["echo", "random_array", "run", "sizes"]


def sizes(random: np.random.Generator, n: int, least: int, most: int) -> list[int]:
    """Log-uniform between the ends, both of which are there."""
    some = np.exp(random.uniform(np.log(least), np.log(most), max(0, n - 2)))
    return [least, most, *(int(x) for x in some)][:n]


def random_array(random: np.random.Generator, nbytes: int, dtype: str = "u1") -> NDArray[Any]:
    """An array of random contents, of at most so many bytes."""
    kind = np.dtype(dtype)
    n = nbytes // kind.itemsize
    if kind.kind == "U":
        return random.integers(65, 91, n * kind.itemsize // 4, dtype=np.uint32).view(kind)
    if kind.kind == "S":
        return random.integers(65, 91, n * kind.itemsize, dtype=np.uint8).view(kind)
    if kind.kind == "b":
        return random.integers(0, 2, n, dtype=np.uint8).view(kind)
    return random.integers(0, 100, n * kind.itemsize, dtype=np.uint8).view(kind)


def echo(transport: FileTransport, array: NDArray[Any]) -> NDArray[Any]:
    """Send an array, have the server make a result of it, fetch that."""
    wire = transport.write(array, timeout=60.0)
    try:
        return transport.read(transport._post({"do": "echo", "id": wire["id"]}))
    finally:
        transport.release(wire)


def run(transport: FileTransport, n: int, most: int, seed: int) -> int:
    """`n` arrays there and back, that is `n` transfers in each direction; the number of wrong ones."""
    random = np.random.default_rng(seed)
    wrong = 0
    for nbytes in sizes(random, n, 1, most):
        sent = random_array(random, nbytes)
        wrong += not np.array_equal(echo(transport, sent), sent)
    return wrong
