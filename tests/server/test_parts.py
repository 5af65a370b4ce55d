# SPDX-License-Identifier: BSD-3-Clause
"""Arrays in parts, put together in the server's memory: what arrives, what is refused, what is left."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import pytest

X = np.random.default_rng(5).standard_normal((40_000, 10))


def _parts(array: np.ndarray, nbytes: int = 1 << 20) -> list[tuple[int, np.ndarray]]:
    order: Any = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    flat = array.reshape(-1, order=order).view(np.uint8)
    return [(offset, flat[offset : offset + nbytes]) for offset in range(0, flat.size, nbytes)]


class Sender:
    """Sends an array in parts and names it."""

    def __init__(self, peer: Any, array: np.ndarray) -> None:
        self.peer = peer
        self.array = array
        self.key = secrets.token_hex(16)
        fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        self.form = {"dtype": array.dtype.str, "shape": list(array.shape), "order": "F" if fortran else "C"}

    def send(self, at: int, data: Any, **fields: Any) -> Any:
        wire = self.peer.put(data)
        body = {"session": self.peer.session, "array": self.key, "offset": at, "part": wire, **self.form, **fields}
        try:
            return self.peer.server.request("POST", "/v1/part", body)
        finally:
            self.peer.free(wire)

    def send_all(self) -> dict[str, Any]:
        for offset, data in _parts(self.array):
            answer = self.send(offset, data)
            assert answer.status == 200, answer
            assert answer.json["nbytes"] == offset + data.size
        return self.wire

    @property
    def wire(self) -> dict[str, Any]:
        return {"$": "parts", "array": self.key, **self.form}

    def call(self, method: str = "fit_transform", **fields: Any) -> Any:
        message = self.peer.message("preprocessing.StandardScaler", method, params={}, **fields)
        message["args"] = [self.wire]
        return self.peer.server.request("POST", "/v1/call", message)


@pytest.mark.parametrize("array", [X, np.asfortranarray(X), X.astype(np.float32)[:, 0].reshape(-1, 1).copy()])
def test_an_array_in_parts_is_an_array(peer: Any, array: np.ndarray) -> None:
    from sklearn.preprocessing import StandardScaler

    sender = Sender(peer, array)
    sender.send_all()
    answer = sender.call()
    assert answer.status == 200, answer
    assert np.array_equal(peer.decode(answer.json["result"]), StandardScaler().fit_transform(array))
    # It was for one call.
    assert len(peer.server.service.parts) == 0
    assert sender.call().code == "stale_handle"


def test_parts_come_in_order_and_fit(peer: Any) -> None:
    sender = Sender(peer, X)
    first, second, third, *_ = _parts(X)
    assert sender.send(*second).code == "stale_handle"
    assert sender.send(*first).status == 200
    assert sender.send(*first).code == "malformed"
    assert sender.send(*third).code == "malformed"
    # A gap ends the array: nobody knows what it would hold.
    assert sender.send(*second).code == "stale_handle"
    for bad in (
        {"offset": -1},
        {"offset": "0"},
        {"array": 5},
        {"array": "x" * 65},
        {"dtype": "O"},
        {"shape": [-1, 10]},
        {"shape": [2**61, 2**61]},
        {"order": "K"},
        {"timeout": -1},
        {"part": 3},
    ):
        assert Sender(peer, X).send(0, first[1], **bad).code == "malformed", bad
    assert Sender(peer, X).send(0, X[:4000]).code == "malformed"  # not bytes
    small = Sender(peer, X[:2].copy())
    assert small.send(0, first[1]).code == "malformed"  # more than it holds
    changed = Sender(peer, X)
    assert changed.send(*first).status == 200
    changed.form["shape"] = [10, 40_000]
    assert changed.send(*second).code == "malformed"
    assert len(peer.server.service.parts) == 0


def test_what_is_not_whole_cannot_be_used(peer: Any) -> None:
    sender = Sender(peer, X)
    assert sender.send(*_parts(X)[0]).status == 200
    assert sender.call().code == "stale_handle"
    message = peer.message("preprocessing.StandardScaler", "fit", params={})
    message["args"] = [{"$": "parts", "array": ["x"]}]
    assert peer.server.request("POST", "/v1/call", message).code == "stale_handle"
    message = peer.message("preprocessing.StandardScaler", "fit", X[:5], params={})
    message["params"] = {"copy": sender.wire}
    assert peer.server.request("POST", "/v1/call", message).code == "malformed"


def test_parts_of_another_session_are_nobodys(server: Any, make_peer: Any) -> None:
    peer, other = make_peer(server), make_peer(server)
    sender = Sender(peer, X)
    sender.send_all()
    sender.peer = other
    assert sender.call().code == "stale_handle"
    sender.peer = peer
    assert sender.call().status == 200


def test_they_go_with_the_session_by_word_and_by_time(make_server: Any, make_peer: Any, wait_until: Any) -> None:
    server = make_server(result_ttl=0.2)
    peer = make_peer(server)
    parts = server.service.parts
    sender = Sender(peer, X)
    sender.send_all()
    assert len(parts) == 1
    server.request("POST", "/v1/forget", {"session": peer.session, "models": [], "arrays": [sender.key, "unknown"]})
    assert len(parts) == 0
    Sender(peer, X).send(*_parts(X)[0])
    wait_until(lambda: len(parts) == 0, "the watcher drops what nobody goes on with")
    parts.ttl = 600.0
    Sender(peer, X).send_all()
    peer.close()
    wait_until(lambda: len(parts) == 0, "it went with its client")


def test_what_does_not_fit_into_memory_is_refused_at_the_first_part(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import gsb_server.parts

    monkeypatch.setattr(gsb_server.parts, "_available_nbytes", lambda: 5 << 20)
    assert Sender(peer, X).send(*_parts(X)[0]).code == "out_of_memory"


@pytest.mark.parametrize(("setting", "above"), [(0, 8 << 20), (12345, 12345)])
def test_the_server_says_from_which_size_on(make_server: Any, make_peer: Any, setting: int, above: int) -> None:
    peer = make_peer(make_server(parts_above=setting))
    assert peer.greeting["parts"] == {"above": above, "nbytes": 1 << 20}
