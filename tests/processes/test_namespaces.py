# SPDX-License-Identifier: BSD-3-Clause
"""Processes in other pid namespaces: equal pids, and still nobody mistakes anybody for alive or dead."""

from __future__ import annotations

from helpers.kernel import PID_NAMESPACE, need
from helpers.pools import check_progress, check_stamped, stamped
from helpers.processes import Child, Children, eventually

import shmpool

_GUEST = """
pool = shmpool.Pool.attach(args[0], prefault_nbytes=0)
h = pool.put(np.arange(6), "output")
say([os.getpid(), pool.client.index, pool.client.nonce, h.to_dict()])
while (order := hear()) != "leave":
    if order[0] == "alive":
        say([pool.is_alive(shmpool.ClientId(*client)) for client in order[1]])
    elif order[0] == "reclaim":
        say(pool.reclaim())
    elif order[0] == "get":
        say(int(pool.get(shmpool.Handle.from_dict(order[1]))[0]))
"""


def start(children: Children, pool: shmpool.Pool) -> tuple[Child, int, shmpool.ClientId, shmpool.Handle]:
    """A client that is process 1 of a pid namespace of its own."""
    child = children.start(_GUEST, pool.path, prefix=need(PID_NAMESPACE))
    pid, index, nonce, handle = child.hear()
    return child, pid, shmpool.ClientId(index, nonce), shmpool.Handle.from_dict(handle)


def test_equal_pids_in_two_namespaces(small_pool: shmpool.Pool, children: Children) -> None:
    first, pid_1, client_1, handle_1 = start(children, small_pool)
    second, pid_2, client_2, handle_2 = start(children, small_pool)
    assert pid_1 == pid_2 == 1  # and process 1 lives in ours, too
    stat = {client.index: client for client in small_pool.stat().clients}
    assert stat[client_1.index].pid == stat[client_2.index].pid == 1
    assert len({client.pid_namespace for client in stat.values()}) == 3

    me = small_pool.client
    everybody = [[c.index, c.nonce] for c in (client_1, client_2, me)]
    for child in (first, second):
        assert child.ask(["alive", everybody]) == [True, True, True]
        assert child.ask(["reclaim"]) == 0
    assert small_pool.reclaim() == 0

    first.end()
    eventually(lambda: not small_pool.is_alive(client_1), "the namespace of the first goes")
    assert second.ask(["alive", everybody]) == [False, True, True]
    assert small_pool.is_alive(client_2)
    # A third with the same pid again does not bring the first back to life.
    third, pid_3, _, _ = start(children, small_pool)
    assert pid_3 == 1
    assert not small_pool.is_alive(client_1)
    assert second.ask(["reclaim"]) + small_pool.reclaim() == 0  # the third has cleaned its index as it came
    assert small_pool.get(handle_2).tolist() == list(range(6))
    for child in (second, third):
        child.end()
    eventually(lambda: not small_pool.is_alive(client_2), "the namespace of the second goes")
    check_progress(small_pool)
    del handle_1


def test_data_crosses_and_the_dead_are_cleaned_from_inside(small_pool: shmpool.Pool, children: Children) -> None:
    guest, _, client, handle = start(children, small_pool)
    ours = small_pool.put(stamped(9), "input")
    assert guest.ask(["get", ours.to_dict()]) == 9
    assert small_pool.get(handle).tolist() == list(range(6))
    outside = children.start(
        "pool = shmpool.Pool.attach(args[0], prefault_nbytes=0); h = pool.put(np.arange(3), 'output')\n"
        "say([pool.client.index, pool.client.nonce]); hear()",
        small_pool.path,
    )
    place = outside.hear()
    outside.kill()
    assert guest.ask(["alive", [place, [client.index, client.nonce]]]) == [False, True]
    assert guest.ask(["reclaim"]) == 1
    check_stamped(small_pool.get(ours), 9)
    assert small_pool.is_alive(small_pool.client)
    guest.say("leave")
    guest.finish()
    small_pool.free(ours)
    check_progress(small_pool)
