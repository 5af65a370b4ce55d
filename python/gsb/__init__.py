# SPDX-License-Identifier: BSD-3-Clause
"""scikit-learn estimators whose work is done by another process, over shared memory.

>>> from gsb.decomposition import PCA          # doctest: +SKIP
>>> PCA(n_components=2).fit_transform(X)       # doctest: +SKIP

Modules mirror scikit-learn's. Names below are loaded at their first use, so that the server, which shares
``gsb.protocol``, does not load the client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsb._client import disconnect as disconnect
    from gsb._config import config as config
    from gsb._config import get_config as get_config
    from gsb._progress import progress as progress
    from gsb._report import Report as Report
    from gsb._report import last_report as last_report
    from gsb._report import tally as tally
    from gsb.errors import FallbackWarning as FallbackWarning
    from gsb.errors import GSBError as GSBError
    from gsb.registry import all_proxies as all_proxies
    from gsb.registry import proxy_for as proxy_for
    from gsb.registry import remote as remote
    from gsb.shm_transport import ShmTransport as ShmTransport

__version__ = "0.1.0"

_WHERE = {
    "FallbackWarning": "gsb.errors",
    "GSBError": "gsb.errors",
    "Report": "gsb._report",
    "ShmTransport": "gsb.shm_transport",
    "all_proxies": "gsb.registry",
    "config": "gsb._config",
    "disconnect": "gsb._client",
    "get_config": "gsb._config",
    "last_report": "gsb._report",
    "progress": "gsb._progress",
    "proxy_for": "gsb.registry",
    "remote": "gsb.registry",
    "tally": "gsb._report",
}

__all__ = [
    "FallbackWarning",
    "GSBError",
    "Report",
    "ShmTransport",
    "all_proxies",
    "config",
    "disconnect",
    "get_config",
    "last_report",
    "progress",
    "proxy_for",
    "remote",
    "tally",
]


def __getattr__(name: str) -> Any:
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(where), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
