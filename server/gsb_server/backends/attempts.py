# SPDX-License-Identifier: BSD-3-Clause
"""What backends share that may find out only half-way that they cannot do a job."""

from __future__ import annotations

import copy
import inspect
from functools import cache
from typing import Any

import numpy as np

__all__ = ["FITS", "GAPS", "fresh_params", "signature"]

#: Methods that make or change a model.
FITS = frozenset({"fit", "fit_transform", "fit_predict", "partial_fit"})

#: What a library raises where a corner of it does not know the device's arrays. Wrong input raises ValueError.
GAPS = (TypeError, AttributeError, IndexError, NotImplementedError, NameError)


@cache
def signature(cls: Any, method: str) -> inspect.Signature:
    """Return the signature of a class's method, ``self`` included."""
    return inspect.signature(getattr(cls, method))


def fresh_params(params: dict[str, Any]) -> dict[str, Any]:
    """Copy random states, so that an attempt that is refused later has drawn nothing from them."""
    return {
        name: copy.deepcopy(value) if isinstance(value, np.random.RandomState) else value
        for name, value in params.items()
    }
