# SPDX-License-Identifier: BSD-3-Clause
"""``docs/gpu.md``: what was measured as tables, what was not as a list."""

from __future__ import annotations

import statistics
from typing import Any

__all__ = ["ABSENT", "render"]

STAGES = ("client_encode", "request", "server_decode", "compute", "server_encode", "client_decode")
DETAIL = ("device_wait", "upload", "download", "worker")
PATHS = {
    "parts": "pinned slots, in parts (the default)",
    "pinned": "pinned slots, in one piece",
    "ring": "not pinned: ring of 2 x 64 MiB",
    "pageable": "pageable",
}

#: Every figure that belongs here: key -> what it is.
ABSENT = {
    **{
        f"path.{key}.{what}": f"500 MB PCA `fit_transform`, {text}, {what}"
        for key, text in PATHS.items()
        for what in ("cold", "warm")
    },
    "cuml": "the same by cuML in the caller's own process, arrays on the host",
    "sklearn": "the same by plain scikit-learn in the caller's own process",
    "clients": "four clients at once, 500 MB each: time and errors",
    "bar.ratio": "bar: end to end at most 1.5 times in-process cuML (H100)",
    "bar.warm": "bar: under 200 ms warm (H100)",
    "bar.errors": "bar: four clients without an error",
    "tests": "`make test-gpu` on a real device",
    "pinning": "whether `cudaHostRegister` takes a pool on tmpfs",
    "pinning.disk": "that it refuses one on a disk file (Linux 6.5 and newer)",
    "wsl2": "WSL2: the cap on pinned memory, and the ring under it",
    "windows": "native Windows with CuPy",
    "sklearn_tests": "scikit-learn's own tests with the GPU backend, against cuML's list of expected failures",
    "sticky": "a real sticky error (illegal address) ends the worker and one job",
    "lock_order": "at the end of a killed worker the device has stopped writing before its slots are free",
}

_HEAD = """\
# The GPU: figures

How it works: [gpu-worker.md](gpu-worker.md). This page is written by `make bench-gpu`; nothing in it was typed in.
"""

_HOW = """
## How to measure

On a machine with an NVIDIA GPU:

```sh
pip install 'shmpool[server]' cupy-cuda13x cuml-cu13     # or cuda12
make test-gpu     # the worker's tests on the real device
make bench-gpu    # prints the tables and writes this page
```

On one that reaches no package registry, unpack what is missing into a folder and name it:

```sh
make test-gpu bench-gpu GPU_SITE=/tmp/gsite
```

`GPU_SITE` goes in front of `PYTHONPATH`, nothing is installed, and `GPU_PYTHON` (default `python3`) runs. It must hold,
or the machine must have: NumPy, scikit-learn, CuPy, Starlette, uvicorn, uvloop, httptools, pytest with pytest-timeout,
pytest-randomly, pytest-benchmark and hypothesis, and cuML for its rows. The compiled parts of shmpool are `abi3`:
`src/shmpool/*.so`, built anywhere with a glibc that is not newer, serve. For a cuML that was unpacked rather than
installed, set `LD_LIBRARY_PATH` to the folders of the CUDA libraries (`nvidia/cu13/lib`, `nvidia/nccl/lib`); without
nvJitLink 13.3 or newer, set `LD_PRELOAD` to a stand-in for it: PCA and linear models should do without, k-means and
neighbours should not.

Without a GPU, `python -m bench.gpu --device fake` runs all of it over stand-ins to see that the scripts are whole. Its
figures mean nothing; they go to a temporary file.
"""


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _median(values: list[float]) -> float:
    return statistics.median(values)


def _stage_table(found: dict[str, Any]) -> list[str]:
    runs = [key for key in PATHS if f"path.{key}.warm" in found]
    if not runs:
        return []
    lines = [
        "",
        "## Stage by stage",
        "",
        "Milliseconds, median of the warm runs; the first call of a fresh server last.",
        "",
    ]
    lines.append("| | " + " | ".join(PATHS[key] for key in runs) + " |")
    lines.append("|---|" + "---|" * len(runs))
    for stage in STAGES:
        cells = [_ms(_median([one["stages"][stage] for one in found[f"path.{key}.warm"]])) for key in runs]
        lines.append(f"| `{stage}` | " + " | ".join(cells) + " |")
    for stage in DETAIL:
        cells = []
        for key in runs:
            values = [one["detail"][stage] for one in found[f"path.{key}.warm"] if stage in one["detail"]]
            cells.append(_ms(_median(values)) if values else "")
        if any(cells):
            lines.append(f"| of these, `{stage}` | " + " | ".join(cells) + " |")
    totals = [_ms(_median([one["total"] for one in found[f"path.{key}.warm"]])) for key in runs]
    lines.append("| **total, warm** | " + " | ".join(totals) + " |")
    cold = [_ms(found[f"path.{key}.cold"]["total"]) if f"path.{key}.cold" in found else "" for key in runs]
    lines.append("| total, cold | " + " | ".join(cold) + " |")
    described = {key: found["described"][key] for key in runs if key in found.get("described", {})}
    lines += ["", *(f"* {PATHS[key]}: {text}" for key, text in described.items())]
    return lines


def _against(found: dict[str, Any]) -> list[str]:
    rows = []
    for key, text in (("cuml", "cuML in-process, arrays on the host"), ("sklearn", "scikit-learn in-process")):
        if key in found:
            one = found[key]
            rows.append(f"| {text} | {_ms(_median(one['warm']))} | {_ms(one['cold'])} | {_ms(one['import'])} |")
    if not rows:
        return []
    lines = [
        "",
        "## Against the same work without a bridge",
        "",
        "| | warm, ms | first call, ms | import, ms |",
        "|---|---|---|---|",
    ]
    if "path.parts.warm" in found:
        warm = _median([one["total"] for one in found["path.parts.warm"]])
        cold = _ms(found["path.parts.cold"]["total"]) if "path.parts.cold" in found else ""
        lines.append(f"| through the server | {_ms(warm)} | {cold} | |")
    return [*lines, *rows]


def _clients(found: dict[str, Any]) -> list[str]:
    if "clients" not in found:
        return []
    one = found["clients"]
    return [
        "",
        "## Several clients at once",
        "",
        f"{one['clients']} processes, {one['repeats']} calls each: {one['wall']:.2f} s in all, median of a call "
        f"{_ms(one['median'])} ms, slowest {_ms(one['slowest'])} ms; {len(one['errors'])} errors; "
        f"on {one['backends']}.",
        *(f"* {text}" for text in one["errors"][:10]),
    ]


def _bars(found: dict[str, Any]) -> list[str]:
    bars = [one for key, one in found.items() if key.startswith("bar.")]
    rows = [f"| {one['text']} | {one['value']} | {'met' if one['met'] else 'missed'} |" for one in bars]
    return ["", "## Bars", "", "| | measured | |", "|---|---|---|", *rows] if rows else []


def _tests(found: dict[str, Any]) -> list[str]:
    if "tests" not in found:
        return []
    one = found["tests"]
    text = f"`make test-gpu`: {one['passed']} passed, {one['failed']} failed, {one['skipped']} skipped."
    return ["", "## Tests on the device", "", text, *(f"* failed: `{name}`" for name in one["failures"])]


def render(found: dict[str, Any]) -> str:
    """Return the page.

    Parameters
    ----------
    found : dict
        What was measured, by the keys of `ABSENT`, and ``machine``: lines that say where.
    """
    lines = [_HEAD]
    machine = found.get("machine")
    if machine:
        lines += ["## Measured on", "", *(f"* {line}" for line in machine)]
        lines += [*_bars(found), *_stage_table(found), *_against(found), *_clients(found), *_tests(found)]
    missing = [text for key, text in ABSENT.items() if key not in found]
    if missing:
        lines += ["", "## Not yet measured" if machine else "## Not yet measured: no run on a GPU so far", ""]
        lines += [f"* {text}" for text in missing]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n" + _HOW
