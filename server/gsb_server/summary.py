# SPDX-License-Identifier: BSD-3-Clause
"""What an answer says of a fitted model, and how its whole state is packed.

Small attributes go along with every fit, so that reading ``explained_variance_`` costs no request; large
ones are named; whatever has no form on the wire (trees, nested estimators) is named as opaque and comes
with the pickled estimator only.
"""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
from gsb.errors import UnsupportedValueError
from gsb.protocol import INLINE_LIMIT, encode_value

from .backends.base import Deferred

__all__ = ["pack_state", "summarize"]

# A pickled estimator takes one slot for the stream and one for each buffer out of band; the region is small.
_LARGEST_BUFFERS = 2
_BUFFER_NBYTES = 2**20


class _LargeError(Exception):
    """An array on the way is too large to go inline."""


def _refuse(array: np.ndarray[Any, np.dtype[Any]]) -> dict[str, Any]:
    raise _LargeError


def summarize(attributes: dict[str, Any]) -> dict[str, Any]:
    """Sort attributes into small, large and opaque."""
    small: dict[str, Any] = {}
    large: list[str] = []
    opaque: list[str] = []
    for name, value in attributes.items():
        if isinstance(value, Deferred):
            (large if value.kind == "large" else opaque).append(name)
            continue
        try:
            encoded = encode_value(value, _refuse)
        except _LargeError:
            large.append(name)
            continue
        except UnsupportedValueError:
            opaque.append(name)
            continue
        plain = value is None or isinstance(value, (bool, int, float, np.generic))
        # Inline arrays are below the limit already; text and containers are measured.
        if (
            plain
            or (isinstance(value, np.ndarray) and value.dtype.kind != "O")
            or len(json.dumps(encoded)) < 2 * INLINE_LIMIT
        ):
            small[name] = encoded
        else:
            large.append(name)
    return {"attrs": small, "large": large, "opaque": opaque}


def pack_state(estimator: Any) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[Any]]:
    """Pickle an estimator: the stream, and its largest buffers as views without a copy.

    Returns
    -------
    stream : ndarray of uint8
    buffers : list of ndarray of uint8
    """
    sizes: list[int] = []

    def measure(buffer: pickle.PickleBuffer) -> None:
        with buffer.raw() as raw:
            sizes.append(raw.nbytes)

    pickle.dumps(estimator, protocol=5, buffer_callback=measure)
    ranked = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)[:_LARGEST_BUFFERS]
    chosen = {index for index in ranked if sizes[index] >= _BUFFER_NBYTES}
    buffers: list[Any] = []
    position = -1

    def keep(buffer: pickle.PickleBuffer) -> bool:
        nonlocal position
        position += 1
        if position not in chosen:
            return True
        buffers.append(np.frombuffer(buffer.raw(), np.uint8))
        return False

    stream = pickle.dumps(estimator, protocol=5, buffer_callback=keep)
    return np.frombuffer(stream, np.uint8), buffers
