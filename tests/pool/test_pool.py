# SPDX-License-Identifier: BSD-3-Clause
"""Opening, creating, attaching, removing, closing; what is and is not in the file afterwards."""

from __future__ import annotations

import gc
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pools import SLOT, check_all_free, check_progress, small

import shmpool
from shmpool import Pool

GEOMETRY: dict[str, Any] = {"slot_nbytes": SLOT, "input_slots": 4, "output_slots": 2, "scratch_slots": 2}


def test_open_creates_then_attaches(pool_path: Path) -> None:
    with small(pool_path) as first, small(pool_path) as second:
        assert (first.created, second.created) == (True, False)
        assert first.uuid == second.uuid
        assert first.client != second.client
        assert first.path == pool_path
        handle = first.put(np.arange(5))
        assert second.get(handle).tolist() == [0, 1, 2, 3, 4]
        assert "8 slots of 65536 bytes" in repr(first)


def test_geometry_is_read_from_the_header(pool_path: Path) -> None:
    with small(pool_path, max_clients=7) as first:
        with Pool.open(pool_path, slot_nbytes=4096, input_slots=1, prefault_nbytes=0) as second:
            assert second.geometry == first.geometry
        with Pool.attach(pool_path, prefault_nbytes=0) as third:
            assert third.geometry == first.geometry
            assert third.geometry.max_clients == 7
            assert third.nbytes == 8 * SLOT


def test_default_geometry(pool_path: Path) -> None:
    """16 slots of 256 MiB in three regions; nothing of it is reserved before it is used."""
    with Pool.open(pool_path, prefault_nbytes=0) as pool:
        geometry = pool.geometry
        assert geometry.slot_nbytes == 256 * 2**20
        assert (geometry.input_slots, geometry.output_slots, geometry.scratch_slots) == (4, 4, 8)
        assert pool.nbytes == 4 * 2**30
        assert os.stat(pool_path).st_blocks * 512 < 2**20
        handle = pool.put(np.ones(1000))
        assert os.stat(pool_path).st_blocks * 512 < 8 * 2**20
        reserved = pool.stat().slots[handle.slot].reserved_nbytes
        assert 8000 <= reserved <= 4 * 2**20
        assert pool.stat().reserved_nbytes == reserved


def test_files_are_private(pool_path: Path) -> None:
    with small(pool_path):
        for path in (pool_path, pool_path.with_name("pool.bin.lock")):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert pool_path.with_name("pool.bin.lock").stat().st_size == 0


def test_epoch_and_uuid(pool_path: Path) -> None:
    with small(pool_path) as pool:
        uuid, epoch = pool.uuid, pool.epoch
        assert len(bytes.fromhex(uuid)) == 16
        with small(pool_path) as other:
            assert (other.uuid, other.epoch) == (uuid, epoch)
    with small(pool_path) as pool:
        assert (pool.uuid, pool.epoch, pool.created) == (uuid, epoch + 1, False)
    with Pool.create(pool_path, **GEOMETRY, prefault_nbytes=0) as pool:
        assert pool.uuid != uuid
        assert pool.created


def test_create_refuses_a_pool_in_use(pool_path: Path) -> None:
    with small(pool_path) as pool:
        handle = pool.put(np.arange(3))
        with pytest.raises(shmpool.PoolExistsError, match="in use"):
            Pool.create(pool_path, **GEOMETRY)
        assert pool.get(handle).tolist() == [0, 1, 2]


def test_create_makes_a_left_over_pool_anew(pool_path: Path) -> None:
    with small(pool_path) as pool:
        handle = pool.put(np.arange(3))
    with Pool.create(pool_path, slot_nbytes=8192, input_slots=1, output_slots=1, scratch_slots=1) as pool:
        assert pool.geometry.slot_nbytes == 8192
        with pytest.raises(shmpool.HandleError, match="names pool"):
            pool.get(handle)


def test_attach_needs_a_pool(pool_path: Path) -> None:
    with pytest.raises(shmpool.PoolNotFoundError, match="no pool") as caught:
        Pool.attach(pool_path)
    assert "SHMPOOL_PATH" in caught.value.hint
    assert list(pool_path.parent.iterdir()) == []
    with pytest.raises(shmpool.PoolNotFoundError, match="folder"):
        Pool.open(pool_path.parent / "missing" / "pool.bin")


@pytest.mark.parametrize(
    "options",
    [
        {"slot_nbytes": 0},
        {"slot_nbytes": 4097},
        {"slot_nbytes": -4096},
        {"slot_nbytes": 2**64},
        {"input_slots": 0, "output_slots": 0, "scratch_slots": 0},
        {"input_slots": 5000},
        {"input_slots": -1},
        {"max_clients": 0},
        {"max_clients": 4095},
    ],
)
def test_impossible_geometry(pool_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="geometry"):
        Pool.open(pool_path, **{**GEOMETRY, **options})
    assert list(pool_path.parent.iterdir()) == []


def test_geometry_is_a_value() -> None:
    one = shmpool.Geometry(4096, 1, 2, 3, 4)
    two = shmpool.Geometry(4096, 1, 2, 3, 4)
    assert one == two
    assert hash(one) == hash(two)
    assert one != shmpool.Geometry(4096, 1, 2, 3, 5)
    assert pickle.loads(pickle.dumps(one)) == one
    assert eval(repr(one), {"Geometry": shmpool.Geometry}) == one
    assert [one.region_of(slot) for slot in range(6)] == ["input", *["output"] * 2, *["scratch"] * 3]
    with pytest.raises(ValueError, match="no slot 6"):
        one.region_of(6)
    with pytest.raises(TypeError):
        one.__init__(8192, 1, 2, 3, 4)
    with pytest.raises(AttributeError):
        one.slot_nbytes = 1  # type: ignore[misc]


def test_too_many_clients(pool_path: Path) -> None:
    with small(pool_path, max_clients=2) as pool, small(pool_path):
        with pytest.raises(shmpool.TooManyClientsError, match="all 2 client entries"):
            small(pool_path)
        assert len(pool.stat().clients) == 2
        check_progress(pool)
    with small(pool_path) as pool:
        assert pool.client.index == 0


def test_remove(pool_path: Path) -> None:
    with small(pool_path), pytest.raises(shmpool.PoolExistsError):
        Pool.remove(pool_path)
    Pool.remove(pool_path)
    assert list(pool_path.parent.iterdir()) == []
    with pytest.raises(shmpool.PoolNotFoundError):
        Pool.remove(pool_path)


def test_remove_leaves_foreign_files(pool_path: Path) -> None:
    pool_path.write_bytes(b"somebody's thesis")
    pool_path.chmod(0o600)
    with pytest.raises(shmpool.PoolFormatError, match="not a pool"):
        Pool.remove(pool_path)
    assert pool_path.read_bytes() == b"somebody's thesis"


def test_close_is_final_and_idempotent(pool_path: Path) -> None:
    pool = small(pool_path)
    handle = pool.put(np.arange(3))
    assert not pool.closed
    pool.close()
    pool.close()
    assert pool.closed
    assert "closed" in repr(pool)
    for call in (
        lambda: pool.put(np.arange(3)),
        lambda: pool.get(handle),
        lambda: pool.get(handle, copy="auto"),
        lambda: pool.free(handle),
        lambda: pool.loan(3),
        lambda: pool.stat(),
        lambda: pool.counters,
        lambda: pool.epoch,
        lambda: pool.owner(handle),
        lambda: pool.adopt(handle),
        lambda: pool.give(handle, pool.client),
        lambda: pool.is_alive(pool.client),
        lambda: pool.reclaim(),
    ):
        with pytest.raises(shmpool.PoolClosedError):
            call()
    assert pool.uuid == handle.pool


def test_context_manager_closes_on_error(pool_path: Path) -> None:
    with pytest.raises(KeyError), small(pool_path) as pool:
        raise KeyError
    assert pool.closed


def test_close_frees_what_this_object_put(pool_path: Path) -> None:
    with small(pool_path) as reader:
        with small(pool_path) as writer:
            handles = [writer.put(np.arange(10)) for _ in range(3)]
            view = reader.get(handles[1])
        with pytest.raises(shmpool.StaleHandleError):
            reader.get(handles[0])
        assert [slot.state for slot in reader.stat().slots[:3]] == ["free", "retired", "free"]
        assert view.tolist() == list(range(10))
        del view
        check_all_free(reader)


def test_dropped_pool_is_a_closed_pool(pool_path: Path) -> None:
    with small(pool_path) as other:
        pool = small(pool_path)
        pool.put(np.arange(3))
        client = pool.client
        assert other.is_alive(client)
        del pool
        gc.collect()
        assert not other.is_alive(client)
        check_all_free(other)
        assert other.reclaim() == 0


def test_no_descriptor_or_mapping_is_left(pool_path: Path) -> None:
    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text()
        fds = sum(
            os.path.realpath(f"/proc/self/fd/{fd}").startswith(str(pool_path)) for fd in os.listdir("/proc/self/fd")
        )
        return maps.count(str(pool_path)), fds

    for _ in range(3):
        with small(pool_path) as pool:
            handle = pool.put(np.arange(3))
            view = pool.get(handle)
            assert held()[0] == 1
        assert held()[0] == 1
        del view
        assert held() == (0, 0)
    with pytest.raises(shmpool.PoolExistsError), small(pool_path):
        Pool.create(pool_path, **GEOMETRY)
    assert held() == (0, 0)


def test_pool_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match=r"Pool\.open"):
        Pool()


def test_pool_pickles_by_path(pool_path: Path) -> None:
    with small(pool_path) as pool:
        handle = pool.put(np.arange(3))
        with pickle.loads(pickle.dumps(pool)) as copy:
            assert copy.client != pool.client
            assert copy.get(handle).tolist() == [0, 1, 2]


def test_default_path(pool_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMPOOL_PATH", str(pool_path))
    assert shmpool.default_path() == pool_path
    with Pool.open(slot_nbytes=SLOT, prefault_nbytes=0) as pool:
        assert pool.path == pool_path
        with Pool.attach(prefault_nbytes=0) as other:
            assert other.uuid == pool.uuid
    Pool.remove()
    assert not pool_path.exists()


def test_permissions_are_checked(pool_path: Path) -> None:
    small(pool_path).close()
    before = pool_path.read_bytes()
    pool_path.chmod(0o644)
    with pytest.raises(shmpool.PoolPermissionError, match="0644"):
        Pool.attach(pool_path)
    pool_path.chmod(0o600)
    lock = pool_path.with_name("pool.bin.lock")
    lock.chmod(0o666)
    with pytest.raises(shmpool.PoolPermissionError, match="0666"):
        Pool.attach(pool_path)
    lock.chmod(0o600)
    assert pool_path.read_bytes() == before


def test_links_and_folders_are_refused(pool_path: Path) -> None:
    target = pool_path.with_name("target.bin")
    small(target).close()
    pool_path.symlink_to(target)
    with pytest.raises(shmpool.PoolPermissionError, match="symbolic link"):
        Pool.open(pool_path)
    folder = pool_path.with_name("folder.bin")
    folder.mkdir()
    with pytest.raises(shmpool.PoolPermissionError, match="directory"):
        Pool.open(folder)


@pytest.mark.parametrize("content", [b"\x7fELF" + bytes(5000), b"x", b"SHMPOOL\0" + b"\xff" * 100])
def test_foreign_files_are_left_alone(pool_path: Path, content: bytes) -> None:
    pool_path.write_bytes(content)
    pool_path.chmod(0o600)
    for call in (Pool.open, Pool.create, Pool.attach):
        with pytest.raises(shmpool.PoolFormatError):
            call(pool_path)
    assert pool_path.read_bytes() == content


def test_newer_format_says_so(pool_path: Path) -> None:
    small(pool_path).close()
    raw = bytearray(pool_path.read_bytes())
    raw[8] = 2
    pool_path.write_bytes(raw)
    with pytest.raises(shmpool.PoolFormatError, match="format 2") as caught:
        small(pool_path)
    assert (caught.value.expected, caught.value.found) == (1, 2)  # type: ignore[attr-defined]
    raw[8], raw[12] = 1, raw[12] ^ 1
    pool_path.write_bytes(raw)
    with pytest.raises(shmpool.PoolFormatError, match="memory layout"):
        small(pool_path)
    assert pool_path.read_bytes() == raw


def test_truncated_and_damaged_files_say_so(pool_path: Path) -> None:
    small(pool_path).close()
    whole = pool_path.read_bytes()
    for nbytes in (len(whole) - 1, 8192, 4096):
        pool_path.write_bytes(whole[:nbytes])
        with pytest.raises(shmpool.PoolCorruptedError, match="truncated"):
            small(pool_path)
        assert pool_path.read_bytes() == whole[:nbytes]
    damaged = bytearray(whole)
    damaged[50] ^= 1
    pool_path.write_bytes(damaged)
    with pytest.raises(shmpool.PoolCorruptedError, match="damaged"):
        small(pool_path)
    assert pool_path.read_bytes() == damaged


def test_unfinished_pool_is_built_again(pool_path: Path) -> None:
    """What a creator killed early leaves: an empty file, or one that says CREATING."""
    for content in (b"", shmpool._core.header_creating(), shmpool._core.header_creating() + bytes(10000)):
        pool_path.write_bytes(content)
        pool_path.chmod(0o600)
        with pytest.raises(shmpool.PoolNotFoundError):
            Pool.attach(pool_path)
        with small(pool_path) as pool:
            assert pool.created
            check_progress(pool)
        Pool.remove(pool_path)


@pytest.mark.parametrize("timeout", [float("nan"), -1, -0.001, -float("inf")])
def test_bad_default_timeout(pool_path: Path, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        small(pool_path, timeout=timeout)
    with small(pool_path) as pool:
        check_all_free(pool)


def test_stat(pool_path: Path) -> None:
    with small(pool_path) as pool, small(pool_path) as other:
        handle = pool.put(np.zeros(SLOT + 1, "u1"))
        view = other.get(handle)
        loan = other.loan(10, "f8", region="output")
        stat_ = pool.stat()
        assert (stat_.path, stat_.uuid, stat_.epoch) == (str(pool_path), pool.uuid, pool.epoch)
        assert stat_.filesystem == pool.filesystem
        assert (stat_.n_slots, stat_.slot_nbytes, stat_.max_clients, stat_.used_slots) == (8, SLOT, 16, 3)
        head, tail, out = stat_.slots[0], stat_.slots[1], stat_.slots[4]
        assert (head.state, head.owner, head.span, head.nbytes) == ("sealed", pool.client.index, 2, SLOT + 1)
        assert head.pins == {other.client.index: 1}
        assert (tail.state, tail.head) == ("tail", 0)
        assert (out.state, out.owner, out.region) == ("writing", other.client.index, "output")
        assert [slot.region for slot in stat_.slots] == ["input"] * 4 + ["output"] * 2 + ["scratch"] * 2
        assert all(slot.age is not None and 0 <= slot.age < 300 for slot in (head, tail, out))
        assert all(slot.age is None for slot in stat_.slots if slot.state == "free")
        assert {client.index: client.nonce for client in stat_.clients} == {
            pool.client.index: pool.client.nonce,
            other.client.index: other.client.nonce,
        }
        assert all(client.alive and client.pid == os.getpid() for client in stat_.clients)
        assert stat_.counters == {"input": 2, "output": 1, "scratch": 0}
        assert stat_.to_dict()["slots"][0]["pins"] == {other.client.index: 1}
        del view, loan
        pool.free(handle)
        check_all_free(pool)


def test_prefault_does_not_touch_contents(pool_path: Path) -> None:
    with small(pool_path) as pool:
        handles = [pool.put(np.full(SLOT, value, "u1")) for value in range(4)]
        pool.prefault("input", SLOT)
        with Pool.attach(pool_path, prefault_nbytes=4 * SLOT) as other:
            for _ in range(10):
                for value, handle in enumerate(handles):
                    assert (other.get(handle) == value).all()


def test_the_memory_of_a_region_is_where_its_arrays_are(pool_path: Path) -> None:
    with Pool.create(pool_path, **GEOMETRY, prefault_nbytes=0) as pool:
        for region in ("input", "output", "scratch"):
            address, nbytes = pool.memory(region)
            assert address % 4096 == 0
            assert nbytes == GEOMETRY[f"{region}_slots"] * SLOT
            with pool.loan((10,), "u1", region=region) as loan:
                assert address <= loan.array.ctypes.data < address + nbytes
        assert pool.prefault("input", SLOT, wait=True) == GEOMETRY["input_slots"] * SLOT
    with Pool.create(pool_path, **{**GEOMETRY, "scratch_slots": 0}, prefault_nbytes=0) as pool:
        assert pool.memory("scratch") == (0, 0)


def test_a_view_knows_its_handle(pool_path: Path) -> None:
    with Pool.create(pool_path, **GEOMETRY, prefault_nbytes=0) as pool, Pool.attach(pool_path) as other:
        for array in (
            np.arange(12.0).reshape(3, 4),
            np.asfortranarray(np.ones((3, 4), "i2")),
            np.array(3),
            np.empty(0),
        ):
            handle = pool.put(array)
            view = pool.get(handle)
            assert pool.handle_of(view) == handle
            assert other.handle_of(view) is None
            assert pool.handle_of(pool.get(handle, copy=True)) is None
            pool.free(handle)
            assert pool.handle_of(view) == handle
            del view
        handle = pool.put(np.arange(12.0).reshape(3, 4))
        view = pool.get(handle)
        for part in (view[:], view[1:], view.T, view.reshape(12), view.view("u8")):
            assert pool.handle_of(part) is None
        assert pool.handle_of(np.ones(3)) is None
