# SPDX-License-Identifier: BSD-3-Clause
"""Explicit I/O past the page cache, where there is ``pread``.

Why so, measured on Linux 6.1 to 6.18 (``docs/wsl2.md``):

* A read through an ``O_DIRECT`` descriptor is fresh on every mount that was looked at: 9P in each cache mode, virtiofs,
  FUSE with and without write-back. A read through a plain one is not.
* An ``O_DIRECT`` *write* is refused by some stacks that accept the read (FUSE's ``passthrough_ll`` above ext4 hands
  unaligned memory on). A plain write and ``fdatasync`` arrive everywhere, so that is the only way writes go.
* Where ``O_DIRECT`` is refused, a fresh descriptor and ``POSIX_FADV_DONTNEED`` give the kernel a chance to fetch the
  pages anew. It need not take it; the checksum decides.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Final

from gsb.errors import MailboxError

assert sys.platform != "win32"

_DIRECT: Final = getattr(os, "O_DIRECT", 0)
_COMMON: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_REFUSED: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


class DirectFile:
    """A file that is read past the cache and written through it.

    Parameters
    ----------
    path : str
        The file.
    create_nbytes : int, optional
        Make it, or give an existing one this length. Without, it must be there.

    Attributes
    ----------
    how : str
        How it is read: ``"O_DIRECT"`` or ``"fresh descriptor"``.

    Notes
    -----
    Concurrency: any thread, except for `refresh` and `close`.
    """

    #: Reads must start at a multiple of it in file and memory, and ask for a multiple of it.
    align: Final = 4096

    def __init__(self, path: str, create_nbytes: int | None = None) -> None:
        self._path: Final = path
        self._direct = -1
        self.how = "fresh descriptor"
        self._plain = os.open(path, os.O_RDWR | _COMMON | (os.O_CREAT if create_nbytes is not None else 0), 0o600)
        try:
            if create_nbytes is not None:
                os.ftruncate(self._plain, create_nbytes)
            self._open_direct()
        except BaseException:
            self.close()
            raise

    def _open_direct(self) -> None:
        if not _DIRECT:
            return
        try:
            found = self._open_again(_DIRECT)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            return
        self._direct, self.how = found, "O_DIRECT"

    def _open_again(self, flags: int) -> int:
        found = os.open(self._path, os.O_RDONLY | _COMMON | flags)
        ours, theirs = os.fstat(self._plain), os.fstat(found)
        if (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino):
            os.close(found)
            raise MailboxError(f"{self._path} was replaced by another file", hint="connect to the server again")
        return found

    def read(self, offset: int, memory: memoryview) -> int:
        """Read once, at most to the end of `memory`; the number of bytes, 0 at the end of the file."""
        if self._direct >= 0:
            try:
                return os.preadv(self._direct, [memory], offset)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
            # Some stacks open the descriptor and refuse the read. The descriptor is kept open: another thread may
            # be reading through it, and its number must not name something else.
            self.how = "fresh descriptor"
        fresh = self._open_again(0)
        try:
            _forget(fresh, offset, len(memory))
            return os.preadv(fresh, [memory], offset)
        finally:
            os.close(fresh)

    def write(self, offset: int, memory: memoryview) -> None:
        """Write all of `memory`; the other side sees it after `flush`."""
        while memory:
            written = os.pwritev(self._plain, [memory], offset)
            offset += written
            memory = memory[written:]

    def flush(self) -> None:
        """Send what was written to where the other side reads."""
        os.fdatasync(self._plain)

    def refresh(self, offset: int, nbytes: int) -> None:
        """Give the kernel every reason to forget what it has cached of a part."""
        _forget(self._plain, offset, nbytes)
        os.close(self._open_again(0))

    def nbytes(self) -> int:
        """Length of the file."""
        return os.fstat(self._plain).st_size

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (self._plain, self._direct):
            if fd >= 0:
                os.close(fd)
        self._plain = self._direct = -1


def _forget(fd: int, offset: int, nbytes: int) -> None:
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_DONTNEED)
