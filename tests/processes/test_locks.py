# SPDX-License-Identifier: BSD-3-Clause
"""The lock file: removed or replaced, its descriptors closed by strangers, owned by somebody else, a link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from helpers.pools import check_progress, check_stamped, small, stamped
from helpers.processes import Child, Children

import shmpool

# A client whose descriptors a stranger (a daemoniser, a careless library) closes all at once.
_CLOSED = """
sys.path.append(args[1])
from helpers.pools import small, stamped, check_stamped
pool = small(args[0])
handle = pool.put(stamped(1), "output")
view = pool.get(handle)
say([pool.client.index, pool.client.nonce, handle.to_dict()])
assert hear() == "close"
os.closerange(3, 256)
say("closed")
def outcome(work):
    try:
        work()
        return "fine"
    except Exception as error:
        return type(error).__name__
while (order := hear()) != "leave":
    say(eval(order))
"""


def start_closed(children: Children, path: Path) -> tuple[Child, shmpool.ClientId, shmpool.Handle]:
    """A client that has lost its descriptors and does not know."""
    child = children.start(_CLOSED, path, Path(__file__).resolve().parents[1])
    index, nonce, handle = child.hear()
    assert child.ask("close") == "closed"
    return child, shmpool.ClientId(index, nonce), shmpool.Handle.from_dict(handle)


def test_evicted_client_is_fenced(small_pool: shmpool.Pool, children: Children) -> None:
    child, place, handle = start_closed(children, small_pool.path)
    assert not small_pool.is_alive(place)
    assert small_pool.reclaim() == 1
    with pytest.raises(shmpool.StaleHandleError):
        small_pool.get(handle)
    ours = small_pool.put(stamped(2), "output")
    for use in (
        "outcome(lambda: pool.put(stamped(3)))",
        "outcome(lambda: pool.loan((3,)))",
        "outcome(lambda: pool.adopt(handle))",
        f"outcome(lambda: pool.get(shmpool.Handle.from_dict({ours.to_dict()})))",
    ):
        assert child.ask(use) == "ClientEvictedError", use
    # The end of what it still has must not touch what others have by now.
    child.say("leave")
    child.finish()
    check_stamped(small_pool.get(ours), 2)
    small_pool.free(ours)
    check_progress(small_pool)


def test_evicted_in_the_middle_of_a_loan(small_pool: shmpool.Pool, children: Children) -> None:
    child = children.start(
        _CLOSED.replace("os.closerange", "loan = pool.loan((100,), 'u8', region='output'); os.closerange"),
        small_pool.path,
        Path(__file__).resolve().parents[1],
    )
    child.hear()
    assert child.ask("close") == "closed"
    small_pool.reclaim()
    ours = [small_pool.put(stamped(k), "output", 0) for k in range(2)]
    assert child.ask("outcome(lambda: loan.seal())") == "ClientEvictedError"
    assert child.ask("loan.abort()") is None
    for k, handle in enumerate(ours):
        check_stamped(small_pool.get(handle), k)
        small_pool.free(handle)
    child.kill()
    check_progress(small_pool)


def test_evicted_client_reattaches(small_pool: shmpool.Pool, children: Children) -> None:
    child, place, _ = start_closed(children, small_pool.path)
    small_pool.reclaim()
    assert child.ask("outcome(pool.reattach)") == "fine"
    assert child.ask("outcome(lambda: pool.free(pool.put(stamped(3))))") == "fine"
    assert child.ask("[c.index for c in pool.stat().clients if c.nonce == pool.client.nonce]") == [place.index]
    assert small_pool.reclaim() == 0
    child.say("leave")
    child.finish()
    check_progress(small_pool)


def test_lost_descriptors_do_not_make_the_living_look_dead(small_pool: shmpool.Pool, children: Children) -> None:
    """Files that take the freed numbers can be locked at will; that proves nothing about anybody."""
    ours = small_pool.put(stamped(2), "output")
    me = [small_pool.client.index, small_pool.client.nonce]
    child, _, _ = start_closed(children, small_pool.path)
    files = (
        "[os.open(args[0] + f'.{n}.bin', os.O_RDWR | os.O_CREAT, 0o600) for n in range(8)] and "
        "outcome(lambda: pool.reclaim())"
    )
    assert child.ask(files) in ("fine", "ClientEvictedError")
    assert child.ask(f"outcome(lambda: pool.is_alive(shmpool.ClientId(*{me})))") in ("fine", "ClientEvictedError")
    assert child.ask("outcome(lambda: [pool.put(stamped(3), 'input', 0) for _ in range(5)])") != "fine"
    assert small_pool.is_alive(small_pool.client)
    small_pool.adopt(small_pool.put(stamped(1)))  # the fence: we are still ourselves
    check_stamped(small_pool.get(ours), 2)
    child.kill()
    assert all(each.stat().st_size == 0 for each in small_pool.path.parent.glob("*.*.bin")), (
        "wrote to a stranger's file"
    )


def test_closing_a_robbed_pool_leaves_its_successor_alone(small_pool: shmpool.Pool, children: Children) -> None:
    """The successor's descriptors have the numbers that the robbed one believes to be its own."""
    child, _, _ = start_closed(children, small_pool.path)
    child.ask("globals().update(second=small(args[0])) or [second.client.index, second.client.nonce]")
    place = shmpool.ClientId(*child.ask("[second.client.index, second.client.nonce]"))
    assert child.ask("globals().update(view=None) or outcome(pool.close)") == "fine"
    assert small_pool.is_alive(place)
    assert small_pool.reclaim() == 0
    assert child.ask("outcome(lambda: second.free(second.put(stamped(5))))") == "fine"
    child.kill()
    check_progress(small_pool)


def test_lock_file_removed_under_its_users(pool_path: Path, children: Children) -> None:
    with small(pool_path) as pool:
        handle = pool.put(stamped(1))
        view = pool.get(handle)
        pool_path.with_name("pool.bin.lock").unlink()
        with pytest.raises(shmpool.ShmPoolError):
            small(pool_path, attach_timeout=0.2)
        outsider = children.start(
            "try:\n    shmpool.Pool.open(args[0], attach_timeout=0.2)\nexcept shmpool.ShmPoolError as e:\n"
            "    say(type(e).__name__)\n",
            pool_path,
        )
        assert "Pool" in outsider.hear()
        check_stamped(view, 1)
        check_stamped(pool.get(handle), 1)
        del view
        pool.free(handle)
    with small(pool_path) as pool:
        check_progress(pool)


def test_lock_file_replaced_under_its_users(pool_path: Path) -> None:
    with small(pool_path) as pool:
        handle = pool.put(stamped(1))
        lock = pool_path.with_name("pool.bin.lock")
        lock.unlink()
        os.close(os.open(lock, os.O_CREAT | os.O_RDWR, 0o600))
        with pytest.raises(shmpool.ShmPoolError):
            small(pool_path, attach_timeout=0.2)
        check_stamped(pool.get(handle), 1)


def test_pool_file_removed_under_its_users(pool_path: Path) -> None:
    with small(pool_path) as pool:
        handle = pool.put(stamped(1))
        pool_path.unlink()
        with pytest.raises(shmpool.PoolNotFoundError):
            small(pool_path, attach_timeout=0.2)
        check_stamped(pool.get(handle), 1)
    with small(pool_path) as pool:
        check_progress(pool)


@pytest.mark.parametrize("which", ["pool.bin", "pool.bin.lock"])
@pytest.mark.parametrize("mode", [0o604, 0o640, 0o666])
def test_files_open_to_others_are_refused(which: str, mode: int, pool_path: Path) -> None:
    small(pool_path).close()
    file = pool_path.with_name(which)
    file.chmod(mode)
    before = pool_path.read_bytes()[:65536]
    with pytest.raises(shmpool.PoolPermissionError, match=which):
        small(pool_path)
    with pytest.raises(shmpool.PoolPermissionError, match=which):
        shmpool.Pool.remove(pool_path)
    assert pool_path.read_bytes()[:65536] == before
    assert stat.S_IMODE(file.stat().st_mode) == mode


@pytest.mark.parametrize("which", ["pool.bin", "pool.bin.lock"])
def test_files_of_somebody_else_are_refused(which: str, pool_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("changing a file's owner takes root")
    small(pool_path).close()
    os.chown(pool_path.with_name(which), 12345, 12345)
    with pytest.raises(shmpool.PoolPermissionError, match="12345"):
        small(pool_path)


@pytest.mark.parametrize("which", ["pool.bin", "pool.bin.lock"])
def test_links_are_not_followed(which: str, pool_path: Path) -> None:
    target = pool_path.with_name("target.bin")
    target.write_bytes(b"precious")
    target.chmod(0o600)
    pool_path.with_name(which).symlink_to(target)
    with pytest.raises(shmpool.PoolPermissionError, match="symbolic link"):
        small(pool_path)
    assert target.read_bytes() == b"precious"
    pool_path.with_name(which).unlink()
    pool_path.with_name(which).symlink_to(pool_path.with_name("nowhere.bin"))
    with pytest.raises(shmpool.PoolPermissionError, match="symbolic link"):
        small(pool_path)
    assert not pool_path.with_name("nowhere.bin").exists()


@pytest.mark.parametrize("which", ["pool.bin", "pool.bin.lock"])
def test_what_is_no_file_is_refused(which: str, pool_path: Path) -> None:
    pool_path.with_name(which).mkdir()
    with pytest.raises(shmpool.PoolPermissionError):
        small(pool_path)
    pool_path.with_name(which).rmdir()
    os.mkfifo(pool_path.with_name(which), 0o600)
    with pytest.raises(shmpool.PoolPermissionError):
        small(pool_path)


def test_files_are_private_from_the_start(pool_path: Path, children: Children) -> None:
    children.start("os.umask(0)\nshmpool.Pool.open(args[0], slot_nbytes=4096).close()", pool_path).finish()
    for name in ("pool.bin", "pool.bin.lock"):
        assert stat.S_IMODE(pool_path.with_name(name).stat().st_mode) == 0o600


def test_opening_and_closing_the_lock_file_elsewhere_does_no_harm(small_pool: shmpool.Pool) -> None:
    """What breaks POSIX record locks: any close of any descriptor of the file drops them all."""
    for _ in range(3):
        with open(small_pool.path.with_name("pool.bin.lock"), "rb") as other:
            other.read()
        with small(small_pool.path) as second:
            assert second.reclaim() == 0
            assert second.is_alive(small_pool.client)
    check_progress(small_pool)


def test_two_attachments_of_one_process_are_two_clients(small_pool: shmpool.Pool) -> None:
    with small(small_pool.path) as second:
        assert second.client != small_pool.client
        mine = second.put(stamped(3))
        assert small_pool.reclaim() == second.reclaim() == 0
        view = small_pool.get(mine)
    check_stamped(view, 3)
    with pytest.raises(shmpool.StaleHandleError):
        small_pool.get(mine)
    del view
    check_progress(small_pool)
