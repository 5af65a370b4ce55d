# SPDX-License-Identifier: BSD-3-Clause
"""Output types: a setting of the thread."""

from __future__ import annotations

import threading
from typing import Any

import cupy
import numpy as np
import scipy.sparse

_local = threading.local()


class GlobalSettings:
    @property
    def output_type(self) -> str | None:
        return getattr(_local, "output_type", None)

    @output_type.setter
    def output_type(self, value: str | None) -> None:
        _local.output_type = value


class using_output_type:  # noqa: N801 - cuML's name
    def __init__(self, output_type: str | None) -> None:
        assert output_type in (None, "input", "numpy", "cupy", "cudf", "pandas")
        self.output_type = output_type

    def __enter__(self) -> None:
        self.before = GlobalSettings().output_type
        GlobalSettings().output_type = self.output_type

    def __exit__(self, *_: object) -> None:
        GlobalSettings().output_type = self.before


class DeviceSparse:
    """Stands for a sparse matrix of cupyx."""

    __module__ = "cupyx.scipy.sparse._csr"

    def __init__(self, host: Any) -> None:
        self._host = host

    def get(self) -> Any:
        return self._host.copy()


def to_host(value: Any) -> Any:
    """Copy device arrays to the host; other values as they are."""
    if isinstance(value, cupy.ndarray):
        return value.get()
    return value


def convert(value: Any, output_type: str) -> Any:
    """Turn host values into what the output type says."""
    if isinstance(value, (list, tuple)) and any(isinstance(item, np.ndarray) for item in value):
        return type(value)(convert(item, output_type) for item in value)
    if output_type != "cupy":
        return value
    if scipy.sparse.issparse(value):
        return DeviceSparse(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return cupy.ndarray.of(value)
    return value


class Cache:
    """A fitted array, on the device; given out as the output type says."""

    __module__ = "cuml.internals.outputs"

    def __init__(self, host: np.ndarray) -> None:
        self.value = cupy.ndarray.of(host)
        self.converted: dict[str, Any] = {}

    def get(self, output_type: str) -> Any:
        if output_type == "cupy":
            return self.value
        return self.converted.setdefault(output_type, self.value.get())
