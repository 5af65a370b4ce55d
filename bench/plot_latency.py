# SPDX-License-Identifier: BSD-3-Clause
"""Draw what bench/test_channel.py measured: one-way latency over size, log-log, everybody in one picture.

python bench/plot_latency.py docs/latency.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / ".benchmarks" / "channel-latency.json"


def main(target: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    measured = {int(size): row for size, row in json.loads(SOURCE.read_text(encoding="utf-8")).items()}
    figure, axes = plt.subplots(figsize=(7.5, 5), dpi=120)
    for name in next(iter(measured.values())):
        sizes = sorted(size for size, row in measured.items() if name in row)
        ours = name.startswith("shmpool")
        axes.loglog(
            sizes,
            [measured[size][name] * 1e6 for size in sizes],
            label=name,
            marker="o",
            markersize=4,
            linewidth=2.4 if ours else 1.2,
            linestyle="--" if "loan" in name else "-",
            zorder=3 if ours else 2,
        )
    axes.set_xlabel("array, bytes")
    axes.set_ylabel("one way, µs (half of a round trip, median)")
    axes.set_title("An array from one Python process to another")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(target)


if __name__ == "__main__":
    main(sys.argv[1])
