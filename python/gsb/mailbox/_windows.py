# SPDX-License-Identifier: BSD-3-Clause
"""Explicit I/O past the cache with Win32 calls: ``FILE_FLAG_NO_BUFFERING`` and ``FlushFileBuffers``.

A Windows client sees its own local drive, whose cache is one for all handles: it has no stale page of its own to fear.
Reading past the cache also covers a drive that Windows itself only borrows (``\\\\wsl.localhost``, SMB).
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    import ctypes
    import os
    from ctypes import wintypes
    from typing import Final

    import numpy as np

    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)

    _GENERIC_READ: Final = 0x80000000
    _GENERIC_WRITE: Final = 0x40000000
    _SHARE_ALL: Final = 0x7
    _OPEN_EXISTING: Final = 3
    _OPEN_ALWAYS: Final = 4
    _NO_BUFFERING: Final = 0x20000000
    _INVALID: Final = ctypes.c_void_p(-1).value
    _ERROR_HANDLE_EOF: Final = 38
    _ERROR_INVALID_PARAMETER: Final = 87

    class _Overlapped(ctypes.Structure):
        """The offset of a read or a write: a file position would be shared by all threads."""

        _fields_ = [
            ("internal", ctypes.c_size_t),
            ("internal_high", ctypes.c_size_t),
            ("offset", wintypes.DWORD),
            ("offset_high", wintypes.DWORD),
            ("event", wintypes.HANDLE),
        ]

    _kernel32.CreateFileW.restype = wintypes.HANDLE
    _kernel32.CreateFileW.argtypes = [
        wintypes.LPCWSTR,
        wintypes.DWORD,
        wintypes.DWORD,
        ctypes.c_void_p,
        wintypes.DWORD,
        wintypes.DWORD,
        wintypes.HANDLE,
    ]
    for _name in ("ReadFile", "WriteFile"):
        _function = getattr(_kernel32, _name)
        _function.restype = wintypes.BOOL
        _function.argtypes = [
            wintypes.HANDLE,
            ctypes.c_void_p,
            wintypes.DWORD,
            ctypes.POINTER(wintypes.DWORD),
            ctypes.POINTER(_Overlapped),
        ]
    _kernel32.FlushFileBuffers.restype = wintypes.BOOL
    _kernel32.FlushFileBuffers.argtypes = [wintypes.HANDLE]
    _kernel32.CloseHandle.restype = wintypes.BOOL
    _kernel32.CloseHandle.argtypes = [wintypes.HANDLE]

    # One call moves at most this much: the length is 32 bits wide, and must stay a multiple of any sector.
    _LARGEST: Final = 64 * 2**20

    def _failed(what: str) -> OSError:
        code = ctypes.get_last_error()
        return OSError(0, f"{what}: {ctypes.FormatError(code)}", None, code)

    def _open(path: str, access: int, disposition: int, flags: int) -> int:
        handle = _kernel32.CreateFileW(path, access, _SHARE_ALL, None, disposition, flags, None)
        if handle is None or handle == _INVALID:
            raise _failed(path)
        return int(handle)

    def _place(offset: int) -> _Overlapped:
        return _Overlapped(0, 0, offset & 0xFFFFFFFF, offset >> 32, None)

    def _address(memory: memoryview) -> int:
        return int(np.frombuffer(memory, np.uint8).ctypes.data)

    class DirectFile:
        """A file that is read past the cache and written through it; see `gsb.mailbox._posix.DirectFile`."""

        #: Covers the sectors of every common disk.
        align: Final = 4096

        def __init__(self, path: str, create_nbytes: int | None = None) -> None:
            self._path: Final = path
            self.how = "FILE_FLAG_NO_BUFFERING"
            self._plain: int | None = None
            self._direct: int | None = None
            try:
                disposition = _OPEN_EXISTING if create_nbytes is None else _OPEN_ALWAYS
                self._plain = _open(path, _GENERIC_READ | _GENERIC_WRITE, disposition, 0)
                if create_nbytes is not None:
                    with open(path, "r+b") as file:
                        file.truncate(create_nbytes)
                try:
                    self._direct = _open(path, _GENERIC_READ, _OPEN_EXISTING, _NO_BUFFERING)
                except OSError as error:
                    if error.winerror != _ERROR_INVALID_PARAMETER:
                        raise
                    self.how = "buffered"
            except BaseException:
                self.close()
                raise

        def read(self, offset: int, memory: memoryview) -> int:
            """Read once, at most to the end of `memory`; the number of bytes, 0 at the end of the file."""
            got = wintypes.DWORD(0)
            place = _place(offset)
            handle = self._plain if self._direct is None else self._direct
            length = min(len(memory), _LARGEST)
            if _kernel32.ReadFile(handle, _address(memory), length, ctypes.byref(got), ctypes.byref(place)):
                return got.value
            if ctypes.get_last_error() == _ERROR_HANDLE_EOF:
                return 0
            raise _failed(f"reading {self._path}")

        def write(self, offset: int, memory: memoryview) -> None:
            """Write all of `memory`; the other side sees it after `flush`."""
            while memory:
                written = wintypes.DWORD(0)
                place = _place(offset)
                length = min(len(memory), _LARGEST)
                if not _kernel32.WriteFile(
                    self._plain, _address(memory), length, ctypes.byref(written), ctypes.byref(place)
                ):
                    raise _failed(f"writing {self._path}")
                offset += written.value
                memory = memory[written.value :]

        def flush(self) -> None:
            """Send what was written to where the other side reads."""
            if not _kernel32.FlushFileBuffers(self._plain):
                raise _failed(f"flushing {self._path}")

        def refresh(self, offset: int, nbytes: int) -> None:
            """Nothing to do: no read has gone through a cache of this process."""

        def nbytes(self) -> int:
            """Length of the file."""
            return os.stat(self._path).st_size

        def close(self) -> None:
            """Close the handles."""
            for handle in (self._plain, self._direct):
                if handle is not None:
                    _kernel32.CloseHandle(handle)
            self._plain = self._direct = None
