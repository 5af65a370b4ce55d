# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 and SIGSTOP at every labelled place of the sources, with survivors checked for progress and for data.

A victim on the failpoint build is driven into each label by a scenario that passes it. The test process is the
survivor, on the normal build: before the victim starts it holds an array and a view of it, which must be as they were
afterwards, and after a death it must be able to use every slot there is.

Labels come from the sources and scenarios from a rehearsal that logs what each passes, so a new label is tested without
anybody's doing, and one that no scenario passes is a failure.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers.failpoints import CHECK_BUILD, FailpointBuild, failpoint_labels
from helpers.places import Places
from helpers.pools import REGIONS, check_progress, check_stamped, small, stamped
from helpers.processes import KILLED, Child, Children, eventually
from helpers.scenarios import LEAVER, SCENARIOS, Scenario
from numpy.typing import NDArray

import shmpool

WITNESS = 77
# Passed only by whoever is alone in the pool, so that nobody attached can look on: test_create_races stops them.
ALONE = {label for label in failpoint_labels() if label.startswith("create.")} | {"open.reclaimed"}


@dataclass
class Stage:
    """A scenario set up: the victim stands before its failpoint."""

    path: Path
    victim: Child
    pool: shmpool.Pool | None = None
    waiter: threading.Thread | None = None
    waited: list[object] = field(default_factory=list)
    held: list[tuple[shmpool.Handle, NDArray[Any], int]] = field(default_factory=list)

    def hold(self, handle: shmpool.Handle, seed: int) -> None:
        """Keep an array of the survivor's, and a view of it."""
        assert self.pool is not None
        self.held.append((handle, self.pool.get(handle), seed))

    def let_go(self, pool: shmpool.Pool) -> None:
        """Assert that everything held is as it was; free it."""
        while self.held:
            handle, view, seed = self.held.pop()
            check_stamped(view, seed)
            check_stamped(pool.get(handle), seed)
            pool.free(handle)


@contextmanager
def staged(
    scenario: Scenario, armed: str, path: Path, build: FailpointBuild, log: Path | None = None
) -> Iterator[Stage]:
    """Prepare what the scenario wants to find, and a victim that has said "ready"."""
    with ExitStack() as stack:
        children = stack.enter_context(Children())
        pool = None
        if scenario.before != "absent":
            pool = stack.enter_context(small(path))
        leaver = None
        if scenario.before in ("dead", "abandoned"):
            leaver = children.start(CHECK_BUILD + LEAVER, path, "", env=build.env())
            assert leaver.hear() == "full"
        if scenario.before == "abandoned":
            assert pool is not None
            assert leaver is not None
            pool.close()
            pool = None
            leaver.kill()
        victim = children.start(CHECK_BUILD + scenario.text, path, armed, env=build.env(log))
        assert victim.hear() == "ready"
        if scenario.before == "dead":
            assert leaver is not None
            leaver.kill()  # not earlier: the victim would get its index, and clean up while it attaches
        stage = Stage(path, victim, pool)
        if scenario.before == "blocked":
            assert pool is not None
            handles = [pool.put(stamped(k)) for k in range(2)]
            pool.free(handles[0])
            assert handles[1].slot == 2
            stage.hold(handles[1], 1)
        if scenario.before == "waiter":
            assert pool is not None
            stage.waiter = start_waiter(pool, stage.waited)
            stack.callback(stage.waiter.join, 30)
        yield stage


def start_waiter(pool: shmpool.Pool, waited: list[object]) -> threading.Thread:
    """A thread that waits for a slot of the full region "scratch", and gives it back."""

    def wait() -> None:
        try:
            handle = pool.put(stamped(8), "scratch", 25)
            check_stamped(pool.get(handle), 8)
            pool.free(handle)
            waited.append("served")
        except Exception as error:
            waited.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: waiters_flag(pool.path) == 1, "the waiter announces itself")
    return thread


def waiters_flag(path: Path) -> int:
    """The word by which a waiter asks to be woken; its place is in docs/format.md."""
    with open(path, "rb") as file:
        return int.from_bytes(os.pread(file.fileno(), 4, 4608), sys.byteorder)


def orders(stage: Stage) -> object:
    """What the victim is told with "go": the client to give things to."""
    return None if stage.pool is None else [stage.pool.client.index, stage.pool.client.nonce]


@pytest.fixture(scope="session")
def routes(
    places: Places, failpoint_build: FailpointBuild, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Scenario]]:
    """The scenarios that pass each label, from one rehearsal of every scenario to its undisturbed end."""
    logs = tmp_path_factory.mktemp("failpoints")
    routes: dict[str, list[Scenario]] = {}
    for number, scenario in enumerate(SCENARIOS):
        log = logs / str(number)
        with ExitStack() as stack:
            folder = places.new(f"rehearsal {scenario.name}")
            stack.callback(places.discard, folder)
            stage = stack.enter_context(staged(scenario, "none:kill", folder / "pool.bin", failpoint_build, log))
            # What was logged before "go" belongs to the preparation.
            before = log.read_text().count("\n") if log.exists() else 0
            stage.victim.say(orders(stage))
            assert stage.victim.hear() == "done"
            passed = log.read_text().splitlines()[before:]
            stage.victim.say("check")
            assert stage.victim.hear() == "intact"
        for label in set(passed):
            routes.setdefault(label, []).append(scenario)
    return routes


def test_every_label_is_reached(routes: dict[str, list[Scenario]]) -> None:
    labels = failpoint_labels()
    assert len(labels) > 30, "the search for labels does not find them any more"
    assert sorted(set(labels) - set(routes)) == []


@pytest.mark.parametrize("label", failpoint_labels())
def test_kill(label: str, routes: dict[str, list[Scenario]], pool_dir: Path, failpoint_build: FailpointBuild) -> None:
    ways = routes.get(label, [])
    assert ways, f"no scenario passes {label}"
    # The first and the last: those are the most different ones. All of them with SHMPOOL_SOAK=1.
    for scenario in ways if os.environ.get("SHMPOOL_SOAK") == "1" else ways[:1] + ways[1:][-1:]:
        kill_at(label, scenario, pool_dir / f"{scenario.name}.bin", failpoint_build)


def kill_at(label: str, scenario: Scenario, path: Path, build: FailpointBuild) -> None:
    """Have a victim killed at `label`; assert that a survivor lost nothing and can use all of the pool."""
    with staged(scenario, f"{label}:kill", path, build) as stage:
        if scenario.before == "pool":
            assert stage.pool is not None
            stage.hold(stage.pool.put(stamped(WITNESS), "output"), WITNESS)
        stage.victim.say(orders(stage))
        assert stage.victim.wait() == KILLED, stage.victim.stderr()
        if stage.waiter is not None:
            stage.waiter.join(30)
            assert stage.waited == ["served"]
        pool = stage.pool if stage.pool is not None else small(path)
        stage.let_go(pool)
        drop_gifts(pool)
        check_progress(pool)
        pool.close()


def drop_gifts(pool: shmpool.Pool) -> None:
    """Free what the victim gave to us before it died."""
    for slot in pool.stat().slots:
        if slot.owner == pool.client.index and slot.state == "sealed":
            handle = shmpool.Handle(
                pool=pool.uuid, slot=slot.slot, span=slot.span, generation=slot.generation, nbytes=slot.nbytes
            )
            check_stamped(pool.get(handle), 5)
            pool.free(handle)


def held_by(pool: shmpool.Pool, client: int) -> dict[int, tuple[object, ...]]:
    """The slots that a client owns or pins, as they are. Not what it has asked to be freed."""
    return {
        slot.slot: (slot.state, slot.owner, slot.generation, slot.pins.get(client, 0))
        for slot in pool.stat().slots
        if client in slot.pins or (slot.owner == client and slot.state != "retired")
    }


@pytest.mark.parametrize("label", [label for label in failpoint_labels() if label not in ALONE])
def test_stop(label: str, routes: dict[str, list[Scenario]], pool_path: Path, failpoint_build: FailpointBuild) -> None:
    ways = [scenario for scenario in routes.get(label, []) if scenario.before not in ("absent", "abandoned")]
    assert ways, f"no scenario passes {label} beside somebody attached"
    with staged(ways[0], f"{label}:stop", pool_path, failpoint_build) as stage:
        pool = stage.pool
        assert pool is not None
        stage.victim.say(orders(stage))
        stage.victim.wait_stopped()
        pool.reclaim()
        clients = [client.index for client in pool.stat().clients if client.pid == stage.victim.pid]
        before = {client: held_by(pool, client) for client in clients}

        # We go on: all that the stopped process does not hold is to be had, and nothing else.
        regions = REGIONS[:2] if stage.waiter is not None else REGIONS  # the waiter competes for the third
        expected = {slot.slot for slot in pool.stat().slots if slot.region in regions}
        expected -= {slot for slots in before.values() for slot in slots}
        # Ours already: what we hold, and what the victim has given to us.
        expected -= {slot.slot for slot in pool.stat().slots if slot.owner == pool.client.index}
        taken: list[shmpool.Handle] = []
        for region in regions:
            with contextlib.suppress(shmpool.PoolFullError):
                while True:
                    taken.append(pool.put(stamped(100 + len(taken)), region, 0.05))
        assert {handle.slot for handle in taken} == expected
        assert {client: held_by(pool, client) for client in clients} == before
        for number, handle in enumerate(taken):
            check_stamped(pool.get(handle), 100 + number)
            pool.free(handle)

        stage.victim.resume()
        assert stage.victim.hear() == "done"
        stage.victim.say("check")
        assert stage.victim.hear() == "intact"
        if stage.waiter is not None:
            stage.waiter.join(30)
            assert stage.waited == ["served"]
        stage.victim.say("leave")
        stage.victim.finish()
        stage.let_go(pool)
        drop_gifts(pool)
        check_progress(pool)
