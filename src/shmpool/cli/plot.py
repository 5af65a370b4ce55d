# SPDX-License-Identifier: BSD-3-Clause
"""``bench --plot``: the figures of `bench` as a picture. Drawn by matplotlib, which is not a dependency."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["available", "draw"]


def available() -> bool:
    """Whether matplotlib can be imported."""
    try:
        import matplotlib  # noqa: F401  # asked before a measurement of many seconds, not after it
    except ImportError:
        return False
    return True


def draw(results: Mapping[int, Mapping[str, float]], file: Path) -> None:
    """Write time over size of every way, both axes logarithmic, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for name in next(iter(results.values())):
        pool = name.startswith("pool")
        times = [times[name] * 1e6 for times in results.values()]
        axes.loglog(list(results), times, "o-", label=name, linewidth=3 if pool else 1.5, zorder=3 if pool else 2)
    axes.set_xlabel("array, bytes")
    axes.set_ylabel("one hop and the answer, µs (median)")
    axes.set_title("An array from one process to another on this machine")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, format="png", dpi=120)
