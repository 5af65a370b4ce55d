# SPDX-License-Identifier: BSD-3-Clause
"""Switching acceleration on and off for the whole process."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import warnings
from collections.abc import Iterable
from typing import Any, Final

from gsb import _config, _proxy_type
from gsb.accel import _workers
from gsb.accel._callers import Callers
from gsb.accel._modules import Watch
from gsb.errors import GSBError

__all__ = ["LOCAL_NBYTES", "AccelError", "install", "is_installed", "uninstall"]

#: Calls with less data run in this process, unless something else is asked for. See ``docs/accel.md`` for the
#: measurements behind it.
LOCAL_NBYTES: Final = 8 << 20


class AccelError(GSBError, ValueError):
    """An argument of `install` makes no sense."""


class _Installed:
    """What `uninstall` has to undo."""

    def __init__(self, exclude: tuple[str, ...], settings: dict[str, Any]) -> None:
        self.exclude = exclude
        self.settings = settings
        self.restore = _config.config(**settings)
        self.watch = Watch(Callers(exclude), _proxy_for, _workers.hooks(exclude, settings))
        _proxy_type.stand_for_originals(True)
        self.watch.start()

    def undo(self) -> None:
        self.watch.stop()
        _workers.unhook()
        _proxy_type.stand_for_originals(False)
        self.restore.__exit__(None, None, None)


_installed: _Installed | None = None
_lock = threading.Lock()


def install(*, exclude: Iterable[str] = (), **settings: object) -> None:
    """Let the program get proxies where it imports estimators from scikit-learn.

    Parameters
    ----------
    exclude : iterable of str
        Packages or modules that get scikit-learn's own classes.
    **settings
        As `gsb.config`. Defaults that differ: ``fallback="quiet"`` (``$GSB_FALLBACK``), and
        ``local_nbytes=`` `LOCAL_NBYTES` (``$GSB_LOCAL_NBYTES``).

    Raises
    ------
    AccelError
        It is installed already, with something else asked for; or an argument is wrong.

    Warns
    -----
    UserWarning
        ``__main__`` holds classes of scikit-learn already; they stay what they are.

    Notes
    -----
    Concurrency: any thread; twice is once. Blocking: for imports of scikit-learn that other threads are at.
    Child processes of multiprocessing and loky are accelerated, too.
    """
    global _installed
    names = _names(exclude)
    if "GSB_LOCAL_NBYTES" not in os.environ:
        settings.setdefault("local_nbytes", LOCAL_NBYTES)
    if "GSB_FALLBACK" not in os.environ:
        settings.setdefault("fallback", "quiet")
    with _lock:
        if _installed is not None:
            if (_installed.exclude, _installed.settings) != (names, settings):
                raise AccelError("gsb.accel is installed with other settings", hint="call uninstall() first")
            return
        _installed = _Installed(names, settings)
    main = sys.modules.get("__main__")
    if main is not None:
        warn_of_early_imports(vars(main))


def uninstall() -> None:
    """Undo `install`; without it, do nothing.

    Notes
    -----
    Modules of scikit-learn and the settings of gsb are what they were. Classes that the program has imported
    meanwhile stay proxies; from now on they follow ``gsb.config``.
    """
    global _installed
    with _lock:
        if _installed is not None:
            _installed.undo()
            _installed = None


def is_installed() -> bool:
    """Tell whether scikit-learn's classes are replaced for the program."""
    return _installed is not None


def _names(exclude: Iterable[str]) -> tuple[str, ...]:
    if isinstance(exclude, str):
        raise AccelError(f"exclude={exclude!r}", hint="it is a list of names of packages")
    names = tuple(exclude)
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise AccelError(f"{name!r} in exclude is not the name of a package")
    return names


def _proxy_for(cls: type) -> type | None:
    from gsb.registry import proxy_for

    found = proxy_for(cls)
    if found is not None:
        # cloudpickle looks for the class in the module that it names, if that is loaded.
        importlib.import_module(found.__module__)
    return found


def warn_of_early_imports(namespace: dict[str, Any], stacklevel: int = 3) -> None:
    """Name the classes of scikit-learn that a namespace holds already."""
    base = sys.modules.get("sklearn.base")
    if base is None:
        return
    estimator = vars(base).get("BaseEstimator", ())
    early = sorted(
        name
        for name, value in list(namespace.items())
        if isinstance(value, type) and issubclass(value, estimator) and value.__module__.startswith("sklearn.")
    )
    if early:
        warnings.warn(
            f"imported before gsb.accel was installed, and not accelerated: {', '.join(early)}; "
            "install first, then import",
            stacklevel=stacklevel,
        )


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    if _installed is not None:
        _installed.watch.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
