# SPDX-License-Identifier: BSD-3-Clause
"""Moving whole arrays over a stream socket, without a copy on the way. Used by both sides."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Generator
from typing import Any

import numpy as np

from gsb.protocol.data import CHUNK_NBYTES, flat_bytes

Array = np.ndarray[Any, np.dtype[Any]]

#: Bytes per second below which a transfer is given up.
MIN_RATE = 2**20


class HungUpError(ConnectionError):
    """The other side has closed the connection."""


def deadline_for(nbytes: int, seconds: float) -> float:
    """Until when a transfer may last: a peer that dribbles would hold a slot for ever."""
    return time.monotonic() + seconds + nbytes / MIN_RATE


def receive_into(connected: socket.socket, target: memoryview, seconds: float) -> None:
    """Fill a buffer.

    Parameters
    ----------
    seconds : float
        That the other side may be silent, which is also the socket's timeout, and that it may take besides one second
        per MiB.

    Raises
    ------
    HungUpError, TimeoutError, OSError
    """
    deadline = deadline_for(len(target), seconds)
    done, total = 0, len(target)
    while done < total:
        count = connected.recv_into(target[done : done + CHUNK_NBYTES])
        if not count:
            raise HungUpError(f"the connection was closed after {done} of {total} bytes")
        done += count
        if done < total and time.monotonic() > deadline:
            raise TimeoutError(f"the other side is too slow: {done} of {total} bytes in time")


def receive_exactly(connected: socket.socket, nbytes: int, seconds: float) -> bytearray:
    """Receive a few bytes, as `receive_into`."""
    data = bytearray(nbytes)
    with memoryview(data) as view:
        receive_into(connected, view, seconds)
    return data


def send_all(connected: socket.socket, data: bytes | memoryview, seconds: float) -> None:
    """Send bytes; deadlines as for `receive_into`, except that silence is noticed by the piece."""
    deadline = deadline_for(len(data), seconds)
    view = memoryview(data)
    for start in range(0, len(view), CHUNK_NBYTES):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the other side is too slow: {start} of {len(view)} bytes in time")
        connected.sendall(view[start : start + CHUNK_NBYTES])


def send_array(connected: socket.socket, array: Array, seconds: float) -> None:
    """Send the bytes of an array: where they lie if it is contiguous, packed piece by piece otherwise."""
    with contextlib.closing(pieces(array)) as found:
        for piece in found:
            send_all(connected, piece, seconds)


def pieces(array: Array) -> Generator[memoryview]:
    """Give the bytes of an array, in C order unless it is Fortran-contiguous; never more than a chunk is copied."""
    if array.flags.c_contiguous or array.flags.f_contiguous:
        with flat_bytes(array) as whole:
            yield whole
        return
    size = max(1, CHUNK_NBYTES // array.itemsize)
    for piece in np.nditer(array, flags=["external_loop", "buffered"], order="C", buffersize=size):
        yield flat_bytes(np.ascontiguousarray(piece))
