# SPDX-License-Identifier: BSD-3-Clause
"""Warnings per context: the case that ``warnings.catch_warnings`` alone gets wrong."""

from __future__ import annotations

import contextvars
import threading
import time
import warnings

import pytest
from gsb_server.warning_capture import collect_warnings, install


def _texts(log: list[warnings.WarningMessage]) -> list[str]:
    return [str(item.message) for item in log]


def test_threads_collect_their_own_and_leave_no_trace() -> None:
    install()
    before = list(warnings.filters)
    wrong: list[object] = []

    def work(number: int) -> None:
        for _ in range(60):
            with collect_warnings() as log:
                warnings.warn(f"first {number}", stacklevel=1)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    time.sleep(1e-4)  # let the others enter and leave meanwhile
                    warnings.warn("ignored", stacklevel=1)
                with warnings.catch_warnings(record=True) as inner:
                    warnings.simplefilter("always")
                    time.sleep(1e-4)
                    warnings.warn(f"inner {number}", stacklevel=1)
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("error")
                        warnings.warn("raised", stacklevel=1)
                except UserWarning:
                    warnings.warn(f"last {number}", FutureWarning, stacklevel=1)
            if _texts(log) != [f"first {number}", f"last {number}"] or _texts(inner) != [f"inner {number}"]:
                wrong.append((number, _texts(log), _texts(inner)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert list(warnings.filters) == before


def test_outside_nothing_changes() -> None:
    install()
    with pytest.warns(UserWarning, match="seen"):
        warnings.warn("seen", stacklevel=1)
    with warnings.catch_warnings(record=True) as log:
        warnings.resetwarnings()
        warnings.filterwarnings("ignore", message="not this")
        warnings.filterwarnings("always", append=True)
        warnings.warn("not this one", stacklevel=1)
        warnings.warn("this one", stacklevel=1)
    assert _texts(log) == ["this one"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            warnings.warn("an error", stacklevel=1)


def test_a_custom_showwarning_is_still_called() -> None:
    install()
    shown: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *args, **kwargs: shown.append(str(message))
        warnings.warn("shown", stacklevel=1)
    assert shown == ["shown"]


def test_the_same_warning_is_collected_each_time() -> None:
    def noisy() -> None:
        warnings.warn("again", stacklevel=1)

    for _ in range(3):
        with collect_warnings() as log:
            noisy()
            noisy()
        assert _texts(log) == ["again", "again"]


def test_a_thread_with_a_copied_context_collects_into_the_same_log() -> None:
    with collect_warnings() as log:
        context = contextvars.copy_context()

        def work() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.warn("ignored", stacklevel=1)
            warnings.warn("from there", stacklevel=1)

        thread = threading.Thread(target=context.run, args=(work,))
        thread.start()
        thread.join(60)
        warnings.warn("from here", stacklevel=1)
    assert _texts(log) == ["from there", "from here"]


def test_collecting_nests() -> None:
    with collect_warnings() as outer:
        with collect_warnings() as inner:
            warnings.warn("in", stacklevel=1)
        warnings.warn("out", stacklevel=1)
    assert (_texts(inner), _texts(outer)) == (["in"], ["out"])
