# SPDX-License-Identifier: BSD-3-Clause
"""The class of proxy classes: how they are pickled, shown, and compared with scikit-learn's own.

While `gsb.accel` is installed, a proxy stands for the scikit-learn class that the program believes to have
imported, and these three follow.
"""

from __future__ import annotations

import copyreg
import pkgutil
from abc import ABCMeta
from typing import Any

__all__ = ["ProxyType", "stand_for_originals"]

_stands_for_original = False


def stand_for_originals(yes: bool) -> None:
    """Let proxies stand for scikit-learn's classes, or not. For `gsb.accel`."""
    global _stands_for_original
    _stands_for_original = yes


class ProxyType(ABCMeta):
    """Metaclass of proxies, and of users' subclasses of them.

    Notes
    -----
    A proxy has ``_gsb_path`` and ``_gsb_base`` in its own dict; a user's subclass inherits them only.
    """

    _gsb_base: type
    _gsb_path: str

    def __instancecheck__(cls, instance: Any) -> bool:
        if _stands_for_original and "_gsb_base" in cls.__dict__:
            return type.__instancecheck__(cls._gsb_base, instance)
        return super().__instancecheck__(instance)

    def __subclasscheck__(cls, subclass: type) -> bool:
        if _stands_for_original and "_gsb_base" in cls.__dict__:
            # Not the base's own check: an ABC asks its subclasses, and that is us.
            return type.__subclasscheck__(cls._gsb_base, subclass)
        return super().__subclasscheck__(subclass)

    def __repr__(cls) -> str:
        if _stands_for_original and "_gsb_base" in cls.__dict__:
            return repr(cls._gsb_base)
        return super().__repr__()


def _reduce(cls: ProxyType) -> str | tuple[Any, ...]:
    if _stands_for_original and "_gsb_path" in cls.__dict__:
        module, _, name = cls._gsb_path.rpartition(".")
        # A call, so that it differs from what scikit-learn's own class is written as; in the standard library, so
        # that it can be loaded without gsb.
        return pkgutil.resolve_name, (f"{module}:{name}",)
    return cls.__qualname__


copyreg.pickle(ProxyType, _reduce)
