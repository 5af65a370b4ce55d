# SPDX-License-Identifier: BSD-3-Clause
"""The HTTP interface, shared by client and server; described in ``docs/http-api.md``.

Imports neither scikit-learn nor the pool nor the rest of ``gsb`` but its errors.
"""

from __future__ import annotations

from gsb.protocol.estimators import FIT_METHODS, METHODS, PURE_METHODS, REUPLOAD, refused_param
from gsb.protocol.values import (
    decode_dtype,
    decode_inline,
    decode_value,
    encode_array,
    encode_inline,
    encode_value,
    random_state_tuple,
)
from gsb.protocol.wire import (
    ERROR_STATUS,
    INLINE_LIMIT,
    MAX_BODY_NBYTES,
    PROTOCOL_VERSION,
    SERVER_STAGES,
    STAGES,
    UNIX_HOST,
    client_proof,
    proofs_match,
    server_proof,
)

__all__ = [
    "ERROR_STATUS",
    "FIT_METHODS",
    "INLINE_LIMIT",
    "MAX_BODY_NBYTES",
    "METHODS",
    "PROTOCOL_VERSION",
    "PURE_METHODS",
    "REUPLOAD",
    "SERVER_STAGES",
    "STAGES",
    "UNIX_HOST",
    "client_proof",
    "decode_dtype",
    "decode_inline",
    "decode_value",
    "encode_array",
    "encode_inline",
    "encode_value",
    "proofs_match",
    "random_state_tuple",
    "refused_param",
    "server_proof",
]
