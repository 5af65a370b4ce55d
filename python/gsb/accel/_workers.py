# SPDX-License-Identifier: BSD-3-Clause
"""Child processes of multiprocessing and loky are accelerated as their parent is.

A forked child inherits everything. Other children get a pickled dict that prepares them, before anything of the
program: an entry is added to it whose unpickling installs.
"""

from __future__ import annotations

import functools
import os.path
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

__all__ = ["hooks", "start", "unhook"]

_PREPARES: Final = ("multiprocessing.spawn", "joblib.externals.loky.backend.spawn", "loky.backend.spawn")
_FUNCTION: Final = "get_preparation_data"
_KEY: Final = "gsb_accel"

# The child may find gsb by a path that it is only about to be given, or not at all.
_START: Final = """
import sys
try:
    from gsb.accel import _workers
except ImportError:
    sys.path.append(root)
    try:
        from gsb.accel import _workers
    finally:
        sys.path.remove(root)
_workers.start(exclude, settings, report_folder)
"""

#: Where children leave what they did; None if nobody asks.
report_folder: str | None = None

_patched: list[tuple[ModuleType, Any, Any]] = []


class _Start:
    """Installs where it is unpickled."""

    def __init__(self, exclude: tuple[str, ...], settings: dict[str, Any]) -> None:
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        self._values = {"root": root, "exclude": exclude, "settings": settings}

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (_START, {**self._values, "report_folder": report_folder})


def hooks(exclude: tuple[str, ...], settings: dict[str, Any]) -> dict[str, Callable[[ModuleType], None]]:
    """Give what is to be done with the modules that prepare child processes, once they are loaded."""
    start = _Start(exclude, settings)

    def patch(module: ModuleType) -> None:
        former = getattr(module, _FUNCTION)

        @functools.wraps(former)
        def get_preparation_data(*args: Any, **kwargs: Any) -> Any:
            return {**former(*args, **kwargs), _KEY: start}

        setattr(module, _FUNCTION, get_preparation_data)
        _patched.append((module, former, get_preparation_data))

    return {**dict.fromkeys(_PREPARES, patch), "multiprocessing.util": _report_of_forked}


def _report_of_forked(util: ModuleType) -> None:
    if report_folder is not None:
        from gsb.accel import _summary

        _summary.forked(util, report_folder)


def unhook() -> None:
    """Undo what the hooks did."""
    while _patched:
        module, former, ours = _patched.pop()
        if getattr(module, _FUNCTION) is ours:
            setattr(module, _FUNCTION, former)


def start(exclude: tuple[str, ...], settings: dict[str, Any], folder: str | None) -> None:
    """Accelerate this process, a child; called before the program's own modules are imported."""
    global report_folder
    from gsb.accel._install import install

    if folder is not None:
        from gsb.accel import _summary

        report_folder = folder
        _summary.write_at_exit(folder)
    install(exclude=exclude, **settings)
