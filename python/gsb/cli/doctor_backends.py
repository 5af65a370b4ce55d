# SPDX-License-Identifier: BSD-3-Clause
"""The part of ``gsb doctor`` that says what a server here would compute with, and what to install for a GPU.

It asks ``python -m gsb_server.backends``, a process of its own: trying a GPU means a CUDA context and, for SciPy, an
environment variable that is read at import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["would_compute"]

_TIMEOUT = 180.0


def would_compute() -> Iterator[tuple[str, str, str, str]]:
    """Yield mark, subject, text and hint per finding."""
    try:
        found = _ask()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        yield "bad", "backends", f"could not be tried: {error}", "run `python -m gsb_server.backends`"
        return
    for name, probe in found["probes"].items():
        versions = ", ".join(f"{package} {version}" for package, version in probe["versions"].items())
        text = probe["reason"] + (f" ({versions})" if versions and probe["available"] else "")
        if probe["available"]:
            yield "ok", f"backend {name}", text, ""
        else:
            yield "note", f"backend {name}", text, found["advice"]
    yield "ok", "backends", f"a server here asks {', then '.join(found['names'])}", ""


def _ask() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "gsb_server.backends"],
        env={**os.environ, "SCIPY_ARRAY_API": "1"},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    # Libraries may print as well; the answer is the last line.
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise ValueError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer
