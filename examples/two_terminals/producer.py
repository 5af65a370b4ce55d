# SPDX-License-Identifier: BSD-3-Clause
"""First terminal: make an array inside the pool and hand it to the second terminal."""

from multiprocessing.connection import Listener

import numpy as np

import shmpool

with shmpool.Pool.open() as pool, Listener(f"{pool.path}.sock") as listener, listener.accept() as peer:
    with pool.loan((1000, 1000), "float32") as loan:
        loan.array[...] = np.arange(1000)  # written straight into shared memory
        peer.send(loan.seal())  # what travels is a handle
    print(peer.recv())  # wait: the array lives as long as its owner
