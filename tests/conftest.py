# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures that every test may use: a private place for pools, a small pool, child processes.

They own what they hand out: at tear-down children are killed and counted, pools are closed, and the session fails if
anything that it made is left in /dev/shm. Imports of the packages under test happen inside the fixtures, so that tests
of other parts do not pay for them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.append(str(Path(__file__).parent))

from helpers.failpoints import failpoint_build
from helpers.places import Places
from helpers.processes import Children, all_started
from helpers.windows import MODULES, reason_to_skip

if TYPE_CHECKING:
    import shmpool

__all__ = ["children", "failpoint_build", "no_survivors", "places", "pool_dir", "pool_path", "small_pool"]


collect_ignore_glob = list(MODULES) if sys.platform == "win32" else []
if not os.environ.get("SHMPOOL_TEST_WINE"):
    collect_ignore_glob.append("wine/*")  # `make test-wine`


def pytest_configure() -> None:
    """Take interrupts, also as a job in the background of a shell, which ignores them: children would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what makes no sense on this system."""
    if sys.platform == "win32":
        for item in items:
            if reason := reason_to_skip(item.nodeid):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """The session's folder on tmpfs, and the check that it is empty in the end."""
    places = Places(tmp_path_factory)
    yield places
    places.close()


@pytest.fixture(scope="session", autouse=True)
def no_survivors() -> Iterator[None]:
    """Fail the session if a child process outlives the test that started it."""
    yield
    alive = [child for child in all_started() if child.is_running]
    for child in alive:
        child.kill()
    assert not alive, f"children outlived their tests: {alive}"


@pytest.fixture
def pool_dir(places: Places, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty private folder on tmpfs. Holds pools and nothing else, which is checked when it goes."""
    folder = places.new(request.node.name)
    yield folder
    places.discard(folder)


@pytest.fixture
def pool_path(pool_dir: Path) -> Path:
    """Where a pool may be created."""
    return pool_dir / "pool.bin"


@pytest.fixture
def small_pool(pool_path: Path) -> Iterator[shmpool.Pool]:
    """A pool of 4 + 2 + 2 slots of 64 KiB."""
    from helpers.pools import small

    with small(pool_path) as pool:
        yield pool


@pytest.fixture
def children() -> Iterator[Children]:
    """Starts child processes; kills and reaps what is left of them."""
    with Children() as children:
        yield children
