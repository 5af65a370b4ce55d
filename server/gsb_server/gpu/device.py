# SPDX-License-Identifier: BSD-3-Clause
"""What the worker asks of a device, the device behind CuPy, and what its errors mean.

::

    DeviceError(RuntimeError)
        NoDeviceError          there is no usable device: the next backend is asked
        DeviceLostError        a sticky error: nothing works in this process any more, it must be replaced
        PinRefusedError        host memory could not be registered: another path is used
    DeviceMemoryError(MemoryError)   one job wanted more than there is; the device is fine

`classify` is the one place that knows CUDA's numbers and texts.
"""

from __future__ import annotations

import enum
import importlib
import time
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from ..backends.base import RefusedByBackend
from .pinned import Direction, HostPath, PinReport

__all__ = [
    "CupyDevice",
    "Device",
    "DeviceError",
    "DeviceLostError",
    "DeviceMemoryError",
    "NoDeviceError",
    "PinRefusedError",
    "PinningDevice",
    "Unpinned",
    "Verdict",
    "classify",
    "make_device",
]

Array = np.ndarray[Any, np.dtype[Any]]

# Kinds of dtype that CuPy has an array for.
_DEVICE_KINDS = frozenset("biufc")


class DeviceError(RuntimeError):
    """Something about the device, not about the job."""


class NoDeviceError(DeviceError):
    """There is no usable device; the text says why and what to do."""


class DeviceLostError(DeviceError):
    """A sticky error: every later call in this process fails too."""


class PinRefusedError(DeviceError):
    """Host memory could not be registered with the device."""


class DeviceMemoryError(MemoryError):
    """The device has no room for what one job asked for."""


class Verdict(enum.Enum):
    """What an exception says about the device."""

    MEMORY = "memory"
    LOST = "lost"
    OTHER = "other"


# cudaError_t; the driver's CUresult has the same numbers for these.
_OUT_OF_MEMORY = frozenset({2})
_STICKY = {
    46: "the device is busy or unavailable",
    214: "an uncorrectable ECC error",
    220: "an NVLink error",
    700: "an illegal memory access",
    702: "a kernel ran into the launch time-out",
    709: "the context was destroyed",
    710: "a device-side assertion",
    714: "a hardware stack error",
    715: "an illegal instruction",
    716: "a misaligned address",
    717: "an invalid address space",
    718: "an invalid program counter",
    719: "a launch failure",
    999: "an unknown error",
}
# C++ libraries hand CUDA's errors on as text.
_STICKY_TEXTS = (
    "cudaerrorillegaladdress",
    "cudaerrorlaunchfailure",
    "cudaerroreccuncorrectable",
    "cudaerrorassert",
    "cudaerrorillegalinstruction",
    "cudaerrormisalignedaddress",
    "cudaerrorlaunchtimeout",
    "cudaerrordeviceunavailable",
    "cuda_error_illegal_address",
    "cuda_error_launch_failed",
    "illegal memory access",
    "unspecified launch failure",
    "uncorrectable ecc error",
)
_MEMORY_TEXTS = ("cudaerrormemoryallocation", "cuda_error_out_of_memory", "out_of_memory", "out of memory", "bad_alloc")
_CUDA_MODULES = ("cupy", "cupy_backends", "cuda", "cuml", "rmm", "pylibraft", "numba", "cuvs")


def classify(error: BaseException) -> Verdict:
    """Say what an exception means for the device.

    Notes
    -----
    A sticky error shows at any later call, wherever that is. So the caller synchronises the device after every failed
    job and classifies what that raises as well: an error this function does not know is then not overlooked.
    """
    if isinstance(error, DeviceLostError):
        return Verdict.LOST
    if isinstance(error, MemoryError):
        return Verdict.MEMORY
    module = type(error).__module__.partition(".")[0]
    status = getattr(error, "status", None)
    name = type(error).__name__
    if name in ("CUDARuntimeError", "CUDADriverError") and isinstance(status, int):
        if status in _OUT_OF_MEMORY:
            return Verdict.MEMORY
        return Verdict.LOST if status in _STICKY else Verdict.OTHER
    if module in _CUDA_MODULES or isinstance(error, RuntimeError):
        text = str(error).lower()
        if any(part in text for part in _STICKY_TEXTS):
            return Verdict.LOST
        if any(part in text for part in _MEMORY_TEXTS):
            return Verdict.MEMORY
    return Verdict.OTHER


def describe_sticky(error: BaseException) -> str:
    """Say in words what a sticky error was."""
    status = getattr(error, "status", None)
    known = _STICKY.get(status) if isinstance(status, int) else None
    return f"{known} ({error})" if known else str(error)


class Device(Protocol):
    """Where the arrays of a worker live: what a backend sees of it.

    Attributes
    ----------
    name : str
        For people, such as ``"NVIDIA H100"``.
    kind : str
        ``"cupy"``; the stand-ins of the tests have kinds of their own.
    xp : module
        The array namespace.

    Notes
    -----
    Concurrency: one thread, the one that made it.
    """

    name: str
    kind: str
    xp: ModuleType

    def upload(self, array: Array, shared: bool = False) -> Any:
        """Copy a host array to the device, its order (C or Fortran) kept; transposing is the device's work.

        Parameters
        ----------
        array : ndarray
            May be a view of a slot. When this returns, nothing on the device reads it any more.
        shared : bool, default False
            The caller only reads the result, so it may be an array that others read too. Otherwise it is private
            and may be written to.

        Raises
        ------
        RefusedByBackend
            The dtype has no form on the device.
        """
        ...

    def download(self, value: Any, out: Array | None = None) -> Array:
        """Copy a device array to the host, into ``out`` where given; complete when this returns."""
        ...

    def owns(self, value: Any) -> bool:
        """Whether a value is an array of this device."""
        ...

    def synchronize(self) -> None:
        """Wait until the device is idle; afterwards nothing on it reads or writes host memory."""
        ...

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes of the device."""
        ...

    def release(self) -> None:
        """Give cached device memory back."""
        ...


class PinningDevice(Device, Protocol):
    """What the worker process itself needs besides; a plain `Device` is wrapped in `Unpinned`."""

    @property
    def transfer_seconds(self) -> float:
        """Time spent in `upload` and `download` so far."""
        ...

    def warm_up(self) -> None:
        """Load what a first job would otherwise wait for."""
        ...

    def pin(self, address: int, nbytes: int) -> None:
        """Register host memory for direct transfers.

        Raises
        ------
        PinRefusedError
            It was refused; transfers of that range go another way.
        """
        ...

    def pin_report(self) -> PinReport:
        """Say how host memory is read and written."""
        ...

    def versions(self) -> dict[str, str]:
        """Return versions of driver and libraries."""
        ...

    def write_part(self, target: Any, offset: int, part: Array) -> None:
        """Copy the bytes of a host array into a contiguous device array, from byte ``offset`` on."""
        ...

    def read_part(self, source: Any, offset: int, out: Array) -> None:
        """Copy bytes of a contiguous device array, from byte ``offset`` on, into a host array."""
        ...

    def finish(self, target: Any) -> Any:
        """Return the device array that `empty` and `write_part` have made."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], order: str) -> Any:
        """Make an array to be written in parts."""
        ...


class CupyDevice:
    """A CUDA device through CuPy.

    Parameters
    ----------
    index : int
        Among the devices that ``CUDA_VISIBLE_DEVICES`` leaves.
    host_path : {"auto", "ring", "pageable"}
        ``auto``: pinned ranges directly, everything else through a ring of pinned buffers. The others are for
        measuring and for systems on which pinning misbehaves.

    Raises
    ------
    NoDeviceError
        CuPy is missing, or sees no device.

    Notes
    -----
    Uses ordinary device memory only, never managed memory: a program that asks for more of that than is free can hang
    the device.
    """

    kind = "cupy"

    def __init__(self, index: int = 0, host_path: str = "auto") -> None:
        try:
            self.xp: ModuleType = importlib.import_module("cupy")
        except ImportError as error:
            raise NoDeviceError(
                f"CuPy cannot be imported: {error}; install shmpool[cuda12] or shmpool[cuda13]"
            ) from None
        cupy: Any = self.xp
        if not cupy.cuda.is_available():
            raise NoDeviceError("CuPy sees no CUDA device; is the driver installed, is CUDA_VISIBLE_DEVICES set?")
        self._runtime = cupy.cuda.runtime
        cupy.cuda.Device(index).use()
        name = self._runtime.getDeviceProperties(index)["name"]
        self.name = name.decode() if isinstance(name, bytes) else str(name)
        # Its own stream, so that transfers wait for nothing but each other; both ends are synchronised.
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._path = HostPath(cupy, self._stream, host_path)

    @property
    def transfer_seconds(self) -> float:
        """Time spent in transfers so far."""
        return self._path.seconds

    def upload(self, array: Array, shared: bool = False) -> Any:
        """Copy a host array to the device."""
        if array.dtype.kind not in _DEVICE_KINDS or not array.dtype.isnative:
            raise RefusedByBackend(f"an array of dtype {array.dtype} has no form on the device")
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        if not (array.flags.c_contiguous or array.flags.f_contiguous):
            array = np.ascontiguousarray(array)
        target = self.empty(array.shape, array.dtype, order)
        self._path.copy(Direction.TO_DEVICE, target.data.ptr, array.ctypes.data, array.nbytes)
        return target

    def download(self, value: Any, out: Array | None = None) -> Array:
        """Copy a device array to the host."""
        fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        if out is None:
            out = np.empty(value.shape, value.dtype, order="F" if fortran else "C")
        if out.shape != value.shape or out.dtype != value.dtype:
            raise ValueError(f"out has shape {out.shape} and dtype {out.dtype}, not {value.shape} and {value.dtype}")
        if out.flags.c_contiguous and not value.flags.c_contiguous:
            value = self.xp.ascontiguousarray(value)
        elif not out.flags.c_contiguous:
            value = self.xp.asfortranarray(value)
        # What computes the array may run on any stream.
        self.synchronize()
        self._path.copy(Direction.TO_HOST, value.data.ptr, out.ctypes.data, out.nbytes)
        return out

    def owns(self, value: Any) -> bool:
        """Whether a value is a CuPy array."""
        return isinstance(value, self.xp.ndarray)

    def synchronize(self) -> None:
        """Wait for every stream of the device."""
        self._runtime.deviceSynchronize()

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes; blocks that CuPy keeps for reuse count as free."""
        free, total = self._runtime.memGetInfo()
        return int(free) + int(self.xp.get_default_memory_pool().free_bytes()), int(total)

    def release(self) -> None:
        """Give cached device memory back to the driver."""
        self.xp.get_default_memory_pool().free_all_blocks()

    def warm_up(self) -> None:
        """Make the context, load cuBLAS and cuSOLVER, compile the elementwise kernels of a small fit."""
        small = self.xp.eye(8, dtype="float32")
        self.xp.linalg.svd(small @ small - small.mean(axis=0))
        self.xp.linalg.eigh(small)
        self._path.prepare()
        self.synchronize()

    def pin(self, address: int, nbytes: int) -> None:
        """Register host memory."""
        try:
            self._path.pin(address, nbytes)
        except Exception as error:
            if classify(error) is Verdict.LOST and getattr(error, "status", None) != 999:
                raise DeviceLostError(describe_sticky(error)) from error
            raise PinRefusedError(str(error)) from error

    def pin_report(self) -> PinReport:
        """Say how host memory is read and written."""
        return self._path.report()

    def write_part(self, target: Any, offset: int, part: Array) -> None:
        """Copy the bytes of a host array into a device array."""
        self._path.copy(Direction.TO_DEVICE, target.data.ptr + offset, part.ctypes.data, part.nbytes)

    def finish(self, target: Any) -> Any:
        """Return it: it was on the device from the beginning."""
        return target

    def read_part(self, source: Any, offset: int, out: Array) -> None:
        """Copy bytes of a device array into a host array."""
        self.synchronize()
        self._path.copy(Direction.TO_HOST, source.data.ptr + offset, out.ctypes.data, out.nbytes)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], order: str) -> Any:
        """Make a device array; its block may still be in use by work of other streams, which is waited for."""
        made = self.xp.ndarray(shape, dtype, order=order)
        self.synchronize()
        return made

    def versions(self) -> dict[str, str]:
        """Return versions of CuPy, the runtime and the driver."""
        driver, runtime = self._runtime.driverGetVersion(), self._runtime.runtimeGetVersion()
        return {
            "cupy": str(getattr(self.xp, "__version__", "?")),
            "cuda driver": f"{driver // 1000}.{driver % 1000 // 10}",
            "cuda runtime": f"{runtime // 1000}.{runtime % 1000 // 10}",
        }


class Unpinned:
    """A device that knows neither pinned memory nor addresses, made fit for the worker."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.name, self.kind, self.xp = device.name, device.kind, device.xp
        self.transfer_seconds = 0.0

    def upload(self, array: Array, shared: bool = False) -> Any:
        """Copy a host array to the device."""
        begun = time.perf_counter()
        try:
            return self._device.upload(array, shared)
        finally:
            self.transfer_seconds += time.perf_counter() - begun

    def download(self, value: Any, out: Array | None = None) -> Array:
        """Copy a device array to the host."""
        begun = time.perf_counter()
        try:
            return self._device.download(value, out)
        finally:
            self.transfer_seconds += time.perf_counter() - begun

    def owns(self, value: Any) -> bool:
        """Whether a value is an array of this device."""
        return self._device.owns(value)

    def synchronize(self) -> None:
        """Wait until the device is idle."""
        self._device.synchronize()

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes."""
        return self._device.memory()

    def release(self) -> None:
        """Give cached memory back."""
        self._device.release()

    def warm_up(self) -> None:
        """Nothing to load."""

    def pin(self, address: int, nbytes: int) -> None:
        """Refuse."""
        raise PinRefusedError(f"{self.name} has no pinned memory")

    def pin_report(self) -> PinReport:
        """Say that there is no pinned memory."""
        return PinReport("pageable", 0, f"{self.name} has no pinned memory")

    def versions(self) -> dict[str, str]:
        """Return nothing."""
        return {}

    # An array in parts is collected on the host and uploaded when it is whole: such a device has no addresses.

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], order: str) -> Any:
        """Make the host array that collects."""
        return np.empty(shape, dtype, order="F" if order == "F" else "C")

    def write_part(self, target: Any, offset: int, part: Array) -> None:
        """Copy a part into it."""
        target.reshape(-1, order="A").view(np.uint8)[offset : offset + part.nbytes] = part

    def finish(self, target: Any) -> Any:
        """Upload the whole."""
        return self.upload(target, shared=True)

    def read_part(self, source: Any, offset: int, out: Array) -> None:
        """Copy bytes of a device array into a host array."""
        whole = np.ascontiguousarray(self.download(source))
        out[...] = whole.reshape(-1).view(np.uint8)[offset : offset + out.nbytes]


def make_device(spec: str, options: dict[str, Any] | None = None) -> PinningDevice:
    """Make a device from ``"cupy"`` or ``"module:callable"``.

    Notes
    -----
    The text comes from the program that starts the server, never from a request or a variable.
    """
    if spec == "cupy":
        return CupyDevice(**(options or {}))
    module, _, name = spec.partition(":")
    device = getattr(importlib.import_module(module), name)(**(options or {}))
    return device if hasattr(device, "pin") else Unpinned(device)
