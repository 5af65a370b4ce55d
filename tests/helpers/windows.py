# SPDX-License-Identifier: BSD-3-Clause
"""Which tests make no sense on Windows or under wine, and why. The one place that knows."""

from __future__ import annotations

import re

__all__ = ["MODULES", "reason_to_skip"]

# Folders and files that cannot even be imported there, or whose subject is Linux.
MODULES = (
    "bench/*",
    "c/*",  # the compiler and the sanitizers are Linux programs
    "cli/*",  # /proc, terminals; the commands' own logic is the same
    "device/*",
    "e2e/*",
    "examples/*",
    "model/*",  # Spin is a Linux program
    "mounts/*",
    "proxies/*",
    "server/*",
    "soak/*",  # forks its victims
    "transports/*",
    "typing/*",
    "wine/*",
    "test_*.py",
    "processes/test_channel_failpoints.py",  # stops its victims by signals
    "processes/test_failpoints.py",
    "processes/test_fork.py",  # there is no fork
    "processes/test_namespaces.py",
    "processes/test_space.py",  # mounts a tmpfs and sets limits
    "properties/test_state_machine.py",  # closes descriptors found in /proc
)

# Regular expressions on a test's id -> why it is not run.
TESTS = {
    r"test_arrays\.py::.*[\[-](F|D|G|>c16|c8)[\]-]": "wine's C library lacks what NumPy needs for complex numbers",
    r"test_loans\.py::.*>c16": "wine's C library lacks what NumPy needs for complex numbers",
    r"::test_any_array": "draws complex numbers too",
    r"::test_subclasses_arrive_as_arrays": "a file that is mapped by np.memmap cannot be removed",
    r"::test_fork": "there is no fork",
    r"::test_an_idle_receiver_uses_no_cpu": "no getrusage; idle waits look at the word every 16 ms",
    r"::test_a_signal_interrupts_the_wait": "no SIGALRM",
    r"::test_no_descriptor_or_mapping_is_left": "no /proc",
    r"::test_a_zombie_is_dead": "no zombies",
}


def reason_to_skip(node: str) -> str | None:
    """Why a test is not run on Windows."""
    for pattern, reason in TESTS.items():
        if re.search(pattern, node):
            return reason
    return None
