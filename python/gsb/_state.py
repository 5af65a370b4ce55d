# SPDX-License-Identifier: BSD-3-Clause
"""The fitted state of a proxy: on the server as one `RemoteModel`, or here as plain attributes."""

from __future__ import annotations

from typing import Any, Final

#: Where an instance's dict holds the `RemoteModel`.
STATE: Final = "_gsb"
#: Where it holds the last report, in a list of its own, so that a predict leaves the dict as it was.
REPORT: Final = "_gsb_report"


def full_state(estimator: Any) -> dict[str, Any]:
    """Give the dict that a scikit-learn estimator in the same condition would have."""
    state = dict(estimator.__dict__)
    model = state.pop(STATE, None)
    state.pop(REPORT, None)
    if model is not None:
        state = {**model.attributes(), **state}
    return state


def bring_home(estimator: Any) -> None:
    """Fetch the fitted state and let go of the server's copy."""
    state = full_state(estimator)
    estimator.__dict__.pop(STATE, None)
    estimator.__dict__.update(state)


def drop_fitted(estimator: Any, names: set[str]) -> None:
    """Remove what an earlier fit in this process has left."""
    for name in list(estimator.__dict__):
        if name in estimator._gsb_init or name in (STATE, REPORT):
            continue
        if name in names or (name.endswith("_") and not name.startswith("_")):
            del estimator.__dict__[name]
