# SPDX-License-Identifier: BSD-3-Clause
"""``doctor``: each check says OK on this machine, and WARN or FAIL where it should."""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.processes import Child, Children, eventually

import shmpool
from shmpool.cli import check_machine, check_pool
from shmpool.cli.finding import Finding, Place
from shmpool.paths import lock_path
from shmpool.space import MountInfo

Run = Callable[..., Any]


def statuses(data: Any) -> dict[str, str]:
    return {check["check"]: check["status"] for check in data["checks"]}


def only(findings: Any, name: str) -> Finding:
    (finding,) = (finding for finding in findings if finding.check == name)
    return finding


def test_a_healthy_pool(run: Run, holder: Child, small_pool: shmpool.Pool) -> None:
    result = run("doctor", "--json")
    found = statuses(result.data)
    assert set(found) >= {
        "pool", "clients", "dead processes", "lock file", "folder", "file system", "space", "cgroup memory", "memory",
        "huge pages", "OFD locks", "fallocate", "MADV_POPULATE_WRITE", "futex", "copy",
    }  # fmt: skip
    # What depends on this machine may warn; what depends on the pool and on Linux may not.
    assert {found[name] for name in ("pool", "clients", "dead processes", "lock file", "OFD locks", "fallocate")} == {
        "OK"
    }
    assert result.code == (1 if "FAIL" in found.values() else 0)
    holders = next(check["found"] for check in result.data["checks"] if check["check"] == "lock file")
    assert f"{holder.pid} " in holders
    assert f"{os.getpid()} " in holders


def test_a_table(run: Run, small_pool: shmpool.Pool) -> None:
    result = run("doctor")
    assert "OK    pool" in result.out
    assert "np.copyto" in result.out
    assert " failed" in result.out.splitlines()[-1]
    assert max(map(len, result.out.splitlines())) <= 100


def test_no_pool_yet_is_fine(run: Run, pool_path: Path) -> None:
    result = run("doctor", "--json")
    assert statuses(result.data)["pool"] == "OK"
    assert list(pool_path.parent.iterdir()) == []


def test_foreign_file_fails(run: Run, pool_path: Path) -> None:
    pool_path.write_bytes(b"GIF89a" + bytes(9000))
    pool_path.chmod(0o600)
    result = run("doctor", "--json")
    assert result.code == 1
    assert statuses(result.data)["pool"] == "FAIL"


def test_unfinished_pool_warns(small_pool: shmpool.Pool) -> None:
    small_pool.close()
    with small_pool.path.open("r+b") as file:
        file.seek(16)
        file.write(b"\1")
    assert only(check_pool.check_pool(Place.at(small_pool.path)), "pool").status == "WARN"


def test_corrupt_slot_fails(small_pool: shmpool.Pool) -> None:
    with small_pool.path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\x09")
    finding = only(check_pool.check_pool(Place.at(small_pool.path)), "pool")
    assert finding.status == "FAIL"
    assert "gc --remove" in finding.advice


def test_dead_process_warns_and_stays(run: Run, holder: Child, pool_path: Path) -> None:
    holder.kill()
    before = pool_path.read_bytes()
    checks = run("doctor", "--json").data["checks"]
    (finding,) = (check for check in checks if check["check"] == "dead processes")
    assert finding["status"] == "WARN"
    assert finding["found"] == f"pid {holder.pid} left 4 slot(s)"
    assert pool_path.read_bytes() == before


def test_stopped_process_warns(holder: Child, pool_path: Path) -> None:
    holder.stop()
    finding = only(check_pool.check_clients(Place.at(pool_path)), "stopped processes")
    assert finding.status == "WARN"
    assert str(holder.pid) in finding.found
    holder.resume()
    eventually(lambda: holder.state() not in "Tt", "the child runs again")
    assert {finding.check for finding in check_pool.check_clients(Place.at(pool_path))} == {"clients", "dead processes"}


def test_full_client_table_warns(pool_path: Path) -> None:
    with shmpool.Pool.open(pool_path, slot_nbytes=4096, max_clients=1, prefault_nbytes=0):
        assert only(check_pool.check_clients(Place.at(pool_path)), "clients").status == "WARN"


def test_an_opener_that_hangs_fails(children: Children, small_pool: shmpool.Pool) -> None:
    small_pool.close()
    child = children.start(
        "import fcntl; from shmpool.cli.check_machine import _try_lock\n"
        "fd = os.open(args[0], os.O_RDWR); say(_try_lock(fd)); hear()",
        lock_path(small_pool.path),
    )
    assert child.hear() is True
    finding = only(check_pool.check_lock_file(Place.at(small_pool.path)), "lock file")
    assert finding.status == "FAIL"
    assert str(child.pid) in finding.found
    child.kill()
    assert only(check_pool.check_lock_file(Place.at(small_pool.path)), "lock file").status == "OK"


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_file_that_was_removed_fails(small_pool: shmpool.Pool, replaced: bool) -> None:
    lock_path(small_pool.path).unlink()
    if replaced:
        lock_path(small_pool.path).touch(0o600)
    place = Place.at(small_pool.path)
    assert place.seen is not None
    assert place.seen.in_use
    assert only(check_pool.check_lock_file(place), "lock file").status == "FAIL"
    small_pool.close()
    assert not any(finding.status == "FAIL" for finding in check_pool.check_lock_file(Place.at(small_pool.path)))


def test_folder_open_to_others_warns(pool_dir: Path) -> None:
    folder = pool_dir / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    assert only(check_pool.check_folder(Place(folder / "pool.bin")), "folder").status == "WARN"
    folder.chmod(0o1777)
    assert only(check_pool.check_folder(Place(folder / "pool.bin")), "folder").status == "OK"


def test_missing_folder(pool_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(pool_dir / "new" / "pool.bin")
    assert only(check_pool.check_folder(place), "folder").status == "OK"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert only(check_pool.check_folder(place), "folder").status == "FAIL"


@pytest.mark.parametrize(
    ("filesystem", "status"),
    [("tmpfs", "OK"), ("ext4", "WARN"), ("9p", "FAIL"), ("nfs4", "FAIL"), ("fuse.sshfs", "FAIL")],
)
def test_filesystem(pool_path: Path, monkeypatch: pytest.MonkeyPatch, filesystem: str, status: str) -> None:
    monkeypatch.setattr(check_machine, "mount_of", lambda _: MountInfo("/mnt", filesystem, "x"))
    assert only(check_machine.check_filesystem(Place(pool_path)), "file system").status == status


@pytest.mark.parametrize(
    ("total", "free", "status"),
    [
        (64 << 20, 0, "FAIL"),
        (64 << 20, 64 << 20, "WARN"),
        (1 << 30, 1 << 30, "WARN"),
        (8 << 30, 5 << 30, "OK"),
    ],
    ids=["full", "docker", "small", "enough"],
)
def test_space_for_a_default_pool(
    pool_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, free: int, status: str
) -> None:
    monkeypatch.setattr(
        os, "statvfs", lambda _: SimpleNamespace(f_blocks=total >> 12, f_bavail=free >> 12, f_frsize=4096)
    )
    finding = only(check_machine.check_space(Place(pool_path)), "space")
    assert finding.status == status
    assert ("the default of docker" in finding.found) == (total == 64 << 20)
    assert ("--shm-size" in finding.advice) == (status != "OK")


def test_space_counts_what_the_pool_has(small_pool: shmpool.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    for region, count in (("input", 4), ("output", 2), ("scratch", 2)):
        for _ in range(count):
            small_pool.put(np.zeros(3), region=region)  # type: ignore[arg-type]
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_blocks=100, f_bavail=0, f_frsize=4096))
    finding = only(check_machine.check_space(Place.at(small_pool.path)), "space")
    assert finding.status == "OK"
    assert "every slot has its memory" in finding.found


def test_file_size_limit(pool_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 20, 1 << 20))
    assert only(check_machine.check_space(Place(pool_path)), "file size limit").status == "FAIL"


def test_memory_limits(pool_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_machine, "_cgroup_limits", lambda: iter([(8 << 30, 5), (512 << 20, 7 << 20)]))
    finding = only(check_machine.check_memory(Place(pool_path)), "cgroup memory")
    assert finding.status == "WARN"
    assert finding.found.startswith("limit 512 MiB, in use 7 MiB")
    monkeypatch.setattr(check_machine, "_cgroup_limits", lambda: iter([(8 << 30, 5)]))
    assert only(check_machine.check_memory(Place(pool_path)), "cgroup memory").status == "OK"


def test_locks_that_do_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "file").open("w+b") as file:
        assert check_machine._probe_locks(file.fileno()).status == "OK"
        monkeypatch.setattr(check_machine, "_try_lock", lambda _: True)
        assert check_machine._probe_locks(file.fileno()).status == "FAIL"

        def refuse(_: int) -> bool:
            raise OSError(22, "Invalid argument")

        monkeypatch.setattr(check_machine, "_try_lock", refuse)
        assert check_machine._probe_locks(file.fileno()).status == "FAIL"


class OldKernelMapping(mmap.mmap):
    def madvise(self, *_: int) -> None:
        raise OSError(22, "Invalid argument")


def test_old_kernel() -> None:
    with OldKernelMapping(-1, 4096) as mapping:
        assert check_machine._probe_populate(mapping).status == "WARN"


def test_unknown_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    with mmap.mmap(-1, 4096) as mapping:
        assert check_machine._probe_futex(mapping).status == "WARN"


def test_no_futex(monkeypatch: pytest.MonkeyPatch) -> None:
    # A system call that no kernel has: what a sandbox that forbids futex answers.
    monkeypatch.setattr(check_machine, "_SYS_FUTEX", dict.fromkeys(check_machine._SYS_FUTEX, 100_000))
    with mmap.mmap(-1, 4096) as mapping:
        finding = check_machine._probe_futex(mapping)
    assert finding.status == "WARN"
    assert "every 10 ms" in finding.found


def test_unwritable_folder(pool_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(check_machine.tempfile, "TemporaryFile", refuse)
    assert only(check_machine.check_features(Place(pool_path)), "kernel").status == "FAIL"


def test_probes_leave_nothing(pool_path: Path) -> None:
    assert {finding.status for finding in check_machine.check_features(Place(pool_path))} <= {"OK", "WARN"}
    assert list(pool_path.parent.iterdir()) == []


def test_without_rich(run: Run, small_pool: shmpool.Pool, without_rich: dict[str, str]) -> None:
    result = run("doctor", **without_rich)
    assert statuses(result.data)["pool"] == "OK"
    assert "rich is not installed" in result.err
