# SPDX-License-Identifier: BSD-3-Clause
"""Names, limits, codes and message shapes of the HTTP interface (``docs/http-api.md``).

Standard library only: both sides import it, so it knows neither scikit-learn nor a pool.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final, NotRequired, TypedDict

PROTOCOL_VERSION: Final = 1

#: Arrays of fewer bytes travel inside the message, all others through the pool.
INLINE_LIMIT: Final = 10 * 1024

#: The largest request body the server reads and the largest answer the client reads.
MAX_BODY_NBYTES: Final = 32 * 2**20

#: The ``Host`` of a request over a Unix socket.
UNIX_HOST: Final = "localhost"

HELLO: Final = "/v1/hello"
SESSION: Final = "/v1/session"
WITNESS: Final = "/v1/witness"
CALL: Final = "/v1/call"
ATTRS: Final = "/v1/attrs"
STATE: Final = "/v1/state"
MODEL: Final = "/v1/model"
PART: Final = "/v1/part"
FORGET: Final = "/v1/forget"
FILE: Final = "/v1/file"
ATTEND: Final = "/v1/attend"
STATUS: Final = "/v1/status"
HEALTH: Final = "/v1/health"

#: Tags of arrays that are not in the message itself: the session's transport has them.
ARRAY_TAGS: Final = frozenset({"slot", "ref", "npy", "parts"})

#: Rounds of the coherence handshake.
WITNESS_ROUNDS: Final = 3

#: Stages in the order in which they happen; the server measures the middle three of the work.
STAGES: Final = (
    "client_encode",
    "request",
    "server_decode",
    "compute",
    "server_encode",
    "client_decode",
)
SERVER_STAGES: Final = ("server_decode", "compute", "server_encode")

#: Error code -> HTTP status. ``gsb.errors`` maps the same codes to classes.
ERROR_STATUS: Final[dict[str, int]] = {
    "malformed": 400,
    "unknown_method": 400,
    "bad_parameter": 400,
    "unauthorized": 401,
    "forbidden_host": 403,
    "forbidden_origin": 403,
    "foreign_handle": 403,
    "not_found": 404,
    "unknown_estimator": 404,
    "method_not_allowed": 405,
    "duplicate_call": 409,
    "incoherent": 409,
    "stale_handle": 410,
    "session_lost": 410,
    "model_lost": 410,
    "too_large": 413,
    "estimator_error": 422,
    "gpu_refused": 422,
    "unsupported_value": 422,
    "transfer_damaged": 422,
    "protocol_mismatch": 426,
    "internal": 500,
    "mailbox_failed": 500,
    "worker_lost": 502,
    "pool_full": 503,
    "busy": 503,
    "shutting_down": 503,
    "timeout": 504,
    "out_of_memory": 507,
}


class ExceptionInfo(TypedDict):
    """An exception of the estimator: class by its qualified name, its text, its arguments where they are plain."""

    type: str
    message: str
    args: NotRequired[list[Any]]
    warnings: NotRequired[list[WarningInfo]]
    output: NotRequired[list[list[str]]]


class ErrorInfo(TypedDict):
    """What is inside ``{"error": ...}``."""

    code: str
    message: str
    hint: str
    request_id: NotRequired[str]
    exception: NotRequired[ExceptionInfo]


class WarningInfo(TypedDict):
    """A warning of the estimator: category by its qualified name, and its text."""

    category: str
    message: str


class PoolInfo(TypedDict):
    """Which pool the server offers."""

    path: str
    uuid: str
    nbytes: int
    n_slots: int
    slot_nbytes: int


class HelloRequest(TypedDict):
    """``POST /v1/hello``."""

    protocol: int
    nonce: str
    proof: str


class HelloAnswer(TypedDict):
    """Answer to ``POST /v1/hello``."""

    protocol: int
    server: str
    version: str
    sklearn: str
    backends: list[str]
    pool: PoolInfo
    transports: dict[str, dict[str, Any]]
    proof: str


class SessionRequest(TypedDict):
    """``POST /v1/session``; the last three belong to the transport ``shared``."""

    protocol: int
    transport: str
    label: NotRequired[str]
    pool: NotRequired[str]
    ticket: NotRequired[str]
    client: NotRequired[list[int]]


class SessionAnswer(TypedDict):
    """Answer to ``POST /v1/session``."""

    session: str
    server: str


class CallRequest(TypedDict):
    """``POST /v1/call``."""

    session: str
    call: str
    estimator: str
    method: str
    args: list[Any]
    kwargs: NotRequired[dict[str, Any]]
    params: NotRequired[dict[str, Any]]
    model: NotRequired[str]
    config: NotRequired[dict[str, Any]]
    forget: NotRequired[list[str]]
    timeout: NotRequired[float]
    strict: NotRequired[bool]


class ModelSummary(TypedDict):
    """What the client learns of a fitted model without asking again.

    ``attrs`` holds what is small; ``large`` names the arrays that ``POST /v1/attrs`` gives; ``opaque``
    names whatever only ``POST /v1/state`` can give.
    """

    attrs: dict[str, Any]
    large: list[str]
    opaque: list[str]


class CallAnswer(TypedDict):
    """Answer to ``POST /v1/call``."""

    result: Any
    model: NotRequired[str]
    summary: NotRequired[ModelSummary]
    random_state: NotRequired[dict[str, Any]]
    stages: dict[str, float]
    queue: NotRequired[float]
    backend: str
    device: str
    reason: str
    warnings: NotRequired[list[WarningInfo]]
    output: NotRequired[list[list[str]]]


class AttrsRequest(TypedDict):
    """``POST /v1/attrs``."""

    session: str
    model: str
    names: list[str]


class StateRequest(TypedDict):
    """``POST /v1/state``."""

    session: str
    model: str


class StateAnswer(TypedDict):
    """Answer to ``POST /v1/state``: a pickle, protocol 5, and its out-of-band buffers, all uint8 arrays."""

    pickle: Any
    buffers: list[Any]


class ModelRequest(TypedDict):
    """``POST /v1/model``: fitted state, to be put into a new estimator attribute by attribute."""

    session: str
    estimator: str
    params: dict[str, Any]
    attrs: dict[str, Any]


class ModelAnswer(TypedDict):
    """Answer to ``POST /v1/model``."""

    model: str


class ForgetRequest(TypedDict):
    """``POST /v1/forget``."""

    session: str
    models: list[str]


class ProgressAnswer(TypedDict):
    """Answer to ``GET /v1/call/{call}``."""

    stage: str
    elapsed: float
    backend: NotRequired[str]


def client_proof(token: str, nonce: str, host: str) -> str:
    """Prove to the server, without showing the token, that the client knows it.

    ``host`` is the ``Host`` header of the request, so that a relay cannot use the proof elsewhere.
    """
    return _proof(token, "client", nonce, host)


def server_proof(token: str, nonce: str, host: str, server: str, pool_uuid: str) -> str:
    """Prove to the client that the server knows the token; binds server identity and pool."""
    return _proof(token, "server", nonce, host, server, pool_uuid)


def proofs_match(left: str, right: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(left.encode(), right.encode())


def _proof(token: str, *parts: str) -> str:
    message = "\0".join(("gsb hello v1", *parts))
    return hmac.new(token.encode(), message.encode(), hashlib.sha256).hexdigest()
