# SPDX-License-Identifier: BSD-3-Clause
"""The command line of the pool. Not imported by the library: ``import shmpool`` stays free of it."""

from .app import main

__all__ = ["main"]
