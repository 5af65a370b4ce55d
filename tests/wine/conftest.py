# SPDX-License-Identifier: BSD-3-Clause
"""The Windows Python of the session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from windows_python import WindowsPython, missing


@pytest.fixture(scope="session")
def windows() -> Iterator[WindowsPython]:
    """Python for Windows with `shmpool`, under wine."""
    if lack := missing():
        pytest.skip(lack)
    python = WindowsPython()
    yield python
    python.close()
