# SPDX-License-Identifier: BSD-3-Clause
"""Errors the server answers with, and the one envelope that carries them.

::

    ServerError(Exception)                 code, hint
        every refusal the server decides on itself

Whatever else is raised while a call runs is the estimator's own (``estimator_error``): its class and text
go to the client, which raises the same class again. The codes are those of ``gsb.protocol``.
"""

from __future__ import annotations

from typing import Any

from gsb.errors import ProtocolError, UnsupportedValueError
from gsb.protocol.wire import ERROR_STATUS

import shmpool

__all__ = ["ServerError", "envelope", "from_exception"]


class ServerError(Exception):
    """A refusal with a code, a sentence and a hint.

    Parameters
    ----------
    code : str
        Key of ``gsb.protocol.ERROR_STATUS``.
    message, hint : str
        What happened; what to do about it.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    @property
    def status(self) -> int:
        """HTTP status of the code."""
        return ERROR_STATUS[self.code]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.message, self.hint)


def envelope(error: ServerError, request_id: str, exception: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the body of an answer that says no."""
    body: dict[str, Any] = {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "request_id": request_id,
    }
    if exception is not None:
        body["exception"] = exception
    return {"error": body}


_POOL_CODES: tuple[tuple[type[Exception], str, str], ...] = (
    (shmpool.HandleError, "malformed", ""),
    (shmpool.StaleHandleError, "stale_handle", ""),
    (shmpool.ClientGoneError, "session_lost", ""),
    (
        shmpool.PoolFullError,
        "pool_full",
        "results that nobody has read yet fill the output region; read or drop them, "
        "or start the server with more output slots",
    ),
    (shmpool.PayloadTooLargeError, "too_large", ""),
    (shmpool.PoolSpaceError, "out_of_memory", ""),
    (shmpool.PoolClosedError, "shutting_down", ""),
)


def from_exception(error: BaseException) -> ServerError:
    """Translate what was raised outside the estimator."""
    if isinstance(error, ServerError):
        return error
    if isinstance(error, shmpool.ShmPoolError):
        for cls, code, hint in _POOL_CODES:
            if isinstance(error, cls):
                return ServerError(code, str(error), hint or str(getattr(error, "hint", "") or ""))
    if isinstance(error, ProtocolError):
        return ServerError("malformed", error.message, error.hint)
    if isinstance(error, UnsupportedValueError):
        return ServerError("unsupported_value", error.message, error.hint)
    if isinstance(error, MemoryError):
        return ServerError("out_of_memory", str(error) or "out of memory", "Send less at once, or free memory.")
    return ServerError(
        "internal",
        f"{type(error).__name__} in the server",
        "The server's log has the traceback under the request id.",
    )


def describe_exception(error: BaseException) -> dict[str, Any]:
    """Return class, text and plain arguments of an estimator's exception, for the client to raise it again."""
    cls = type(error)
    description: dict[str, Any] = {"type": f"{cls.__module__}.{cls.__qualname__}", "message": str(error)}
    # str() of a KeyError is not what it was made from; where the arguments are plain they say it exactly.
    if all(arg is None or type(arg) in (str, int, bool) for arg in error.args):
        description["args"] = list(error.args)
    return description
