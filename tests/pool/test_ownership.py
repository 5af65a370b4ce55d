# SPDX-License-Identifier: BSD-3-Clause
"""With whom an array lives and dies: owner, give, adopt, and clients that are gone."""

from __future__ import annotations

import dataclasses
import gc
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pools import SLOT, check_all_free, small

import shmpool
from shmpool import ClientId


def test_owner(pool_path: Path) -> None:
    with small(pool_path) as one, small(pool_path) as two:
        handle = one.put(np.arange(3))
        assert one.owner(handle) == two.owner(handle) == one.client
        view = two.get(handle)
        assert two.owner(handle) == one.client
        one.free(handle)
        with pytest.raises(shmpool.StaleHandleError):
            one.owner(handle)
        assert view.tolist() == [0, 1, 2]


def test_adopted_arrays_outlive_their_maker(pool_path: Path) -> None:
    with small(pool_path) as keeper:
        maker = small(pool_path)
        kept, lost = maker.put(np.arange(5)), maker.put(np.arange(6))
        span = maker.put(np.arange(2 * SLOT, dtype="u1"))
        for handle in (kept, span):
            keeper.adopt(handle)
            assert maker.owner(handle) == keeper.client
        maker.close()
        assert keeper.get(kept).tolist() == list(range(5))
        assert np.array_equal(keeper.get(span), np.arange(2 * SLOT, dtype="u1"))
        with pytest.raises(shmpool.StaleHandleError):
            keeper.get(lost)
        assert [slot.state for slot in keeper.stat().slots[:4]] == ["sealed", "free", "sealed", "tail"]
        # somebody else takes the maker's place in the client table, and takes nothing with it when it goes
        with small(pool_path) as successor:
            assert successor.client.index == maker.client.index
            assert successor.get(kept).tolist() == list(range(5))
        assert keeper.stat().used_slots == 3
        keeper.free(span)
        keeper.free(kept)
        check_all_free(keeper)


def test_given_arrays_die_with_the_receiver(pool_path: Path) -> None:
    with small(pool_path) as one:
        two = small(pool_path)
        handle = one.put(np.arange(3))
        one.give(handle, two.client)
        assert one.owner(handle) == two.client
        assert one.get(handle).tolist() == [0, 1, 2]
        two.close()
        with pytest.raises(shmpool.StaleHandleError):
            one.get(handle)
        check_all_free(one)


def test_given_on_and_back(pool_path: Path) -> None:
    with small(pool_path) as one, small(pool_path) as two, small(pool_path) as three:
        handle = one.put(np.arange(3))
        for giver, taker in ((one, two), (one, three), (two, one), (three, three)):
            giver.give(handle, taker.client)
            assert one.owner(handle) == taker.client
        two.adopt(handle)
        two.adopt(handle)
        assert one.owner(handle) == two.client
        one.free(handle)
        for pool in (one, two, three):
            with pytest.raises(shmpool.StaleHandleError):
                pool.adopt(handle)


def test_giving_to_the_gone_frees(pool_path: Path) -> None:
    with small(pool_path) as one:
        two = small(pool_path)
        gone = two.client
        two.close()
        handle = one.put(np.arange(3))
        with pytest.raises(shmpool.ClientGoneError) as caught:
            one.give(handle, gone)
        assert isinstance(caught.value, LookupError)
        check_all_free(one)
        # the index lives again, under another nonce: still somebody else
        with small(pool_path) as three:
            assert three.client.index == gone.index
            assert three.client != gone
            handle = one.put(np.arange(3))
            view = three.get(handle)
            with pytest.raises(shmpool.ClientGoneError):
                one.give(handle, gone)
            assert one.stat().slots[handle.slot].state == "retired"
            assert view.tolist() == [0, 1, 2]
            del view
            check_all_free(one)


@pytest.mark.parametrize("client", [ClientId(0, 0), ClientId(16, 5), ClientId(2**32 - 1, 5), ClientId(3, 5)])
def test_giving_to_nobody(pool_path: Path, client: ClientId) -> None:
    with small(pool_path) as pool:
        handle = pool.put(np.arange(3))
        with pytest.raises(shmpool.ClientGoneError):
            pool.give(handle, client)


def test_is_alive(pool_path: Path) -> None:
    with small(pool_path) as one:
        two = small(pool_path)
        assert one.is_alive(one.client)
        assert one.is_alive(two.client)
        assert two.is_alive(one.client)
        assert not one.is_alive(ClientId(two.client.index, two.client.nonce ^ 2))
        assert not one.is_alive(ClientId(200, 1))
        two.close()
        assert not one.is_alive(two.client)
        with small(pool_path) as three:
            assert three.client.index == two.client.index
            assert one.is_alive(three.client)
            assert not one.is_alive(two.client)


def test_a_view_keeps_its_client_alive(pool_path: Path) -> None:
    """A closed pool object whose view still pins is still a client; its pins must not be swept away."""
    with small(pool_path) as one:
        two = small(pool_path)
        view = two.get(one.put(np.arange(3)))
        two.close()
        assert one.is_alive(two.client)
        assert one.reclaim() == 0
        assert view.tolist() == [0, 1, 2]
        del view
        gc.collect()
        assert not one.is_alive(two.client)


def test_client_ids_are_values() -> None:
    client = ClientId(3, 2**62)
    assert client == ClientId(3, 2**62)
    assert len({client, ClientId(3, 2**62), ClientId(3, 1)}) == 2
    assert pickle.loads(pickle.dumps(client)) == client
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
        client.index = 4  # type: ignore[misc]


@pytest.mark.parametrize("client", [None, 1, "x", (0, 1, 2)])
def test_not_a_client(pool_path: Path, client: Any) -> None:
    with small(pool_path) as pool:
        handle = pool.put(np.arange(3))
        for call in (lambda: pool.give(handle, client), lambda: pool.is_alive(client)):
            with pytest.raises((TypeError, AttributeError, ValueError)):
                call()
        assert pool.owner(handle) == pool.client


def test_reclaim_finds_nobody_among_the_living(pool_path: Path) -> None:
    with small(pool_path) as one, small(pool_path) as two:
        handle = two.put(np.arange(3))
        loan = two.loan(3)
        assert one.reclaim() == two.reclaim() == 0
        assert one.stat().used_slots == 2
        assert one.get(handle).tolist() == [0, 1, 2]
        del loan
