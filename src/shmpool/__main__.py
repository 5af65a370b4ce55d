# SPDX-License-Identifier: BSD-3-Clause
"""``python -m shmpool``: look at pools, check a machine, clean up, measure."""

import sys

from .cli import main

if __name__ == "__main__":  # a spawned child of `bench` imports this module under another name
    sys.exit(main())
