# SPDX-License-Identifier: BSD-3-Clause
"""A stand-in for CuPy on a machine without a GPU: the calls that gsb_server.gpu makes, on host memory.

Faithful in what goes wrong when it is used wrongly:

* asynchronous copies are done at the next synchronisation and not before, so that a slot let go too early shows as
  wrong bytes;
* a copy must lie in one registered range or in none;
* arrays do not turn into NumPy arrays by themselves;
* memory ends: allocations beyond ``FAKE_CUPY_TOTAL`` bytes raise `OutOfMemoryError`;
* after a sticky error every call fails.

Found by a worker whose PYTHONPATH has the folder that holds it; ``tests/gpu/test_host_path.py`` compares its names
and signatures with the real package where that is installed. Variables: ``FAKE_CUPY_NO_DEVICE``,
``FAKE_CUPY_REFUSE_PIN`` (a status), ``FAKE_CUPY_PIN_LIMIT`` (bytes), ``FAKE_CUPY_REFUSE_RING``, ``FAKE_CUPY_TOTAL``.
"""

from __future__ import annotations

import os
import weakref
from typing import Any

import numpy as np

from . import cuda, linalg

__version__ = "14.2.0+fake"
float32, float64, int64 = np.float32, np.float64, np.int64


class _Data:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class ndarray:  # noqa: N801 - CuPy's name
    """An array in what stands for device memory."""

    def __init__(
        self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C"
    ) -> None:
        assert memptr is None
        assert strides is None
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        cuda.memory.take(nbytes)
        # Not zeros: reading what nobody wrote must show.
        self._host = np.empty(shape, dtype, order=order)  # type: ignore[call-overload]
        if nbytes:
            self._host.reshape(-1, order="A").view(np.uint8).fill(0xA5)
        weakref.finalize(self, cuda.memory.give_back, nbytes).atexit = False

    @classmethod
    def of(cls, host: np.ndarray[Any, Any]) -> ndarray:
        made = cls(
            host.shape, host.dtype, order="F" if host.flags.f_contiguous and not host.flags.c_contiguous else "C"
        )
        made._host[...] = host
        return made

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    flags = property(lambda self: self._host.flags)
    data = property(lambda self: _Data(self._host.ctypes.data))

    def get(self, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> Any:
        cuda.runtime.deviceSynchronize()
        if out is None:
            return self._host.copy()
        out[...] = self._host
        return out

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __matmul__(self, other: ndarray) -> ndarray:
        cuda.runtime.check()
        return ndarray.of(np.asarray(self._host @ other._host))

    def __sub__(self, other: Any) -> ndarray:
        cuda.runtime.check()
        return ndarray.of(np.asarray(self._host - (other._host if isinstance(other, ndarray) else other)))

    def __iadd__(self, other: Any) -> ndarray:
        cuda.runtime.check()
        self._host += other
        return self

    def mean(self, axis: Any = None) -> ndarray:
        cuda.runtime.check()
        return ndarray.of(np.asarray(self._host.mean(axis=axis)))


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def eye(N: int, M: Any = None, k: int = 0, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray.of(np.eye(N, M, k, dtype))


def asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False) -> ndarray:
    if isinstance(a, ndarray) and not copy and (dtype is None or dtype == a.dtype):
        return a
    return ndarray.of(np.asarray(a._host if isinstance(a, ndarray) else a, dtype))


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    return a if a.flags.c_contiguous else ndarray.of(np.ascontiguousarray(a._host))


def asfortranarray(a: Any, dtype: Any = None) -> ndarray:
    return a if a.flags.f_contiguous else ndarray.of(np.asfortranarray(a._host))


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> Any:
    return a.get(out=out)


class _Pool:
    def free_bytes(self) -> int:
        return 0

    def free_all_blocks(self, stream: Any = None) -> None:
        cuda.memory.released += 1


_pool = _Pool()


def get_default_memory_pool() -> _Pool:
    return _pool


if os.environ.get("FAKE_CUPY_BROKEN"):
    raise ImportError("libnvrtc.so.13: cannot open shared object file")

__all__ = ["cuda", "linalg", "ndarray"]
