# SPDX-License-Identifier: BSD-3-Clause
"""Modules of scikit-learn whose estimator classes look different to the program and to scikit-learn.

A watched module keeps its dictionary, and code inside it reads that dictionary as ever. Its class becomes a subclass
of what it was, with a data descriptor for each estimator: only what reads an attribute *of the module object* goes
through it.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final

from gsb.accel._callers import Callers

__all__ = ["Watch"]

_Given = Callable[[Any], Any]

# A function of scikit-learn that finds classes for its caller.
_DISCOVERS: Final = "all_estimators"
_DISCOVERY: Final = "sklearn.utils.discovery"


class _Switch:
    """One attribute of one module: the program reads the stand-in, scikit-learn the original.

    Parameters
    ----------
    name : str
        Of the attribute.
    original
        What the module's dict holds.
    defines : bool
        Whether pickles name the original by this attribute.
    stand_in : callable
        Gives the stand-in of the original, or None if there is none; called at the first need.
    """

    __slots__ = ("_callers", "_defines", "_found", "_name", "_original", "_stand_in")

    def __init__(self, name: str, original: Any, defines: bool, stand_in: _Given, callers: Callers) -> None:
        self._name = name
        self._original = original
        self._defines = defines
        self._stand_in = stand_in
        self._callers = callers
        self._found: Any = None

    def __get__(self, module: ModuleType | None, owner: type | None = None) -> Any:
        if module is None:
            return self
        try:
            value = module.__dict__[self._name]
        except KeyError:
            raise AttributeError(
                f"module {module.__name__!r} has no attribute {self._name!r}", name=self._name, obj=module
            ) from None
        # Anything else was put there by somebody: a mock, or the module itself on reload.
        if value is self._original and self._callers.wants_proxy(sys._getframe(1), defines=self._defines):
            found = self._give()
            if found is not None:
                return found
        return value

    def __set__(self, module: ModuleType, value: Any) -> None:
        # What was read by the program, then replaced, and is now put back.
        module.__dict__[self._name] = self._original if value is self._found and value is not None else value

    def __delete__(self, module: ModuleType) -> None:
        if self._name not in module.__dict__:
            raise AttributeError(self._name)
        del module.__dict__[self._name]

    def _give(self) -> Any:
        if self._found is None:
            self._found = self._stand_in(self._original)
        return self._found


class Watch:
    """All watched modules, and the hook that watches those to come.

    Parameters
    ----------
    callers : Callers
        Who gets proxies.
    proxy_for : callable
        Gives the proxy of a class or None.
    after_import : dict of str to callable
        Called with modules of other packages once they are loaded.

    Notes
    -----
    Concurrency: any thread may import while this one starts or stops. Lifetime: until `stop`.
    """

    def __init__(
        self, callers: Callers, proxy_for: _Given, after_import: dict[str, Callable[[ModuleType], None]]
    ) -> None:
        self._callers = callers
        self._proxy_for = proxy_for
        self._after_import = after_import
        self._lock = threading.RLock()
        self._former: dict[str, tuple[ModuleType, type[ModuleType]]] = {}
        self._active = False
        self._discover = functools.cache(functools.partial(_discovery, proxy_for=proxy_for))

    def start(self) -> None:
        """Watch what is loaded, and what will be."""
        self._active = True
        sys.meta_path.insert(0, self)
        for name in list(sys.modules):
            if not self._concerns(name):
                continue
            module = sys.modules.get(name)
            if getattr(getattr(module, "__spec__", None), "_initializing", False):
                # Another thread is importing it: wait for the end of that.
                module = importlib.import_module(name)
            if isinstance(module, ModuleType):
                self.loaded(module)

    def stop(self) -> None:
        """Give all modules their own classes back."""
        with self._lock:
            self._active = False
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            for module, former in self._former.values():
                if isinstance(type(module), _WatchedType):
                    object.__setattr__(module, "__class__", former)
            self._former.clear()

    def after_fork(self) -> None:
        """In a forked child: nobody is left who could let go of the lock."""
        self._lock = threading.RLock()

    # ------------------------------------------------------------------------------ import system
    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        """As the import system asks: what the other finders say, with a loader that tells us."""
        if not self._concerns(name):
            return None
        for finder in list(sys.meta_path):
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _TellingLoader(spec.loader, self)  # type: ignore[assignment]
                return spec
        return None

    def _concerns(self, name: str) -> bool:
        if name in self._after_import:
            return True
        # Test modules define no estimator that others import, and pytest has a loader of its own for them.
        return (name == "sklearn" or name.startswith("sklearn.")) and ".tests" not in name

    def loaded(self, module: ModuleType) -> None:
        """Watch a module of scikit-learn whose code has run."""
        with self._lock:
            if not self._active:
                return
            name = module.__name__
            if name in self._after_import:
                self._after_import[name](module)
                return
            switches = {
                key: self._switch(key, value, module)
                for key, value in list(vars(module).items())
                if self._is_switched(key, value)
            }
            if not switches:
                return
            known = self._former.get(name)
            former = known[1] if known is not None and isinstance(type(module), _WatchedType) else type(module)
            namespace = {"__module__": former.__module__, "__qualname__": former.__qualname__, "_gsb_watch": self}
            watched = _WatchedType(former.__name__, (_Watched, former), {**namespace, **switches})
            object.__setattr__(module, "__class__", watched)
            self._former[name] = (module, former)

    def added(self, module: ModuleType, name: str, value: Any) -> None:
        """Watch an attribute that somebody sets, as ``sklearn.experimental`` does."""
        with self._lock:
            if self._active and self._is_switched(name, value):
                setattr(type(module), name, self._switch(name, value, module))

    def _is_switched(self, name: str, value: Any) -> bool:
        if name == _DISCOVERS:
            return getattr(value, "__module__", None) == _DISCOVERY
        if not isinstance(value, type) or value.__name__.startswith("_") or "_gsb_base" in value.__dict__:
            return False
        base = sys.modules.get("sklearn.base")
        estimator = vars(base).get("BaseEstimator") if base is not None else None
        return estimator is not None and issubclass(value, estimator) and value.__module__.startswith("sklearn.")

    def _switch(self, name: str, value: Any, module: ModuleType) -> _Switch:
        defines = value.__module__ == module.__name__ and value.__qualname__ == name
        return _Switch(name, value, defines, self._discover if name == _DISCOVERS else self._proxy_for, self._callers)


class _WatchedType(type):
    """The class of the classes of watched modules."""


class _Watched(ModuleType):
    _gsb_watch: Watch

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, type) and name not in vars(type(self)) and name != "__class__":
            self._gsb_watch.added(self, name, value)


class _TellingLoader:
    """Does what the loader does that it stands for, and then tells that the module is complete."""

    def __init__(self, loader: Any, watch: Watch) -> None:
        self._loader = loader
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: Any) -> ModuleType | None:
        create = getattr(self._loader, "create_module", None)
        module: ModuleType | None = create(spec) if create is not None else None
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._watch.loaded(module)


def _discovery(original: Callable[..., Any], proxy_for: _Given) -> Callable[..., Any]:
    @functools.wraps(original)
    def all_estimators(*args: Any, **kwargs: Any) -> list[tuple[str, type]]:
        found: Iterator[tuple[str, type]] = iter(original(*args, **kwargs))
        return [(name, proxy_for(cls) or cls) for name, cls in found]

    return all_estimators
