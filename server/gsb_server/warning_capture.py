# SPDX-License-Identifier: BSD-3-Clause
"""Warnings collected per job, although several jobs run at once.

``warnings.catch_warnings`` swaps attributes of the *module* ``warnings``. Two threads inside it restore
each other's state: warnings of one job are reported to another, lost, or an "ignore" filter stays for
ever. scikit-learn uses it in many places, so not using it ourselves would not help.

Python 3.14 can keep that state per context (``-X context_aware_warnings``). This module does the same for
earlier versions. The three attributes that make up the state (``filters``, ``showwarning``,
``_showwarnmsg_impl``) become data descriptors on the module's class; they read and write a context
variable while a job runs in the context, and the module's own dictionary otherwise. The C function
``warnings.warn`` and ``catch_warnings`` both go through attribute access, hence through the descriptors.
The three small functions of the module that read their globals instead are replaced.

This module must not know about jobs, HTTP or scikit-learn.
"""

from __future__ import annotations

import sys
import threading
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

__all__ = ["collect_warnings", "install"]


class _State(NamedTuple):
    """What ``catch_warnings`` saves and restores. Immutable: a copied context never sees a later change."""

    filters: list[Any]
    showwarning: Any
    impl: Any


_state: ContextVar[_State | None] = ContextVar("gsb_warning_state", default=None)
_install_lock = threading.Lock()


class _Attribute:
    """A module attribute that a context may shadow."""

    def __init__(self, name: str, field: str) -> None:
        self.name = name
        self.field = field

    def __get__(self, module: Any, owner: type) -> Any:
        state = _state.get()
        if state is None:
            return module.__dict__[self.name]
        return getattr(state, self.field)

    def __set__(self, module: Any, value: Any) -> None:
        state = _state.get()
        if state is None:
            module.__dict__[self.name] = value
        else:
            _state.set(state._replace(**{self.field: value}))


class _ContextAwareModule(types.ModuleType):
    filters = _Attribute("filters", "filters")
    showwarning = _Attribute("showwarning", "showwarning")
    _showwarnmsg_impl = _Attribute("_showwarnmsg_impl", "impl")


def _add_filter(*item: Any, append: bool) -> None:
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    if append:
        if item not in filters:
            filters.append(item)
    else:
        if item in filters:
            filters.remove(item)
        filters.insert(0, item)
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _resetwarnings() -> None:
    """Clear the list of warning filters, so that no filters are active."""
    warnings.filters[:] = []  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _showwarnmsg(msg: warnings.WarningMessage) -> None:
    show = warnings.showwarning
    if show is not warnings._showwarning_orig:  # type: ignore[attr-defined]
        show(msg.message, msg.category, msg.filename, msg.lineno, msg.file, msg.line)
        return
    warnings._showwarnmsg_impl(msg)  # type: ignore[attr-defined]


def _native() -> bool:
    return bool(getattr(sys.flags, "context_aware_warnings", False))


def install() -> None:
    """Make the state of ``warnings`` a matter of the context. Idempotent.

    Outside ``collect_warnings`` nothing changes for anybody.
    """
    with _install_lock:
        if _native() or isinstance(warnings, _ContextAwareModule):
            return
        warnings._add_filter = _add_filter  # type: ignore[attr-defined]
        warnings.resetwarnings = _resetwarnings
        warnings._showwarnmsg = _showwarnmsg  # type: ignore[attr-defined]
        warnings.__class__ = _ContextAwareModule


@contextmanager
def collect_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Collect every warning raised in this context, and nobody else's.

    The filter is "always": whether the user sees a warning once or each time is for the filters of the
    user's own process to say.

    Notes
    -----
    Concurrency: any number of threads at once. A thread started inside collects into the same list if it
    was given a copy of the context, and otherwise behaves as if outside.
    """
    if _native():
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            yield record
        return
    install()
    log: list[warnings.WarningMessage] = []
    always = [("always", None, Warning, None, 0)]
    original = warnings._showwarning_orig  # type: ignore[attr-defined]
    token = _state.set(_State(always, original, log.append))
    # Registries ("this line has warned already") are stamped with the version of the filters: a new
    # version makes entries made outside any job invisible.
    warnings._filters_mutated()  # type: ignore[attr-defined]
    try:
        yield log
    finally:
        _state.reset(token)
