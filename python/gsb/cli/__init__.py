# SPDX-License-Identifier: BSD-3-Clause
"""The command line: ``gsb serve``, ``gsb demo``, ``gsb status``, ``gsb doctor``.

Nothing here imports the server: it is started as a process of its own, by the same interpreter.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    from gsb.cli.commands import app

    app()
