# SPDX-License-Identifier: BSD-3-Clause
"""The model store: owners, time to live, memory limit, eviction; alone and through the server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gsb_server.errors import ServerError
from gsb_server.models import ModelStore
from hypothesis import given
from hypothesis import strategies as st

X = np.random.default_rng(0).standard_normal((60, 3))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _store(**options: Any) -> tuple[ModelStore, Clock]:
    clock = Clock()
    return ModelStore(**{"max_nbytes": 100, "ttl": 10.0, **options}, clock=clock), clock


def _add(store: ModelStore, nbytes: int = 40, session: str = "s") -> str:
    return store.add(session, "sklearn.decomposition.PCA", "sklearn", object(), nbytes).id


def _code(store: ModelStore, model: object) -> tuple[str, str]:
    with pytest.raises(ServerError) as caught:
        store.get(model)
    return caught.value.code, caught.value.message


def test_the_least_recently_used_goes_first() -> None:
    store, _ = _store()
    first, second = _add(store), _add(store)
    store.get(first)
    third = _add(store)
    assert store.get(first)
    assert store.get(third)
    assert _code(store, second)[0] == "model_lost"
    assert "memory" in _code(store, second)[1]
    assert (store.evictions, store.nbytes) == (1, 80)


def test_one_that_is_too_large_by_itself_is_kept_until_the_next() -> None:
    store, _ = _store()
    big = _add(store, 1000)
    assert store.get(big)
    small = _add(store, 1)
    assert _code(store, big)[0] == "model_lost"
    assert store.get(small)


def test_growth_evicts_others_but_not_the_one_that_grew() -> None:
    store, _ = _store()
    first, second = _add(store), _add(store)
    store.resize(store.get(first), 90)
    assert store.get(first).nbytes == 90
    assert _code(store, second)[0] == "model_lost"


def test_time_to_live_counts_from_the_last_use() -> None:
    store, clock = _store()
    model = _add(store)
    clock.now += 9
    store.get(model)
    clock.now += 9
    store.get(model)
    clock.now += 11
    assert "time to live" in _code(store, model)[1]
    other = _add(store)
    clock.now += 11
    assert store.expire() == 1
    assert "time to live" in _code(store, other)[1]
    assert (len(store), store.nbytes) == (0, 0)


def test_only_the_owner_removes_but_anybody_may_use() -> None:
    store, _ = _store()
    model = _add(store, session="mine")
    assert not store.remove(model, "theirs")
    assert store.get(model)
    assert store.remove(model, "mine")
    assert not store.remove(model, "mine")
    assert _code(store, model)[0] == "model_lost"
    assert _code(store, "never")[0] == "model_lost"
    assert _code(store, None)[0] == "malformed"


def test_a_session_takes_its_models_along() -> None:
    store, _ = _store()
    mine, theirs = _add(store, session="mine"), _add(store, session="theirs")
    assert store.drop_session("mine") == 1
    assert store.drop_session("mine") == 0
    assert store.get(theirs)
    assert "session" in _code(store, mine)[1]


def test_a_session_that_hoards_loses_its_oldest() -> None:
    store, _ = _store(max_per_session=2, max_nbytes=10**6)
    others = _add(store, session="other")
    models = [_add(store) for _ in range(4)]
    assert [len(store), store.get(others).session] == [3, "other"]
    assert _code(store, models[0])[0] == _code(store, models[1])[0] == "model_lost"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.sampled_from("abc")), max_size=60))
def test_the_books_balance(steps: list[tuple[int, int, str]]) -> None:
    store, clock = _store(max_per_session=3)
    live: list[str] = []
    for kind, nbytes, session in steps:
        clock.now += 1
        if kind == 0 or not live:
            live.append(_add(store, nbytes, session))
        elif kind == 1:
            store.remove(live[nbytes % len(live)], session)
        elif kind == 2:
            store.expire()
        else:
            store.drop_session(session)
        entries = store._entries.values()
        assert store.nbytes == sum(entry.nbytes for entry in entries)
        assert store.nbytes <= 100 or len(store) == 1
        assert sum(store._per_session.values()) == len(store)
        assert max(store._per_session.values(), default=0) <= 3


# ------------------------------------------------------------------ through the server


def test_an_evicted_model_is_reported_as_lost(make_server: Any, make_peer: Any) -> None:
    server = make_server(model_nbytes=2000)
    peer = make_peer(server)
    models = [peer.ok("decomposition.PCA", "fit", X, params={})["model"] for _ in range(5)]
    answer = peer.call("decomposition.PCA", "transform", X, model=models[0])
    assert (answer.status, answer.code) == (410, "model_lost")
    peer.ok("decomposition.PCA", "transform", X, model=models[-1])
    assert server.request("GET", "/v1/status").json["models"]["evictions"] > 0


def test_an_unused_model_is_dropped(make_server: Any, make_peer: Any, wait_until: Any) -> None:
    server = make_server(model_ttl=0.05)
    peer = make_peer(server)
    model = peer.ok("decomposition.PCA", "fit", X, params={})["model"]
    wait_until(lambda: len(server.service.models) == 0, "the model expires")
    assert peer.call("decomposition.PCA", "transform", X, model=model).code == "model_lost"


def test_forgetting(peer: Any) -> None:
    models = [peer.ok("decomposition.PCA", "fit", X, params={})["model"] for _ in range(3)]
    body = {"session": peer.session, "models": [models[0], "unknown"]}
    assert peer.server.request("POST", "/v1/forget", body).status == 204
    peer.ok("decomposition.PCA", "transform", X, model=models[2], forget=[models[1]])
    assert [peer.call("decomposition.PCA", "transform", X, model=m).status for m in models] == [410, 410, 200]


def test_another_session_may_use_but_not_forget(server: Any, peer: Any, make_peer: Any) -> None:
    model = peer.ok("decomposition.PCA", "fit", X, params={})["model"]
    other = make_peer(server)
    other.ok("decomposition.PCA", "transform", X, model=model)
    server.request("POST", "/v1/forget", {"session": other.session, "models": [model]})
    peer.ok("decomposition.PCA", "transform", X, model=model)


@pytest.mark.parametrize("path", ["/v1/attrs", "/v1/state"])
def test_lost_models_are_lost_everywhere(peer: Any, path: str) -> None:
    body = {"session": peer.session, "model": "gone", "names": ["mean_"]}
    assert peer.server.request("POST", path, body).code == "model_lost"


def test_an_attribute_that_is_not_there(peer: Any) -> None:
    model = peer.ok("decomposition.PCA", "fit", X, params={})["model"]
    for name in ("nope_", "__class__", "n_components", "fit"):
        body = {"session": peer.session, "model": model, "names": [name]}
        assert peer.server.request("POST", "/v1/attrs", body).code == "not_found"
