# SPDX-License-Identifier: BSD-3-Clause
"""Unchanged scikit-learn code through the bridge: what a program imports from scikit-learn become proxies.

::

    python -m gsb.accel script.py args…
    %load_ext gsb.accel
    gsb.accel.install()

See ``docs/accel.md``. Nothing here imports scikit-learn before the program does.
"""

from __future__ import annotations

from typing import Any

from gsb.accel._install import LOCAL_NBYTES, install, is_installed, uninstall

__all__ = [
    "LOCAL_NBYTES",
    "install",
    "is_installed",
    "load_ipython_extension",
    "uninstall",
    "unload_ipython_extension",
]


def load_ipython_extension(ipython: Any) -> None:
    """Do what ``%load_ext gsb.accel`` asks for."""
    from gsb.accel import _ipython

    _ipython.load(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """Do what ``%unload_ext gsb.accel`` asks for."""
    from gsb.accel import _ipython

    _ipython.unload(ipython)
