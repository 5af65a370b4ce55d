# SPDX-License-Identifier: BSD-3-Clause
"""`Mailbox`: bytes into the file and out of it, verified."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

import shmpool
from gsb.errors import DamagedTransferError, MailboxError
from gsb.mailbox.layout import PAGE_NBYTES, Layout

if sys.platform == "win32":
    from gsb.mailbox._windows import DirectFile
else:
    from gsb.mailbox._posix import DirectFile

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

# Large enough for the drive, small enough that the copy out of it still finds the bytes in the cache.
_BOUNCE_NBYTES: Final = 1 << 20

# Before the second try of a read: a writer's flush has returned, so whatever is late is late by little.
_RETRY_SECONDS: Final = 0.02


class Mailbox:
    """The file on the shared drive, as one side sees it.

    Parameters
    ----------
    path : str or Path
        The file, under the name that it has on this side.
    layout : Layout
        What the server says it is.
    create : bool, default False
        Make the file, or take over one that a dead server has left. The server's side only.

    Raises
    ------
    MailboxError
        There is no such file, it is another one than the server's, or the drive refuses.

    Attributes
    ----------
    how : str
        How reads pass the cache.
    retries : int
        Reads that were right only at the second try.

    Notes
    -----
    Concurrency: any thread; who uses which part is for the caller to keep apart. No mapping is ever made.
    Blocking: explicit I/O, each write ends with a flush to the drive; the GIL is released meanwhile.
    Crash: holds nothing but file descriptors. A writer that dies leaves half-written pages, whose checksum does not
    hold.
    """

    def __init__(self, path: str | Path, layout: Layout, *, create: bool = False) -> None:
        self.path: Final = Path(path)
        self.layout: Final = layout
        self.retries = 0
        self._bounces = threading.local()
        with self._translated("opening"):
            self._file: Final = DirectFile(os.fspath(path), layout.nbytes if create else None)
        try:
            if create:
                self._write_identity()
            else:
                self._check_identity()
        except BaseException:
            self._file.close()
            raise

    @property
    def how(self) -> str:
        """How reads pass the cache."""
        return self._file.how

    def _write_identity(self) -> None:
        with self._translated("writing"):
            self._file.write(0, memoryview(self.layout.page()))
            self._file.flush()

    def _check_identity(self) -> None:
        page = np.empty(PAGE_NBYTES, np.uint8)
        for attempt in (1, 2):
            try:
                self._fill(0, page)
                found = Layout.parse(page.tobytes())
                break
            except MailboxError:
                if attempt == 2:
                    raise
                self._pause(0, PAGE_NBYTES)
        if found != self.layout:
            raise MailboxError(
                f"{self.path} is the mailbox {found.uuid}, the server's is {self.layout.uuid}",
                hint="GSB_FILE_DIR must name one directory on both sides; the name may differ, the directory may not",
            )

    def close(self) -> None:
        """Close the file. The caller sees to it that nobody is using it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------ bytes
    def put(self, offset: int, data: Bytes, generation: int) -> int:
        """Write bytes and flush them.

        Parameters
        ----------
        offset : int
            A multiple of 4096 in a part of the file that only this side writes.
        data : ndarray of uint8
            One-dimensional and contiguous. The rest of its last page is filled with zeros.
        generation : int
            Number of this use of the part; it goes into the checksum, so that what a former use has left there does
            not pass for this one.

        Returns
        -------
        int
            The checksum by which the receiver judges.

        Raises
        ------
        MailboxError
            The drive refuses: it is full, gone, or read-only.
        """
        checksum = shmpool.checksum(data, generation)
        whole = len(data) // PAGE_NBYTES * PAGE_NBYTES
        with self._translated("writing"):
            if whole:
                self._file.write(offset, data[:whole].data)
            if whole < len(data):
                # A partial page would make the kernel fetch the rest of it first, from its cache or from the drive.
                last = np.zeros(PAGE_NBYTES, np.uint8)
                last[: len(data) - whole] = data[whole:]
                self._file.write(offset + whole, last.data)
            self._file.flush()
        return checksum

    def take(self, offset: int, into: Bytes, generation: int, checksum: int) -> None:
        """Read bytes past the cache and verify them; a second time if they are wrong.

        Parameters
        ----------
        offset : int
            A multiple of 4096.
        into : ndarray of uint8
            One-dimensional, contiguous and writable. Memory that starts at a page border is read into directly. It is
            what has been verified: nobody can change it through the file any more.
        generation, checksum : int
            What the writer has said.

        Raises
        ------
        DamagedTransferError
            The checksum does not hold, twice. `into` holds garbage.
        MailboxError
            The drive refuses.
        """
        for attempt in (1, 2):
            try:
                self._fill(offset, into)
                if shmpool.checksum(into, generation) == checksum:
                    self.retries += attempt - 1
                    return
                problem = "the bytes are not those that were written"
            except MailboxError as error:
                problem = error.message
            if attempt == 1:
                self._pause(offset, len(into))
        raise DamagedTransferError(f"{self.path}, {len(into)} bytes at {offset}, read twice by {self.how}: {problem}")

    def _pause(self, offset: int, nbytes: int) -> None:
        time.sleep(_RETRY_SECONDS)
        with self._translated("reading"):
            self._file.refresh(offset, nbytes)

    def _fill(self, offset: int, into: Bytes) -> None:
        align = self._file.align
        at = 0
        with self._translated("reading"):
            while at < len(into):
                rest = into[at:]
                whole = len(rest) // align * align
                if whole and rest.ctypes.data % align == 0:
                    at += self._read(offset + at, rest[:whole].data)
                else:
                    bounce = self._bounce()
                    length = min(len(bounce), -(-len(rest) // align) * align)
                    usable = min(self._read(offset + at, bounce[:length].data), len(rest))
                    rest[:usable] = bounce[:usable]
                    at += usable

    def _read(self, offset: int, memory: memoryview) -> int:
        got = self._file.read(offset, memory)
        # What follows a short read must start at a page border again.
        usable = got if got == len(memory) else got // self._file.align * self._file.align
        if usable == 0:
            raise MailboxError(
                f"{self.path} ends at {self._file.nbytes()} bytes; {self.layout.nbytes} were agreed",
                hint="the file was cut short; restart the server",
            )
        return usable

    def _bounce(self) -> Bytes:
        found: Bytes | None = getattr(self._bounces, "buffer", None)
        if found is None:
            # An anonymous mapping is private memory that starts at a page border.
            found = np.frombuffer(mmap.mmap(-1, _BOUNCE_NBYTES), np.uint8)
            self._bounces.buffer = found
        return found

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except MailboxError:
            raise
        except OSError as error:
            hint = "free some space on the drive" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise MailboxError(f"{doing} {self.path}: {error.strerror or error}", hint=hint) from error
