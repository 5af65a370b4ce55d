# SPDX-License-Identifier: BSD-3-Clause
"""Everything `shmpool` raises by itself.

::

    ShmPoolError
    ├── PoolNotFoundError      (FileNotFoundError)  nothing to attach to
    ├── PoolExistsError        (FileExistsError)    create() found a pool that is in use
    ├── PoolBusyError          (TimeoutError)       somebody is opening or using it; did not end in time
    ├── PoolFormatError        (ValueError)         not a pool, or of another version or build
    ├── PoolCorruptedError     (OSError)            an invariant of the file does not hold
    ├── PoolPermissionError    (PermissionError)    wrong owner or mode
    ├── UnsupportedFilesystemError (OSError)        the file system cannot carry a shared mapping
    ├── PoolSpaceError         (OSError, ENOSPC)    no memory behind a slot
    ├── PoolClosedError        (ValueError)         used after close()
    │   └── ForkedPoolError                         used in a forked child; call reattach()
    ├── PoolFullError          (TimeoutError)       no slot became free in time
    ├── TooManyClientsError    (OSError)            the client table is full
    ├── PayloadTooLargeError   (ValueError)         larger than the whole pool
    ├── UnsupportedDtypeError  (TypeError)          has no fixed-size bytes (object, string)
    ├── BufferLayoutError      (ValueError)         the bytes to hash do not lie in one piece
    ├── HandleError            (ValueError)         malformed handle, or of another pool
    ├── StaleHandleError       (LookupError)        the slot has moved on, or was freed already
    ├── LoanError              (BufferError)        a loan is used after its end, or still has views
    ├── ChannelNotFoundError   (FileNotFoundError)  no channel of this name
    ├── ChannelExistsError     (FileExistsError)    open() asked for another kind than the one there
    ├── ChannelFullError       (TimeoutError)       no room in the ring in time
    ├── ChannelEmptyError      (TimeoutError)       no message in time
    ├── ChannelClosedError     (ConnectionError)    everybody at the other end is gone, or this end is closed
    ├── TooManyChannelsError   (OSError)            every channel record is in use
    ├── ClientEvictedError     (ConnectionError)    our file lock was lost; we were cleaned up
    └── ClientGoneError        (LookupError)        the other client is not attached any more

Each is also the builtin in brackets. All pickle with their message and attributes, and carry ``hint``: what
to do about it, or an empty string.
"""

from __future__ import annotations

import errno
from typing import Any

__all__ = [
    "BufferLayoutError",
    "ChannelClosedError",
    "ChannelEmptyError",
    "ChannelExistsError",
    "ChannelFullError",
    "ChannelNotFoundError",
    "ClientEvictedError",
    "ClientGoneError",
    "ForkedPoolError",
    "HandleError",
    "LoanError",
    "PayloadTooLargeError",
    "PoolBusyError",
    "PoolClosedError",
    "PoolCorruptedError",
    "PoolExistsError",
    "PoolFormatError",
    "PoolFullError",
    "PoolNotFoundError",
    "PoolPermissionError",
    "PoolSpaceError",
    "ShmPoolError",
    "StaleHandleError",
    "TooManyChannelsError",
    "TooManyClientsError",
    "UnsupportedDtypeError",
    "UnsupportedFilesystemError",
]


def _rebuild(cls: type[ShmPoolError], message: str, attributes: dict[str, Any]) -> ShmPoolError:
    error = cls(message)
    error.__dict__.update(attributes)
    return error


class ShmPoolError(Exception):
    """Base of all errors of this package.

    Parameters
    ----------
    message : str
        What was wrong, with the figures.
    hint : str, optional
        What to do about it.
    **attributes
        Stored on the exception, so that programs need not parse the message.
    """

    hint: str = ""

    def __init__(self, message: str, *, hint: str = "", **attributes: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.__dict__.update(attributes)

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        gap = "\n" if "\n" in self.message else " "
        return f"{self.message}{gap}Hint: {self.hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, dict(self.__dict__))


class PoolNotFoundError(ShmPoolError, FileNotFoundError):
    """There is no pool at this path."""


class PoolExistsError(ShmPoolError, FileExistsError):
    """A pool at this path is in use, so it cannot be created anew."""


class PoolBusyError(ShmPoolError, TimeoutError):
    """Another process is opening or using the pool and did not finish in time."""


class PoolFormatError(ShmPoolError, ValueError):
    """The file is not a pool, or of another format version or build. It was not written to."""


class PoolCorruptedError(ShmPoolError, OSError):
    """The file contradicts itself; the message names the check that failed."""


class PoolPermissionError(ShmPoolError, PermissionError):
    """The pool, its lock file or their folder belong to somebody else, or are open to others."""


class UnsupportedFilesystemError(ShmPoolError, OSError):
    """The file system cannot carry a coherent shared mapping with locks."""


class PoolSpaceError(ShmPoolError, OSError):
    """The file system has no memory left for a slot. Nothing was lost; ``errno`` is ``ENOSPC``."""

    def __init__(self, message: str, *, hint: str = "", **attributes: Any) -> None:
        super().__init__(message, hint=hint, **attributes)
        self.errno = errno.ENOSPC


class PoolClosedError(ShmPoolError, ValueError):
    """The pool object was closed."""


class ForkedPoolError(PoolClosedError):
    """The pool object was inherited through fork; its identity belongs to the parent."""


class PoolFullError(ShmPoolError, TimeoutError):
    """No slot became free in time. ``holders`` says who has what, for how long, and whether they live."""

    holders: tuple[Any, ...] = ()


class TooManyClientsError(ShmPoolError, OSError):
    """Every entry of the client table belongs to a living process (``transient``: or is about to be let go)."""

    transient: bool = False


class PayloadTooLargeError(ShmPoolError, ValueError):
    """The array is larger than the whole pool (``nbytes``, ``pool_nbytes``)."""


class UnsupportedDtypeError(ShmPoolError, TypeError):
    """Elements of this dtype are not plain bytes, so they mean nothing in another process."""


class BufferLayoutError(ShmPoolError, ValueError):
    """The bytes of an array or buffer do not lie in one piece, and are needed so."""


class HandleError(ShmPoolError, ValueError):
    """The handle is malformed, or names another pool."""


class StaleHandleError(ShmPoolError, LookupError):
    """The slot has been freed, or handed out again, since the handle was made."""


class LoanError(ShmPoolError, BufferError):
    """The loan has ended, or writable views of it are still alive."""


class ClientEvictedError(ShmPoolError, ConnectionError):
    """This process lost its file lock (somebody closed the descriptor), was taken for dead and cleaned up."""


class ClientGoneError(ShmPoolError, LookupError):
    """The client named is not attached any more."""


class ChannelNotFoundError(ShmPoolError, FileNotFoundError):
    """There is no channel of this name in the pool."""


class ChannelExistsError(ShmPoolError, FileExistsError):
    """A channel of this name exists and is of another kind than asked for."""


class ChannelFullError(ShmPoolError, TimeoutError):
    """There was no room for the message in time."""


class ChannelEmptyError(ShmPoolError, TimeoutError):
    """There was no message in time."""


class ChannelClosedError(ShmPoolError, ConnectionError):
    """Nobody is left at the other end (``reason`` "peers"), or this object is closed (``reason`` "closed")."""

    reason: str = ""


class TooManyChannelsError(ShmPoolError, OSError):
    """Every channel record of the pool is in use."""
