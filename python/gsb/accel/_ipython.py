# SPDX-License-Identifier: BSD-3-Clause
"""``%load_ext gsb.accel`` and the magic ``%%gsb``."""

from __future__ import annotations

from typing import Any

from gsb.accel._install import install, uninstall, warn_of_early_imports

__all__ = ["load", "unload"]

_MAGIC = "gsb"


def load(ipython: Any) -> None:
    """Install, and add the magic."""
    install()
    warn_of_early_imports(ipython.user_ns)

    def gsb(line: str, cell: str) -> None:
        """Run the cell, then show which calls of estimators ran where, and why."""
        from gsb._report import tally
        from gsb.accel import _summary

        before = tally()
        try:
            ipython.run_cell(cell).raise_error()
        finally:
            _summary.show(_summary.difference(tally(), before), stderr=False)

    ipython.register_magic_function(gsb, "cell", _MAGIC)


def unload(ipython: Any) -> None:
    """Undo `load`."""
    uninstall()
    ipython.magics_manager.magics["cell"].pop(_MAGIC, None)
