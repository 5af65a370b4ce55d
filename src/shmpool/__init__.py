# SPDX-License-Identifier: BSD-3-Clause
"""NumPy arrays across process borders of one machine, at the speed of one copy or none.

>>> import numpy as np, shmpool
>>> pool = shmpool.Pool.open()                  # doctest: +SKIP
>>> handle = pool.put(np.arange(10))            # doctest: +SKIP
>>> pool.get(handle)                            # in any process; doctest: +SKIP
array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
"""

from ._channel import Message
from ._core import Geometry, Handle, Loan, checksum
from .channel import Channel, ChannelLoan
from .channel_stat import ChannelStat, EndStat
from .errors import (
    BufferLayoutError,
    ChannelClosedError,
    ChannelEmptyError,
    ChannelExistsError,
    ChannelFullError,
    ChannelNotFoundError,
    ClientEvictedError,
    ClientGoneError,
    ForkedPoolError,
    HandleError,
    LoanError,
    PayloadTooLargeError,
    PoolBusyError,
    PoolClosedError,
    PoolCorruptedError,
    PoolExistsError,
    PoolFormatError,
    PoolFullError,
    PoolNotFoundError,
    PoolPermissionError,
    PoolSpaceError,
    ShmPoolError,
    StaleHandleError,
    TooManyChannelsError,
    TooManyClientsError,
    UnsupportedDtypeError,
    UnsupportedFilesystemError,
)
from .paths import default_path
from .pool import ClientId, Pool
from .queues import Queue
from .stat import ClientStat, PoolStat, SlotStat

__version__ = "0.1.0"

__all__ = [
    "BufferLayoutError",
    "Channel",
    "ChannelClosedError",
    "ChannelEmptyError",
    "ChannelExistsError",
    "ChannelFullError",
    "ChannelLoan",
    "ChannelNotFoundError",
    "ChannelStat",
    "ClientEvictedError",
    "ClientGoneError",
    "ClientId",
    "ClientStat",
    "EndStat",
    "ForkedPoolError",
    "Geometry",
    "Handle",
    "HandleError",
    "Loan",
    "LoanError",
    "Message",
    "PayloadTooLargeError",
    "Pool",
    "PoolBusyError",
    "PoolClosedError",
    "PoolCorruptedError",
    "PoolExistsError",
    "PoolFormatError",
    "PoolFullError",
    "PoolNotFoundError",
    "PoolPermissionError",
    "PoolSpaceError",
    "PoolStat",
    "Queue",
    "ShmPoolError",
    "SlotStat",
    "StaleHandleError",
    "TooManyChannelsError",
    "TooManyClientsError",
    "UnsupportedDtypeError",
    "UnsupportedFilesystemError",
    "checksum",
    "default_path",
]
