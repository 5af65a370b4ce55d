# SPDX-License-Identifier: BSD-3-Clause
"""`ShmTransport` and the codec on top of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gsb
import numpy as np
import pytest
from gsb._codec import Outbox, _decode_array, _encode_array
from gsb.errors import PayloadTooLargeError, ProtocolError, ServerBusyError, StaleArrayError
from gsb.protocol import INLINE_LIMIT
from gsb.shm_transport import ShmTransport
from gsb.transports.shared import SharedTransport

import shmpool

SLOT = 1 << 20


@pytest.fixture
def transport(tmp_path: Path) -> Iterator[ShmTransport]:
    shared = Path("/dev/shm") if os.path.isdir("/dev/shm") else tmp_path
    path = shared / f"gsb-transport-{os.getpid()}-{os.urandom(4).hex()}"
    ShmTransport.reset()
    ShmTransport.configure(path=path, slot_nbytes=SLOT)
    try:
        yield ShmTransport.get()
    finally:
        ShmTransport.reset()
        for left in (path, Path(f"{path}.lock")):
            left.unlink(missing_ok=True)


def test_one_instance(transport: ShmTransport) -> None:
    assert ShmTransport.get() is transport
    assert gsb.ShmTransport is ShmTransport


def test_start_up_logs_one_line(transport: ShmTransport, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gsb.shm_transport"):
        second = ShmTransport(shmpool.Pool.attach(transport.pool.path))
    second.close()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"[ShmTransport] mmap pool: {transport.pool.path} (0.0 GB) on {transport.pool.filesystem}"
    )


def test_rotation(transport: ShmTransport) -> None:
    handles = [transport.write(np.zeros(2000)) for _ in range(4)]
    assert [handle.slot for handle in handles] == [0, 1, 2, 3]
    assert transport._input_counter == 4
    for handle in handles:
        transport.free(handle)
    outputs = [transport.write(np.zeros(2000), is_output=True) for _ in range(4)]
    assert [handle.slot for handle in outputs] == [4, 5, 6, 7]
    assert transport._output_counter == 4


def test_allocation_by_hand(transport: ShmTransport) -> None:
    for allocate, low, high, counter in (
        (transport._alloc_input_slot, 0, 4, "_input_counter"),
        (transport._alloc_output_slot, 4, 8, "_output_counter"),
        (transport._alloc_scratch_slot, 8, 16, "_scratch_counter"),
    ):
        before = getattr(transport, counter)
        with allocate() as loan:
            assert loan.array.nbytes == SLOT
            loan.array[:] = 7
            handle = loan.seal()
        assert low <= handle.slot < high
        assert getattr(transport, counter) == before + 1
        assert (transport.read(handle) == 7).all()
        transport.free(handle)
        with allocate(nbytes=10) as loan:
            assert loan.array.shape == (10,)


@pytest.mark.parametrize("array", [np.zeros(0), np.arange(5), np.asfortranarray(np.eye(300)), np.eye(300)[:, ::3]])
def test_write_and_read(transport: ShmTransport, array: Any) -> None:
    handle = transport.write(array)
    view = transport.read(handle, copy=False)
    assert not view.flags.writeable
    copied = transport.read(handle)
    assert copied.flags.writeable
    np.testing.assert_array_equal(view, array, strict=True)
    np.testing.assert_array_equal(copied, array, strict=True)
    del view
    transport.free(handle)
    transport.free(handle)  # harmless


def test_there_is_no_size_that_returns_none(transport: ShmTransport) -> None:
    array = np.arange(SLOT * 3 // 8)
    handle = transport.write(array)
    assert handle.span == 3
    np.testing.assert_array_equal(transport.read(handle), array)
    transport.free(handle)
    with pytest.raises(shmpool.PayloadTooLargeError):
        transport.write(np.zeros(17 * SLOT, np.uint8))


@pytest.mark.parametrize(("slots", "first"), [(4, 0), (5, 8), (8, 8)])
def test_large_requests_leave_room_for_the_answer(transport: ShmTransport, slots: int, first: int) -> None:
    handle = transport.write(np.zeros(slots * SLOT, np.uint8))
    assert (handle.slot, handle.span) == (first, slots)
    answer = transport.write(np.zeros(SLOT, np.uint8), is_output=True, timeout=1)
    assert 4 <= answer.slot < 8
    for used in (handle, answer):
        transport.free(used)


def test_a_fork_gets_its_own(transport: ShmTransport) -> None:
    pid = os.fork()
    if pid == 0:
        good = False
        try:
            ours = ShmTransport.get()
            handle = ours.write(np.arange(4000))
            good = ours is not transport and bool((ours.read(handle) == np.arange(4000)).all())
        finally:
            os._exit(0 if good else 1)
    assert os.waitpid(pid, 0)[1] == 0


# --------------------------------------------------------------------------------- codec
def test_encode_and_decode(transport: ShmTransport) -> None:
    for size in (0, INLINE_LIMIT - 1, INLINE_LIMIT, 3 * SLOT):
        array = np.arange(size, dtype=np.uint8)
        wire = _encode_array(array)
        assert wire["$"] == ("array" if size < INLINE_LIMIT else "slot")
        np.testing.assert_array_equal(_decode_array(wire), array, strict=True)
    assert all(slot.state == "free" for slot in transport.pool.stat().slots)


def test_a_slot_is_read_once(transport: ShmTransport) -> None:
    wire = _encode_array(np.zeros(5000))
    _decode_array(wire)
    with pytest.raises(StaleArrayError):
        _decode_array(wire)


@pytest.mark.parametrize("handle", [None, {}, {"pool": "x"}, [], {"pool": "00" * 16, "slot": 0}])
def test_malformed_handles(transport: ShmTransport, handle: Any) -> None:
    with pytest.raises(ProtocolError):
        _decode_array({"$": "slot", "handle": handle})


def test_a_handle_of_another_pool(transport: ShmTransport) -> None:
    wire = _encode_array(np.zeros(5000))
    wire["handle"]["pool"] = "00" * 16
    with pytest.raises(ProtocolError):
        _decode_array(wire)


def test_an_unknown_kind() -> None:
    with pytest.raises(ProtocolError, match="unknown kind"):
        _decode_array({"$": "pickle"})


# --------------------------------------------------------------------------------- .npy of older peers
def test_npy_of_an_older_peer(tmp_path: Path) -> None:
    array = np.arange(12.0).reshape(3, 4)
    np.save(tmp_path / "a.npy", array)
    with gsb.config(npy_dir=str(tmp_path)):
        np.testing.assert_array_equal(_decode_array({"$": "npy", "path": str(tmp_path / "a.npy")}), array)
        np.testing.assert_array_equal(_decode_array({"$": "npy", "path": "a.npy"}), array)


def test_npy_needs_to_be_allowed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with gsb.config(npy_dir=None), pytest.raises(ProtocolError, match="npy_dir"):
        _decode_array({"$": "npy", "path": str(tmp_path / "a.npy")})


def test_npy_only_inside_the_directory(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "out.npy", np.zeros(3))
    (tmp_path / "in" / "link.npy").symlink_to(tmp_path / "out.npy")
    (tmp_path / "in" / "text.txt").write_text("x")
    with gsb.config(npy_dir=str(tmp_path / "in")):
        for path in ("../out.npy", str(tmp_path / "out.npy"), "link.npy", "/etc/passwd", "text.txt", "", 5, None):
            with pytest.raises(ProtocolError):
                _decode_array({"$": "npy", "path": path})


def test_npy_never_unpickles(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(b"not an array")
    with gsb.config(npy_dir=str(tmp_path)):
        for name in ("a.npy", "b.npy", "missing.npy"):
            with pytest.raises(ProtocolError, match="cannot read"):
                _decode_array({"$": "npy", "path": name})


# --------------------------------------------------------------------------------- outbox
def test_the_same_array_travels_once(transport: ShmTransport) -> None:
    outbox = Outbox(SharedTransport(transport))
    array = np.zeros(5000)
    assert outbox.write(array) == outbox.write(array)
    assert outbox.write(array.copy()) != outbox.write(array)
    assert len(outbox) == 2
    assert outbox.nbytes == 80000
    outbox.close()
    assert all(slot.state == "free" for slot in transport.pool.stat().slots)


def test_too_large_and_too_full(transport: ShmTransport) -> None:
    outbox = Outbox(SharedTransport(transport), timeout=0.05)
    with pytest.raises(PayloadTooLargeError):
        outbox.write(np.zeros(17 * SLOT, np.uint8))
    for _ in range(4):
        outbox.write(np.zeros(5000))
    with pytest.raises(ServerBusyError):
        outbox.write(np.zeros(5000))
    outbox.close()
