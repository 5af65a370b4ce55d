# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations


class UnsupportedOnGPU(ValueError):  # noqa: N818 - cuML's name
    """Something that cuML cannot do."""


class UnsupportedOnCPU(ValueError):  # noqa: N818 - cuML's name
    """A model that scikit-learn has no form for."""
