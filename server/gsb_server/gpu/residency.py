# SPDX-License-Identifier: BSD-3-Clause
"""Device copies of arrays that are named again: a fit and the calls after it upload an array once.

The key says what the content is: pool, slot and generation of a sealed array, which never changes. What is kept is
pristine: a library that may write (cuML's PCA centres its input in place) is given a copy made on the device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from .device import Device, PinningDevice

__all__ = ["Residency", "ResidentDevice"]

Array = np.ndarray[Any, np.dtype[Any]]


class Residency:
    """Device arrays by key, least recently used out.

    Parameters
    ----------
    max_nbytes : int
        Limit for all of them; 0 keeps none.

    Notes
    -----
    Concurrency: the device's thread.
    """

    def __init__(self, max_nbytes: int) -> None:
        self.max_nbytes = max_nbytes
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self._arrays: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._arrays)

    def get(self, key: Hashable) -> Any | None:
        """Return the array of a key, or None."""
        found = self._arrays.get(key)
        if found is None:
            self.misses += 1
            return None
        self._arrays.move_to_end(key)
        self.hits += 1
        return found[0]

    def put(self, key: Hashable, array: Any, nbytes: int) -> bool:
        """Keep an array; False if it is too large to be kept."""
        self.drop(key)
        if nbytes > self.max_nbytes:
            return False
        while self.nbytes + nbytes > self.max_nbytes:
            self._evict()
        self._arrays[key] = array, nbytes
        self.nbytes += nbytes
        return True

    def drop(self, key: Hashable) -> None:
        """Forget one array."""
        found = self._arrays.pop(key, None)
        if found is not None:
            self.nbytes -= found[1]

    def clear(self) -> None:
        """Forget all."""
        self.evictions += len(self._arrays)
        self._arrays.clear()
        self.nbytes = 0

    def make_room(self, device: Device, nbytes: int) -> None:
        """Drop the least recently used until the device has ``nbytes`` free, or nothing is left."""
        while self._arrays and device.memory()[0] < nbytes:
            self._evict()

    def _evict(self) -> None:
        _, (_, nbytes) = self._arrays.popitem(last=False)
        self.nbytes -= nbytes
        self.evictions += 1


class ResidentDevice:
    """A device whose `upload` looks first among what is there already.

    The backends of the worker are given this one.
    """

    def __init__(self, device: PinningDevice, residency: Residency) -> None:
        self.device = device
        self.residency = residency
        self.name = device.name
        self.kind = device.kind
        self.xp: ModuleType = device.xp
        self.uploads = 0
        self._keys: Mapping[int, Hashable] = {}

    def begin(self, keys: Mapping[int, Hashable]) -> None:
        """Note which arrays of the next job have a content-safe key: ``id(array)`` to key."""
        self._keys = keys

    def upload(self, array: Array, shared: bool = False) -> Any:
        """Copy a host array to the device, or find it there."""
        key = self._keys.get(id(array))
        if key is None:
            self.uploads += 1
            return self.device.upload(array, shared)
        found = self.residency.get(key)
        if found is None:
            self.uploads += 1
            self.residency.make_room(self.device, 2 * array.nbytes)
            found = self.device.upload(array, shared=True)
            if not self.residency.put(key, found, array.nbytes):
                return found
        return found if shared else self.xp.asarray(found, copy=True)

    def download(self, value: Any, out: Array | None = None) -> Array:
        """Copy a device array to the host."""
        return self.device.download(value, out)

    def owns(self, value: Any) -> bool:
        """Whether a value is an array of this device."""
        return self.device.owns(value)

    def synchronize(self) -> None:
        """Wait until the device is idle."""
        self.device.synchronize()

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes."""
        return self.device.memory()

    def release(self) -> None:
        """Give back what is cached and what is resident."""
        self.residency.clear()
        self.device.release()
