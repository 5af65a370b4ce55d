# SPDX-License-Identifier: BSD-3-Clause
"""Makes a server process take the stand-ins for a GPU, as if the machine had one."""

from __future__ import annotations

import sys

if "gsb_server" in sys.argv or any(argument.endswith("gsb_server") for argument in sys.orig_argv):
    from gsb_server.backends import hardware, registry

    hardware.missing = lambda: ""
    registry._ON_THE_GPU = {"trial": "trial_backend:TrialBackend"}
