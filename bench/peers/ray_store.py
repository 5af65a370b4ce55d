# SPDX-License-Identifier: BSD-3-Clause
"""Ray's object store: ray.put, a reference to an actor, which reads it in place."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.peers.base import Peer


class RayStore(Peer):
    """A local cluster of one actor, without dashboard and usage reports."""

    name = "Ray object store"
    package = "ray"

    def start(self, array: NDArray[Any]) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._array = array
        # Short, because Ray puts sockets in it, and their names are limited to 107 bytes.
        self._folder = tempfile.mkdtemp(prefix="shmray-")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own; not what is measured here
            import ray

            self._ray = ray
            ray.init(
                num_cpus=1,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=4 * array.nbytes,
                _temp_dir=self._folder,
            )

            # Local, so that Ray ships its code: its workers do not know this package.
            class Reader:
                def read(self, refs: list[Any]) -> bytes:
                    import struct

                    array = ray.get(refs[0])
                    total = array.reshape(-1).view(np.uint8)[::4096].sum(dtype=np.uint64)
                    return struct.pack("<Q", int(total))

            make_actor: Any = ray.remote(Reader)
            self._reader = make_actor.remote()
            self.hop()

    def hop(self) -> bytes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ref = self._ray.put(self._array)
            # In a list, the actor gets the reference and fetches the array itself.
            answer = self._ray.get(self._reader.read.remote([ref]))
        assert isinstance(answer, bytes)
        return answer

    def close(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._ray.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)
