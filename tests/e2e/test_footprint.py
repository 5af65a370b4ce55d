# SPDX-License-Identifier: BSD-3-Clause
"""What a long run leaves behind: no file, no byte on disk, no slot, no memory."""

from __future__ import annotations

import os
from typing import Any

import pytest
from gsb.cli.machine import disk_written, pss

CLIENT = """
from gsb.decomposition import PCA
from gsb.preprocessing import StandardScaler
X = np.random.default_rng(0).standard_normal((12_000, 8))
small = X[:1]
def requests(count):
    for number in range(count):
        scaler = StandardScaler().fit(X)
        scaler.transform(X)
        scaler.transform(small)
        PCA(2).fit_transform(X)
while hear() != "end":
    requests(50)
    say("done")
"""

MIB = 2**20


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's /proc")
def test_two_hundred_requests_leave_nothing(server: Any, children: Any, slots_free: Any) -> None:
    client = children.start(CLIENT, env=server.environment)
    files = _files(server)
    for _ in range(2):
        assert client.ask("go", 120) == "done"
    memory, written, descriptors = _memory(server, client), _written(server, client), _descriptors(server)
    for _ in range(4):  # 200 rounds of four requests
        assert client.ask("go", 120) == "done"
    assert _memory(server, client) - memory < 16 * MIB
    assert memory < 8 * 1024 * MIB
    assert _written(server, client) - written == 0
    assert _descriptors(server) == descriptors
    assert _files(server) == files
    assert sorted(path.name for path in server.pool_path.parent.iterdir()) == ["pool.bin", "pool.bin.lock"]
    found = server.status()
    # Proxies that are gone are forgotten on the server too.
    assert found["models"]["count"] <= 2
    client.say("end")
    client.finish()
    slots_free(server)


def _memory(server: Any, client: Any) -> int:
    return sum(pss(pid) or 0 for pid in (server.pid, client.pid))


def _written(server: Any, client: Any) -> int:
    counts = [disk_written(pid) for pid in (server.pid, client.pid)]
    assert None not in counts
    return sum(count or 0 for count in counts)


def _descriptors(server: Any) -> int:
    return len(os.listdir(f"/proc/{server.pid}/fd"))


def _files(server: Any) -> list[str]:
    return sorted(path.name for path in server.folder.iterdir())
