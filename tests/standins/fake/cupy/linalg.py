# SPDX-License-Identifier: BSD-3-Clause
"""What a warm-up calls."""

from __future__ import annotations

from typing import Any

import numpy as np


def _host(a: Any) -> np.ndarray[Any, Any]:
    from . import cuda

    cuda.runtime.check()
    found: np.ndarray[Any, Any] = a._host
    return found


def svd(a: Any, full_matrices: bool = True, compute_uv: bool = True) -> Any:
    from . import ndarray

    return tuple(ndarray.of(part) for part in np.linalg.svd(_host(a), full_matrices))


def eigh(a: Any, UPLO: str = "L") -> Any:
    from . import ndarray

    return tuple(ndarray.of(np.asarray(part)) for part in np.linalg.eigh(_host(a)))
