# SPDX-License-Identifier: BSD-3-Clause
"""The GPU backends on a device: CuPy's where there is one, stand-ins for it everywhere else.

SciPy has to be imported with ``SCIPY_ARRAY_API=1``, which changes it for the whole process. So these tests run in one
of their own: ``tests/server/test_device_backends.py`` starts it, and ``make test-gpu`` does on a machine with a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

if os.environ.get("SCIPY_ARRAY_API") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(
    scope="module", params=["strict", "torch", pytest.param("cupy", marks=pytest.mark.gpu)], ids=lambda name: str(name)
)
def any_device(request: pytest.FixtureRequest) -> Any:
    """Each array library in turn."""
    from helpers.devices import make

    return make(request.param)


@pytest.fixture
def device(any_device: Any) -> Iterator[Any]:
    """The device; afterwards nothing that it lent may have been written to."""
    any_device.uploads = 0
    yield any_device
    any_device.check_untouched()
