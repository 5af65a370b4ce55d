# SPDX-License-Identifier: BSD-3-Clause
"""A camera that writes its frames where the viewer reads them, and drops frames when the viewer is slow.

The frame is made in the pool (`loan`), so nothing is copied however large it is. The region has four slots; when the
viewer has not freed one in time, `loan` raises `PoolFullError` and the camera skips that frame instead of growing a
queue. Stop the viewer (kill -STOP) and `python -m shmpool top` shows the four frames that wait.

    python examples/loan_camera.py [frames]
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

import shmpool

SHAPE = (480, 640, 3)
PATIENCE = 0.04  # seconds that the camera waits for a slot: one frame of 25 per second


def expose(frame: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], number: int) -> None:
    """Stand-in for the driver, which fills a buffer that it is given."""
    frame[...] = number % 256
    frame[:: 1 + number % 7, :, 0] = 255


def view(path: Path, frames: Connection) -> None:
    """Look at every frame and free it; answer with how many there were and how bright they were."""
    seen, brightness = 0, 0.0
    with shmpool.Pool.attach(path, prefault_nbytes=0) as pool:
        while (handle := frames.recv()) is not None:
            frame = pool.get(handle)
            brightness += float(frame[::8, ::8].mean())
            seen += 1
            pool.free(handle)  # takes effect when `frame` goes: at the next one, or at the end
    frames.send((seen, brightness))


def main(n_frames: int = 100) -> tuple[int, int]:
    """Take `n_frames` pictures; how many were seen and how many dropped."""
    context = multiprocessing.get_context("spawn")
    dropped = 0
    with shmpool.Pool.open() as pool:
        ours, theirs = context.Pipe()
        viewer = context.Process(target=view, args=(pool.path, theirs), daemon=True)
        viewer.start()
        theirs.close()
        for number in range(n_frames):
            try:
                loan = pool.loan(SHAPE, "uint8", timeout=PATIENCE)
            except shmpool.PoolFullError:
                dropped += 1
                continue
            with loan:
                expose(loan.array, number)
                ours.send(loan.seal())
        ours.send(None)
        seen, brightness = ours.recv()
        viewer.join(30)
    print(f"{seen} frames seen, {dropped} dropped, mean brightness {brightness / max(seen, 1):.1f}")
    return seen, dropped


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
