# SPDX-License-Identifier: BSD-3-Clause
"""The `file` transport's file: a mailbox on a drive that both sides see and neither maps.

Two kernels that share a drive by 9P, FUSE, virtiofs or SMB do not share memory: a mapping of one goes stale, two dirty
halves of one page lose a write, locks do not cross, and a word cannot be changed atomically. What does work on all of
them is to write whole pages that nobody else writes, to flush them, and to read them past the reader's cache. This
package does only that. Nothing is agreed *through* the file: who may use which part, how much is there and which
checksum it must have travels over HTTP, and a receiver believes nothing that has another checksum.

==========  ==========================================================
`layout`    where things lie; the page by which both sides know the file
`box`       `Mailbox`: put bytes at an offset, take them from one, verified
`_posix`    explicit I/O on Linux and the like
`_windows`  the same with Win32 calls
==========  ==========================================================

Standard library, NumPy and `shmpool.checksum` only, the same code on both sides; the allocator is the server's alone
(`gsb_server.transports.parts`).
"""

from gsb.mailbox.box import Mailbox
from gsb.mailbox.layout import GRANULE_NBYTES, PAGE_NBYTES, Layout, piece_generation

__all__ = ["GRANULE_NBYTES", "PAGE_NBYTES", "Layout", "Mailbox", "piece_generation"]
