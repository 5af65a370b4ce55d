# SPDX-License-Identifier: BSD-3-Clause
"""Random generators of this process, advanced by work that another process does.

A `RandomState` travels as its state and comes back as the state after the call. ``random_state=None`` means NumPy's
global generator, which travels in the same way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gsb.protocol import random_state_tuple


def with_global_generator(params: dict[str, Any]) -> dict[str, Any]:
    """Let ``random_state=None`` mean this process's global generator, as it does locally."""
    if "random_state" in params and params["random_state"] is None:
        return {**params, "random_state": np.random.mtrand._rand}
    return params


def advance(params: dict[str, Any], states: dict[str, Any]) -> None:
    """Set the generators among ``params`` to the states that the server answered."""
    for name, wire in states.items():
        generator = params.get(name)
        if name == "random_state" and generator is None:
            generator = np.random.mtrand._rand
        if isinstance(generator, np.random.RandomState):
            generator.set_state(random_state_tuple(wire))
