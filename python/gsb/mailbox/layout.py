# SPDX-License-Identifier: BSD-3-Clause
"""Where things lie in the mailbox, and its first page.

::

    0            64 KiB                     64 KiB + half                    64 KiB + 2 half
    | identity   | client to server         | server to client               |
    | the server | clients write, in pieces | the server writes              |
    | writes it  | that the server lends    |                                |

A page of 4 KiB is written by one side only, for as long as the file exists: a kernel that holds a page dirty writes
back all of it, and with it whatever the other side has put there meanwhile.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Any, Final

import shmpool
from gsb.errors import MailboxError

#: What one side writes, it writes in whole pages.
PAGE_NBYTES: Final = 4096

#: Parts are lent in multiples of this, because caches may hold and write back more than a page at once: the allocation
#: granularity of Windows, the largest folio of most file systems.
GRANULE_NBYTES: Final = 64 * 1024

_MAGIC: Final = b"gsb mailbox 1\n\0\0"
_RECORD: Final = struct.Struct("<16s16sQ")
_CHECKSUM_NBYTES: Final = 16


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a mailbox is: agreed over HTTP, and found again in its first page.

    Attributes
    ----------
    uuid : str
        32 hex digits, new whenever a server starts with the file.
    half_nbytes : int
        Bytes of either direction, a multiple of 64 KiB.
    """

    uuid: str
    half_nbytes: int

    def __post_init__(self) -> None:
        if len(self.uuid) != 32 or not set(self.uuid) <= set("0123456789abcdef"):
            raise MailboxError(f"{self.uuid[:64]!r} is not the uuid of a mailbox: that is 32 hex digits")
        if self.half_nbytes <= 0 or self.half_nbytes % GRANULE_NBYTES or self.half_nbytes > 2**48:
            raise MailboxError(f"half a mailbox has {self.half_nbytes} bytes; it must be a multiple of 64 KiB")

    @property
    def up_offset(self) -> int:
        """Where the direction from client to server begins."""
        return GRANULE_NBYTES

    @property
    def down_offset(self) -> int:
        """Where the direction from server to client begins."""
        return GRANULE_NBYTES + self.half_nbytes

    @property
    def nbytes(self) -> int:
        """Length of the file."""
        return GRANULE_NBYTES + 2 * self.half_nbytes

    def check_up(self, offset: object, nbytes: object) -> None:
        """Refuse a part that does not lie in the direction from client to server."""
        _check(offset, nbytes, self.up_offset, self.half_nbytes)

    def check_down(self, offset: object, nbytes: object) -> None:
        """Refuse a part that does not lie in the direction from server to client."""
        _check(offset, nbytes, self.down_offset, self.half_nbytes)

    def page(self) -> bytes:
        """The first page of the file."""
        record = _RECORD.pack(_MAGIC, bytes.fromhex(self.uuid), self.half_nbytes)
        checksum = shmpool.checksum(record).to_bytes(_CHECKSUM_NBYTES, "little")
        return (record + checksum).ljust(PAGE_NBYTES, b"\0")

    @classmethod
    def parse(cls, page: bytes) -> Layout:
        """Read the first page.

        Raises
        ------
        MailboxError
            It is not the first page of a mailbox.
        """
        record = page[: _RECORD.size]
        checksum = page[_RECORD.size : _RECORD.size + _CHECKSUM_NBYTES]
        if len(page) < PAGE_NBYTES or shmpool.checksum(record).to_bytes(_CHECKSUM_NBYTES, "little") != checksum:
            raise MailboxError("the file is not a mailbox, or its first page was read half-written")
        magic, uuid, half_nbytes = _RECORD.unpack(record)
        if magic != _MAGIC:
            raise MailboxError("the file is a mailbox of another version", hint="install one version of gsb on both")
        return cls(uuid.hex(), half_nbytes)

    def to_dict(self) -> dict[str, Any]:
        """As it travels in messages."""
        return {"uuid": self.uuid, "half_nbytes": self.half_nbytes}

    @classmethod
    def from_dict(cls, value: Any) -> Layout:
        """From a message; raises `MailboxError` where that is malformed."""
        try:
            uuid, half_nbytes = value["uuid"], value["half_nbytes"]
        except (KeyError, TypeError) as error:
            raise MailboxError(f"malformed description of a mailbox: {error!r}") from error
        if type(uuid) is not str or type(half_nbytes) is not int:
            raise MailboxError("malformed description of a mailbox")
        return cls(uuid, half_nbytes)


def piece_generation(generation: int, at: int) -> int:
    """Tell each piece of an array from all others, also of other lendings of the same part.

    Parameters
    ----------
    generation : int
        Of the part.
    at : int
        Where in the array the piece begins.
    """
    return (generation + at) % 2**64


def _check(offset: object, nbytes: object, start: int, length: int) -> None:
    if type(offset) is not int or type(nbytes) is not int:
        raise MailboxError("offset and length of a part of the mailbox must be integers")
    if offset % PAGE_NBYTES or nbytes < 0 or not start <= offset <= start + length - nbytes:
        raise MailboxError(
            f"{nbytes} bytes at {offset} are no part of this direction of the mailbox",
            hint="client and server are probably of different versions",
        )
