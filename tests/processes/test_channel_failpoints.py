# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 at every labelled place of the channels, with survivors counting what arrives.

A victim on the failpoint build is driven into each label by a scenario that passes it; the test process is the
survivor. After the death every message is accounted for: it arrived once and whole, or its sender died sending it, or
its receiver died after it had accepted it. Then everything is closed, and every slot of the pool must be usable.

Which scenario passes which label is found by a rehearsal, so a new label is tested without anybody's doing, and one
that no scenario passes is a failure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from helpers.failpoints import CHECK_BUILD, FailpointBuild, channel_labels
from helpers.places import Places
from helpers.pools import check_all_free, check_progress, check_stamped, small, stamped
from helpers.processes import KILLED, Child, ChildFailedError, Children

import shmpool

CELL = 1024
INLINE = 512
IN_SLOT = 4096
SIZES = (INLINE, IN_SLOT, INLINE, IN_SLOT, INLINE, IN_SLOT)

# A receiver that dies here has the message: nobody else may get it.
ACCEPTED = {
    "recv.after_accept",
    "recv.after_cursor",
    "recv.before_wake",
    "free.before_retire",
    "free.after_retire",
    "finalize.before_head",
    "finalize.after_head",
    "custody.retired",
}

VICTIM = """
from helpers.pools import small, stamped, check_stamped
pool = small(args[0])
CELL, SIZES = 1024, (512, 4096, 512, 4096, 512, 4096)
def arm():
    os.environ["SHMPOOL_FAILPOINT"] = args[1]
    if args[2]:
        os.environ["SHMPOOL_FAILPOINT_LOG"] = args[2]
"""

SENDER = """
channel = shmpool.Channel.attach("c", pool, role="send")
say("ready"); hear(); arm()
for seed, size in enumerate(SIZES):
    channel.send(stamped(seed, size))
    say(seed)
say("done")
hear()
"""

RECEIVER = """
channel = shmpool.Channel.attach("c", pool, role="recv")
say("ready"); hear(); arm()
for _ in SIZES:
    say(check_stamped(channel.recv(20)))
say("done")
hear()
"""

OPENER = """
say("ready"); hear(); arm()
channel = shmpool.Channel.open("new", pool, 4, cell_nbytes=CELL)
channel.send(stamped(1, 512))
channel.send(stamped(2, 4096))
channel.close()
say("done")
hear()
"""

CLEANER = """
say("ready"); hear(); arm()
pool.reclaim()
say("done")
hear()
"""


@dataclass
class Stage:
    pool: shmpool.Pool
    children: Children
    build: FailpointBuild
    path: Path
    label: str
    log: Path | None
    said: list[int] = field(default_factory=list)
    finished: bool = False

    def start(self, text: str) -> Child:
        child = self.helper(text, f"{self.label}:kill", self.log)
        child.say("go")
        return child

    def helper(self, text: str, armed: str, log: Path | None = None) -> Child:
        """A child that has said "ready"."""
        env = dict(self.build.env())
        env["PYTHONPATH"] += ":" + str(Path(__file__).parents[1])
        child = self.children.start(CHECK_BUILD + VICTIM + text, self.path, armed, log or "", env=env)
        assert child.hear() == "ready"
        return child

    def follow(self, victim: Child) -> None:
        """Listen to a victim until it is done, or dead; and have it dead in the end."""
        while True:
            try:
                said = victim.hear()
            except ChildFailedError:
                assert victim.wait() == KILLED, victim.stderr()
                return
            if said == "done":
                self.finished = True
                victim.kill()
                return
            self.said.append(said)


def drain(channel: shmpool.Channel) -> list[int]:
    """Everything that still arrives."""
    return [check_stamped(message) for message in channel]


def sender(stage: Stage) -> None:
    with shmpool.Channel.open("c", stage.pool, 8, cell_nbytes=CELL, role="recv") as channel:
        found: list[int] = []
        # While it sends, because its slots are fewer than its messages; and because it has somebody to wake.
        thread = threading.Thread(target=lambda: found.extend(drain(channel)))
        thread.start()
        stage.follow(stage.start(SENDER))
        thread.join(30)
        assert not thread.is_alive(), "the receiver was not told that the last sender died"
        assert found == list(range(len(found)))
        assert len(found) in (len(stage.said), len(stage.said) + 1)


def receiver(stage: Stage) -> None:
    with shmpool.Channel.open("c", stage.pool, 2, cell_nbytes=CELL, role="send") as channel:
        victim = stage.start(RECEIVER)
        # Joins in when the victim stops: until then everything is the victim's.
        errors: list[BaseException] = []

        def send() -> None:
            try:
                for seed, size in enumerate(SIZES):
                    channel.send(stamped(seed, size), 30)
            except BaseException as error:
                errors.append(error)

        with shmpool.Channel.attach("c", stage.pool) as second:
            thread = threading.Thread(target=send)
            thread.start()
            stage.follow(victim)
            found: list[int] = []
            missing = len(SIZES) - len(stage.said)
            accepted = stage.label.split(":")[0] in ACCEPTED
            if not stage.finished and not accepted:
                found = [check_stamped(second.recv(30)) for _ in range(missing)]
            elif not stage.finished:
                found = [check_stamped(second.recv(30)) for _ in range(missing - 1)]
                thread.join(30)
                stage.pool.reclaim()
                if not second.empty():  # the label was one that it passed before the acceptance
                    found.append(check_stamped(second.recv(0)))
            thread.join(30)
            assert not thread.is_alive()
            assert errors == []
            assert second.qsize() == 0
        both = stage.said + found
        assert len(set(both)) == len(both), "delivered twice"
        assert sorted(both) == sorted(set(range(len(SIZES))) & set(both))
        assert len(both) >= len(SIZES) - (accepted and not stage.finished)


def broadcast(stage: Stage) -> None:
    """The victim is one of two receivers; a dead one must not hold the sender up."""
    with (
        shmpool.Channel.open("c", stage.pool, 2, cell_nbytes=CELL, broadcast=True) as channel,
        shmpool.Channel.attach("c", stage.pool) as other,
    ):
        victim = stage.start(RECEIVER)
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.extend(drain(other)))
        thread.start()
        listener = threading.Thread(target=stage.follow, args=(victim,))
        listener.start()
        for seed, size in enumerate(SIZES):
            channel.send(stamped(seed, size), 30)
        listener.join(60)
        channel.close()
        thread.join(30)
        assert not thread.is_alive()
        assert found == list(range(len(SIZES)))
        assert stage.said == found[: len(stage.said)]


def broadcaster(stage: Stage) -> None:
    """The victim sends more than fits, so that it takes cells again which everybody has passed."""
    with (
        shmpool.Channel.open("c", stage.pool, 2, cell_nbytes=CELL, broadcast=True, role="recv") as first,
        shmpool.Channel.attach("c", stage.pool) as second,
    ):
        victim = stage.start(SENDER)
        found: tuple[list[int], list[int]] = ([], [])
        threads = [
            threading.Thread(target=lambda n=n, c=c: found[n].extend(drain(c))) for n, c in enumerate((first, second))
        ]
        for thread in threads:
            thread.start()
        stage.follow(victim)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert found[0] == found[1] == list(range(len(found[0])))
        assert len(found[0]) in (len(stage.said), len(stage.said) + 1)


def opener(stage: Stage) -> None:
    stage.follow(stage.start(OPENER))
    # What was half-made or half-removed is in nobody's way.
    with shmpool.Channel.open("new", stage.pool, 3, cell_nbytes=CELL) as channel:
        for seed, size in enumerate(SIZES[:2]):
            channel.send(stamped(seed, size))
        assert [check_stamped(channel.recv(5)) for _ in SIZES[:2]] == [0, 1]
        assert channel.capacity == 3


def cleaner(stage: Stage) -> None:
    """The victim cleans up after a dead sender and a dead receiver, and is cleaned up after itself."""
    with shmpool.Channel.open("c", stage.pool, 8, cell_nbytes=CELL, role="send") as channel:
        for seed in (10, 11):
            channel.send(stamped(seed, IN_SLOT))
        # Attached before the deaths, or it would take an index of the dead and clean up while it attaches.
        victim = stage.helper(CLEANER, f"{stage.label}:kill", stage.log)
        dead = [
            stage.helper(RECEIVER, "recv.after_redeem:kill"),
            stage.helper(RECEIVER, "recv.taken:kill"),
            stage.helper(SENDER.replace("SIZES)", "SIZES[1:])"), "send.after_custody:kill"),
        ]
        for child in dead:
            child.say("go")
            assert child.wait() == KILLED, child.stderr()
        victim.say("go")
        stage.follow(victim)
        with shmpool.Channel.attach("c", stage.pool, role="recv") as receiver:
            assert sorted(check_stamped(receiver.recv(10)) for _ in range(2)) == [10, 11]
            with pytest.raises(shmpool.ChannelEmptyError):
                receiver.recv(0.05)


def overtaker(stage: Stage) -> None:
    """A sender is stopped while it writes; the victim takes what came after."""
    with shmpool.Channel.open("c", stage.pool, 8, cell_nbytes=CELL, role="both") as channel:
        stopped = stage.helper(SENDER, "send.claimed:stop")
        stopped.say("go")
        stopped.wait_stopped()
        for seed, size in enumerate(SIZES[:2]):
            channel.send(stamped(100 + seed, size))
        victim = stage.start(RECEIVER.replace("for _ in SIZES:", "for _ in SIZES[:2]:"))
        stage.follow(victim)
        assert stage.said == [100, 101][: len(stage.said)]
        stopped.resume()
        found = []
        while len(found) + len(stage.said) < 2 + len(SIZES) - (not stage.finished and stage.label in ACCEPTED):
            found.append(check_stamped(channel.recv(20)))
        assert len(set(found)) == len(found)
        assert not set(found) & set(stage.said)
        stopped.kill()
        stage.pool.reclaim()


SCENARIOS: dict[str, Callable[[Stage], None]] = {
    name.__name__: name for name in (sender, receiver, broadcast, broadcaster, opener, cleaner, overtaker)
}


@contextmanager
def staged(label: str, path: Path, build: FailpointBuild, log: Path | None = None) -> Iterator[Stage]:
    with ExitStack() as stack:
        children = stack.enter_context(Children())
        pool = stack.enter_context(small(path, scratch_slots=3))
        yield Stage(pool, children, build, path, label, log)
        pool.reclaim()
        check_all_free(pool)
        check_progress(pool)


@pytest.fixture(scope="session")
def routes(
    places: Places, failpoint_build: FailpointBuild, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """The scenarios that pass each label, from one rehearsal of every scenario to its undisturbed end."""
    logs = tmp_path_factory.mktemp("channel-failpoints")
    routes: dict[str, list[str]] = {}
    for name, scenario in SCENARIOS.items():
        with ExitStack() as stack:
            folder = places.new(f"rehearsal {name}")
            stack.callback(places.discard, folder)
            stage = stack.enter_context(staged("none", folder / "pool.bin", failpoint_build, logs / name))
            scenario(stage)
            assert stage.finished
        passed = (logs / name).read_text().splitlines()
        for label in set(passed):
            routes.setdefault(label, []).append(name)
    return routes


def test_every_label_is_reached(routes: dict[str, list[str]]) -> None:
    labels = channel_labels()
    assert len(labels) > 20, "the search for labels does not find them any more"
    assert sorted(set(labels) - set(routes)) == []


@pytest.mark.parametrize("label", channel_labels())
def test_kill(label: str, routes: dict[str, list[str]], pool_dir: Path, failpoint_build: FailpointBuild) -> None:
    ways = routes.get(label, [])
    assert ways, f"no scenario passes {label}"
    for name in ways[:3]:
        # Whether a victim comes to some labels, who frees last and who has to be woken, is decided by a race.
        for attempt in range(6):
            with staged(label, pool_dir / f"{name}-{attempt}.bin", failpoint_build) as stage:
                SCENARIOS[name](stage)
            if not stage.finished:
                break
        assert not stage.finished, f"{name} did not come to {label}"
