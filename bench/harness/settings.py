# SPDX-License-Identifier: BSD-3-Clause
"""How much is measured: full by default, a fraction with ``SHMPOOL_BENCH_QUICK=1``."""

from __future__ import annotations

import os

MIB = 2**20

QUICK = os.environ.get("SHMPOOL_BENCH_QUICK", "") not in ("", "0")

# The array of the speed bars: float32, exactly two slots of the default geometry.
HOP_NBYTES = 512 * MIB


def rounds(full: int, quick: int) -> int:
    """The number of rounds for this run."""
    return quick if QUICK else full
