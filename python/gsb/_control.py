# SPDX-License-Identifier: BSD-3-Clause
"""Messages over a control connection, and the introduction with which each of them begins."""

from __future__ import annotations

import json
import secrets
from typing import Any

from gsb._http import Connection
from gsb._remote_exceptions import error_of
from gsb.errors import ProtocolError, ProtocolVersionError, ServerNotProvenError
from gsb.protocol import PROTOCOL_VERSION, client_proof, proofs_match, server_proof
from gsb.protocol.wire import HELLO

#: A message as bytes' worth of text.
encode_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def introduce(connection: Connection, token: str, timeout: float) -> None:
    """Have the server prove that it knows the token, then show it ours with every message.

    Raises
    ------
    ServerNotProvenError
        It does not know the token.
    AuthenticationError
        It refuses ours.
    ProtocolError
        What it says is malformed, or of another version.
    """
    nonce = secrets.token_hex(32)
    host = connection.address.host
    hello = {"protocol": PROTOCOL_VERSION, "nonce": nonce, "proof": client_proof(token, nonce, host)}
    answer = exchange(connection, "POST", HELLO, hello, timeout)
    try:
        version, server, pool = answer["protocol"], answer["server"], answer["pool"]
        expected = server_proof(token, nonce, host, server, pool["uuid"])
        proven = proofs_match(expected, answer["proof"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(f"malformed answer to hello: {error!r}") from error
    if not proven:
        raise ServerNotProvenError(f"the server at {connection.address.url} does not know the token")
    if version != PROTOCOL_VERSION:
        raise ProtocolVersionError(f"the server speaks version {version}, this client {PROTOCOL_VERSION}")
    connection.server = server
    offers = answer.get("transports")
    connection.offers = {**offers} if type(offers) is dict else {}
    connection.authorize(token)


def exchange(
    connection: Connection, method: str, path: str, message: dict[str, Any] | None, timeout: float | None
) -> dict[str, Any]:
    """Send a message and give the answer; errors of the server are raised as those of `gsb.errors`."""
    body = b"" if message is None else encode_json(message).encode()
    return answer_of(*connection.request(method, path, body, timeout))


def answer_of(status: int, body: bytes) -> dict[str, Any]:
    """Read an answer: a JSON object, or an error to be raised."""
    if status == 204:
        return {}
    if status != 200:
        raise error_of(status, body)
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise ProtocolError(f"the answer is no JSON: {body[:200]!r}") from error
    if type(answer) is not dict:
        raise ProtocolError(f"the answer is no object: {body[:200]!r}")
    return answer
