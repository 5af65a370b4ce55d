# SPDX-License-Identifier: BSD-3-Clause
"""Stand-ins for a GPU: array libraries that run here and refuse what a GPU refuses.

``StrictDevice`` is array_api_strict on its made-up ``device1``: like CuPy it does not turn into NumPy by itself.
``TorchDevice`` is a second, independent library. Both check that what was lent as read-only was only read.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

__all__ = ["CupyTestDevice", "FakeCupyDevice", "StrictDevice", "TestDevice", "TorchDevice", "make"]


class TestDevice:
    """A device in host memory."""

    __test__ = False
    name = "nowhere"
    kind = "test"
    xp: ModuleType

    def __init__(self) -> None:
        self.uploads = 0
        self._lent: list[tuple[Any, np.ndarray]] = []

    def _up(self, array: np.ndarray) -> Any:
        raise NotImplementedError

    def _down(self, value: Any) -> np.ndarray:
        raise NotImplementedError

    def upload(self, array: np.ndarray, shared: bool = False) -> Any:
        value = self._up(array)
        self.uploads += 1
        if shared:
            self._lent.append((value, array.copy()))
        return value

    def download(self, value: Any, out: np.ndarray | None = None) -> np.ndarray:
        array = self._down(value)
        if out is None:
            return array.copy()
        out[...] = array
        return out

    def check_untouched(self) -> None:
        """Fail if an array that was lent was written to; forget them."""
        lent, self._lent = self._lent, []
        for value, before in lent:
            np.testing.assert_array_equal(self._down(value), before, err_msg="a shared device array was written to")

    def host(self, value: Any) -> Any:
        """Bring a result to the host, as the worker does before it answers."""
        if self.owns(value):
            return self.download(value)
        if isinstance(value, (tuple, list)):
            return type(value)(self.host(item) for item in value)
        return value

    def owns(self, value: Any) -> bool:
        raise NotImplementedError

    def synchronize(self) -> None:
        """Nothing runs behind anybody's back here."""

    def memory(self) -> tuple[int, int]:
        return 1 << 30, 1 << 30

    def release(self) -> None:
        """Nothing is cached."""


class StrictDevice(TestDevice):
    """array_api_strict, ``device1``."""

    name = "array_api_strict device1"
    kind = "strict"

    def __init__(self) -> None:
        super().__init__()
        import array_api_strict

        self.xp = array_api_strict
        self._there = array_api_strict.Device("device1")
        self._cpu = array_api_strict.Device("CPU_DEVICE")

    def _up(self, array: np.ndarray) -> Any:
        return self.xp.asarray(array.copy(), device=self._there)

    def _down(self, value: Any) -> np.ndarray:
        return np.asarray(self.xp.asarray(value, device=self._cpu))

    def owns(self, value: Any) -> bool:
        return type(value).__module__.startswith("array_api_strict")


class TorchDevice(TestDevice):
    """PyTorch on the CPU."""

    name = "torch cpu"
    kind = "torch"

    def __init__(self) -> None:
        super().__init__()
        import torch

        # Its threads and those of BLAS get into each other's way, and small data has no use for either.
        torch.set_num_threads(1)
        self.xp = torch

    def _up(self, array: np.ndarray) -> Any:
        return self.xp.asarray(array.copy())

    def _down(self, value: Any) -> np.ndarray:
        return np.asarray(value.numpy())

    def owns(self, value: Any) -> bool:
        return isinstance(value, self.xp.Tensor)


class CupyTestDevice(TestDevice):
    """The worker's own device, with the same checks. Needs a GPU."""

    def __init__(self) -> None:
        super().__init__()
        from gsb_server.gpu.device import CupyDevice

        self.real = CupyDevice()
        self.name, self.kind, self.xp = self.real.name, self.real.kind, self.real.xp

    def _up(self, array: np.ndarray) -> Any:
        return self.real.upload(array)

    def _down(self, value: Any) -> np.ndarray:
        return self.real.download(value)

    def owns(self, value: Any) -> bool:
        return self.real.owns(value)

    def synchronize(self) -> None:
        self.real.synchronize()


class FakeCupyDevice(TestDevice):
    """The stand-in for CuPy of ``tests/standins/fake``, for the stand-in for cuML."""

    name = "fake cupy"
    kind = "cupy"

    def __init__(self) -> None:
        super().__init__()
        import cupy

        self.xp = cupy

    def _up(self, array: np.ndarray) -> Any:
        return self.xp.ndarray.of(array)

    def _down(self, value: Any) -> np.ndarray:
        return np.asarray(value.get())

    def owns(self, value: Any) -> bool:
        return isinstance(value, self.xp.ndarray)


def make(kind: str) -> TestDevice:
    """Return a device, or skip the test and name what is absent."""
    if kind == "strict":
        pytest.importorskip("array_api_strict")
        return StrictDevice()
    if kind == "torch":
        pytest.importorskip("torch", reason="torch is not installed (a CPU build does)")
        return TorchDevice()
    cupy = pytest.importorskip("cupy")
    if kind == "fake":
        if "fake" not in cupy.__version__:
            pytest.skip("the stand-in for CuPy is not on the path")
        return FakeCupyDevice()
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device")
    return CupyTestDevice()
