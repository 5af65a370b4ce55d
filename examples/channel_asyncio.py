# SPDX-License-Identifier: BSD-3-Clause
"""An asyncio program that serves arrays from a channel while it does other things."""

import asyncio
import multiprocessing

import numpy as np

import shmpool


def produce() -> None:
    with shmpool.Channel.attach("samples", timeout=30) as channel:
        for number in range(50):
            channel.send(np.full(1000, number), header={"number": number})


async def consume(channel: shmpool.Channel) -> int:
    total = 0
    async for array in channel:
        total += int(array[0])
    return total


async def main() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    with shmpool.Channel.open("samples", capacity=8, role="recv") as channel:
        process = multiprocessing.Process(target=produce)
        process.start()
        ticking = asyncio.create_task(tick())
        total = await consume(channel)
        ticking.cancel()
        process.join()
    print(f"sum {total}, the event loop went on meanwhile: {ticks > 0}")


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    asyncio.run(main())
