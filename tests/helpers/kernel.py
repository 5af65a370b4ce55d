# SPDX-License-Identifier: BSD-3-Clause
"""What this machine lets a test do: namespaces, mounts, users. Each answer names what is missing."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

import pytest

__all__ = ["MOUNT_NAMESPACE", "PID_NAMESPACE", "need"]

# With a user namespace where the user is not root.
_USER = () if os.geteuid() == 0 else ("--user", "--map-root-user")
MOUNT_NAMESPACE = ("unshare", *_USER, "--mount")
# The kernel kills everything in it with its first process.
PID_NAMESPACE = ("unshare", *_USER, "--pid", "--fork", "--kill-child")


@functools.cache
def _refusal(command: tuple[str, ...]) -> str | None:
    if shutil.which(command[0]) is None:
        return f"there is no {command[0]} here"
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, timeout=30)
    return None if tried.returncode == 0 else f"`{' '.join(command)}` is not permitted: {tried.stderr.strip()}"


def need(command: tuple[str, ...]) -> tuple[str, ...]:
    """The command, or a skip that says why the kernel does not let us run it."""
    refusal = _refusal(command)
    if refusal is not None:
        pytest.skip(refusal)
    return command
