# SPDX-License-Identifier: BSD-3-Clause
"""Is there an NVIDIA GPU to ask, and which packages would use it? Answered without importing CuPy.

Imports succeed on machines without a GPU, so an import says nothing. And CuPy belongs into the GPU worker alone: the
server only looks whether it makes sense to start one.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys

__all__ = ["advice", "driver_cuda_version", "missing"]

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def driver_cuda_version() -> tuple[int, int] | None:
    """Return the newest CUDA that the installed driver can run, such as ``(13, 0)``; None without a driver."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
        version = ctypes.c_int()
        # The one call of the driver that needs no initialisation, so that this process gets no CUDA context.
        if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def advice(version: tuple[int, int] | None) -> str:
    """Say what to install for a driver."""
    if version is None:
        return "install NVIDIA's driver first; under WSL2 it is the one of Windows"
    if version < (12, 0):
        return "update NVIDIA's driver: CUDA 12.0 is the least that works"
    extra = "cuda13" if version >= (13, 0) else "cuda12"
    return f"pip install 'shmpool[{extra}]'"


def missing() -> str:
    """Say why it makes no sense to start a GPU worker; empty where it does."""
    version = driver_cuda_version()
    if version is None:
        return f"there is no NVIDIA driver ({_LIBRARY})"
    if version < (12, 0):
        return f"the NVIDIA driver is for CUDA {version[0]}.{version[1]}: {advice(version)}"
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed: {advice(version)}"
    return ""
