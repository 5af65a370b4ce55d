# SPDX-License-Identifier: BSD-3-Clause
"""Fills a module such as ``gsb.svm`` from ``sklearn.svm``, each name at its first use.

Estimators are proxies; everything else, compositions such as Pipeline included, is scikit-learn's own, so that
changing the prefix of an import is all that a user does.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Callable
from typing import Any


def mirror(module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Give ``__getattr__`` and ``__dir__`` of the module that mirrors ``sklearn.<...>``."""
    source_name = f"sklearn.{module.partition('.')[2]}"

    def names() -> list[str]:
        source = importlib.import_module(source_name)
        public = getattr(source, "__all__", None) or [name for name in vars(source) if not name.startswith("_")]
        return sorted(public)

    def find(name: str) -> Any:
        if name == "__all__":
            return names()
        if name.startswith("_"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        source = importlib.import_module(source_name)
        try:
            found = getattr(source, name)
        except AttributeError:
            raise AttributeError(f"module {module!r} has no attribute {name!r}; nor has {source_name}") from None
        if isinstance(found, types.ModuleType):
            # scikit-learn's own, unless it is mirrored as well.
            with contextlib.suppress(ModuleNotFoundError):
                found = importlib.import_module(f"{module}.{name}")
        if isinstance(found, type):
            from gsb.registry import proxy_for

            found = proxy_for(found) or found
        setattr(sys.modules[module], name, found)
        return found

    return find, names
