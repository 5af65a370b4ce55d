# SPDX-License-Identifier: BSD-3-Clause
"""Any sequence of operations on one channel, against a model in a few lines of Python.

Objects of the channel attach, send, receive, keep what they received, and close, each through its own pool object, so
that they are different clients. After every step the ring and the pool's slots are what the model says.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from helpers.pools import check_stamped, small, stamped
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

import shmpool

CAPACITY = 3
CELL = 1024
IN_SLOT = 4096
N_SLOTS = 6


class Member:
    """One attached object, and what the model knows about it."""

    def __init__(self, machine: ChannelStates, role: shmpool.channel.Role | None) -> None:
        self.pool = small(machine.path, scratch_slots=N_SLOTS)
        self.channel = shmpool.Channel.attach("c", self.pool, role=role, timeout=0)
        self.queue: list[int] = []  # broadcast: what it has still to get


class ChannelStates(RuleBasedStateMachine):
    """A work queue, or a broadcast."""

    members = Bundle("members")

    @initialize(broadcast=st.booleans())
    def open(self, broadcast: bool) -> None:
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self.path = Path(self.folder.name) / "pool.bin"
        self.broadcast = broadcast
        self.pool = small(self.path, scratch_slots=N_SLOTS)
        # Keeps the channel; and, being undecided in a work queue, keeps both ends from finding themselves alone.
        self.keeper = shmpool.Channel.open(
            "c", self.pool, CAPACITY, cell_nbytes=CELL, broadcast=broadcast, role="send" if broadcast else None
        )
        self.ring: list[int] = []
        self.receivers: list[Member] = []
        self.sizes: dict[int, int] = {}
        self.held: list[tuple[Any, int]] = []
        self.next = 0

    @precondition(lambda self: len(self.receivers) < 4)
    @rule(target=members)
    def attach(self) -> Member:
        member = Member(self, "both" if self.broadcast else None)
        self.receivers.append(member)
        return member

    def waiting(self) -> int:
        if self.broadcast:
            return max((len(member.queue) for member in self.receivers), default=0)
        return len(self.ring)

    def slots_taken(self) -> int:
        """Slots with a message that somebody has still to get, or holds a view of."""
        if self.broadcast:
            unread = {seed for member in self.receivers for seed in member.queue}
        else:
            unread = set(self.ring)
        return len({seed for seed in unread | {seed for _, seed in self.held} if self.sizes[seed] == IN_SLOT})

    @rule(member=members, size=st.sampled_from([256, IN_SLOT]))
    def send(self, member: Member, size: int) -> None:
        room = self.waiting() < CAPACITY and (size != IN_SLOT or self.slots_taken() < N_SLOTS)
        if self.broadcast and not self.receivers:
            return
        seed = self.next
        self.next += 1
        self.sizes[seed] = size
        if not room:
            try:
                member.channel.send(stamped(seed, size), 0)
            except shmpool.ChannelFullError:
                return
            raise AssertionError("sent into a full channel")
        member.channel.send(stamped(seed, size), 5)
        if self.broadcast:
            for receiver in self.receivers:
                receiver.queue.append(seed)
        else:
            self.ring.append(seed)

    @rule(member=members, keep=st.booleans())
    def recv(self, member: Member, keep: bool) -> None:
        queue = member.queue if self.broadcast else self.ring
        if not queue:
            try:
                member.channel.recv(0)
            except shmpool.ChannelEmptyError:
                return
            raise AssertionError("received from an empty channel")
        seed = queue.pop(0)
        array = member.channel.recv(5)
        assert isinstance(array, np.ndarray)
        check_stamped(array, seed)
        if keep:
            self.held.append((array, seed))

    @rule(member=consumes(members))
    def close(self, member: Member) -> None:
        self.receivers.remove(member)
        member.channel.close()
        member.pool.close()

    @precondition(lambda self: self.held)
    @rule()
    def drop(self) -> None:
        array, seed = self.held.pop(0)
        check_stamped(array, seed)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "keeper"):
            return
        for member in self.receivers:
            expected = len(member.queue if self.broadcast else self.ring)
            assert member.channel.qsize() == expected
            assert member.channel.empty() == (expected == 0)
        taken = sum(slot.state != "free" for slot in self.pool.stat().slots)
        assert taken == self.slots_taken()

    def teardown(self) -> None:
        if not hasattr(self, "keeper"):
            return
        for member in self.receivers:
            member.channel.close()
            member.pool.close()
        self.held.clear()
        self.keeper.close()
        self.pool.reclaim()
        assert all(slot.state == "free" for slot in self.pool.stat().slots)
        self.pool.close()
        self.folder.cleanup()


TestChannelStates = ChannelStates.TestCase
TestChannelStates.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
