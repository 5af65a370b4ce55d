# SPDX-License-Identifier: BSD-3-Clause
"""The data plane of `stream`: opening, frames, limits (``docs/transports.md``). Shared by client and server."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import struct
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from gsb.errors import ProtocolError
from gsb.protocol.values import DTYPE_KINDS, decode_dtype

Array = np.ndarray[Any, np.dtype[Any]]

#: First bytes of both sides; the last one is the version.
MAGIC: Final = b"GSBDATA1"
NONCE_NBYTES: Final = 32
PROOF_NBYTES: Final = 32
SESSION_NBYTES: Final = 32
GREETING_NBYTES: Final = len(MAGIC) + NONCE_NBYTES
OPENING_NBYTES: Final = len(MAGIC) + SESSION_NBYTES + NONCE_NBYTES + PROOF_NBYTES

#: op, flags, zero, bytes of meta, id, bytes of data.
FRAME: Final = struct.Struct("<BBHIQQ")
PUT, GET, FREE = 1, 2, 3
WELCOME, GO, DONE, ARRAY, ERROR = 16, 17, 18, 19, 255
#: Flag of PUT: the bytes follow at once.
EAGER: Final = 1
#: Flag of ERROR: the connection ends with it.
LAST: Final = 1

#: Arrays up to this size are sent without asking for room first, and are kept outside the pool.
EAGER_NBYTES: Final = 256 * 1024
#: Data moves in pieces of this size, so that a deadline is one of progress.
CHUNK_NBYTES: Final = 4 * 2**20
MAX_META_NBYTES: Final = 4096
MAX_IDS: Final = MAX_META_NBYTES // 8


class Frame(NamedTuple):
    """A frame's head, without its meta and data."""

    op: int
    flags: int
    meta_nbytes: int
    id: int
    nbytes: int


def pack_frame(op: int, *, flags: int = 0, meta: bytes = b"", id: int = 0, nbytes: int = 0) -> bytes:
    """Make a frame's head and meta."""
    return FRAME.pack(op, flags, 0, len(meta), id, nbytes) + meta


def unpack_frame(head: bytes | bytearray) -> Frame:
    """Read a frame's head."""
    op, flags, zero, meta_nbytes, number, nbytes = FRAME.unpack(head)
    if zero or meta_nbytes > MAX_META_NBYTES:
        raise ProtocolError("malformed frame on the data connection")
    return Frame(op, flags, meta_nbytes, number, nbytes)


def data_proof(token: str, side: str, server_nonce: bytes, client_nonce: bytes, session: str) -> bytes:
    """Prove knowledge of the token for one data connection of one session; `side` is ``client`` or ``server``."""
    message = b"\0".join((b"gsb data v1", side.encode(), server_nonce, client_nonce, session.encode()))
    return hmac.new(token.encode(), message, hashlib.sha256).digest()


class Form(NamedTuple):
    """What an array is besides its bytes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return {"dtype": self.dtype.str, "shape": list(self.shape), "order": self.order}


def form_of(array: Array) -> Form:
    """Give the form in which an array is sent: Fortran order is kept, strides are not."""
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    return Form(array.dtype, array.shape, "F" if fortran else "C")


def parse_form(found: Any) -> Form:
    """Check a form that came from the other side.

    Raises
    ------
    ProtocolError
        It is malformed.
    """
    if type(found) is not dict:
        raise ProtocolError("the form of an array is no object")
    dtype, shape, order = decode_dtype(found.get("dtype")), found.get("shape"), found.get("order", "C")
    if type(shape) is not list or len(shape) > 64 or any(type(n) is not int or not 0 <= n < 2**62 for n in shape):
        raise ProtocolError("malformed shape of an array")
    if order not in ("C", "F") or dtype.kind not in DTYPE_KINDS or dtype.itemsize == 0:
        raise ProtocolError("malformed form of an array")
    form = Form(dtype, tuple(shape), order)
    if form.nbytes >= 2**62:
        raise ProtocolError("an array is larger than any memory")
    return form


def parse_meta(meta: bytes | bytearray) -> dict[str, Any]:
    """Read the meta of a frame: a JSON object."""
    try:
        found = json.loads(bytes(meta))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"malformed meta on the data connection: {error}") from None
    if type(found) is not dict:
        raise ProtocolError("the meta of a frame is no object")
    return found


def flat_bytes(array: Array) -> memoryview:
    """View the bytes of a contiguous array, in the order in which they lie in memory."""
    flat = array.reshape(-1, order="F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C")
    return memoryview(flat.view(np.uint8))  # type: ignore[arg-type]  # NumPy 2 has it, its stubs from 3.12 on
