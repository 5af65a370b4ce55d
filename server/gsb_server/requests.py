# SPDX-License-Identifier: BSD-3-Clause
"""Bodies of requests: parsed, and checked field by field, before anything is done with them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from gsb.errors import UnsupportedEstimatorError
from gsb.protocol import METHODS, decode_value, refused_param
from gsb.protocol.registry import is_composition, is_estimator, resolve

from .backends.base import StreamedArray
from .errors import ServerError

if TYPE_CHECKING:
    from .transports.base import Link

__all__ = ["CONFIG_NAMES", "ArrayReader", "check_config", "check_estimator", "check_params", "field", "parse"]

#: Settings of ``sklearn.config_context`` that make sense on another machine's side of a call.
CONFIG_NAMES = frozenset(
    {
        "assume_finite",
        "working_memory",
        "print_changed_only",
        "pairwise_dist_chunk_size",
        "enable_cython_pairwise_dist",
        "enable_metadata_routing",
        "skip_parameter_validation",
        "sparse_interface",
    }
)

_MAX_JOBS = 1024
_MISSING = object()


def parse(body: bytes) -> dict[str, Any]:
    """Parse a body: a JSON object."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServerError("malformed", f"the body is not JSON: {error}", "see docs/http-api.md") from None
    if type(value) is not dict:
        raise ServerError("malformed", "the body is not a JSON object", "see docs/http-api.md")
    return value


def field(body: dict[str, Any], name: str, kind: type, default: Any = _MISSING) -> Any:
    """Return a field of exactly the type ``kind``."""
    value = body.get(name, default)
    if value is _MISSING:
        raise ServerError("malformed", f"the field {name!r} is missing", "see docs/http-api.md")
    if value is not default and type(value) is not kind:
        raise ServerError("malformed", f"the field {name!r} must be a {kind.__name__}", "see docs/http-api.md")
    return value


@cache
def check_estimator(name: str) -> str:
    """Return the name if it is that of an estimator of scikit-learn that does work itself."""
    try:
        cls = resolve(name)
        if is_estimator(cls) and not is_composition(cls):
            return name
    except UnsupportedEstimatorError:
        pass
    raise ServerError(
        "unknown_estimator",
        f"{name[:100]!r} is not offered by this server",
        "use scikit-learn's own class, or gsb.config(fallback='local')",
    )


def check_method(name: str) -> str:
    """Return the name if it is in the list of methods."""
    if name not in METHODS:
        raise ServerError("unknown_method", f"{name[:100]!r} is not a method this server runs", "see docs/http-api.md")
    return name


@cache
def _parameter_names(cls: type) -> frozenset[str]:
    return frozenset(inspect.signature(cls).parameters)


def check_params(cls: type, params: dict[str, Any]) -> None:
    """Refuse parameters the class does not have, and values that could hurt the server.

    Ranges and options are scikit-learn's to check: its errors are the ones users know.
    """
    names = _parameter_names(cls)
    for name, value in params.items():
        if name not in names:
            raise ServerError(
                "bad_parameter",
                f"{cls.__name__} has no parameter {name[:100]!r}",
                "are both sides of one version?",
            )
        if (reason := refused_param(name, value)) is not None:
            raise ServerError("bad_parameter", f"{name} cannot be set on a server: {reason}", "leave it out")
        if name == "n_jobs" and type(value) is int and abs(value) > _MAX_JOBS:
            raise ServerError("bad_parameter", f"n_jobs is beyond {_MAX_JOBS}", "use -1 for all cores")


def check_config(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse settings that are not forwarded."""
    for name in config:
        if name not in CONFIG_NAMES:
            raise ServerError("bad_parameter", f"the setting {name[:100]!r} is not forwarded", "see docs/http-api.md")
    return config


class ArrayReader:
    """Gives the arrays a request names: only those that are the session's own.

    Notes
    -----
    Lifetime: the arrays are read-only views; their room is taken until the last of them dies.
    """

    def __init__(self, link: Link, parts: Callable[[dict[str, Any]], Any] | None = None) -> None:
        self.link = link
        self.nbytes = 0
        #: Ids of arrays in parts that the request has named.
        self.parts: list[str] = []
        self._take = parts

    def decode(self, value: Any) -> Any:
        """Decode a value."""
        return decode_value(value, self._read)

    def _read(self, value: dict[str, Any]) -> Any:
        if value.get("$") == "npy":
            # A path in a request would make the server read files for the asking.
            raise ServerError("malformed", "files are not accepted in requests", "send arrays by the transport")
        if value.get("$") == "parts":
            if self._take is None:
                raise ServerError("malformed", "arrays in parts are for arguments only", "see docs/http-api.md")
            found = self._take(value)
            self.parts.append(value["array"])
            self.nbytes += found.spec.nbytes if isinstance(found, StreamedArray) else found.nbytes
            return found
        array = self.link.read(value)
        self.nbytes += array.nbytes
        return array
