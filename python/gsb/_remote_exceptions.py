# SPDX-License-Identifier: BSD-3-Clause
"""Exceptions and warnings of the server's estimators, raised again on the client as the same class.

Classes come from a fixed set of modules, so that a message cannot have anything else called.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import json
from typing import Any, Final

from gsb.errors import CODE_CLASSES, GSBError, ProtocolError, RemoteError

_MODULES: Final = frozenset(
    {
        "builtins",
        "numpy.exceptions",
        "numpy.linalg",
        "scipy.linalg",
        "scipy.sparse",
        "scipy.sparse.linalg",
        "scipy.optimize",
        "sklearn.exceptions",
        "sklearn.utils._param_validation",
    }
)


_BEFORE: Final = "_gsb_said_before"


@functools.cache
def _find(name: str) -> type | None:
    module, _, attribute = name.rpartition(".")
    if module not in _MODULES:
        # A class that is defined in a private module is public in the package above.
        module = module.partition("._")[0]
    if module not in _MODULES:
        return None
    source = builtins if module == "builtins" else importlib.import_module(module)
    found = getattr(source, attribute, None)
    return found if isinstance(found, type) else None


def exception_class(name: str) -> type[Exception] | None:
    """Find an exception class by its qualified name; None if it is not one of the known modules'."""
    found = _find(name)
    return found if found is not None and issubclass(found, Exception) and not issubclass(found, Warning) else None


def warning_class(name: str) -> type[Warning]:
    """Find a warning category by its qualified name; UserWarning if it is unknown."""
    found = _find(name)
    return found if found is not None and issubclass(found, Warning) else UserWarning


def error_of(status: int, body: bytes) -> Exception:
    """Make the exception that an error answer stands for."""
    try:
        error = json.loads(body)["error"]
        code, message = str(error["code"]), str(error["message"])
        hint, request_id = str(error.get("hint") or ""), str(error.get("request_id") or "")
    except (ValueError, KeyError, TypeError):
        return ProtocolError(f"the server answered {status} in a form that is not ours: {body[:200]!r}")
    if code == "estimator_error":
        return _estimator_error(error.get("exception"), message, hint, request_id)
    kind = CODE_CLASSES.get(code, RemoteError)
    return kind(message, hint=hint, code=code, request_id=request_id)


def _estimator_error(info: Any, message: str, hint: str, request_id: str) -> Exception:
    name = str(info.get("type", "")) if isinstance(info, dict) else ""
    text = str(info.get("message", message)) if isinstance(info, dict) else message
    kind = exception_class(name)
    found: Exception | None = None
    if kind is not None:
        args = info.get("args")
        try:
            found = kind(*args) if isinstance(args, list) else kind(text)
        except TypeError:  # a constructor with other parameters
            found = None
    if found is None:
        text = f"{name}: {text}" if name else text
        found = RemoteError(text, hint=hint, code="estimator_error", request_id=request_id)
    if isinstance(info, dict) and (info.get("warnings") or info.get("output")):
        found.__dict__[_BEFORE] = said_of(info)
    return found


#: What an estimator has printed, and the categories and texts of its warnings.
Said = tuple[list[tuple[str, str]], list[tuple[str, str]]]


def said_of(wire: dict[str, Any]) -> Said:
    """Take from a message what the estimator has printed and warned of."""
    try:
        output = [(str(stream), str(text)) for stream, text in wire.get("output") or ()]
        warned = [(str(item["category"]), str(item["message"])) for item in wire.get("warnings") or ()]
    except (TypeError, KeyError, ValueError) as error:
        raise ProtocolError(f"malformed output or warnings: {error!r}") from error
    return output, warned


def said_before(error: Exception) -> Said | None:
    """Give, once, what an estimator said before it raised ``error``."""
    said: Said | None = error.__dict__.pop(_BEFORE, None)
    return said


def is_lost_model(error: BaseException) -> bool:
    """Tell whether an error means that the server no longer has the model."""
    return isinstance(error, GSBError) and error.code in ("model_lost", "session_lost")
