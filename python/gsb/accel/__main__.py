# SPDX-License-Identifier: BSD-3-Clause
"""``python -m gsb.accel [options] script.py args…``."""

from __future__ import annotations

import sys

from gsb.accel._command import main

if __name__ == "__main__":
    main(sys.argv[1:])
