# SPDX-License-Identifier: BSD-3-Clause
"""``python -m gsb.cli``, for environments whose scripts are not on the path."""

from __future__ import annotations

from gsb.cli import main

main()
