# SPDX-License-Identifier: BSD-3-Clause
# cython: language_level=3
"""The compiled layer of channels: messages in and out of a ring, and waiting for them.

Knows cells, message layouts, spinning and sleeping. Names, creation and asyncio are `channel.py`'s.
"""

cimport cython
cimport numpy as cnp
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize, PyBytes_Size
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ._native cimport *

import json

import numpy as np

from . import _core, errors

cnp.import_array()


# Waiting (docs/channels.md, *Waking*; measured in docs/performance-notes.md).
cdef uint64_t SPIN_START_NS = 20_000
cdef uint64_t SPIN_MOST_NS = 50_000
cdef uint64_t SPIN_LEAST_NS = 4_000
cdef uint64_t SOON_NS = 150_000          # a sleep that ended within this time would have been a good spin
cdef uint64_t PERIOD_FIRST_NS = 5_000_000
cdef uint64_t PERIOD_RECV_NS = 200_000_000
cdef uint64_t PERIOD_SEND_NS = 50_000_000
cdef uint64_t FOREVER = <uint64_t>0xffffffffffffffff
cdef uint64_t ALIGN = 64
cdef int TIMED_OUT = 1
cdef int READY = 0

MAX_CAPACITY = SHMPOOL_MAX_CELLS
MAX_ATTACHMENTS = SHMPOOL_MAX_ATTACHMENTS
MAX_NAME_NBYTES = SHMPOOL_CHANNEL_NAME_NBYTES
PAYLOAD_OFFSET = SHMPOOL_PAYLOAD_OFFSET
ROLE_SENDS = SHMPOOL_ROLE_SENDS
ROLE_RECEIVES = SHMPOOL_ROLE_RECEIVES
ROLE_CURSOR = SHMPOOL_ROLE_CURSOR
BROADCAST = SHMPOOL_BROADCAST

cdef int FORM_ARRAY = 0
cdef int FORM_DICT = 1
cdef int FORM_LIST = 2

include "_dtype_cache.pxi"


cdef inline void wake(const shmpool_t *p, uint32_t *seq) noexcept:
    shmpool_os_wake(seq, shmpool_wake_key(p, seq))


cdef inline uint64_t aligned(uint64_t value, uint64_t step) noexcept nogil:
    return (value + step - 1) // step * step


# -- the text of a message -----------------------------------------------------------------------------------------
#
#     u16 number of arrays, u8 form, u8 0, u32 bytes of the header
#     per array: u16 name bytes, u16 dtype bytes, u8 ndim, u8 order, u16 0, u64 offset, u64 bytes, i64 shape[ndim],
#                dtype text, name; padded to 8
#     the header as JSON
#
# Offsets count from the start of the data in the cell, or from the start of the slot.

cdef struct entry_t:
    uint16_t name_nbytes
    uint16_t dtype_nbytes
    uint8_t ndim
    uint8_t order
    uint16_t zero
    uint64_t offset
    uint64_t nbytes


cdef inline uint64_t entry_room(Py_ssize_t name_nbytes, Py_ssize_t dtype_nbytes, int ndim) noexcept nogil:
    return sizeof(entry_t) + 8 * <uint64_t>ndim + aligned(name_nbytes + dtype_nbytes, 8)


cdef uint64_t write_entry(uint8_t *at, cnp.ndarray a, bytes name, bytes text, bint fortran, uint64_t offset):
    """Describe one array; how many bytes that took. There must be `entry_room`."""
    cdef entry_t e
    cdef int k
    cdef int64_t n
    e.name_nbytes = <uint16_t>PyBytes_Size(name) if name is not None else 0
    e.dtype_nbytes = <uint16_t>PyBytes_Size(text)
    e.ndim = <uint8_t>cnp.PyArray_NDIM(a)
    e.order = fortran
    e.zero = 0
    e.offset = offset
    e.nbytes = cnp.PyArray_NBYTES(a)
    memcpy(at, &e, sizeof(e))
    cdef uint8_t *p = at + sizeof(e)
    for k in range(e.ndim):
        n = cnp.PyArray_DIM(a, k)
        memcpy(p, &n, 8)
        p += 8
    memcpy(p, PyBytes_AsString(text), e.dtype_nbytes)
    if e.name_nbytes:
        memcpy(p + e.dtype_nbytes, PyBytes_AsString(name), e.name_nbytes)
    return entry_room(e.name_nbytes, e.dtype_nbytes, e.ndim)


cdef inline void write_head(uint8_t *at, int n, int form, uint32_t header_nbytes) noexcept:
    cdef uint16_t count = <uint16_t>n
    memcpy(at, &count, 2)
    at[2] = <uint8_t>form
    at[3] = 0
    memcpy(at + 4, &header_nbytes, 4)


cdef object corrupt(str what):
    return errors.PoolCorruptedError(
        f"a message's {what} is not one that shmpool writes.",
        hint="something else writes to the pool file; end the processes that use it and remove the file")


@cython.final
@cython.no_gc_clear
cdef class Received:
    """Owner of one pin on a slot that arrived in a message: the base of its arrays. Its death is the unpin."""

    cdef object core
    cdef const shmpool_bridge_t *lent
    cdef uint32_t slot

    def __dealloc__(self):
        if self.core is None:
            return
        cdef const shmpool_t *p = self.lent.pool
        if self.lent.forks[0] == self.lent.born and shmpool_unpin(p, self.slot):
            if shmpool_wake_needed(p):
                wake(p, &p.counters.wake_seq)
        self.core.let_go()


@cython.final
cdef class Message:
    """What was received: ``data`` (an array, or a dict of arrays) and ``header`` (None if there was none)."""

    cdef readonly object data
    cdef readonly object header

    def __init__(self):
        raise TypeError("messages come from Channel.recv_message()")

    def __repr__(self):
        return f"Message(data={self.data!r}, header={self.header!r})"


cdef const shmpool_bridge_t *borrow(object capsule) except NULL:
    return <const shmpool_bridge_t *>PyCapsule_GetPointer(capsule, SHMPOOL_BRIDGE_NAME)


cdef object name_of(const shmpool_ring_t *r):
    cdef uint32_t n = min(shmpool_relaxed32(&r.c.name_nbytes), <uint32_t>SHMPOOL_CHANNEL_NAME_NBYTES)
    return PyBytes_FromStringAndSize(r.c.name, n).decode("utf-8", "replace")


cdef inline bint is_ready(const shmpool_t *p, uint32_t index) noexcept:
    return shmpool_word_state(shmpool_load64(&p.channels[index].word)) == SHMPOOL_CHANNEL_READY


def find_channel(object core, str name):
    """(index, flags) of the channel of that name, or None. The caller holds the channel lock."""
    cdef const shmpool_bridge_t *lent = borrow(core.lend())
    cdef shmpool_ring_t r
    cdef uint32_t index
    for index in range(shmpool_channel_high_water(lent.pool)):
        if is_ready(lent.pool, index):
            if shmpool_ring_bind(&r, lent.pool, index) != SHMPOOL_OK:
                raise corrupt("channel record")
            if name_of(&r) == name:
                return index, r.flags
    return None


def snapshot_channels(object core):
    """All channels of a pool, without the lock; each value is true at its own instant. For `channel_stat`.

    (index, name, generation, flags, capacity, cell_nbytes, created_ns, tail, full cells, attachments, corrupt); an
    attachment: (client, role, cursor).
    """
    cdef const shmpool_bridge_t *lent = borrow(core.lend())
    cdef const shmpool_t *p = lent.pool
    cdef shmpool_ring_t r
    cdef uint32_t index, i
    cdef uint64_t w
    cdef bint damaged
    found = []
    for index in range(shmpool_channel_high_water(p)):
        if not is_ready(p, index):
            continue
        damaged = shmpool_ring_bind(&r, p, index) != SHMPOOL_OK
        ends = []
        for i in range(0 if damaged else shmpool_ring_attachments(&r)):
            w = shmpool_load64(&r.attachments[i].word)
            if w:
                ends.append((shmpool_word_owner(w) - 1, shmpool_word_state(w), shmpool_word_generation(w)))
        seen = (index, name_of(&r), r.generation, r.flags, r.capacity, r.cell_nbytes, r.c.created_ns,
                shmpool_load64(&r.c.tail), 0 if damaged else shmpool_ring_count(&r), ends, damaged)
        w = shmpool_load64(&r.c.word)
        if shmpool_word_state(w) == SHMPOOL_CHANNEL_READY and shmpool_word_generation(w) == r.generation:
            found.append(seen)
    return found


def make_channel(object core, bytes name, uint32_t capacity, uint32_t cell_nbytes, uint32_t flags, uint64_t now_ns):
    """Make a channel; its index, or -1 if every record is taken. The caller holds the channel lock."""
    cdef const shmpool_bridge_t *lent = borrow(core.lend())
    cdef const shmpool_t *p = lent.pool
    cdef uint32_t index
    cdef uint64_t start
    for index in range(p.geometry.max_channels):
        if shmpool_word_state(shmpool_load64(&p.channels[index].word)) == SHMPOOL_CHANNEL_FREE:
            start = p.geometry.channels_offset + index * p.geometry.channel_nbytes
            core.reserve_channel(start, SHMPOOL_PAYLOAD_OFFSET + <uint64_t>capacity * cell_nbytes)
            _core.failpoint("channel.reserved")
            shmpool_channel_make(p, index, PyBytes_AsString(name), <uint32_t>PyBytes_Size(name), capacity,
                                 cell_nbytes, flags, now_ns)
            return index
    return -1


def sweep_channels(object core):
    """Remove channels that nobody is attached to. The caller holds the channel lock."""
    cdef const shmpool_bridge_t *lent = borrow(core.lend())
    shmpool_channels_sweep(lent.pool)


cdef class Ring:
    """One object's attachment to one channel. `Channel` adds names, creation and asyncio."""

    cdef object __weakref__
    cdef shmpool_ring_t r
    cdef const shmpool_bridge_t *lent
    cdef object core
    cdef object region
    cdef bint attached      # an attachment and a hold on the mapping exist
    cdef bint is_closing
    cdef Py_ssize_t busy    # calls under way that need the attachment
    cdef uint32_t roles
    cdef uint64_t recv_spin
    cdef uint64_t send_spin

    def _enter(self, object core, uint32_t index, uint32_t roles, str region):
        """Attach to record `index`. The caller holds the channel lock and has seen the record READY."""
        if self.attached:
            raise TypeError("a channel object is attached once")
        self.lent = borrow(core.lend())
        if shmpool_ring_bind(&self.r, self.lent.pool, index) != SHMPOOL_OK:
            raise corrupt("channel record")
        if shmpool_ring_attach(&self.r) != SHMPOOL_OK:
            raise errors.TooManyClientsError(
                f"{SHMPOOL_MAX_ATTACHMENTS} objects are attached to this channel, which is the limit.")
        core.hold()
        self.core = core
        self.region = region
        self.roles = 0
        self.is_closing = False
        self.attached = True
        self.recv_spin = self.send_spin = SPIN_START_NS
        if roles:
            self.declare(roles)

    def __dealloc__(self):
        if self.attached:
            self.leave()

    cdef inline bint forked(self) noexcept:
        return self.lent.forks[0] != self.lent.born

    cdef int leave(self) except -1:
        self.attached = False
        if not self.forked() and not shmpool_evicted(self.r.p):  # evicted: the entry is a successor's by now
            shmpool_ring_detach(&self.r)
            wake(self.r.p, &self.r.c.recv_seq)
            wake(self.r.p, &self.r.c.send_seq)
        self.core.let_go()
        return 0

    def _close(self):
        """End the attachment: now, or when the last call under way returns. Wakes everybody."""
        if not self.attached:
            return
        self.is_closing = True
        if self.busy == 0:
            self.leave()
        elif not self.forked():
            shmpool_add32(&self.r.c.recv_seq, 1)
            shmpool_add32(&self.r.c.send_seq, 1)
            wake(self.r.p, &self.r.c.recv_seq)
            wake(self.r.p, &self.r.c.send_seq)

    def _abandon(self):
        """In a forked child: let go of what the parent has, without touching the channel."""
        self.busy = 0
        if self.attached:
            self.leave()

    cdef inline int begin(self) except -1:
        if self.lent == NULL:
            raise TypeError("use Channel.open() or Channel.attach()")
        if self.forked():
            raise errors.ForkedPoolError(
                "this channel object was inherited through fork; its place in the channel belongs to the parent.",
                hint="call reattach() in the child, or attach to the channel there")
        if self.is_closing:
            raise errors.ChannelClosedError("this channel object is closed.", reason="closed")
        if self.lent.closed[0]:
            raise errors.PoolClosedError("the pool of this channel is closed.")
        self.busy += 1
        return 0

    cdef inline int end(self) except -1:
        self.busy -= 1
        if self.is_closing and self.busy == 0 and self.attached:
            self.leave()
        return 0

    cdef int declare(self, uint32_t roles) except -1:
        shmpool_ring_declare(&self.r, roles)
        self.roles |= roles
        return 0

    @property
    def capacity(self):
        """Messages that fit in the ring."""
        return self.r.capacity

    @property
    def cell_nbytes(self):
        """Bytes of a cell: what does not fit in one travels through a slot."""
        return self.r.cell_nbytes

    @property
    def broadcast(self):
        """Whether every receiver gets every message."""
        return (self.r.flags & SHMPOOL_BROADCAST) != 0

    @property
    def closed(self):
        """Whether :meth:`close` was called."""
        return self.is_closing

    @property
    def is_forked(self):
        """Whether this object came through a fork."""
        return self.lent != NULL and self.forked()

    def _count(self, uint32_t role):
        """How many attached objects have that role."""
        cdef uint32_t i
        cdef int n = 0
        self.begin()
        try:
            for i in range(shmpool_ring_attachments(&self.r)):
                if shmpool_word_state(shmpool_load64(&self.r.attachments[i].word)) & role:
                    n += 1
            return n
        finally:
            self.end()

    @property
    def n_senders(self):
        """Attached objects that have sent or said that they will; the dead count until somebody cleans up."""
        return self._count(SHMPOOL_ROLE_SENDS)

    @property
    def n_receivers(self):
        """Attached objects that have received or said that they will."""
        return self._count(SHMPOOL_ROLE_RECEIVES)

    def qsize(self):
        """Messages in the ring at this moment; in a broadcast, those that this receiver has not had."""
        cdef uint64_t tail, cursor
        self.begin()
        try:
            if self.r.flags & SHMPOOL_BROADCAST:
                tail = shmpool_load64(&self.r.c.tail)
                cursor = shmpool_word_generation(shmpool_load64(&self.r.attachments[self.r.mine].word))
                return tail - cursor if self.roles & SHMPOOL_ROLE_RECEIVES and tail > cursor else 0
            return shmpool_ring_count(&self.r)
        finally:
            self.end()

    def empty(self):
        """Whether `recv` would have to wait at this moment."""
        self.begin()
        try:
            return not shmpool_ring_has_message(&self.r)
        finally:
            self.end()

    def full(self):
        """Whether `send` would have to wait at this moment."""
        self.begin()
        try:
            return not shmpool_ring_has_room(&self.r)
        finally:
            self.end()

    # -- waiting -------------------------------------------------------------------------------------------------

    cdef int attempt(self, bint receiving, uint64_t *position) noexcept nogil:
        if not receiving:
            return shmpool_ring_claim(&self.r, position)
        if self.r.flags & SHMPOOL_BROADCAST:
            return shmpool_ring_peek(&self.r, position)
        return shmpool_ring_take(&self.r, position)

    cdef int spin(self, bint receiving, uint64_t *position, uint64_t spin_ns) noexcept nogil:
        cdef uint64_t end = shmpool_os_monotonic_ns() + spin_ns
        cdef int rc
        cdef int _k
        while True:
            for _k in range(4):
                rc = self.attempt(receiving, position)
                if rc != SHMPOOL_EFULL and rc != SHMPOOL_EEMPTY:
                    return rc
            if shmpool_os_monotonic_ns() >= end:
                return rc
            shmpool_os_yield()

    cdef int wait(self, bint receiving, uint64_t *position, uint64_t deadline) except? -99:
        """Wait for a message or for room and take it. SHMPOOL_OK, an error, or EFULL/EEMPTY when time is over."""
        cdef uint32_t *seq = &self.r.c.recv_seq if receiving else &self.r.c.send_seq
        cdef uint32_t *waiters = &self.r.c.recv_waiters if receiving else &self.r.c.send_waiters
        cdef uint32_t peers = SHMPOOL_ROLE_SENDS if receiving else SHMPOOL_ROLE_RECEIVES
        cdef uint64_t longest = PERIOD_RECV_NS if receiving else PERIOD_SEND_NS
        cdef uint64_t period = PERIOD_FIRST_NS
        cdef uint64_t start = shmpool_os_monotonic_ns()
        cdef uint64_t spin_ns = self.recv_spin if receiving else self.send_spin
        cdef uint64_t now, before
        cdef uint32_t seen
        cdef int rc = SHMPOOL_EEMPTY if receiving else SHMPOOL_EFULL
        if deadline <= start:
            return rc
        if spin_ns:
            with nogil:
                rc = self.spin(receiving, position, min(spin_ns, deadline - start))
            if rc != SHMPOOL_EFULL and rc != SHMPOOL_EEMPTY:
                return rc
        while True:
            if self.is_closing:
                raise errors.ChannelClosedError("this channel object was closed meanwhile.", reason="closed")
            shmpool_store32(waiters, 1)  # SYNC-7: before the second attempt
            seen = shmpool_load32(seq)
            rc = self.attempt(receiving, position)
            if rc != SHMPOOL_EFULL and rc != SHMPOOL_EEMPTY:
                break
            if shmpool_ring_deserted(&self.r, peers):
                rc = self.attempt(receiving, position)  # what they sent before they left comes first
                if rc == SHMPOOL_EFULL or rc == SHMPOOL_EEMPTY:
                    raise self.deserted(receiving)
                break
            before = shmpool_os_monotonic_ns()
            if before >= deadline:
                return rc
            PyErr_CheckSignals()
            with nogil:
                shmpool_os_wait(seq, seen, min(period, deadline - before), shmpool_wake_key(self.r.p, seq))
            if shmpool_load32(seq) == seen and shmpool_os_monotonic_ns() >= before + period:
                period = min(2 * period, longest)
                if receiving and not self.r.flags & SHMPOOL_BROADCAST:
                    shmpool_ring_rescue(&self.r)
                self.core.reclaim()
        now = shmpool_os_monotonic_ns()
        if now - start < SOON_NS:
            spin_ns = min(max(2 * spin_ns, SPIN_LEAST_NS), SPIN_MOST_NS)
        else:
            spin_ns = spin_ns // 2 if spin_ns > SPIN_LEAST_NS else 0
        if receiving:
            self.recv_spin = spin_ns
        else:
            self.send_spin = spin_ns
        return rc

    cdef object deserted(self, bint receiving):
        if receiving:
            return errors.ChannelClosedError("all senders of this channel have closed it or died.", reason="peers")
        return errors.ChannelClosedError("all receivers of this channel have closed it or died.", reason="peers")

    cdef uint64_t deadline(self, object timeout, object default) except? 0:
        if timeout is None:
            timeout = default
        timeout = _core.seconds(timeout)
        if timeout >= 1e9:
            return FOREVER
        return shmpool_os_monotonic_ns() + <uint64_t>(timeout * 1e9)

    cdef int fail(self, int rc) except -1:
        if rc == SHMPOOL_EEVICTED:
            raise errors.ClientEvictedError(
                "this process lost its lock on the pool's lock file and was cleaned up as dead.",
                hint="something closed a file descriptor that is not its own; open the pool after that, or reattach()")
        if rc == SHMPOOL_EFULL:
            raise errors.ChannelFullError(
                f"the channel's {self.r.capacity} cells were full, and nobody received in time.",
                hint="receive faster, wait longer (timeout), or open the channel with a larger capacity")
        if rc == SHMPOOL_EEMPTY:
            raise errors.ChannelEmptyError("no message came in time.")
        raise corrupt("cell")

    def _wait_ready(self, bint receiving, double timeout):
        """Wait until `recv` (or `send`) has something to do or to raise; takes nothing. False: not in time."""
        cdef uint32_t *seq = &self.r.c.recv_seq if receiving else &self.r.c.send_seq
        cdef uint32_t *waiters = &self.r.c.recv_waiters if receiving else &self.r.c.send_waiters
        cdef uint32_t peers = SHMPOOL_ROLE_SENDS if receiving else SHMPOOL_ROLE_RECEIVES
        cdef uint64_t pause = <uint64_t>(timeout * 1e9)
        cdef uint32_t seen
        self.begin()
        try:
            shmpool_store32(waiters, 1)  # SYNC-7
            seen = shmpool_load32(seq)
            if shmpool_ring_has_message(&self.r) if receiving else shmpool_ring_has_room(&self.r):
                return True
            if shmpool_ring_deserted(&self.r, peers):
                return True
            with nogil:
                shmpool_os_wait(seq, seen, pause, shmpool_wake_key(self.r.p, seq))
            if shmpool_load32(seq) == seen:
                if receiving and not self.r.flags & SHMPOOL_BROADCAST:
                    shmpool_ring_rescue(&self.r)
                self.core.reclaim()
                return False
            return True
        finally:
            self.end()

    # -- sending -------------------------------------------------------------------------------------------------

    cdef inline void wake_receivers(self) noexcept:
        if shmpool_ring_wake_needed(&self.r.c.recv_seq, &self.r.c.recv_waiters):
            SHMPOOL_FAILPOINT("send.before_wake")
            wake(self.r.p, &self.r.c.recv_seq)

    cdef inline void wake_senders(self, uint64_t position) noexcept:
        if shmpool_load32(&self.r.c.send_waiters) and shmpool_ring_roomy(&self.r, position):
            if shmpool_ring_wake_needed(&self.r.c.send_seq, &self.r.c.send_waiters):
                SHMPOOL_FAILPOINT("recv.before_wake")
                wake(self.r.p, &self.r.c.send_seq)

    cdef int claim(self, object timeout, uint64_t *position) except -1:
        """Take a cell, waiting for one."""
        if not self.roles & SHMPOOL_ROLE_SENDS:
            self.declare(SHMPOOL_ROLE_SENDS)
        if shmpool_ring_deserted(&self.r, SHMPOOL_ROLE_RECEIVES):
            raise self.deserted(False)
        cdef int rc = shmpool_ring_claim(&self.r, position)
        if rc == SHMPOOL_EFULL:
            rc = self.wait(False, position, self.deadline(timeout, self.core.default_timeout))
        if rc != SHMPOOL_OK:
            self.fail(rc)
        return 0

    cdef int publish(self, uint64_t position) except -1:
        cdef int rc = shmpool_ring_publish(&self.r, position)
        if rc != SHMPOOL_OK:
            self.fail(rc)
        self.wake_receivers()
        return 0

    def send(self, object data not None, object timeout=None, *, object header=None):
        """Send an array, or a dict of arrays.

        Parameters
        ----------
        data : array_like, or dict of str to array_like
            What fits in a cell is copied there; what does not is copied into a slot of the pool, once. An array
            that lies in an unsealed loan of the pool is not copied at all.
        timeout : float, optional
            Seconds to wait for room; ``math.inf`` without limit. Default: the pool's `timeout`.
        header : JSON-able, optional
            Travels along; see :meth:`recv_message`.

        Raises
        ------
        ChannelFullError
            There was no room in time, in the ring or in the pool.
        ChannelClosedError
            All receivers are gone, or this object was closed.
        UnsupportedDtypeError, PayloadTooLargeError, PoolSpaceError
            As for :meth:`Pool.put`. A header that does not fit is a PayloadTooLargeError too.

        Notes
        -----
        Concurrency: any thread, any process; each thread's messages keep their order. Blocking: waits with the GIL
        released. Crash: a sender that dies before `send` returned has sent the message or has not; never a part.
        """
        cdef cnp.ndarray a
        cdef bytes text
        cdef uint64_t nbytes, meta, start, position
        cdef bint fortran = False
        if header is None and type(data) is np.ndarray:
            a = data
            nbytes = cnp.PyArray_NBYTES(a)
            if nbytes < self.r.cell_nbytes:
                if not cnp.PyArray_IS_C_CONTIGUOUS(a):
                    fortran = cnp.PyArray_IS_F_CONTIGUOUS(a)
                    if not fortran:
                        a = np.array(a, order="C", subok=False)
                text = text_of(descr_of(a))
                meta = 8 + entry_room(0, PyBytes_Size(text), cnp.PyArray_NDIM(a))
                start = aligned(meta, ALIGN)
                if start + nbytes <= self.r.cell_nbytes:
                    self.begin()
                    try:
                        self.claim(timeout, &position)
                        self.write_inline(position, a, text, fortran, meta, start, nbytes)
                        self.publish(position)
                    finally:
                        self.end()
                    return
        if isinstance(data, dict):
            names = []
            arrays = []
            for key, value in data.items():
                if not isinstance(key, str):
                    raise TypeError(f"the arrays of a message are named by strings, not {key!r}")
                names.append(key.encode())
                arrays.append(plain(value))
            self.send_many(arrays, names, FORM_DICT, header, timeout, None)
        else:
            self.send_many([plain(data)], None, FORM_ARRAY, header, timeout, None)

    cdef int write_inline(self, uint64_t position, cnp.ndarray a, bytes text, bint fortran, uint64_t meta,
                          uint64_t start, uint64_t nbytes) except -1:
        cdef shmpool_cell_t *cell = shmpool_ring_cell(&self.r, position)
        cdef uint8_t *payload = shmpool_ring_payload(&self.r, position)
        shmpool_ring_entrust(&self.r, position, 0, 0, 0)
        write_head(payload, 1, FORM_ARRAY, 0)
        write_entry(payload + 8, a, None, text, fortran, 0)
        SHMPOOL_FAILPOINT("send.half_written")
        memcpy(payload + start, cnp.PyArray_DATA(a), nbytes)
        cell.meta_nbytes = <uint32_t>meta
        cell.data_offset = <uint32_t>start
        cell.data_nbytes = nbytes
        cell.meta_offset = 0
        return 0

    def _send_list(self, list arrays, object timeout):
        """Send C-contiguous arrays without names."""
        self.send_many(arrays, None, FORM_LIST, None, timeout, None)

    def _reserve(self, object timeout):
        """Take a cell for a message that comes later; its position. It counts as a message, and keeps the attachment.

        Whoever takes it calls `_send_reserved` until that succeeds, or `_cancel`.
        """
        cdef uint64_t position
        self.begin()
        try:
            self.claim(timeout, &position)
        except BaseException:
            self.end()
            raise
        return position

    def _send_reserved(self, object position, list arrays, object timeout):
        """`_send_list` into a reserved cell; after an error it is still reserved."""
        self.send_many(arrays, None, FORM_LIST, None, timeout, position)
        self.end()

    def _cancel(self, uint64_t position):
        """Leave nothing in a reserved cell."""
        if not self.forked():
            shmpool_ring_bury(&self.r, position, self.r.p.me + 1)  # evicted: it is not mine, and nothing happens
            self.end()

    cdef int send_many(self, list arrays, list names, int form, object header, object timeout,
                       object reserved) except -1:
        cdef bytes encoded = b""
        cdef uint64_t room = 8
        cdef uint64_t nbytes = 0
        cdef Py_ssize_t k
        cdef uint64_t position
        cdef cnp.ndarray a
        cdef list texts = []
        if header is not None:
            encoded = json.dumps(header, separators=(",", ":")).encode()
        if len(arrays) > 65535:
            raise errors.PayloadTooLargeError(f"{len(arrays)} arrays in one message; the limit is 65535.")
        for k in range(len(arrays)):
            a = arrays[k]
            text = text_of(descr_of(a))
            texts.append(text)
            if len(text) > 65535 or (names is not None and len(names[k]) > 65535):
                raise errors.UnsupportedDtypeError("an array's name or dtype text is longer than 65535 bytes.")
            room += entry_room(0 if names is None else len(names[k]), len(text), cnp.PyArray_NDIM(a))
            nbytes = aligned(nbytes, ALIGN) + cnp.PyArray_NBYTES(a)
        room += len(encoded)
        self.begin()
        try:
            if room <= self.r.cell_nbytes and aligned(room, ALIGN) + nbytes <= self.r.cell_nbytes:
                arrays = [contiguous(item) for item in arrays]
                meta = self.describe(arrays, names, texts, form, encoded, room, None)
                if reserved is None:
                    self.claim(timeout, &position)
                else:
                    position = reserved
                try:
                    self.fill_inline(position, meta, arrays)
                except BaseException:
                    shmpool_ring_bury(&self.r, position, self.r.p.me + 1)
                    raise
                self.publish(position)
            else:
                self.send_slot(arrays, names, texts, form, encoded, room, nbytes, timeout, reserved)
        finally:
            self.end()
        return 0

    cdef bytes describe(self, list arrays, list names, list texts, int form, bytes header, uint64_t room,
                        list offsets):
        """The text of a message; without `offsets` the arrays follow each other."""
        cdef bytes meta = PyBytes_FromStringAndSize(NULL, room)
        cdef uint8_t *at = <uint8_t *>PyBytes_AsString(meta)
        cdef uint64_t offset = 0
        cdef Py_ssize_t k
        cdef cnp.ndarray a
        cdef bint fortran
        for k in range(<Py_ssize_t>room):
            at[k] = 0
        write_head(at, <int>len(arrays), form, <uint32_t>len(header))
        at += 8
        for k in range(len(arrays)):
            a = arrays[k]
            fortran = cnp.PyArray_IS_F_CONTIGUOUS(a) and not cnp.PyArray_IS_C_CONTIGUOUS(a)
            offset = aligned(offset, ALIGN) if offsets is None else offsets[k]
            at += write_entry(at, a, None if names is None else names[k], texts[k], fortran, offset)
            offset += cnp.PyArray_NBYTES(a)
        memcpy(at, PyBytes_AsString(header), len(header))
        return meta

    cdef int fill_inline(self, uint64_t position, bytes meta, list arrays) except -1:
        cdef shmpool_cell_t *cell = shmpool_ring_cell(&self.r, position)
        cdef uint8_t *payload = shmpool_ring_payload(&self.r, position)
        cdef uint64_t start = aligned(PyBytes_Size(meta), ALIGN)
        cdef uint64_t offset = 0
        cdef cnp.ndarray a
        shmpool_ring_entrust(&self.r, position, 0, 0, 0)
        memcpy(payload, PyBytes_AsString(meta), PyBytes_Size(meta))
        for item in arrays:
            a = item
            offset = aligned(offset, ALIGN)
            memcpy(payload + start + offset, cnp.PyArray_DATA(a), cnp.PyArray_NBYTES(a))
            offset += cnp.PyArray_NBYTES(a)
        cell.meta_nbytes = <uint32_t>PyBytes_Size(meta)
        cell.data_offset = <uint32_t>start
        cell.data_nbytes = offset
        cell.meta_offset = 0
        return 0

    cdef int await_room(self, uint64_t deadline) except -1:
        """Wait until a cell is free, so that nobody copies much and then waits. A hint: `claim` decides."""
        cdef uint64_t now
        if shmpool_ring_deserted(&self.r, SHMPOOL_ROLE_RECEIVES):
            raise self.deserted(False)
        while not shmpool_ring_has_room(&self.r):
            now = shmpool_os_monotonic_ns()
            if now >= deadline:
                self.fail(SHMPOOL_EFULL)
            PyErr_CheckSignals()
            self._wait_ready(False, min(deadline - now, PERIOD_SEND_NS) / 1e9)
            if shmpool_ring_deserted(&self.r, SHMPOOL_ROLE_RECEIVES):
                raise self.deserted(False)
        return 0

    cdef int send_slot(self, list arrays, list names, list texts, int form, bytes header, uint64_t room,
                       uint64_t nbytes, object timeout, object reserved) except -1:
        """Copy the arrays into a slot and send its handle."""
        cdef uint64_t deadline = self.deadline(timeout, self.core.default_timeout)
        cdef uint64_t meta_offset = 0
        cdef cnp.ndarray a
        cdef uint64_t offset = 0
        if not self.roles & SHMPOOL_ROLE_SENDS:
            self.declare(SHMPOOL_ROLE_SENDS)
        if reserved is None:
            self.await_room(deadline)
        try:
            if form == FORM_ARRAY and room <= self.r.cell_nbytes:
                a = arrays[0]
                handle = self.core.put(a, self.region, left(deadline))
                # An array of a loan may begin anywhere in its slot.
                base = <uint64_t>shmpool_slot_data(self.r.p, handle.slot)
                at = <uint64_t>cnp.PyArray_DATA(a)
                if base <= at and at < base + handle.span * self.r.p.geometry.slot_nbytes:
                    offset = at - base
                if nbytes and not cnp.PyArray_IS_C_CONTIGUOUS(a) and not cnp.PyArray_IS_F_CONTIGUOUS(a):
                    arrays = [np.broadcast_to(np.empty((), a.dtype), (<object>a).shape)]
                meta = self.describe(arrays, names, texts, form, header, room, [offset])
            else:
                if room > self.r.cell_nbytes:
                    meta_offset = max(aligned(nbytes, ALIGN), ALIGN)
                offsets = []
                for item in arrays:
                    offset = aligned(offset, ALIGN)
                    offsets.append(offset)
                    offset += cnp.PyArray_NBYTES(<cnp.ndarray>item)
                arrays = [contiguous(item) for item in arrays]
                meta = self.describe(arrays, names, texts, form, header, room, offsets)
                handle = self.pack(arrays, offsets, max(nbytes, meta_offset + (room if meta_offset else 0)),
                                   meta, meta_offset, deadline)
        except errors.PoolFullError as error:
            raise errors.ChannelFullError(
                f"no slot for the message: {error.message}", hint=error.hint) from error
        self.post(handle, meta, meta_offset, nbytes, deadline, reserved)
        return 0

    cdef object pack(self, list arrays, list offsets, uint64_t total, bytes meta, uint64_t meta_offset,
                     uint64_t deadline):
        """All arrays in one new slot; its handle."""
        with self.core.loan((total,), np.uint8, "C", self.region, left(deadline)) as loan:
            for item, offset in zip(arrays, offsets):
                if item.nbytes:
                    _core.fast_copy(loan.array[offset:offset + item.nbytes], as_bytes(item))
            if meta_offset:
                loan.array[meta_offset:] = np.frombuffer(meta, np.uint8)
            return loan.seal()

    cdef int post(self, object handle, bytes meta, uint64_t meta_offset, uint64_t nbytes, uint64_t deadline,
                  object reserved) except -1:
        """Send a sealed slot of mine; frees it if that fails."""
        cdef uint64_t position
        cdef shmpool_cell_t *cell
        cdef int rc
        if reserved is not None:
            position = reserved
        else:
            try:
                self.claim(left(deadline), &position)
            except BaseException:
                self.core.free(handle)
                raise
        cell = shmpool_ring_cell(&self.r, position)
        if meta_offset == 0:
            memcpy(shmpool_ring_payload(&self.r, position), PyBytes_AsString(meta), PyBytes_Size(meta))
        cell.meta_nbytes = <uint32_t>PyBytes_Size(meta)
        cell.data_offset = 0
        cell.data_nbytes = nbytes
        cell.meta_offset = meta_offset
        rc = shmpool_ring_entrust(&self.r, position, handle.slot, handle.span, handle.generation)
        if rc != SHMPOOL_OK:
            shmpool_ring_bury(&self.r, position, self.r.p.me + 1)
            raise errors.StaleHandleError("the message's slot was freed before it was sent.")
        self.publish(position)
        return 0

    def _send_loan(self, object loan, object timeout, object header):
        """Seal a loan and send it. If there is no room in time, the loan is still there."""
        cdef uint64_t deadline = self.deadline(timeout, self.core.default_timeout)
        cdef bytes encoded = b"" if header is None else json.dumps(header, separators=(",", ":")).encode()
        array = loan.array
        text = text_of(descr_of(array))
        cdef uint64_t room = 8 + entry_room(0, len(text), array.ndim) + len(encoded)
        if room > self.r.cell_nbytes:
            raise errors.PayloadTooLargeError(
                f"dtype and header take {room} bytes, a cell of this channel has {self.r.cell_nbytes}.",
                hint="send a smaller header, or open the channel with larger cells (cell_nbytes)")
        self.begin()
        try:
            if not self.roles & SHMPOOL_ROLE_SENDS:
                self.declare(SHMPOOL_ROLE_SENDS)
            self.await_room(deadline)
            meta = self.describe([array], None, [text], FORM_ARRAY, encoded, room, [0])
            nbytes = array.nbytes
            del array
            self.post(loan.seal(), meta, 0, nbytes, deadline, None)
        finally:
            self.end()

    # -- receiving -----------------------------------------------------------------------------------------------

    def recv(self, object timeout=None):
        """The next message: a read-only array, or a dict of them.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait. Default: without limit.

        Returns
        -------
        ndarray or dict of str to ndarray
            Views of the sender's slot, without a copy; it is freed when the last of them is gone. Small arrays come
            as copies of the ring's cell.

        Raises
        ------
        ChannelEmptyError
            Nothing came in time.
        ChannelClosedError
            Nothing is left and all senders are gone; or this object was closed.

        Notes
        -----
        Concurrency: any thread, any process; each message goes to one of them. Blocking: waits with the GIL released.
        Crash: a message whose receiver dies before `recv` returned may go to another receiver.
        """
        return self.receive(timeout, False, None)

    def recv_message(self, object timeout=None):
        """The next message with its header; otherwise as :meth:`recv`.

        Returns
        -------
        Message
            ``.data`` and ``.header``.
        """
        cdef Message message = Message.__new__(Message)
        headers = []
        message.data = self.receive(timeout, False, headers)
        message.header = headers[0]
        return message

    def _recv_list(self, object timeout):
        """The next message of `_send_list`, as writable arrays: nobody else has them.

        Views of its slot; private copies where readers keep half of the region's slots already. A program that collects
        what it receives would otherwise stop its own senders.
        """
        return self.receive(timeout, True, None)

    cdef bint crowded(self, uint32_t slot):
        """Whether what receivers keep takes more than half of the region that `slot` is of, that one included."""
        region = self.core.geometry.region_of(slot)
        n_kept, n_slots = self.core.n_kept(region)
        return 2 * n_kept > n_slots

    cdef object receive(self, object timeout, bint writable, list headers):
        cdef uint64_t position = 0
        cdef int rc
        cdef object result
        self.begin()
        try:
            if not self.roles & SHMPOOL_ROLE_RECEIVES:
                self.declare(SHMPOOL_ROLE_RECEIVES)
            while True:
                rc = self.attempt(True, &position)
                if rc == SHMPOOL_EEMPTY:
                    rc = self.wait(True, &position,
                                   FOREVER if timeout is None else self.deadline(timeout, None))
                if rc == SHMPOOL_EEMPTY and shmpool_ring_deserted(&self.r, SHMPOOL_ROLE_SENDS):
                    rc = self.attempt(True, &position)
                    if rc == SHMPOOL_EEMPTY:
                        raise self.deserted(True)
                if rc != SHMPOOL_OK:
                    self.fail(rc)
                result = self.finish(position, writable, headers)
                if result is not None:
                    return result
                # another thread of ours was faster (broadcast)
        finally:
            self.end()

    cdef object finish(self, uint64_t position, bint writable, list headers):
        """Make the message of a cell that is mine to read, and accept it. None: it went to another thread."""
        cdef shmpool_cell_t *cell = shmpool_ring_cell(&self.r, position)
        cdef bint shared = (self.r.flags & SHMPOOL_BROADCAST) != 0
        cdef uint64_t generation = shmpool_load64(&cell.generation)
        cdef uint32_t slot = shmpool_relaxed32(&cell.slot)
        cdef uint32_t span = shmpool_relaxed32(&cell.span)
        cdef uint32_t meta_nbytes = cell.meta_nbytes
        cdef uint64_t data_offset = cell.data_offset
        cdef uint64_t data_nbytes = cell.data_nbytes
        cdef uint64_t meta_offset = cell.meta_offset
        cdef const uint8_t *meta = shmpool_ring_payload(&self.r, position)
        cdef const uint8_t *data = meta + data_offset
        cdef Received owner = None
        cdef bint whole = True
        cdef bint mine
        cdef object result = None
        cdef object error = None
        if generation == 0:
            if data_offset > self.r.cell_nbytes or data_nbytes > self.r.cell_nbytes - data_offset:
                whole = False
            if meta_nbytes > self.r.cell_nbytes:
                whole = False
        else:
            if shmpool_pin(self.r.p, slot, generation) == SHMPOOL_OK:
                owner = Received.__new__(Received)
                owner.lent = self.lent
                owner.slot = slot
                self.core.hold()
                owner.core = self.core
                if span == 0 or span > self.r.p.geometry.n_slots - slot:
                    whole = False
                else:
                    data = shmpool_slot_data(self.r.p, slot)
                    data_nbytes = span * self.r.p.geometry.slot_nbytes
                    if meta_offset != 0:
                        meta = data + meta_offset
                        whole = meta_offset < data_nbytes and meta_nbytes <= data_nbytes - meta_offset
                    else:
                        whole = meta_nbytes <= self.r.cell_nbytes
            else:
                whole = False
        try:
            if not whole:
                raise corrupt("cell")
            result = self.read(meta, meta_nbytes, data, data_nbytes, owner, writable, headers)
        except MemoryError:
            if not shared:
                shmpool_ring_give_back(&self.r, position, self.r.p.me + 1)
            raise
        except errors.ShmPoolError as caught:
            error = caught  # accept it nevertheless: whoever got it again would fail again
        except Exception as caught:
            error = corrupt("text")
            error.__cause__ = caught
        if shared:
            mine = shmpool_ring_advance(&self.r, position)
            if not mine:
                return None
        else:
            if owner is not None:
                self.core.prepare_read(slot, data_nbytes if meta_offset else cell.data_nbytes)
                shmpool_ring_redeem(&self.r, slot, generation)
            if shmpool_ring_accept(&self.r, position) != SHMPOOL_OK:
                self.fail(SHMPOOL_EEVICTED)
            if owner is not None:
                shmpool_free(self.r.p, slot, generation)
        self.wake_senders(position)
        if error is not None:
            raise error
        if writable and owner is not None and self.crowded(slot):
            result = [private_copy(array) for array in result]
        return result

    cdef object read(self, const uint8_t *meta, uint64_t meta_nbytes, const uint8_t *data, uint64_t data_nbytes,
                     Received owner, bint writable, list headers):
        """The arrays that a message's text describes. Every number is read once and checked before it is used."""
        cdef uint16_t count
        cdef uint8_t form
        cdef uint32_t header_nbytes
        cdef uint64_t at = 8
        cdef entry_t e
        cdef uint64_t room
        cdef Py_ssize_t _k
        cdef list arrays = None
        cdef list names = None
        cdef object array = None
        if meta_nbytes < 8:
            raise corrupt("text")
        memcpy(&count, meta, 2)
        form = meta[2]
        memcpy(&header_nbytes, meta + 4, 4)
        if form == FORM_DICT:
            names = []
        if form != FORM_ARRAY:
            arrays = []
        elif count != 1:
            raise corrupt("text")
        for _k in range(count):
            if meta_nbytes - at < sizeof(e):
                raise corrupt("text")
            memcpy(&e, meta + at, sizeof(e))
            room = entry_room(e.name_nbytes, e.dtype_nbytes, e.ndim)
            if meta_nbytes - at < room or e.ndim > SHMPOOL_MAX_NDIM or e.order > 1:
                raise corrupt("text")
            if e.offset > data_nbytes or e.nbytes > data_nbytes - e.offset:
                raise corrupt("text")
            array = self.array_of(&e, meta + at + sizeof(e), data, owner, writable)
            if arrays is not None:
                arrays.append(array)
            if names is not None:
                names.append(PyBytes_FromStringAndSize(
                    <const char *>meta + at + sizeof(e) + 8 * e.ndim + e.dtype_nbytes, e.name_nbytes).decode())
            at += room
        if header_nbytes > meta_nbytes - at:
            raise corrupt("text")
        if headers is not None:
            headers.append(json.loads(PyBytes_FromStringAndSize(<const char *>meta + at, header_nbytes))
                           if header_nbytes else None)
        if names is not None:
            return dict(zip(names, arrays))
        return array if arrays is None else arrays

    cdef object array_of(self, entry_t *e, const uint8_t *text, const uint8_t *data, Received owner, bint writable):
        cdef cnp.npy_intp[64] dims
        cdef int64_t n
        cdef int k
        cdef cnp.dtype dtype = dtype_of(PyBytes_FromStringAndSize(<const char *>text + 8 * e.ndim, e.dtype_nbytes))
        cdef uint64_t product = dtype.itemsize
        cdef cnp.ndarray array
        for k in range(e.ndim):
            memcpy(&n, text + 8 * k, 8)
            dims[k] = n
            if n < 0 or (product != 0 and <uint64_t>n > (<uint64_t>1 << 62) // product):
                raise corrupt("shape")
            product *= <uint64_t>n
        if product != e.nbytes or dtype.subdtype is not None:
            raise corrupt("shape")
        cdef int flags = cnp.NPY_ARRAY_F_CONTIGUOUS if e.order == 1 else cnp.NPY_ARRAY_C_CONTIGUOUS
        Py_INCREF(dtype)
        if owner is None:
            array = PyArray_NewFromDescr(&PyArray_Type, dtype, e.ndim, dims, NULL, NULL, e.order, None)
            memcpy(cnp.PyArray_DATA(array), data + e.offset, e.nbytes)
        else:
            array = PyArray_NewFromDescr(&PyArray_Type, dtype, e.ndim, dims, NULL, <void *>(data + e.offset),
                                         flags | cnp.NPY_ARRAY_WRITEABLE, None)
            cnp.PyArray_UpdateFlags(array, cnp.NPY_ARRAY_UPDATE_ALL)
            cnp.set_array_base(array, owner)
        if not writable:
            cnp.PyArray_CLEARFLAGS(array, cnp.NPY_ARRAY_WRITEABLE)
        return array

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return self.receive(None, False, None)
        except errors.ChannelClosedError:
            raise StopIteration from None


cdef object left(uint64_t deadline):
    """Seconds until then."""
    cdef uint64_t now = shmpool_os_monotonic_ns()
    if deadline == FOREVER:
        return float("inf")
    return (deadline - now) / 1e9 if deadline > now else 0.0


cdef object plain(object array):
    if type(array) is np.ndarray:
        return array
    if isinstance(array, np.ma.MaskedArray):
        raise errors.UnsupportedDtypeError(
            "a masked array is two arrays.", hint="send its .data and its .mask, or array.filled(value)")
    return np.asarray(array)


cdef object private_copy(cnp.ndarray array):
    fresh = np.empty_like(array)
    _core.fast_copy(fresh, array)
    return fresh


cdef object contiguous(cnp.ndarray array):
    if cnp.PyArray_IS_C_CONTIGUOUS(array) or cnp.PyArray_IS_F_CONTIGUOUS(array):
        return array
    return np.array(array, order="C", subok=False)


cdef object as_bytes(cnp.ndarray array):
    """The bytes of a contiguous array in memory order."""
    if not cnp.PyArray_IS_C_CONTIGUOUS(array):
        array = (<object>array).T
    return (<object>array).reshape(-1).view(np.uint8)
