# SPDX-License-Identifier: BSD-3-Clause
"""``python -m gsb_server.backends``: try every backend here and print as JSON what a server would use.

Run it with ``SCIPY_ARRAY_API=1``, as the GPU worker is. ``gsb doctor`` does.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

from . import hardware
from .base import Backend, Probe


def _on_the_gpu() -> dict[str, Probe]:
    reason = hardware.missing()
    if not reason:
        from ..gpu.device import CupyDevice, NoDeviceError
        from .array_api import ArrayApiBackend
        from .cuml import CumlBackend

        try:
            device = CupyDevice()
        except NoDeviceError as error:
            reason = str(error)
        else:
            backends: tuple[Backend, ...] = (CumlBackend(device), ArrayApiBackend(device))
            return {backend.name: backend.probe() for backend in backends}
    return {name: Probe(available=False, reason=reason) for name in ("cuml", "array_api")}


def main() -> int:
    """Print the answer as the last line."""
    os.environ.setdefault("SCIPY_ARRAY_API", "1")
    probes = _on_the_gpu()
    from .sklearn import SklearnBackend

    probes["sklearn"] = SklearnBackend().probe()
    print(
        json.dumps(
            {
                "names": [name for name, probe in probes.items() if probe.available],
                "probes": {name: asdict(probe) for name, probe in probes.items()},
                "advice": hardware.advice(hardware.driver_cuda_version()),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
