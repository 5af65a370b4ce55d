# SPDX-License-Identifier: BSD-3-Clause
"""What a channel promises to one process, to threads, and to a few children."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pools import check_all_free, check_progress, check_stamped, stamped
from helpers.processes import Children, eventually

import shmpool
from shmpool import Channel

CELL = 1024


@pytest.fixture
def channel(small_pool: shmpool.Pool) -> Iterator[Channel]:
    with Channel.open("c", small_pool, 4, cell_nbytes=CELL) as channel:
        yield channel


ARRAYS = [
    np.arange(5),
    np.arange(5.0)[::-1],
    np.asfortranarray(np.arange(12).reshape(3, 4)),
    np.arange(60).reshape(3, 4, 5).transpose(1, 0, 2),
    np.float32(3),
    np.zeros((0, 3)),
    np.array("text"),
    np.array([(1, 2.5, "ab")], [("x", "<i4"), ("y", ">f8"), ("z", "U4")]),
    np.array([True, False]),
    np.array(["2020-01-01"], "M8[D]"),
    stamped(1, CELL),
    stamped(2, 20_000),
    np.asfortranarray(np.arange(2000.0).reshape(40, 50)),
    np.arange(4000)[::2],
    np.zeros(3, [("field" + str(n), "f8") for n in range(60)]),
    np.arange(1200, dtype="f8").view("c16").reshape(20, 30),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype.kind}{array.shape}")
def test_arrays_arrive_as_they_were(channel: Channel, array: Any) -> None:
    channel.send(array)
    got = channel.recv(5)
    assert isinstance(got, np.ndarray)
    assert got.dtype == np.asarray(array).dtype
    assert got.shape == np.shape(array)
    assert (got == array).all()
    assert not got.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        got[...] = got
    if np.asarray(array).flags.f_contiguous and np.ndim(array) > 1:
        assert got.flags.f_contiguous
    del got
    gc.collect()
    check_all_free(channel.pool)


@pytest.mark.parametrize("size", [128, 4096])
def test_several_arrays_and_a_header(channel: Channel, size: int) -> None:
    data = {"x": stamped(1, size), "größe": np.arange(6).reshape(2, 3)[:, ::2], "none": np.empty(0, "f4")}
    header = {"n": 1, "names": ["a", None], "nested": {"x": 1.5}}
    channel.send(data, header=header)
    message = channel.recv_message(5)
    assert message.header == header
    assert list(message.data) == list(data)
    check_stamped(message.data["x"], 1)
    assert (message.data["größe"] == data["größe"]).all()
    assert message.data["none"].shape == (0,)
    assert "header" in repr(message)
    channel.send(np.arange(3))
    assert channel.recv_message(5).header is None
    del message
    check_all_free(channel.pool)


def test_a_header_larger_than_a_cell_travels_in_the_slot(channel: Channel) -> None:
    header = {"text": "x" * 5 * CELL}
    channel.send(np.arange(3), header=header)
    message = channel.recv_message(5)
    assert message.header == header
    assert (message.data == np.arange(3)).all()


def test_what_is_no_message_is_refused_and_blocks_nothing(channel: Channel) -> None:
    with pytest.raises(shmpool.UnsupportedDtypeError):
        channel.send(np.array([object()]))
    with pytest.raises(shmpool.UnsupportedDtypeError):
        channel.send(np.ma.masked_array([1], [True]))
    with pytest.raises(TypeError):
        channel.send({1: np.arange(3)})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        channel.send(np.arange(3), header=object())
    with pytest.raises(shmpool.PayloadTooLargeError):
        channel.send(np.zeros(channel.pool.nbytes + 1, "u1"))
    with pytest.raises(ValueError, match="timeout"):
        channel.recv(-1)
    channel.send(np.arange(3))
    assert (channel.recv(5) == np.arange(3)).all()
    check_progress(channel.pool)


def test_loan_is_sent_without_a_copy(channel: Channel) -> None:
    with channel.loan((100, 10), "u8") as loan:
        loan.array[...] = 7
        address = loan.array.ctypes.data
        loan.seal(header={"k": 1})
    message = channel.recv_message(5)
    assert message.header == {"k": 1}
    assert (message.data == 7).all()
    assert message.data.ctypes.data == address
    del message
    with channel.loan(10) as loan:
        loan.array[...] = 1
    with pytest.raises(shmpool.LoanError):
        loan.seal()
    check_all_free(channel.pool)


def test_a_loaned_array_of_the_pool_is_not_copied(channel: Channel) -> None:
    with channel.pool.loan(4096, "u1", region="scratch") as loan:
        loan.array[...] = 3
        address = loan.array.ctypes.data
        channel.send(loan.array)
        del loan
    got = channel.recv(5)
    assert got.ctypes.data == address
    assert (got == 3).all()


def test_a_loan_that_found_no_room_can_be_sealed_again(channel: Channel) -> None:
    for n in range(4):
        channel.send(np.array(n))
    with channel.loan(1000, "u1") as loan:
        loan.array[...] = 9
        with pytest.raises(shmpool.ChannelFullError):
            loan.seal(timeout=0.01)
        assert channel.recv(0) == 0
        loan.seal()
    assert [int(channel.recv(0)) for _ in range(3)] == [1, 2, 3]
    assert (channel.recv(0) == 9).all()


def test_order_capacity_and_time_outs(channel: Channel) -> None:
    assert (channel.capacity, channel.qsize(), channel.empty(), channel.full()) == (4, 0, True, False)
    for n in range(4):
        channel.send(np.array(n))
    assert (channel.qsize(), channel.empty(), channel.full()) == (4, False, True)
    start = time.monotonic()
    with pytest.raises(shmpool.ChannelFullError, match="4 cells"):
        channel.send(np.array(4), timeout=0.05)
    with pytest.raises(shmpool.ChannelFullError):
        channel.send(stamped(1, 20_000), timeout=0.05)
    assert 0.1 <= time.monotonic() - start < 5
    assert [int(channel.recv(0)) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(shmpool.ChannelEmptyError):
        channel.recv(0)
    with pytest.raises(shmpool.ChannelEmptyError):
        channel.recv(0.05)
    check_all_free(channel.pool)


def test_views_keep_their_slot_beyond_the_channel(small_pool: shmpool.Pool) -> None:
    with Channel.open("c", small_pool) as channel:
        channel.send(stamped(5, 40_000))
        view = channel.recv(5)
        part = view[10:20]
        expected = view[10:20].copy()
        del view
    with pytest.raises(shmpool.ChannelClosedError):
        channel.recv(0)
    assert [slot.state for slot in small_pool.stat().slots].count("retired") == 1
    assert (part == expected).all()
    del part
    check_all_free(small_pool)


def test_the_last_one_who_leaves_removes_the_channel_and_what_is_in_it(small_pool: shmpool.Pool) -> None:
    first = Channel.open("c", small_pool, cell_nbytes=CELL)
    second = Channel.attach("c", small_pool)
    assert first.created
    assert not second.created
    first.send(stamped(1, 4096))
    first.send(stamped(2, 128))
    first.close()
    first.close()
    check_stamped(second.recv(0), 1)
    second.close()
    check_all_free(small_pool)
    with pytest.raises(shmpool.ChannelNotFoundError):
        Channel.attach("c", small_pool)


def test_an_object_that_nobody_has_is_closed(small_pool: shmpool.Pool) -> None:
    gc.disable()
    try:
        channel = Channel.open("c", small_pool, cell_nbytes=CELL)
        channel.send(stamped(1, 4096))
        del channel
        check_all_free(small_pool)
        with pytest.raises(shmpool.ChannelNotFoundError):
            Channel.attach("c", small_pool)
    finally:
        gc.enable()


def test_a_full_pool_says_that_channels_hold_it(small_pool: shmpool.Pool) -> None:
    with Channel.open("c", small_pool, cell_nbytes=CELL) as channel:
        for n in range(small_pool.geometry.scratch_slots):
            channel.send(stamped(n, 4096))
        assert {slot.owner for slot in small_pool.stat().slots if slot.state == "sealed"} == {None}
        with pytest.raises(shmpool.PoolFullError, match="owned by a channel"):
            small_pool.put(stamped(9, 4096), "scratch", 0.02)
        with pytest.raises(shmpool.ChannelFullError, match="owned by a channel"):
            channel.send(stamped(9, 4096), 0.02)


def test_names_and_kinds(small_pool: shmpool.Pool) -> None:
    with Channel.open("ä" * 112, small_pool) as channel, Channel.open("b", small_pool, broadcast=True):
        assert Channel.attach("ä" * 112, small_pool).name == channel.name
        with pytest.raises(shmpool.ChannelExistsError):
            Channel.open("b", small_pool)
        with pytest.raises(shmpool.ChannelExistsError):
            Channel.open("ä" * 112, small_pool, broadcast=True)
    for name in ("", "x" * 225):
        with pytest.raises(ValueError, match="224"):
            Channel.open(name, small_pool)
    with pytest.raises(ValueError, match="capacity"):
        Channel.open("c", small_pool, 0)
    with pytest.raises(ValueError, match="capacity"):
        Channel.open("c", small_pool, 100, cell_nbytes=1 << 20)
    with pytest.raises(ValueError, match="role"):
        Channel.open("c", small_pool, role="sender")  # type: ignore[arg-type]
    gc.collect()
    everything = [Channel.open(str(n), small_pool, 1) for n in range(small_pool.geometry.max_channels)]
    with pytest.raises(shmpool.TooManyChannelsError):
        Channel.open("one more", small_pool, 1)
    for channel in everything:
        channel.close()
    Channel.open("one more", small_pool, 1).close()


def test_attach_waits_for_the_channel(small_pool: shmpool.Pool) -> None:
    timer = threading.Timer(0.1, lambda: made.append(Channel.open("late", small_pool)))
    made: list[Channel] = []
    timer.start()
    Channel.attach("late", small_pool, timeout=20).close()
    timer.join()
    made[0].close()


def test_many_cells_and_few(small_pool: shmpool.Pool) -> None:
    for capacity in (1, 2, 3, 4096):
        with Channel.open("c", small_pool, capacity) as channel:
            for lap in range(3):
                for n in range(capacity):
                    channel.send(np.array(n + lap))
                assert channel.full()
                assert [int(channel.recv(0)) for _ in range(capacity)] == [n + lap for n in range(capacity)]


def test_the_pool_closed_under_a_channel(small_pool: shmpool.Pool) -> None:
    channel = Channel.open("c", small_pool)
    small_pool.close()
    with pytest.raises(shmpool.PoolClosedError):
        channel.send(np.arange(3))
    channel.close()


# -- who is at the other end -------------------------------------------------------------------------------------------


def test_a_receiver_knows_when_the_last_sender_has_closed(small_pool: shmpool.Pool) -> None:
    with Channel.open("c", small_pool, role="recv") as receiver:
        with pytest.raises(shmpool.ChannelEmptyError):  # nobody has come yet
            receiver.recv(0.02)
        first = Channel.attach("c", small_pool, role="send")
        second = Channel.attach("c", small_pool)  # undecided
        first.send(np.array(1))
        first.close()
        assert receiver.recv(0) == 1
        with pytest.raises(shmpool.ChannelEmptyError):
            receiver.recv(0.02)
        second.close()
        with pytest.raises(shmpool.ChannelClosedError) as caught:
            receiver.recv(20)
        assert caught.value.reason == "peers"
        with Channel.attach("c", small_pool) as third:  # and it goes on
            third.send(np.array(2))
            assert receiver.recv(0) == 2


def test_a_sender_knows_when_the_last_receiver_has_closed(small_pool: shmpool.Pool) -> None:
    with Channel.open("c", small_pool, 2, role="send") as sender:
        sender.send(np.array(1))
        receiver = Channel.attach("c", small_pool, role="recv")
        assert receiver.recv(0) == 1
        sender.send(np.array(2))
        sender.send(np.array(3))
        timer = threading.Timer(0.1, receiver.close)
        timer.start()
        with pytest.raises(shmpool.ChannelClosedError):
            sender.send(np.array(4), 20)  # it waits while the receiver leaves
        timer.join()
        with pytest.raises(shmpool.ChannelClosedError):
            sender.send(stamped(1, 20_000))
    check_all_free(small_pool)


def test_close_wakes_a_thread_of_the_same_object(channel: Channel) -> None:
    caught: list[str] = []

    def wait() -> None:
        try:
            channel.recv()
        except shmpool.ChannelClosedError as error:
            caught.append(error.reason)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    start = time.monotonic()
    channel.close()
    thread.join(20)
    assert caught == ["closed"]
    assert time.monotonic() - start < 1


def test_iteration_ends_when_the_senders_are_gone(small_pool: shmpool.Pool) -> None:
    with Channel.open("c", small_pool) as sender, Channel.attach("c", small_pool) as receiver:
        for n in range(10):
            sender.send(np.array(n))
        sender.close()
        assert [int(one) for one in receiver] == list(range(10))


@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_the_death_of_the_other_end_is_noticed(small_pool: shmpool.Pool, children: Children, end: str) -> None:
    with Channel.open("c", small_pool, 2) as channel:
        use = "c.send(np.arange(3))" if end == "sender" else "c.recv(20)"
        child = children.start(
            "pool = shmpool.Pool.attach(args[0]); c = shmpool.Channel.attach('c', pool)\n"
            f"say(1); hear(); {use}; say(2); hear()",
            small_pool.path,
        )
        child.hear()
        if end == "receiver":
            channel.send(np.arange(3))
        assert child.ask("go") == 2
        if end == "sender":
            channel.recv(5)
        child.kill()
        start = time.monotonic()
        if end == "receiver":  # what fits is kept for whoever comes
            while not channel.full():
                channel.send(np.arange(3), 20)
        with pytest.raises(shmpool.ChannelClosedError):
            channel.recv(20) if end == "sender" else channel.send(np.arange(3), 20)
        assert time.monotonic() - start < 2


def test_a_stopped_sender_holds_up_nobody(small_pool: shmpool.Pool, children: Children) -> None:
    """It is not dead: nothing is taken away from it, and it goes on where it stood."""
    with Channel.open("c", small_pool, 4) as channel:
        child = children.start(
            "pool = shmpool.Pool.attach(args[0]); c = shmpool.Channel.attach('c', pool)\n"
            "for n in range(100000):\n    c.send(np.array(n), 60)\n    n == 10 and say(n)\n",
            small_pool.path,
        )
        for n in range(20):
            assert channel.recv(20) == n
        assert child.hear() == 10
        child.stop()
        mine = Channel.attach("c", small_pool)
        small_pool.reclaim()
        left = []
        while True:
            try:
                left.append(int(channel.recv(0.3)))
            except shmpool.ChannelEmptyError:
                break
        mine.send(np.array(-1))
        assert channel.recv(5) == -1
        child.resume()
        following = int(channel.recv(20))
        assert following == 20 + len(left)
        child.kill()
        mine.close()


# -- broadcast ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [128, 4096])
def test_every_receiver_gets_every_message(small_pool: shmpool.Pool, size: int) -> None:
    with Channel.open("b", small_pool, 3, broadcast=True, cell_nbytes=CELL) as sender:
        sender.send(stamped(99, 128))  # nobody is there
        receivers = [Channel.attach("b", small_pool) for _ in range(3)]
        for lap in range(5):
            for receiver in receivers:
                assert receiver.empty()
            sender.send(stamped(lap, size))
            assert [receiver.qsize() for receiver in receivers] == [1, 1, 1]
            for receiver in receivers:
                check_stamped(receiver.recv(0), lap)
        check_all_free(small_pool)
        late = Channel.attach("b", small_pool)
        with pytest.raises(shmpool.ChannelEmptyError):
            late.recv(0)
        for receiver in [*receivers, late]:
            receiver.close()


def test_the_slowest_receiver_makes_the_sender_wait_until_it_leaves(small_pool: shmpool.Pool) -> None:
    with Channel.open("b", small_pool, 2, broadcast=True) as sender:
        fast = Channel.attach("b", small_pool)
        slow = Channel.attach("b", small_pool)
        for n in range(2):
            sender.send(np.array(n))
            fast.recv(0)
        with pytest.raises(shmpool.ChannelFullError):
            sender.send(np.array(2), 0.02)
        slow.close()
        sender.send(np.array(2), 5)
        assert fast.recv(0) == 2
        fast.close()
        with pytest.raises(shmpool.ChannelClosedError):
            sender.send(np.array(3))


# -- threads, processes, fork ------------------------------------------------------------------------------------------


def test_threads_share_one_object(channel: Channel) -> None:
    got: list[int] = []
    lock = threading.Lock()
    n = 2000

    def send(first: int) -> None:
        for k in range(n):
            channel.send(np.array(first + k), 60)

    def receive() -> None:
        while True:
            one = int(channel.recv(60))
            if one < 0:
                return
            with lock:
                got.append(one)

    receivers = [threading.Thread(target=receive) for _ in range(2)]
    senders = [threading.Thread(target=send, args=(n * k,)) for k in range(2)]
    for thread in receivers + senders:
        thread.start()
    for thread in senders:
        thread.join(60)
    for _ in receivers:
        channel.send(np.array(-1), 60)
    for thread in receivers:
        thread.join(60)
    assert sorted(got) == list(range(2 * n))


def test_pickled_by_name(small_pool: shmpool.Pool, children: Children) -> None:
    with Channel.open("c", small_pool) as channel:
        again = pickle.loads(pickle.dumps(channel))
        assert again.pool is small_pool
        again.close()
        child = children.start(
            "import pickle\nc = pickle.loads(bytes.fromhex(args[0]))\nc.send(np.arange(7))\nsay(1)\nhear()",
            pickle.dumps(channel).hex(),
        )
        child.hear()
        assert (channel.recv(5) == np.arange(7)).all()


def test_fork_poisons_and_reattach_heals(small_pool: shmpool.Pool) -> None:
    with Channel.open("c", small_pool) as channel:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                try:
                    channel.send(np.arange(3))
                    said = "not poisoned"
                except shmpool.ForkedPoolError:
                    said = repr(channel)
                channel.reattach()
                channel.send(np.arange(3))
                os.write(writer, json.dumps([said, repr(channel)]).encode())
            finally:
                os._exit(0)
        os.close(writer)
        said = json.loads(os.read(reader, 1000))
        os.close(reader)
        os.waitpid(pid, 0)
        assert "reattach()" in said[0]
        assert "reattach()" not in said[1]
        assert (channel.recv(5) == np.arange(3)).all()
        channel.send(np.arange(4))  # the parent's own attachment is as it was
        assert (channel.recv(5) == np.arange(4)).all()


def test_an_idle_receiver_uses_no_cpu(small_pool: shmpool.Pool) -> None:
    import resource

    with Channel.open("c", small_pool) as channel:
        before = resource.getrusage(resource.RUSAGE_THREAD)
        with pytest.raises(shmpool.ChannelEmptyError):
            channel.recv(2.0)
        after = resource.getrusage(resource.RUSAGE_THREAD)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.02
        assert after.ru_nvcsw - before.ru_nvcsw < 60


def test_a_signal_interrupts_the_wait(channel: Channel) -> None:
    class StopError(Exception):
        pass

    def handler(*_: object) -> None:
        raise StopError

    old = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        start = time.monotonic()
        with pytest.raises(StopError):
            channel.recv(30)
        assert time.monotonic() - start < 5
    finally:
        signal.signal(signal.SIGALRM, old)


# -- asyncio -----------------------------------------------------------------------------------------------------------


def waiter_threads() -> int:
    return sum(thread.name.startswith("shmpool-channel") for thread in threading.enumerate())


def test_asyncio_both_ways(small_pool: shmpool.Pool) -> None:
    async def main(sender: Channel, receiver: Channel) -> list[int]:
        async def send() -> None:
            for n in range(200):
                await sender.asend(np.array(n), 60)
            sender.close()

        task = asyncio.create_task(send())
        got = [int(one) async for one in receiver]
        await task
        return got

    with Channel.open("c", small_pool, 2) as sender, Channel.attach("c", small_pool) as receiver:
        assert asyncio.run(main(sender, receiver)) == list(range(200))


def test_many_waits_take_one_thread_and_cancelling_loses_nothing(channel: Channel) -> None:
    eventually(lambda: waiter_threads() == 0, "those of other tests have ended")

    async def main() -> None:
        waits = [asyncio.create_task(channel.arecv()) for _ in range(50)]
        await asyncio.sleep(0.1)
        assert waiter_threads() == 1
        for wait in waits[:49]:
            wait.cancel()
        await asyncio.sleep(0)
        channel.send(np.array(5))
        assert await asyncio.wait_for(waits[49], 20) == 5
        with pytest.raises(shmpool.ChannelEmptyError):
            await channel.arecv(0.05)
        for n in range(4):
            channel.send(np.array(n))
        with pytest.raises(shmpool.ChannelFullError):
            await channel.asend(np.array(4), 0.05)

    asyncio.run(main())
    eventually(lambda: waiter_threads() == 0, "the waiter threads end when nobody waits")


def test_asyncio_learns_of_the_end(small_pool: shmpool.Pool) -> None:
    async def main(sender: Channel, receiver: Channel) -> None:
        wait = asyncio.create_task(receiver.arecv())
        await asyncio.sleep(0.1)
        sender.close()
        with pytest.raises(shmpool.ChannelClosedError):
            await asyncio.wait_for(wait, 20)

    with Channel.open("c", small_pool, role="send") as sender, Channel.attach("c", small_pool) as receiver:
        asyncio.run(main(sender, receiver))


def test_a_damaged_message_is_an_error_and_not_a_crash(channel: Channel) -> None:
    """Any byte of a cell may be anything: the receiver says so, and the next message arrives."""
    geometry = channel.pool.geometry
    payload = geometry.channels_offset + 278528  # docs/format.md
    rng = np.random.default_rng(7)
    seen = set()
    for _ in range(300):
        channel.send({"x": np.arange(5), "y": np.ones((2, 2), "f4")}, header={"a": 1})
        position = int(rng.integers(0, 200))
        with open(channel.pool.path, "r+b") as file:
            for cell in range(4):
                os.pwrite(file.fileno(), rng.bytes(2), payload + cell * CELL + position)
        try:
            channel.recv_message(5)
            seen.add("whole")
        except shmpool.PoolCorruptedError:
            seen.add("damaged")
    assert seen == {"whole", "damaged"}
    channel.send(np.arange(3))
    assert (channel.recv(5) == np.arange(3)).all()


def test_reattach_after_the_channel_is_gone(small_pool: shmpool.Pool) -> None:
    channel = Channel.open("c", small_pool)
    channel.close()
    with pytest.raises(shmpool.ChannelNotFoundError):
        channel.reattach()


def test_random_kills() -> None:
    """A bounded piece of the soak test."""
    soak = Path(__file__).parents[1] / "soak" / "soak_channels.py"
    done = subprocess.run(
        [sys.executable, str(soak), "--kills", "250", "--seconds", "100"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kills, messages, errors = (int(word) for word in done.stdout.split() if word.isdigit())
    assert kills >= 50
    assert messages > kills
    assert errors == 0
