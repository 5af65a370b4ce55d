# SPDX-License-Identifier: BSD-3-Clause
"""The transports between this process and a server: each one tried, measured, or explained."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from gsb._client import Client
from gsb.errors import GSBError, TransportUnavailableError
from gsb.protocol.data import form_of
from gsb.transports import KINDS, Transport

__all__ = ["Way", "choice", "ways"]

_NBYTES = 32 * 2**20
_ROUNDS = 4


class Way(NamedTuple):
    """One transport. Rates in MB/s; `opened` in seconds, with what it takes to trust it."""

    kind: str
    works: bool
    text: str
    there: float = 0.0
    back: float = 0.0
    opened: float = 0.0


def ways(url: str, token: str | None) -> list[Way]:
    """Try every kind."""
    return [_try(url, token, kind) for kind in KINDS]


def choice(url: str, token: str | None) -> tuple[str, str]:
    """Return what would be taken, and why."""
    client = Client(url, token)
    try:
        transport = client.connect().transport
        return transport.kind, transport.reason
    except TransportUnavailableError as error:
        return "none", error.message
    finally:
        client.close()


def _try(url: str, token: str | None, kind: str) -> Way:
    client = Client(url, token, kind)
    try:
        client.status()  # the control connection is not what is measured
        begun = time.perf_counter()
        transport = client.connect().transport
        opened = time.perf_counter() - begun
        there, back = _measure(transport)
        return Way(kind, True, transport.describe(), there, back, opened)
    except GSBError as error:
        return Way(kind, False, error.message.removeprefix(f"{kind}: "))
    finally:
        client.close()


def _measure(transport: Transport) -> tuple[float, float]:
    """Send an array and fetch it again; the best rates of a few rounds, because the first touch of memory is slow."""
    array = np.random.default_rng(0).integers(0, 255, _NBYTES, np.uint8)
    there = back = float("inf")
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        wire = transport.write(array, 10.0)
        written = time.perf_counter()
        found = transport.read({**wire, **form_of(array).to_dict()})
        read = time.perf_counter()
        if not np.array_equal(found, array):
            raise TransportUnavailableError("the array that came back is not the one that was sent")
        there, back = min(there, written - begun), min(back, read - written)
    return _NBYTES / there / 1e6, _NBYTES / back / 1e6
