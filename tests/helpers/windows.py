# SPDX-License-Identifier: BSD-3-Clause
"""Which tests make no sense on Windows, and why. The one place that knows."""

from __future__ import annotations

import fnmatch

__all__ = ["MODULES", "reason_to_skip"]

# Modules that cannot even be imported there.
MODULES = (
    "soak/*",  # forks its victims
    "model/*",  # Spin, a Linux program
    "c/*",  # the compiler and the sanitizers are Linux programs
    "typing/*",
    "server/*",
    "proxies/*",
    "e2e/*",
    "examples/*",
    "test_extended_mmap.py",
    "wine/*",
    "processes/test_fork.py",  # there is no fork
    "processes/test_namespaces.py",
    "processes/test_space.py",  # mounts a tmpfs and sets limits
    "cli/*",
)

TESTS: dict[str, str] = {}


def reason_to_skip(node: str) -> str | None:
    """Why a test is not run on Windows."""
    for pattern, reason in TESTS.items():
        if fnmatch.fnmatch(node, f"*{pattern}"):
            return reason
    return None
