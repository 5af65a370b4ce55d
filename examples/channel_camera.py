# SPDX-License-Identifier: BSD-3-Clause
"""Camera frames from one terminal to any number of others, without a server and without a copy.

In one terminal: python examples/channel_camera.py send 100
In others: python examples/channel_camera.py watch
"""

import sys
import time

import numpy as np

import shmpool


def send(n_frames: int, watchers: int) -> None:
    with shmpool.Channel.open("camera", capacity=4, broadcast=True) as channel:
        while channel.n_receivers < watchers:
            time.sleep(0.01)
        for number in range(n_frames):
            with channel.loan((480, 640, 3), np.uint8) as loan:
                loan.array[...] = number % 256  # where a camera would write its frame
                loan.seal(header={"frame": number})
    print(f"{n_frames} frames sent")


def watch() -> None:
    seen = 0
    with shmpool.Channel.attach("camera", timeout=30) as channel:
        try:
            while True:
                message = channel.recv_message()
                assert message.data[0, 0, 0] == message.header["frame"] % 256
                seen += 1
        except shmpool.ChannelClosedError:
            print(f"{seen} frames seen; the camera is gone")


if sys.argv[1] == "send":
    send(int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)
else:
    watch()
