# SPDX-License-Identifier: BSD-3-Clause
"""Exceptions and warnings of ``gsb``. Each carries a ``hint`` and pickles.

::

    GSBError(Exception)
    ├── TransportError
    │   ├── ConnectError           (ConnectionError)      no server answers
    │   │   ├── ServerNotProvenError (PermissionError)    it answers, but does not know the token
    │   │   └── TransportUnavailableError                 it answers, but arrays cannot get there
    │   ├── ConnectionLostError    (ConnectionError)      the server went away during a call
    │   ├── RequestTimeoutError    (TimeoutError)
    │   ├── MailboxError           (OSError)              the file on the shared drive cannot be used
    │   │   └── DamagedTransferError                      what was read from it is not what was written
    │   └── ProtocolError          (ValueError)           a malformed message
    │       └── ProtocolVersionError
    ├── AuthenticationError        (PermissionError)      wrong or missing token, host or origin
    ├── RemoteError                (RuntimeError)         any other error of the server
    │   ├── ServerBusyError
    │   ├── SessionLostError       (LookupError)
    │   ├── StaleArrayError        (LookupError)          the slot was freed meanwhile
    │   ├── ForeignHandleError     (PermissionError)      the slot belongs to somebody else
    │   ├── WorkerLostError                               the server's GPU worker ended in the middle of the call
    │   └── RemoteMemoryError      (MemoryError)
    ├── ModelLostError             (LookupError)          the server no longer has the fitted model
    ├── PayloadTooLargeError       (ValueError)
    ├── UnsupportedEstimatorError  (NotImplementedError)
    ├── GPURefusedError            (NotImplementedError)  a strict call that no GPU backend can do
    └── UnsupportedValueError      (TypeError)            a value that cannot travel

    FallbackWarning(UserWarning)                          the work was done in this process, and why
"""

from __future__ import annotations

from typing import Any


class GSBError(Exception):
    """Base of all exceptions of ``gsb``.

    Parameters
    ----------
    message : str
        What happened.
    hint : str, optional
        What to do about it; replaces the class's own.
    code : str, optional
        The server's error code (``docs/http-api.md``).
    request_id : str, optional
        Finds the request in the server's log.
    """

    hint: str = ""

    def __init__(self, message: str = "", *, hint: str = "", code: str = "", request_id: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.request_id = request_id
        if hint:
            self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.code, self.request_id)


def _rebuild(kind: type[GSBError], message: str, hint: str, code: str, request_id: str) -> GSBError:
    return kind(message, hint=hint, code=code, request_id=request_id)


class TransportError(GSBError):
    """The message did not get through."""


class ConnectError(TransportError, ConnectionError):
    """No server answers."""

    hint = "start one with `gsb serve`, name one with GSB_SERVER, or allow gsb.config(fallback='local')"


class ServerNotProvenError(ConnectError, PermissionError):
    """Something answers, but it cannot prove that it knows the token."""

    hint = "another program may be listening there; check GSB_SERVER and GSB_TOKEN, or restart `gsb serve`"


class TransportUnavailableError(ConnectError):
    """No way for arrays between this process and the server, or not the one that was asked for."""

    hint = "`gsb doctor --report` shows every way and why it does not work; see docs/transports.md"


class ConnectionLostError(TransportError, ConnectionError):
    """The server went away before it had answered."""

    hint = "the call may or may not have been carried out; fit again once the server is back"


class RequestTimeoutError(TransportError, TimeoutError):
    """The deadline passed before the answer came."""

    hint = "raise gsb.config(timeout=...), in seconds; None waits without limit"


class MailboxError(TransportError, OSError):
    """The file on the shared drive cannot be used."""

    hint = "check GSB_FILE_DIR on both sides, or let gsb choose another transport"


class DamagedTransferError(MailboxError):
    """What was read from the file on the shared drive is not what was written to it, also at the second try."""

    hint = "the drive serves stale pages even to unbuffered reads; use another transport"


class ProtocolError(TransportError, ValueError):
    """A message is malformed."""

    hint = "client and server are probably of different versions"


class ProtocolVersionError(ProtocolError):
    """Client and server speak different versions of the protocol."""

    hint = "install the same version of gsb on both sides"


class AuthenticationError(GSBError, PermissionError):
    """The server refused the token, or the host or origin of the request."""

    hint = "set GSB_TOKEN to the token of the server, or unset it so that the server's own file is found"


class RemoteError(GSBError, RuntimeError):
    """The server failed in a way that is not the estimator's."""

    hint = "the server's log has the traceback under the request id"


class ServerBusyError(RemoteError):
    """The server has no room for the call at the moment."""

    hint = "try again later, or start the server with more workers or a larger pool"


class SessionLostError(RemoteError, LookupError):
    """The server no longer knows the session, for instance after a restart."""

    hint = "the client opens a new session by itself at the next call"


class StaleArrayError(RemoteError, LookupError):
    """A slot named in the message was freed meanwhile."""

    hint = "call again; if it happens repeatedly, the two sides do not share one pool"


class ForeignHandleError(RemoteError, PermissionError):
    """A slot named in the message belongs to another client."""

    hint = "only arrays that this process has put into the pool may be named in its calls"


class WorkerLostError(RemoteError):
    """The server's GPU worker ended in the middle of the call."""

    hint = "call again: the server starts a new worker"


class RemoteMemoryError(RemoteError, MemoryError):
    """The server ran out of memory for this call."""

    hint = "send less at once, or free memory on the server's side"


class ModelLostError(GSBError, LookupError):
    """The server no longer has the fitted model, and the client has no copy of it."""

    hint = "fit again; gsb.config(keep_state=True) keeps a copy of every fitted model on the client"


class PayloadTooLargeError(GSBError, ValueError):
    """An array does not fit into the pool, or a message is too long."""

    hint = "split the array, or start the server with a larger pool"


class UnsupportedEstimatorError(GSBError, NotImplementedError):
    """The server does not offer this estimator or method."""

    hint = "use scikit-learn's own class for it"


class UnsupportedValueError(GSBError, TypeError):
    """A value cannot travel to the server."""

    hint = "pass numbers, text, lists, NumPy arrays, sparse matrices or data frames"


class GPURefusedError(GSBError, NotImplementedError):
    """A strict call cannot be done on the GPU; the text says what each backend objects to."""

    hint = "change what the text names, or allow the CPU (strict=False; GSB_STRICT_GPU=0 at the server)"


class FallbackWarning(UserWarning):
    """The work was done by scikit-learn in this process instead of by the server; the text says why."""


#: The server's error codes -> classes; ``estimator_error`` is rebuilt in `gsb.remote_exceptions`.
CODE_CLASSES: dict[str, type[GSBError]] = {
    "malformed": ProtocolError,
    "bad_parameter": ProtocolError,
    "not_found": ProtocolError,
    "method_not_allowed": ProtocolError,
    "protocol_mismatch": ProtocolVersionError,
    "unauthorized": AuthenticationError,
    "forbidden_host": AuthenticationError,
    "forbidden_origin": AuthenticationError,
    "foreign_handle": ForeignHandleError,
    "unknown_estimator": UnsupportedEstimatorError,
    "unknown_method": UnsupportedEstimatorError,
    "unsupported_value": UnsupportedValueError,
    "gpu_refused": GPURefusedError,
    "duplicate_call": RemoteError,
    "incoherent": TransportUnavailableError,
    "stale_handle": StaleArrayError,
    "session_lost": SessionLostError,
    "model_lost": ModelLostError,
    "too_large": PayloadTooLargeError,
    "transfer_damaged": DamagedTransferError,
    "mailbox_failed": MailboxError,
    "internal": RemoteError,
    "worker_lost": WorkerLostError,
    "pool_full": ServerBusyError,
    "busy": ServerBusyError,
    "shutting_down": ServerBusyError,
    "timeout": RequestTimeoutError,
    "out_of_memory": RemoteMemoryError,
}
