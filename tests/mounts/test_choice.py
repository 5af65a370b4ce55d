# SPDX-License-Identifier: BSD-3-Clause
"""What is chosen across mounts that go stale: never the mapping, not even when the mount lies about its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gsb
import numpy as np
import pytest
from gsb.errors import TransportUnavailableError
from gsb.preprocessing import StandardScaler
from helpers.far_server import FarServer, pool_seen_through
from helpers.mounts import Rig
from helpers.transfers import sizes

import shmpool
from shmpool import mounts

#: Read by the server's interpreter when it starts: no mount is known to it by name.
LIE = "import shmpool.mounts\nshmpool.mounts.find_incoherent = lambda path, mount=None: None\n"


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Mounts lie about what they are, to this process and to servers with what this returns as PYTHONPATH."""
    monkeypatch.setattr(mounts, "find_incoherent", lambda path, mount=None: None)
    (tmp_path / "sitecustomize.py").write_text(LIE)
    return str(tmp_path)


@pytest.fixture
def near(rig: Rig) -> Iterator[FarServer]:
    """A server on the folder itself; its clients see the pool through the mount."""
    with FarServer(rig.under, rig.under / "pool.bin") as server, pool_seen_through(rig):
        yield server


def transfers(server: FarServer, n: int) -> set[str]:
    """Calls that give back what they are given, `n` of them; how the arrays went."""
    random, found = np.random.default_rng(2), set()
    with gsb.config(server=server.url, token=server.token):
        scaler = StandardScaler(with_mean=False, with_std=False).fit(np.zeros((2, 1)))
        for nbytes in sizes(random, n, 10 << 10, 2 << 20):
            sent = random.standard_normal((nbytes // 8, 1))
            assert np.array_equal(scaler.transform(sent), sent)
            found.add(scaler.gsb_report_.transport)
        gsb.disconnect()
    return found


def test_the_mount_is_known_by_name(rig: Rig, near: FarServer) -> None:
    assert transfers(near, 20) == {"stream"}
    reason = near.client(None).connect().transport.reason
    assert "lies on fuse" in reason
    with pytest.raises(shmpool.UnsupportedFilesystemError, match="fuse"):
        shmpool.Pool.attach(rig.over / "pool.bin")


def test_the_mount_lies(rig: Rig, near: FarServer, lying: str) -> None:
    assert transfers(near, 20) == {"stream"}
    for _ in range(10):
        opened = near.client(None).connect().transport
        assert opened.kind == "stream"
        assert "does not see" in opened.reason
        # Asked for, the handshake alone decides anyway.
        with pytest.raises(TransportUnavailableError, match="does not see"):
            near.client("shared").connect()
        near.disconnect()
    # Nobody has attached: a client's line in the table would have come with the page around it.
    with shmpool.Pool.attach(rig.under / "pool.bin") as pool:
        assert len(pool.stat().clients) == 2
    assert transfers(near, 2) == {"stream"}


@pytest.mark.parametrize("rig", ["bindfs-tmpfs", "writeback-tmpfs"], indirect=True)
def test_a_server_on_a_mount_that_lies(rig: Rig, lying: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has made its pool on the mount; the client sees the folder itself."""
    monkeypatch.setenv("PYTHONPATH", lying)
    with FarServer(rig.over, rig.over / "pool.bin") as server:
        with pool_seen_through(rig, reverse=True):
            assert transfers(server, 10) == {"stream"}
            with pytest.raises(TransportUnavailableError):
                server.client("shared").connect()
        assert server.status()["pool"]["path"] == str(rig.over / "pool.bin")


@pytest.mark.parametrize("rig", ["bindfs-tmpfs"], indirect=True)
def test_a_server_does_not_make_its_pool_on_such_a_mount(rig: Rig) -> None:
    with pytest.raises(RuntimeError), FarServer(rig.over, rig.over / "pool.bin"):
        pass
