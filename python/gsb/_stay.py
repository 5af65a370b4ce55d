# SPDX-License-Identifier: BSD-3-Clause
"""Why a call is better carried out in this process: the reasons that can be seen before anything is sent.

What cannot travel for want of a form on the wire is found out while it is encoded.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from gsb.protocol import refused_param

# Of these, copy=False means that the caller's own array is changed and returned.
_WORKS_IN_PLACE: Final = ("sklearn.preprocessing.", "sklearn.impute.")
# Of these, a frame's columns are treated one by one, by their own dtypes.
_BY_COLUMN: Final = frozenset(
    {
        "sklearn.ensemble.HistGradientBoostingClassifier",
        "sklearn.ensemble.HistGradientBoostingRegressor",
        "sklearn.feature_extraction.DictVectorizer",
        "sklearn.impute.MissingIndicator",
        "sklearn.impute.SimpleImputer",
        "sklearn.preprocessing.FunctionTransformer",
        "sklearn.preprocessing.OneHotEncoder",
        "sklearn.preprocessing.OrdinalEncoder",
        "sklearn.preprocessing.TargetEncoder",
    }
)


def reason_to_stay(
    estimator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], settings: dict[str, Any]
) -> str | None:
    """Say why this call has to run in this process, or give None.

    Parameters
    ----------
    estimator
        A proxy.
    args, kwargs
        Of the method.
    settings : dict
        ``sklearn.get_config()``.
    """
    own = estimator.__dict__
    path: str = estimator._gsb_path
    for name in estimator._gsb_watched:
        value = own.get(name)
        if (reason := refused_param(name, value)) is not None:
            return reason
        if name == "copy" and value is False and path.startswith(_WORKS_IN_PLACE):
            return "copy=False changes the caller's array"
    if "_skl_callbacks" in own:
        return "callbacks are functions of this process"
    if settings["enable_metadata_routing"] and estimator._gsb_routes:
        return "metadata is routed to scorers and splitters of this process"
    if path in _BY_COLUMN:
        X = args[0] if args else kwargs.get("X")
        if type(X) is not np.ndarray and hasattr(X, "columns"):
            return "a frame's columns are treated one by one"
    return None


def is_small(args: tuple[Any, ...], kwargs: dict[str, Any], limit: int) -> bool:
    """Tell whether the data of a call is known to be smaller than ``limit`` bytes; costs well below a microsecond."""
    X = args[0] if args else kwargs.get("X")
    nbytes = getattr(X, "nbytes", None)
    if nbytes is None:
        data = getattr(X, "data", None)
        nbytes = getattr(data, "nbytes", None)  # sparse
    if type(nbytes) is int:
        return nbytes < limit
    if X is None or isinstance(X, (list, tuple)):
        # A list of n rows takes many times n bytes as an array; the columns are in the first row.
        first = X[0] if X else None
        columns = len(first) if isinstance(first, (list, tuple)) else 1
        return X is None or len(X) * columns * 8 < limit
    memory = getattr(X, "memory_usage", None)
    return memory is not None and hasattr(X, "shape") and int(np.prod(X.shape)) * 8 < limit
