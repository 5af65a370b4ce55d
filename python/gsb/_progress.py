# SPDX-License-Identifier: BSD-3-Clause
"""``with gsb.progress():`` a bar with the current stage on long calls."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console

_POLL_SECONDS: Final = 0.2
_LABELS: Final = {
    "client_encode": "sending",
    "request": "waiting for the server",
    "queue": "queued",
    "server_decode": "server reads",
    "compute": "computing",
    "server_encode": "server answers",
    "client_decode": "receiving",
}

_current: Display | None = None


def current() -> Display | None:
    """Give the display in force, or None."""
    return _current


class Display:
    """A rich display; one line per call."""

    def __init__(self, console: Console | None) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[stage]}"),
            TimeElapsedColumn(),
            console=console,
        )

    def start(self) -> None:
        self._bars.start()

    def stop(self) -> None:
        self._bars.stop()

    @contextlib.contextmanager
    def track(self, label: str, ask: Callable[[], str | None]) -> Iterator[Callable[[str], None]]:
        """Show a call; the value of the ``with`` statement sets the stage.

        `ask` asks the server for the stage. It is called from a thread of its own, while the stage is
        ``request``.
        """
        # Nobody knows how long a fit takes, so the bar pulses: total=None.
        task = self._bars.add_task(label, total=None, stage="")
        done = threading.Event()
        stage = ""

        def show(name: str) -> None:
            nonlocal stage
            stage = name
            self._bars.update(task, stage=_LABELS.get(name, name))

        def poll() -> None:
            while not done.wait(_POLL_SECONDS):
                if stage == "request":
                    found = ask()
                    if found and stage == "request" and not done.is_set():
                        self._bars.update(task, stage=_LABELS.get(found, found))

        watcher = threading.Thread(target=poll, name="gsb-progress", daemon=True)
        watcher.start()
        started = time.perf_counter()
        try:
            yield show
            self._bars.update(task, total=1, completed=1, stage=f"done in {time.perf_counter() - started:.2f} s")
        except BaseException:
            self._bars.update(task, stage="failed")
            raise
        finally:
            done.set()
            watcher.join(5)
            self._bars.stop_task(task)


@contextlib.contextmanager
def progress(console: Any = None) -> Iterator[None]:
    """Show a progress bar with the current stage for each call inside the ``with`` block.

    Parameters
    ----------
    console : rich.console.Console, optional
        Where to draw. Default: standard output.

    Examples
    --------
    >>> import gsb
    >>> with gsb.progress():  # doctest: +SKIP
    ...     model.fit(X)
    """
    global _current
    former = _current
    display = Display(console)
    display.start()
    _current = display
    try:
        yield
    finally:
        _current = former
        display.stop()
