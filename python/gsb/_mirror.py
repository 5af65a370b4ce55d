# SPDX-License-Identifier: BSD-3-Clause
"""Fills a module such as ``gsb.svm`` from the table of estimators, each class made at its first use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from gsb.protocol.estimators import ROWS


def mirror(module: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Give ``__all__``, ``__getattr__`` and ``__dir__`` of the module that mirrors ``sklearn.<...>``."""
    source = f"sklearn.{module.partition('.')[2]}"
    paths = {row.name: row.path for row in ROWS if row.module == source}

    def find(name: str) -> Any:
        if name not in paths:
            hint = f"; scikit-learn's own is in {source}" if not name.startswith("_") else ""
            raise AttributeError(f"module {module!r} has no attribute {name!r}{hint}")
        from gsb.proxy import proxy_class

        found = proxy_class(paths[name])
        setattr(sys.modules[module], name, found)
        return found

    return sorted(paths), find, lambda: sorted(paths)
