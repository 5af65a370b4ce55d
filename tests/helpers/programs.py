# SPDX-License-Identifier: BSD-3-Clause
"""Programs in processes of their own that use the packages of this checkout."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["DEADLINE", "environment"]

DEADLINE = 120.0
_ROOT = Path(__file__).resolve().parents[2]


def environment(**variables: str) -> dict[str, str]:
    """The environment of a program: gsb and its server importable, no server found by chance."""
    path = os.pathsep.join(str(_ROOT / part) for part in ("src", "python", "server"))
    mine = {name: value for name, value in os.environ.items() if not name.startswith("GSB_")}
    return {**mine, "PYTHONPATH": path, "GSB_RUNTIME_DIR": "/nonexistent/gsb", "PYTHONWARNINGS": "error", **variables}
