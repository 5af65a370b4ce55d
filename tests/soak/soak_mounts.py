# SPDX-License-Identifier: BSD-3-Clause
"""Thousands of arrays across mounts that go stale, each compared byte by byte.

``python tests/soak/soak_mounts.py --transfers 10000``: for each mount, so many through the transport `file`, and so
many by what is chosen without being told, half of them with the client on the mount, half with the server on it. Ends
with 1 if a byte was wrong.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gsb
import numpy as np
from gsb.preprocessing import StandardScaler
from gsb.transports.file import FileTransport
from helpers.far_server import FarServer, pool_seen_through
from helpers.mounts import KINDS, Rig, build_passthrough, mounted
from helpers.transfers import echo, random_array, sizes

MOST = 4 << 20
#: Smaller arrays travel inside the message, by no transport.
LEAST = 10 << 10


def through_file(server: FarServer, folder: Path, n: int, seed: int) -> tuple[int, str]:
    """`n` transfers, half of them up; the number of wrong ones, and how they went."""
    random = np.random.default_rng(seed)
    client = server.client("file")
    with gsb.config(file_dir=str(folder)):
        transport = client.connect().transport
    assert isinstance(transport, FileTransport)
    wrong = 0
    for nbytes in sizes(random, n // 2, 1, MOST):
        sent = random_array(random, nbytes)
        wrong += not np.array_equal(echo(transport, sent), sent)
    return wrong, f"{transport.kind}, {transport.describe()}, {transport.retries} retries here"


def by_choice(server: FarServer, rig: Rig, n: int, seed: int) -> tuple[int, str]:
    """`n` transfers in calls of an estimator that changes nothing; the number of wrong ones, and how they went."""
    random = np.random.default_rng(seed)
    wrong, found = 0, set()
    with pool_seen_through(rig), gsb.config(server=server.url, token=server.token):
        scaler = StandardScaler(with_mean=False, with_std=False).fit(np.zeros((2, 1)))
        for nbytes in sizes(random, n // 2, LEAST, MOST):
            sent = random.standard_normal((nbytes // 8, 1))
            wrong += not np.array_equal(scaler.transform(sent), sent)
            found.add(scaler.gsb_report_.transport)
        gsb.disconnect()
    return wrong, ", ".join(sorted(found))


def soak(kind: str, passthrough: Path, n: int, seed: int) -> int:
    """All that is done on one mount; the number of wrong transfers."""
    folder = Path(tempfile.mkdtemp(prefix="gsb-soak-", dir="/dev/shm"))
    total = 0
    try:
        with mounted(kind, folder, passthrough) as rig:
            for theirs, ours, side in ((rig.under, rig.over, "client"), (rig.over, rig.under, "server")):
                begun = time.monotonic()
                with FarServer(theirs, folder / f"{side}.bin") as server:
                    wrong, how = through_file(server, ours, n // 2, seed)
                    box = server.status()["mailbox"]
                seconds = time.monotonic() - begun
                print(f"{kind}, {side} on the mount, file: {n // 2} transfers, {wrong} wrong, {seconds:.0f} s; {how}")
                print(f"  at the server: {box['reads']}, {box['retries']} retries", flush=True)
                total += wrong
            begun = time.monotonic()
            with FarServer(rig.under, rig.under / "pool.bin") as server:
                wrong, how = by_choice(server, rig, n, seed)
            seconds = time.monotonic() - begun
            print(f"{kind}, the client sees the pool through the mount: {n} transfers, {wrong} wrong, {seconds:.0f} s")
            print(f"  chosen: {how}", flush=True)
            total += wrong
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return total


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transfers", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--mounts", nargs="+", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    build = Path(tempfile.mkdtemp(prefix="gsb-soak-build-"))
    try:
        passthrough = build_passthrough(build)
        wrong = sum(soak(kind, passthrough, arguments.transfers, arguments.seed) for kind in arguments.mounts)
    finally:
        shutil.rmtree(build)
    print(f"{wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
