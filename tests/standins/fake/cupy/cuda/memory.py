# SPDX-License-Identifier: BSD-3-Clause
"""Device memory that ends."""

from __future__ import annotations

import os

total = int(os.environ.get("FAKE_CUPY_TOTAL", str(2**30)))
used = 0
peak = 0
released = 0


class OutOfMemoryError(MemoryError):
    """As CuPy's, by name and base."""


def take(nbytes: int) -> None:
    global used, peak
    from . import runtime

    runtime.check()
    if used + nbytes > total:
        raise OutOfMemoryError(f"Out of memory allocating {nbytes:,} bytes (allocated so far: {used:,} bytes).")
    used += nbytes
    peak = max(peak, used)


def give_back(nbytes: int) -> None:
    global used
    used -= nbytes
