# SPDX-License-Identifier: BSD-3-Clause
"""Second terminal: take the array without copying it, and answer."""

from multiprocessing.connection import Client

import shmpool

with shmpool.Pool.open() as pool, Client(f"{pool.path}.sock") as peer:
    array = pool.get(peer.recv())  # a read-only view of the same memory
    print(array.shape, array.dtype, array.sum())
    peer.send("thank you")
