# SPDX-License-Identifier: BSD-3-Clause
"""One real pool, several clients in this process, against a small model: every call has the predicted result.

A client that is *abandoned* loses its lock, as at the death of a process: a harmless descriptor takes the place of its
lock file, the kernel drops the locks, and none of its views is let go until the end.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from properties.model import REGIONS, Model, Span

import shmpool
from shmpool import ClientId, Handle, Loan, Pool

SLOT = 4096
SIZES = {"input": 3, "output": 2, "scratch": 1}
MAX_CLIENTS = 5


@dataclass(eq=False)
class Client:
    number: int
    pool: Pool
    id: ClientId
    lock_fd: int


def descriptors_of(path: Path) -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == str(path):
                found.add(int(name))
    return found


class PoolMachine(RuleBasedStateMachine):
    """Rules are the calls; the model says what each must do."""

    root: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.root))
        self.path = self.folder / "pool.bin"
        self.model = Model(**SIZES)
        self.count = 0
        self.clients: list[Client] = []
        self.all_clients: dict[int, Client] = {}
        self.handles: list[tuple[Handle, Span]] = []
        self.views: list[tuple[int, Any, Span]] = []
        self.loans: list[tuple[int, Loan, Span]] = []
        self.graves: list[Any] = []

    # -- clients ------------------------------------------------------------------------------------------------

    @initialize()
    def create(self) -> None:
        self.enter()

    @rule()
    @precondition(lambda self: len(self.clients) < MAX_CLIENTS)
    def enter(self) -> None:
        lock_file = self.path.with_name("pool.bin.lock")
        before = descriptors_of(lock_file)
        options = {f"{region}_slots": n for region, n in SIZES.items()}
        # the first one stays to the end, so that the pool is never taken over by somebody who is alone
        attached = [self.all_clients[number] for number in self.attached()]
        taken = {client.id.index for client in attached if client.number not in self.model.dead}
        if len(taken) == MAX_CLIENTS:
            with pytest.raises(shmpool.TooManyClientsError):
                Pool.attach(self.path, prefault_nbytes=0, attach_timeout=0)
            return
        pool = Pool.open(self.path, slot_nbytes=SLOT, max_clients=MAX_CLIENTS, prefault_nbytes=0, **options)
        (lock_fd,) = descriptors_of(lock_file) - before
        index = min(set(range(MAX_CLIENTS)) - taken)
        assert pool.client.index == index
        for client in attached:
            if client.id.index == index:  # the newcomer cleans up after the dead whose place it takes
                self.model.bury(client.number)
        self.count += 1
        client = Client(self.count, pool, pool.client, lock_fd)
        self.clients.append(client)
        self.all_clients[client.number] = client

    def attached(self) -> set[int]:
        """Numbers of the clients that are in the table: open, closing, or dead and not cleaned up."""
        return {client.number for client in self.clients} | self.model.closing | self.model.dead

    @rule(data=st.data())
    @precondition(lambda self: len(self.clients) > 1)
    def close(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients[1:]))
        self.clients.remove(client)
        client.pool.close()
        self.model.close(client.number)

    @rule(data=st.data())
    @precondition(lambda self: len(self.clients) > 1)
    def abandon(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients[1:]))
        self.clients.remove(client)
        harmless = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(harmless, client.lock_fd, inheritable=False)
        os.close(harmless)
        self.model.dead.add(client.number)
        self.graves.append(client)
        for things in (self.views, self.loans):
            self.graves += [thing for thing in things if thing[0] == client.number]
        self.views = [view for view in self.views if view[0] != client.number]
        self.loans = [loan for loan in self.loans if loan[0] != client.number]

    @rule(data=st.data())
    def reclaim(self, data: st.DataObject) -> None:
        client = self.draw_client(data)
        expected = self.model.reclaim()
        assert client.pool.reclaim() == expected
        assert client.pool.reclaim() == 0

    @rule(data=st.data())
    def use_the_dead(self, data: st.DataObject) -> None:
        """Who was cleaned up learns it at the next call, and does no harm by it."""
        buried = [g for g in self.graves if isinstance(g, Client) and g.number not in self.model.dead]
        if not buried:
            return
        client = data.draw(st.sampled_from(buried))
        before = self.model.counters["input"]
        with pytest.raises(shmpool.ClientEvictedError):
            client.pool.put(np.zeros(1), timeout=0)
        # its ticket was drawn before the fence was looked at
        self.model.counters["input"] = client.pool.counters["input"]
        assert self.model.counters["input"] - before <= 1
        for grave in self.graves:
            if isinstance(grave, tuple) and grave[0] == client.number and isinstance(grave[1], Loan):
                with pytest.raises(shmpool.ClientEvictedError):
                    grave[1].seal()

    # -- arrays -------------------------------------------------------------------------------------------------

    def draw_client(self, data: st.DataObject) -> Client:
        return data.draw(st.sampled_from(self.clients))

    def draw_size(self, data: st.DataObject) -> tuple[str, int, int]:
        region = data.draw(st.sampled_from(REGIONS))
        n = data.draw(st.sampled_from([1, 1, 1, 2, 2, 3, 6]))
        return region, n, data.draw(st.integers((n - 1) * SLOT // 8 + 1 if n > 1 else 0, n * SLOT // 8))

    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        client = self.draw_client(data)
        region, n, size = self.draw_size(data)
        self.count += 1
        array = np.full(size, self.count)
        span = self.model.claim(client.number, region, n)
        if span is None:
            with pytest.raises(shmpool.PoolFullError):
                client.pool.put(array, region, timeout=0)  # type: ignore[arg-type]
            return
        handle = client.pool.put(array, region, timeout=0)  # type: ignore[arg-type]
        span.state, span.value = "sealed", self.count
        assert (handle.slot, handle.span, handle.nbytes) == (span.head, n, array.nbytes)
        self.handles.append((handle, span))

    @rule(data=st.data())
    def loan(self, data: st.DataObject) -> None:
        client = self.draw_client(data)
        region, n, size = self.draw_size(data)
        span = self.model.claim(client.number, region, n)
        if span is None:
            with pytest.raises(shmpool.PoolFullError):
                client.pool.loan(size, int, region=region, timeout=0)  # type: ignore[arg-type]
            return
        self.count += 1
        span.value = self.count
        loan = client.pool.loan(size, int, region=region, timeout=0)  # type: ignore[arg-type]
        loan.array[...] = span.value
        self.loans.append((client.number, loan, span))

    @rule(data=st.data(), do_seal=st.booleans())
    @precondition(lambda self: self.loans)
    def end_loan(self, data: st.DataObject, do_seal: bool) -> None:
        number, loan, span = self.loans.pop(data.draw(st.integers(0, len(self.loans) - 1)))
        if do_seal and number in self.model.closing:
            with pytest.raises(shmpool.PoolClosedError):
                loan.seal()
            do_seal = False
        if do_seal:
            handle = loan.seal()
            span.state = "sealed"
            assert (handle.slot, handle.span) == (span.head, span.n)
            self.handles.append((handle, span))
        else:
            loan.abort()
            self.model.abort(span)

    @rule(data=st.data(), copy=st.sampled_from([False, False, True, "auto"]))
    @precondition(lambda self: self.handles)
    def get(self, data: st.DataObject, copy: Any) -> None:
        client = self.draw_client(data)
        handle, span = data.draw(st.sampled_from(self.handles))
        if span not in self.model.spans or span.state != "sealed":
            with pytest.raises(shmpool.StaleHandleError):
                client.pool.get(handle, copy=copy)
            return
        array = client.pool.get(handle, copy=copy)
        assert (array == span.value).all()
        assert array.nbytes == handle.nbytes
        if copy is False:
            span.pins[client.number] += 1
            self.views.append((client.number, array, span))

    @rule(data=st.data())
    @precondition(lambda self: self.views)
    def drop_view(self, data: st.DataObject) -> None:
        number, array, span = self.views.pop(data.draw(st.integers(0, len(self.views) - 1)))
        del array
        self.model.unpin(span, number)

    @rule(data=st.data(), how=st.sampled_from(["free", "free", "adopt", "give", "owner"]))
    @precondition(lambda self: self.handles)
    def use_handle(self, data: st.DataObject, how: str) -> None:
        client = self.draw_client(data)
        handle, span = data.draw(st.sampled_from(self.handles))
        receiver = self.all_clients[data.draw(st.sampled_from(sorted(self.all_clients)))]
        arguments = (handle, receiver.id) if how == "give" else (handle,)
        call = getattr(client.pool, how)
        if span not in self.model.spans or span.state != "sealed":
            with pytest.raises(shmpool.StaleHandleError):
                call(*arguments)
        elif how == "free":
            call(*arguments)
            self.model.retire(span)
        elif how == "owner":
            assert call(*arguments) == self.all_clients[span.owner].id
        elif how == "adopt":
            call(*arguments)
            span.owner = client.number
        elif receiver.number in self.attached():
            call(*arguments)
            span.owner = receiver.number
        else:
            with pytest.raises(shmpool.ClientGoneError):
                call(*arguments)
            self.model.retire(span)

    # -- what holds at every moment -----------------------------------------------------------------------------

    @invariant()
    def the_pool_is_the_model(self) -> None:
        if not self.clients:
            return
        stat = self.clients[0].pool.stat()
        assert stat.counters == self.model.counters
        index = {number: client.id.index for number, client in self.all_clients.items()}
        for slot in stat.slots:
            span = self.model.at(slot.slot)
            if span is None:
                assert (slot.state, slot.owner, slot.pins) == ("free", None, {})
            elif slot.slot != span.head:
                assert (slot.state, slot.head, slot.pins) == ("tail", span.head, {})
            else:
                assert slot.state == span.state
                assert slot.pins == {index[number]: count for number, count in span.pins.items() if count}
                if span.state != "writing":
                    assert slot.span == span.n
                if span.state != "retired":
                    assert slot.owner == index[span.owner]
        assert stat.used_slots == sum(span.n for span in self.model.spans)
        alive = {client.nonce: client.alive for client in stat.clients}
        attached = {self.all_clients[number].id.nonce: number not in self.model.dead for number in self.attached()}
        assert alive == attached

    @invariant()
    def views_hold_their_bytes(self) -> None:
        for _, array, span in self.views:
            assert (array == span.value).all()

    def teardown(self) -> None:
        """Everybody goes; the dead are buried; nothing is left in the pool."""
        if self.clients:
            first, *others = self.clients
            for client in others:
                client.pool.close()
            self.views.clear()
            self.loans.clear()
            first.pool.reclaim()
            for slot in first.pool.stat().slots:
                assert not slot.pins
                assert slot.owner == first.id.index or slot.state in ("free", "tail")
            # what the dead still do in their own memory changes nothing any more
            before = first.pool.stat().slots
            graves, self.graves = self.graves, []
            for pool, harmless in [(grave.pool, grave.lock_fd) for grave in graves if isinstance(grave, Client)]:
                pool.close()
                os.close(harmless)
            graves.clear()
            gc.collect()
            assert [slot.state for slot in first.pool.stat().slots] == [slot.state for slot in before]
            first.pool.close()
            with Pool.attach(self.path, prefault_nbytes=0) as pool:
                assert pool.stat().used_slots == 0
        shutil.rmtree(self.folder)


SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"


def test_against_the_model(pool_dir: Path) -> None:
    machine: Any = type("Machine", (PoolMachine,), {"root": pool_dir})
    machine.TestCase.settings = settings(
        max_examples=3000 if SOAK else 60,
        stateful_step_count=100 if SOAK else 40,
        deadline=None,
        # Not shrunk: that takes minutes here, and forty steps can be read.
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    gc.collect()  # what earlier tests have left would be closed in between
    before = len(os.listdir("/proc/self/fd"))
    machine.TestCase("runTest").debug()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors were left open"
    assert str(pool_dir) not in Path("/proc/self/maps").read_text(), "a mapping was left"
