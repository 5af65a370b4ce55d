# SPDX-License-Identifier: BSD-3-Clause
"""What users pass as data, turned into what can travel."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from sklearn.utils.validation import check_array

from gsb.errors import UnsupportedValueError

# Longer lists travel as arrays: scikit-learn makes the same array of them, and JSON is slow.
_LIST_LIMIT: Final = 256

_PLAIN: Final = (type(None), bool, int, float, str)


def portable(value: Any) -> Any:
    """Turn an argument into something that `encode_value` takes, keeping what scikit-learn would see of it.

    Raises
    ------
    UnsupportedValueError
        scikit-learn treats this type in a way of its own; the call runs in this process.
    """
    kind = type(value)
    if kind is np.ndarray or kind in _PLAIN:
        return value
    if kind is list:
        return _list(value)
    if kind is tuple or kind is dict:
        return value
    if isinstance(value, np.ma.MaskedArray | np.matrix):
        raise UnsupportedValueError(f"scikit-learn treats {kind.__name__} in its own way")
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if kind.__module__.startswith("scipy.sparse"):
        return value
    if hasattr(value, "dtypes") and hasattr(value, "columns"):
        return _frame(value)
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        if hasattr(value, "__array_namespace__"):
            raise UnsupportedValueError(f"an array of {kind.__module__} stays where it is")
        return np.asarray(value)
    return value


def _list(value: list[Any]) -> Any:
    if len(value) <= _LIST_LIMIT and all(type(item) in _PLAIN for item in value):
        return value
    if len(value) <= _LIST_LIMIT and all(
        type(item) is list and len(item) <= _LIST_LIMIT and all(type(leaf) in _PLAIN for leaf in item) for item in value
    ):
        return value
    if all(type(item) is str for item in value):
        # As an array every text would take the room of the longest.
        return value
    try:
        found = np.asarray(value)
    except ValueError:
        raise UnsupportedValueError("a list that is no array") from None
    if found.dtype.kind == "O":
        raise UnsupportedValueError("a list of objects")
    return found


def _frame(value: Any) -> Any:
    """Turn a data frame into an array, as scikit-learn's own validation would, but for the checks."""
    try:
        found = check_array(
            value,
            dtype=None,
            ensure_all_finite=False,
            ensure_2d=False,
            ensure_min_samples=0,
            ensure_min_features=0,
            accept_sparse=True,
        )
    except (TypeError, ValueError):
        raise UnsupportedValueError("a data frame that scikit-learn refuses") from None
    return found
