# SPDX-License-Identifier: BSD-3-Clause
"""A backend for trials of the worker: scikit-learn on what comes from the device, and every way to go wrong.

Estimators named ``trial.…`` do what their method says; all others are scikit-learn's, fitted on arrays that went to
the device and came back, with results that lie on the device.
"""

from __future__ import annotations

import functools
import os
import signal
import stat
import time
from dataclasses import replace
from typing import Any

import numpy as np
from gsb_server.backends.base import Job, Outcome, Probe, RefusedByBackend


class TrialBackend:
    """See the module."""

    name = "trial"
    accelerated = True
    several = False
    max_workers: int | None = 1

    def __init__(self, device: Any) -> None:
        self.device = device

    @functools.cached_property
    def host(self) -> Any:
        """scikit-learn's backend; most trials do without, and the import takes a second."""
        from gsb_server.backends.sklearn import SklearnBackend

        return SklearnBackend()

    def probe(self) -> Probe:
        return Probe(available=True, reason="for trials", device=self.device.name, versions={"trial": "1"})

    def run(self, job: Job) -> Outcome:
        if job.estimator.startswith("trial."):
            started = time.perf_counter()
            result = getattr(self, f"_{job.method}")(*job.args, **job.kwargs)
            return Outcome(result, False, None, 0, False, {}, {}, started, time.perf_counter() - started, [])
        if job.estimator.endswith("KMeans"):
            raise RefusedByBackend("trial does no KMeans")
        args = tuple(self._there_and_back(value) for value in job.args)
        outcome = self.host.run(replace(job, args=args))
        if isinstance(outcome.result, np.ndarray) and outcome.result.dtype.kind == "f":
            outcome.result = self.device.upload(outcome.result)
        return outcome

    def _there_and_back(self, value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            value = self.device.upload(value)
        return self.device.download(value) if self.device.owns(value) else value

    def attributes(self, model: Any) -> dict[str, Any]:
        return self.host.attributes(model)

    def export(self, model: Any) -> Any:
        return self.host.export(model)

    def load(self, estimator: str, params: dict[str, Any], state: dict[str, Any]) -> tuple[Any, int]:
        return self.host.load(estimator, params, state)

    def adopt(self, estimator: str, plain: Any) -> tuple[Any, int]:
        return plain, 100

    def close(self) -> None:
        pass

    # ------------------------------------------------------------------ trial.…

    def _echo(self, array: Any) -> Any:
        return array if self.device.owns(array) else self.device.upload(array)

    def _shared(self, array: Any) -> Any:
        return self.device.upload(array, shared=True)

    def _spoil(self, array: Any) -> Any:
        """Write to what was uploaded, as cuML's PCA does."""
        mine = self.device.upload(array)
        mine += 1.0
        return mine

    def _several(self, *arrays: Any) -> Any:
        return tuple(self.device.upload(array) for array in arrays)

    def _host(self, array: Any) -> Any:
        return {"copy": np.array(array), "sum": float(np.sum(array)), "nothing": None}

    def _uploads(self) -> int:
        return int(self.device.uploads)

    def _resident(self) -> int:
        return len(self.device.residency)

    def _used(self) -> int:
        return int(self.device.memory()[1] - self.device.memory()[0])

    def _copies(self) -> Any:
        import cupy

        found = list(cupy.cuda.runtime.copies)
        cupy.cuda.runtime.copies.clear()
        return found

    def _peak(self) -> int:
        import cupy

        return int(cupy.cuda.memory.peak)

    def _pid(self) -> int:
        return os.getpid()

    def _environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def _sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def _need(self, array: Any, nbytes: int) -> Any:
        """Hold ``nbytes`` of device memory for a moment, besides the upload."""
        mine = self.device.upload(array)
        scratch = self.device.xp.empty((nbytes,), "uint8")
        time.sleep(0.02)
        del scratch
        return mine

    def _raise(self, name: str, text: str) -> None:
        import builtins

        raise getattr(builtins, name)(text)

    def _refuse(self) -> None:
        raise RefusedByBackend("trial does not do that")

    def _sticky(self, status: int, at_once: bool = True) -> int:
        import cupy

        if not hasattr(cupy.cuda.runtime, "inject_sticky"):
            # A real device: a kernel that writes to nowhere.
            cupy.RawKernel('extern "C" __global__ void spoil(int *p) { *p = 1; }', "spoil")((1,), (1,), (8,))
            return 1
        cupy.cuda.runtime.inject_sticky(status)
        if at_once:
            self.device.xp.empty((1,))
        return 1

    def _estimator_error_over_sticky(self) -> None:
        """What a C++ library does that swallows CUDA's error: something unspecific, while the context is dead."""
        import cupy

        cupy.cuda.runtime.inject_sticky(700)
        raise ValueError("something went wrong")

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _exit(self, status: int) -> None:
        os._exit(status)

    def _print(self, text: str) -> str:
        print(text, flush=True)
        os.write(1, text.encode())
        return text

    def _garbage(self, data: bytes) -> int:
        """Write to every pipe that could be the one to the server."""
        for name in os.listdir("/proc/self/fd"):
            descriptor = int(name)
            if descriptor > 2:
                try:
                    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                        os.write(descriptor, data)
                except OSError:
                    continue
        return 1


class BrokenBackend:
    """Cannot be made."""

    def __init__(self, device: Any) -> None:
        raise ImportError("libcuml.so: cannot open shared object file")


class AbsentBackend(TrialBackend):
    """Finds nothing."""

    name = "absent"

    def probe(self) -> Probe:
        return Probe(available=False, reason="nothing there")
