# SPDX-License-Identifier: BSD-3-Clause
# cython: language_level=3
"""The compiled layer: the C core of a pool with reference-counted owners around it.

Knows slots, pins, copies and waiting. Knows nothing of paths, defaults, files on disk or printing: that is policy, and
lives in Python. Its one door to exceptions is `_raise`.
"""

cimport cython
cimport numpy as cnp
from cpython.buffer cimport PyBUF_ANY_CONTIGUOUS, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize, PyBytes_Size
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport Py_INCREF
from libc.errno cimport EBADF, EFBIG, EINTR, EMFILE, ENOENT, ENOSPC
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from ._native cimport *

import operator
import os
import struct

import numpy as np

from . import errors

cnp.import_array()


cdef extern from "os/os.h" nogil:
    enum:
        SHMPOOL_OS_REFUSED, SHMPOOL_LOCK_NONE, SHMPOOL_LOCK_SHARED, SHMPOOL_LOCK_EXCLUSIVE
        SHMPOOL_OPEN_READ, SHMPOOL_OPEN_WRITE, SHMPOOL_OPEN_CREATE, SHMPOOL_OPEN_REMOVE
        SHMPOOL_ACCESS_PRIVATE, SHMPOOL_ACCESS_FOREIGN, SHMPOOL_ACCESS_OPEN
    uint64_t SHMPOOL_OS_POPULATE_MIN
    int shmpool_os_open(const char *path, int how) noexcept
    int shmpool_os_access(int fd) noexcept
    int shmpool_os_remove(int fd, const char *path) noexcept
    int64_t shmpool_os_read(int fd, void *data, uint64_t nbytes, uint64_t offset) noexcept
    int shmpool_os_write(int fd, const void *data, uint64_t nbytes, uint64_t offset) noexcept
    int shmpool_os_resize(int fd, uint64_t nbytes) noexcept
    int64_t shmpool_os_size(int fd) noexcept
    int shmpool_os_lock(int fd, int64_t byte, int mode) noexcept
    int shmpool_os_downgrade(int fd, int64_t byte) noexcept
    int shmpool_os_is_locked(int fd, int64_t byte, int exclusively) noexcept
    uint64_t shmpool_os_first_reservation(uint64_t table_nbytes, uint64_t file_nbytes) noexcept
    int shmpool_os_reserve(int fd, uint64_t offset, uint64_t nbytes) noexcept
    int shmpool_os_map(int fd, uint64_t nbytes, void **base) noexcept
    void shmpool_os_unmap(void *base, uint64_t nbytes) noexcept
    int shmpool_os_populate(void *address, uint64_t nbytes, int write) noexcept
    uint64_t shmpool_os_pid_namespace() noexcept
    uint32_t shmpool_os_fork_count() noexcept
    const uint32_t *shmpool_os_fork_counter() noexcept
    ctypedef struct shmpool_os_file_t:
        uint64_t device
    int shmpool_os_identify(int fd, shmpool_os_file_t *file) noexcept
    int shmpool_os_names(int fd, const shmpool_os_file_t *file) noexcept
    int64_t shmpool_os_own(int fd) noexcept
    int shmpool_os_owns(int fd, int64_t ticket) noexcept
    void shmpool_os_close(int fd, int64_t ticket, const shmpool_os_file_t *file) noexcept
    int shmpool_os_open_again(const char *path, const shmpool_os_file_t *file) noexcept
    uint64_t shmpool_os_available(int fd) noexcept

cdef extern from "core/copy.h" nogil:
    ctypedef void (*shmpool_copy_kernel)(unsigned char *dst, const unsigned char *src, size_t nbytes) noexcept
    enum shmpool_copy_isa:
        SHMPOOL_COPY_SSE2, SHMPOOL_COPY_AVX2, SHMPOOL_COPY_AVX512
    void shmpool_copy(void *dst, const void *src, size_t nbytes, int n_threads) noexcept
    shmpool_copy_kernel *shmpool_copy_find_kernel(shmpool_copy_isa isa) noexcept

cdef extern from "core/hash.h" nogil:
    ctypedef struct shmpool_hash_t:
        uint64_t low
        uint64_t high
    shmpool_hash_t shmpool_hash(const void *data, size_t nbytes, uint64_t seed) noexcept

cdef extern from *:
    Py_ssize_t Py_REFCNT(PyObject *o)


# One verdict for every wait: a lost wake-up or a death costs at most this much (docs/format.md, back-pressure).
cdef uint64_t WAIT_PERIOD_NS = 10_000_000
# Memory is reserved in steps, so that growing arrays in one slot do not make one system call each.
cdef uint64_t RESERVE_STEP = 2 << 20
# Page tables are filled in pieces of a few milliseconds; smaller ones cost more (docs/performance-notes.md).
cdef uint64_t PIECE_NBYTES = 8 << 20
# Below this, faulting the pages one by one is cheaper than asking the kernel for them.
cdef uint64_t POPULATE_NBYTES = SHMPOOL_OS_POPULATE_MIN
cdef uint64_t DATA_ALIGN = 64
# Hashing this much takes about a microsecond, which is what giving up the GIL and getting it back may cost.
cdef uint64_t HASH_WITH_GIL_NBYTES = 16 << 10

FORMAT_VERSION = SHMPOOL_FORMAT_VERSION
PAGE_NBYTES = SHMPOOL_PAGE
HUGE_PAGE_NBYTES = SHMPOOL_HUGE_PAGE
MAX_SLOTS = SHMPOOL_MAX_SLOTS
MAX_CLIENTS = SHMPOOL_MAX_CLIENTS
LABEL_NBYTES = SHMPOOL_LABEL_NBYTES
LOCK_NONE = SHMPOOL_LOCK_NONE
LOCK_SHARED = SHMPOOL_LOCK_SHARED
LOCK_EXCLUSIVE = SHMPOOL_LOCK_EXCLUSIVE
LOCK_BYTE_LIFE = 0
LOCK_BYTE_CHANNELS = 1
LOCK_BYTE_CLIENTS = 64
LOCK_BYTE_WITNESS = 1 << 20
WITNESS_STRIDE = SHMPOOL_WITNESS_STRIDE
WITNESS_LANES = SHMPOOL_WITNESS_LANES
# In the pool file, beyond all data: where locks are mandatory, a locked byte cannot be read or written by others.
LOCK_BYTE_POOL = 1 << 62
OPEN_READ = SHMPOOL_OPEN_READ
OPEN_WRITE = SHMPOOL_OPEN_WRITE
OPEN_CREATE = SHMPOOL_OPEN_CREATE
OPEN_REMOVE = SHMPOOL_OPEN_REMOVE

REGIONS = ("input", "output", "scratch")
STATES = ("free", "writing", "sealed", "retired", "tail")
cdef dict REGION_INDEX = {name: index for index, name in enumerate(REGIONS)}

include "_dtype_cache.pxi"


cdef object _raise(int rc, str what):
    """Turn a result of the C core into an exception: the only place that does."""
    if rc == SHMPOOL_ESTALE:
        raise errors.StaleHandleError(
            f"{what}: the slot was freed or handed out again since this handle was made.",
            hint="an array is freed by free(), or when its owner closes the pool or ends: keep the owner until the "
                 "reader is done, or give() the array away; free it once",
        )
    if rc == SHMPOOL_EEVICTED:
        raise errors.ClientEvictedError(
            f"{what}: this process lost its lock on the pool's lock file and was cleaned up as dead.",
            hint="something closed a file descriptor that is not its own (os.closerange? a daemoniser?); "
                 "open the pool after that, or call reattach()",
        )
    if rc == SHMPOOL_EGONE:
        raise errors.ClientGoneError(f"{what}: the client is not attached any more.")
    if rc == SHMPOOL_ECORRUPT:
        raise errors.PoolCorruptedError(
            f"{what}: the slot's word or descriptor is not one that shmpool writes.",
            hint="something else writes to the pool file; end the processes that use it and remove the file",
        )
    raise errors.ShmPoolError(f"{what}: unexpected result {rc} of the core.")


def failpoint(str label):
    """Mark a place in Python code at which crash tests may kill the process. Nothing in a normal build."""
    cdef bytes encoded = label.encode()
    SHMPOOL_FAILPOINT(PyBytes_AsString(encoded))


def layout_stamp():
    """The stamp by which two builds with other structures refuse each other."""
    return shmpool_layout_stamp()


def monotonic_ns():
    """The clock of `claimed_ns` and its like: one for all processes of this machine."""
    return shmpool_os_monotonic_ns()


def first_reservation(Geometry geometry not None):
    """Bytes of a new pool file, from its start, that must be backed with memory before it is READY."""
    return shmpool_os_first_reservation(geometry.g.table_nbytes, geometry.g.file_nbytes)


def open_file(bytes path not None, int how):
    """Open a file, as a Descriptor from the first moment: a child forked meanwhile does not inherit it.

    Raises OSError; EBUSY says that somebody else has it for himself alone, or is removing it.
    """
    cdef int fd = shmpool_os_open(PyBytes_AsString(path), how)
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd))
    return Descriptor(fd)


def reserve(int fd, uint64_t offset, uint64_t nbytes):
    """Back a range of the file with memory. Raises OSError (ENOSPC) and leaves no SIGBUS behind."""
    cdef int rc = -EINTR
    while rc == -EINTR:
        with nogil:
            rc = shmpool_os_reserve(fd, offset, nbytes)
        PyErr_CheckSignals()
    if rc < 0:
        raise OSError(-rc, f"reserving {nbytes} bytes failed")


@cython.final
cdef class Geometry:
    """The four numbers that define a pool, and what follows from them. Immutable."""

    cdef shmpool_geometry_t g

    def __init__(self, slot_nbytes, input_slots, output_slots, scratch_slots, max_clients, max_channels=32,
                 channel_nbytes=4 * 2**20):
        cdef uint32_t[3] regions
        if self.g.n_slots != 0:
            raise TypeError("a Geometry does not change")
        counts = (input_slots, output_slots, scratch_slots, max_clients, max_channels)
        fits = all(0 <= operator.index(n) < 2**31 for n in counts)
        if fits and 0 <= operator.index(slot_nbytes) < 2**63 and 0 <= operator.index(channel_nbytes) < 2**63:
            regions[0] = input_slots
            regions[1] = output_slots
            regions[2] = scratch_slots
            fits = shmpool_geometry_init_all(&self.g, slot_nbytes, regions, max_clients, max_channels,
                                             channel_nbytes if max_channels else 0) == SHMPOOL_OK
        else:
            fits = False
        if not fits:
            self.g.n_slots = 0
            raise ValueError(
                f"impossible geometry: slot_nbytes={slot_nbytes} (a positive multiple of {SHMPOOL_PAGE}), "
                f"slots={input_slots}+{output_slots}+{scratch_slots} (1 to {SHMPOOL_MAX_SLOTS} in all), "
                f"max_clients={max_clients} (1 to {SHMPOOL_MAX_CLIENTS}), "
                f"max_channels={max_channels} (at most {SHMPOOL_MAX_CHANNELS}) of channel_nbytes={channel_nbytes} "
                f"(a multiple of {SHMPOOL_PAGE} above {SHMPOOL_PAYLOAD_OFFSET})"
            )

    @property
    def slot_nbytes(self):
        return self.g.slot_nbytes

    @property
    def input_slots(self):
        return self.g.region_slots[0]

    @property
    def output_slots(self):
        return self.g.region_slots[1]

    @property
    def scratch_slots(self):
        return self.g.region_slots[2]

    @property
    def n_slots(self):
        return self.g.n_slots

    @property
    def max_clients(self):
        return self.g.max_clients

    @property
    def max_channels(self):
        return self.g.max_channels

    @property
    def channel_nbytes(self):
        """Bytes of the file set aside for each channel."""
        return self.g.channel_nbytes

    @property
    def channels_offset(self):
        return self.g.channels_offset

    @property
    def nbytes(self):
        """Bytes of all slots together."""
        return self.g.n_slots * self.g.slot_nbytes

    @property
    def slots_offset(self):
        return self.g.slots_offset

    @property
    def table_nbytes(self):
        """Bytes of header, counters and tables, in whole pages."""
        return self.g.table_nbytes

    @property
    def witness_offset(self):
        return self.g.witness_offset

    @property
    def file_nbytes(self):
        return self.g.file_nbytes

    def region_of(self, uint32_t slot):
        for index in range(3):
            if slot < self.g.region_start[index] + self.g.region_slots[index]:
                return REGIONS[index]
        raise ValueError(f"no slot {slot} in a pool of {self.g.n_slots}")

    def _key(self):
        return (self.slot_nbytes, self.input_slots, self.output_slots, self.scratch_slots, self.max_clients,
                self.max_channels, self.channel_nbytes)

    def __eq__(self, other):
        return isinstance(other, Geometry) and self._key() == (<Geometry>other)._key()

    def __hash__(self):
        return hash(self._key())

    def __reduce__(self):
        return Geometry, self._key()

    def __repr__(self):
        return (f"Geometry(slot_nbytes={self.slot_nbytes}, input_slots={self.input_slots}, "
                f"output_slots={self.output_slots}, scratch_slots={self.scratch_slots}, "
                f"max_clients={self.max_clients}, max_channels={self.max_channels}, "
                f"channel_nbytes={self.channel_nbytes})")


def header_creating():
    """The first page of a pool whose creation has begun."""
    cdef shmpool_header_t h
    shmpool_header_mark_creating(&h)
    return PyBytes_FromStringAndSize(<char *>&h, sizeof(h))


def header_ready(Geometry geometry, bytes uuid, uint64_t created_ns):
    """The first page of a finished pool."""
    cdef shmpool_header_t h
    if len(uuid) != 16:
        raise ValueError("a pool uuid has 16 bytes")
    shmpool_header_mark_creating(&h)
    shmpool_header_fill(&h, &geometry.g, <const uint8_t *>PyBytes_AsString(uuid), created_ns)
    h.init_state = SHMPOOL_READY
    return PyBytes_FromStringAndSize(<char *>&h, sizeof(h))


def header_check(bytes page, uint64_t file_nbytes):
    """Judge a private copy of a first page.

    Returns
    -------
    (verdict, geometry, uuid, format_version, layout_stamp)
        `verdict` is one of ``ok``, ``magic``, ``version``, ``layout``, ``creating``, ``truncated``, ``corrupt``;
        `geometry` is None unless it is ``ok`` or ``truncated``.
    """
    cdef shmpool_header_t h
    memset(&h, 0, sizeof(h))
    memcpy(&h, PyBytes_AsString(page), min(<size_t>PyBytes_Size(page), sizeof(h)))
    cdef Geometry geometry = Geometry.__new__(Geometry)
    cdef int rc = shmpool_header_check(&h, file_nbytes, &geometry.g)
    verdict = {SHMPOOL_OK: "ok", SHMPOOL_EMAGIC: "magic", SHMPOOL_EVERSION: "version", SHMPOOL_ELAYOUT: "layout",
               SHMPOOL_ENOTREADY: "creating", SHMPOOL_ETRUNCATED: "truncated"}.get(rc, "corrupt")
    known = rc == SHMPOOL_OK or rc == SHMPOOL_ETRUNCATED
    return (verdict, geometry if known else None, PyBytes_FromStringAndSize(<char *>h.uuid, 16), h.format_version,
            h.layout_stamp)


@cython.final
@cython.no_gc_clear
cdef class Descriptor:
    """Owner of an open file: closes it when told to or when it dies, and in every forked child at once.

    Remembers which file it opened. When other code has closed the number and it names another file now, `check` says so
    and nothing of that file is touched.
    """

    cdef int fd
    cdef int64_t ticket
    cdef shmpool_os_file_t file
    cdef uint32_t born_in_fork

    def __cinit__(self):
        self.fd = -1

    def __init__(self, int fd):
        """Take over an open descriptor, also on failure."""
        cdef int rc = shmpool_os_identify(fd, &self.file)
        if self.fd >= 0:
            raise TypeError("a Descriptor does not change")
        if rc < 0:
            raise OSError(-rc, "the descriptor is not open")
        self.born_in_fork = shmpool_os_fork_count()
        self.ticket = shmpool_os_own(fd)
        self.fd = fd
        if self.ticket < 0:
            raise OSError(EMFILE, "more pools are open in this process than it can keep track of")

    def __dealloc__(self):
        self.release()

    cdef void release(self) noexcept:
        # In a forked child the fork handler has closed it, and the number may belong to somebody else by now.
        if self.fd >= 0 and shmpool_os_fork_count() == self.born_in_fork:
            shmpool_os_close(self.fd, self.ticket, &self.file)
        self.fd = -1

    cdef inline bint holds(self) noexcept:
        return (self.fd >= 0 and shmpool_os_fork_count() == self.born_in_fork
                and shmpool_os_owns(self.fd, self.ticket) and shmpool_os_names(self.fd, &self.file))

    def fileno(self):
        """The number, for calls that want one."""
        if not self.holds():
            raise OSError(EBADF, "this descriptor was closed")
        return self.fd

    def lock(self, int64_t byte, int mode):
        """Lock, convert or release one byte without waiting; False when somebody else holds it."""
        cdef int rc = shmpool_os_lock(self.fileno(), byte, mode)
        if rc < 0:
            raise OSError(-rc, f"locking byte {byte} failed")
        return rc == 0

    def downgrade(self, int64_t byte):
        """Turn an exclusive lock on one byte into a shared one, with no moment in between."""
        cdef int rc = shmpool_os_downgrade(self.fileno(), byte)
        if rc != 0:
            raise OSError(max(-rc, 0), f"downgrading the lock on byte {byte} failed")

    def is_locked(self, int64_t byte, *, bint exclusively):
        """Whether anybody else holds a byte: exclusively, or in any way."""
        cdef int rc = shmpool_os_is_locked(self.fileno(), byte, exclusively)
        if rc < 0:
            raise OSError(-rc, f"asking for the lock on byte {byte} failed")
        return rc != 0

    def names(self, Descriptor other not None):
        """Whether both are open on one file."""
        return shmpool_os_names(self.fileno(), &other.file) != 0

    def access(self):
        """Who may open the file: ``private`` to this user, ``foreign``, ``open`` to others, or ``no file``."""
        cdef int rc = shmpool_os_access(self.fileno())
        if rc < 0:
            raise OSError(-rc, "asking for the owner of a file failed")
        return {SHMPOOL_ACCESS_PRIVATE: "private", SHMPOOL_ACCESS_FOREIGN: "foreign",
                SHMPOOL_ACCESS_OPEN: "open"}.get(rc, "no file")

    def size(self):
        """Bytes of the file."""
        cdef int64_t n = shmpool_os_size(self.fileno())
        if n < 0:
            raise OSError(-n, os.strerror(-n))
        return n

    def read(self, uint64_t nbytes, uint64_t offset):
        """Bytes of the file; fewer only where it ends."""
        data = PyBytes_FromStringAndSize(NULL, nbytes)
        cdef int64_t n = shmpool_os_read(self.fileno(), PyBytes_AsString(data), nbytes, offset)
        if n < 0:
            raise OSError(-n, os.strerror(-n))
        return data if <uint64_t>n == nbytes else data[:n]

    def write(self, bytes data not None, uint64_t offset):
        """Write all of `data`."""
        cdef int rc = shmpool_os_write(self.fileno(), PyBytes_AsString(data), PyBytes_Size(data), offset)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    def resize(self, uint64_t nbytes):
        """Make the file shorter or longer."""
        cdef int rc = shmpool_os_resize(self.fileno(), nbytes)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    def remove(self, bytes path not None):
        """Remove the file from its folder. It was opened with OPEN_REMOVE, and `path` names it."""
        cdef int rc = shmpool_os_remove(self.fileno(), PyBytes_AsString(path))
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    def available(self):
        """Bytes that the file can still be given; None where it has all it needs, or there is no limit."""
        cdef uint64_t n = shmpool_os_available(self.fileno())
        return None if n == <uint64_t>0xffffffffffffffff else n

    def close(self):
        """Close it. Twice is harmless."""
        self.release()


cdef object HANDLE_STRUCT = struct.Struct("<4s16sIIQQ")
cdef bytes HANDLE_MAGIC = b"SPH1"


@cython.final
@cython.freelist(64)
cdef class Handle:
    """Names one sealed array in one pool; small, frozen, hashable, picklable.

    A handle is a name, not an owner: it keeps nothing alive, and copies of it are equal. It carries the slot's
    generation, so that it can never reach another array: once the slot has moved on, every use raises
    :class:`~shmpool.StaleHandleError`.

    Attributes
    ----------
    pool : str
        The pool's uuid, 32 hex digits.
    slot, span : int
        First slot, and how many adjacent slots the array takes.
    generation : int
        How often the slot has been claimed.
    nbytes : int
        Bytes of the array.
    """

    cdef bytes _uuid
    cdef readonly uint32_t slot
    cdef readonly uint32_t span
    cdef readonly uint64_t generation
    cdef readonly uint64_t nbytes

    def __init__(self, *, str pool, slot, span, generation, nbytes):
        if self._uuid is not None:
            raise TypeError("a Handle does not change")
        try:
            uuid = bytes.fromhex(pool)
        except ValueError:
            uuid = b""
        if len(uuid) != 16:
            raise errors.HandleError(f"pool {pool!r} is not a uuid of 32 hex digits.")
        for name, value, limit in (("slot", slot, 2**32), ("span", span, 2**32), ("generation", generation, 2**48),
                                   ("nbytes", nbytes, 2**64)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
                raise errors.HandleError(f"{name} {value!r} is not an integer from 0 to {limit - 1}.")
        if span == 0 or generation == 0:
            raise errors.HandleError("span and generation of a handle are at least 1.")
        self._uuid = uuid
        self.slot = slot
        self.span = span
        self.generation = generation
        self.nbytes = nbytes

    @property
    def pool(self):
        return self._uuid.hex()

    def to_dict(self):
        """The handle as a JSON-able dict."""
        return {"pool": self.pool, "slot": self.slot, "span": self.span, "generation": self.generation,
                "nbytes": self.nbytes}

    @classmethod
    def from_dict(cls, data):
        """A handle from what `to_dict` made.

        Raises
        ------
        HandleError
            A key is missing, too much, or not in range.
        """
        if not isinstance(data, dict) or set(data) != {"pool", "slot", "span", "generation", "nbytes"}:
            raise errors.HandleError(
                f"not a handle: expected the keys pool, slot, span, generation, nbytes; got {str(data)[:200]}."
            )
        if not isinstance(data["pool"], str):
            raise errors.HandleError(f"pool {str(data['pool'])[:200]} is not a string.")
        return cls(**data)

    def to_bytes(self):
        """The handle as 44 bytes, the same on every machine."""
        return HANDLE_STRUCT.pack(HANDLE_MAGIC, self._uuid, self.slot, self.span, self.generation, self.nbytes)

    @classmethod
    def from_bytes(cls, data):
        """A handle from what `to_bytes` made.

        Raises
        ------
        HandleError
            Wrong length, prefix or range.
        """
        data = bytes(memoryview(data))
        if len(data) != HANDLE_STRUCT.size or data[:4] != HANDLE_MAGIC:
            raise errors.HandleError(
                f"not a handle: {len(data)} bytes starting with {data[:4]!r}, expected {HANDLE_STRUCT.size} "
                f"starting with {HANDLE_MAGIC!r}."
            )
        _, uuid, slot, span, generation, nbytes = HANDLE_STRUCT.unpack(data)
        return cls(pool=uuid.hex(), slot=slot, span=span, generation=generation, nbytes=nbytes)

    def __eq__(self, other):
        if not isinstance(other, Handle):
            return NotImplemented
        cdef Handle o = <Handle>other
        return (self.slot == o.slot and self.generation == o.generation and self.span == o.span
                and self.nbytes == o.nbytes and self._uuid == o._uuid)

    def __hash__(self):
        return hash((self._uuid, self.slot, self.generation))

    def __reduce__(self):
        return _handle_from_bytes, (self.to_bytes(),)

    def __repr__(self):
        return (f"Handle(pool={self.pool!r}, slot={self.slot}, span={self.span}, generation={self.generation}, "
                f"nbytes={self.nbytes})")


def _handle_from_bytes(data):
    return Handle.from_bytes(data)


# no_gc_clear: these release what they hold in __dealloc__, so the collector must not empty them before it.
@cython.final
@cython.no_gc_clear
@cython.freelist(64)
cdef class Pin:
    """Owner of one pin: the base of every array that `get` hands out. Its death is the unpin."""

    cdef Core core
    cdef uint32_t slot

    def __dealloc__(self):
        if self.core is not None:
            self.core.end_pin(self.slot)


@cython.final
@cython.no_gc_clear
@cython.freelist(16)
cdef class Claim:
    """Owner of a claimed span: the base of a loan's arrays.

    Unsealed, its death is the abort; so a slot cannot be handed out while anybody can still write to it, even after
    the ``with`` block has ended. Sealed with arrays left, it is a pin.
    """

    cdef Core core
    cdef uint32_t head
    cdef uint32_t span
    cdef uint64_t generation
    cdef bint sealed
    cdef PyObject *loan  # borrowed; the Loan clears it when it ends

    def __dealloc__(self):
        if self.core is None:
            return
        if self.sealed:
            self.core.end_pin(self.head)
        else:
            self.core.end_claim(self.head, self.generation, self.span)


@cython.final
@cython.no_gc_clear
cdef class Loan:
    """An array born in the pool, to be filled in place and then sealed: no copy at all.

    Made by :meth:`Pool.loan`. Use it in a ``with`` block; leaving the block without :meth:`seal` gives the slot back.

    Notes
    -----
    Lifetime: ``loan.array`` and its views may outlive the block; the slot is given back (or, after the seal,
    becomes reusable) when the last of them is gone.
    Crash: a process that dies before the seal leaves nothing behind; nobody ever sees the bytes.
    """

    cdef object __weakref__
    cdef Claim claim
    cdef object inner  # base of `outer` and of every view the user derives from it: counts them
    cdef object outer

    def __init__(self):
        raise TypeError("loans are made by Pool.loan()")

    @property
    def array(self):
        """Writable ndarray of the shape, dtype and order asked for; contents undefined; memory is the slot itself."""
        if self.outer is None:
            raise errors.LoanError(
                "this loan has ended.", hint="after seal(), read the array through pool.get(handle)"
            )
        return self.outer

    def seal(self):
        """Publish the array and end the loan.

        Returns
        -------
        Handle

        Raises
        ------
        LoanError
            The loan has ended, or views derived from ``loan.array`` are alive: they could still change the bytes
            under a reader. Delete them and seal again; nothing is lost.
        ClientEvictedError
            See there.

        Notes
        -----
        A name for ``loan.array`` itself may stay: it becomes read-only and pins the array. What NumPy cannot see is
        not noticed either: a memoryview, DLPack capsule, ctypes pointer or view of another class made from it
        still points into the slot. Writing through one of those after the seal changes what readers see.
        """
        if self.outer is None:
            raise errors.LoanError("this loan has ended.", hint="a loan is sealed once")
        return self.claim.core.seal_claim(self.claim, self.inner, self.outer)

    cdef end(self):
        if self.claim is not None:
            self.claim.loan = NULL
        self.outer = None
        self.inner = None
        self.claim = None

    def abort(self):
        """Give the slot back unsealed. Nothing happens if the loan has ended already."""
        self.end()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.end()

    def __dealloc__(self):
        if self.claim is not None:
            self.claim.loan = NULL


cdef inline uint64_t round_up(uint64_t value, uint64_t step) noexcept nogil:
    return (value + step - 1) // step * step


cdef inline uint64_t text_offset(uint64_t data_end) noexcept nogil:
    """Where a dtype text too long for its record goes; never 0, which says that it is in the record."""
    return max(round_up(data_end, DATA_ALIGN), DATA_ALIGN)


def seconds(timeout):
    """A time-out as float; ValueError unless it is a number of seconds >= 0 or math.inf."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float, np.integer, np.floating)):
        raise TypeError(f"timeout must be a number of seconds, got {timeout!r}")
    timeout = float(timeout)
    if not timeout >= 0:
        raise ValueError(f"timeout must be a number of seconds >= 0 or math.inf, got {timeout}")
    return timeout


@cython.final
@cython.no_gc_clear
cdef class Core:
    """One attachment of this process to one pool: mapping, client identity, locks.

    Whoever uses the mapping across anything that may run other Python code (a released GIL, an allocation, which may
    run the garbage collector and with it a finaliser that closes the pool) counts itself in `live` first.
    """

    cdef object __weakref__
    cdef shmpool_t p
    cdef Descriptor file
    cdef Descriptor lock_file
    cdef bytes lock_path
    cdef uint32_t born_in_fork
    cdef bint closed      # no new operations
    cdef bint attached    # mapping and identity exist
    cdef Py_ssize_t live  # pins, claims and running calls that need the mapping
    cdef uint64_t *populated  # per slot: bytes from its start that are in this process's page tables
    cdef readonly bytes uuid
    cdef readonly Geometry geometry
    cdef readonly object default_timeout
    cdef shmpool_bridge_t lent

    def __init__(self, Descriptor file not None, Descriptor lock_file not None, bytes lock_path not None,
                 Geometry geometry not None, bytes uuid not None, uint64_t nonce, uint32_t pid, str label,
                 default_timeout, bint alone):
        """Map the pool and become a client of it.

        The caller holds byte 0 of both files, exclusively if `alone`.
        """
        if self.geometry is not None:
            raise TypeError("a Core is attached once")
        self.file = file
        self.lock_file = lock_file
        self.lock_path = lock_path
        self.geometry = geometry
        self.uuid = uuid
        self.default_timeout = seconds(default_timeout)
        self.born_in_fork = shmpool_os_fork_count()
        cdef void *base = NULL
        cdef int rc = shmpool_os_map(file.fileno(), geometry.g.file_nbytes, &base)
        if rc < 0:
            raise OSError(-rc, "mapping the pool file failed")
        shmpool_bind(&self.p, &geometry.g, <uint8_t *>base)
        memcpy(&self.p.wake_key, PyBytes_AsString(uuid), sizeof(self.p.wake_key))
        self.populated = <uint64_t *>PyMem_Calloc(geometry.g.n_slots, sizeof(uint64_t))
        if self.populated == NULL:
            raise MemoryError
        cdef uint32_t index
        if alone:
            for index in range(geometry.g.max_clients):  # nobody is attached: every client is dead
                shmpool_reclaim(&self.p, index)
            shmpool_channels_sweep(&self.p)
            failpoint("open.reclaimed")
            shmpool_add64(&self.p.header.epoch, 1)
        encoded = label.encode("utf-8", "replace")[:LABEL_NBYTES - 1]
        cdef bint transient = False
        for index in range(geometry.g.max_clients):
            if not lock_file.lock(LOCK_BYTE_CLIENTS + index, SHMPOOL_LOCK_EXCLUSIVE):
                # Taken with nobody in it: by a newcomer who is not done, or by a cleaner who will let go.
                transient = transient or shmpool_load64(&self.p.clients[index].nonce) == 0
            else:
                failpoint("open.client_locked")
                shmpool_client_enter(&self.p, index, nonce, shmpool_os_monotonic_ns(), pid,
                                     shmpool_os_pid_namespace(), PyBytes_AsString(encoded))
                self.attached = True
                self.wake()
                return
        raise errors.TooManyClientsError(
            f"all {geometry.g.max_clients} client entries belong to living processes.",
            hint="create the pool with a larger max_clients, or close Pool objects that are not needed",
            transient=transient,
        )

    def __dealloc__(self):
        self.detach()
        if self.populated != NULL:
            PyMem_Free(self.populated)

    # -- lifetime ------------------------------------------------------------------------------------------------

    cdef inline bint forked(self) noexcept:
        return shmpool_os_fork_count() != self.born_in_fork

    cdef void detach(self) noexcept:
        """Leave the pool and unmap it. Only when nothing needs the mapping any more."""
        cdef void *base = self.p.base
        if base != NULL:
            if self.attached and not self.forked():
                shmpool_client_leave(&self.p)
                self.wake()
            self.attached = False
            self.p.base = NULL
            shmpool_os_unmap(base, self.p.geometry.file_nbytes)
        if self.lock_file is not None:
            self.lock_file.release()  # and with it every lock of its description
        if self.file is not None:
            self.file.release()

    cdef inline void release(self) noexcept:
        self.live -= 1
        if self.closed and self.live == 0:
            self.detach()

    cdef inline void wake(self) noexcept:
        if shmpool_wake_needed(&self.p):
            SHMPOOL_FAILPOINT("wake.before_wake")
            shmpool_os_wake(&self.p.counters.wake_seq, shmpool_wake_key(&self.p, &self.p.counters.wake_seq))

    cdef void end_pin(self, uint32_t slot) noexcept:
        # In a forked child the pin belongs to the parent.
        if not self.forked() and shmpool_unpin(&self.p, slot):
            self.wake()
        self.release()

    cdef void end_claim(self, uint32_t head, uint64_t generation, uint32_t span) noexcept:
        if not self.forked():
            shmpool_abort(&self.p, head, generation, span)
            self.wake()
        self.release()

    cdef int check_open(self) except -1:
        if self.forked():
            raise errors.ForkedPoolError(
                "this pool object was inherited through fork; its place in the pool belongs to the parent process.",
                hint="call pool.reattach() in the child, or open the pool there",
            )
        if self.closed:
            raise errors.PoolClosedError("this pool object is closed.", hint="open the pool again")
        return 0

    cdef int check_handle(self, Handle handle) except -1:
        self.check_open()
        if handle is None:
            raise TypeError("expected a shmpool.Handle, got None")
        if handle._uuid is not self.uuid and handle._uuid != self.uuid:
            raise errors.HandleError(
                f"the handle names pool {handle.pool}, this is pool {self.uuid.hex()}.",
                hint="attach to the pool that made the handle (compare pool.path in both processes)",
            )
        return 0

    def close(self):
        """Free what this client owns; unmap when the last view is gone. Twice is harmless."""
        if self.closed or self.forked():
            self.closed = True
            if self.forked() and self.live == 0:
                self.detach()
            return
        self.closed = True
        cdef uint32_t slot
        cdef uint64_t word
        if self.attached:
            for slot in range(self.p.geometry.n_slots):
                word = shmpool_load64(&self.p.slots[slot].word)
                if (shmpool_word_owner(word) == self.p.me + 1 and shmpool_word_state(word) == SHMPOOL_SEALED):
                    shmpool_free(&self.p, slot, shmpool_word_generation(word))
            self.wake()
        if self.live == 0:
            self.detach()

    @property
    def is_closed(self):
        return self.closed

    @property
    def is_forked(self):
        return self.forked()

    @property
    def is_evicted(self):
        return self.attached and not self.forked() and shmpool_evicted(&self.p)

    @property
    def n_live(self):
        """Pins, loans and running calls of this object that keep the mapping."""
        return self.live

    @property
    def client_index(self):
        return self.p.me

    @property
    def client_nonce(self):
        return self.p.nonce

    @property
    def epoch(self):
        self.check_open()
        return shmpool_load64(&self.p.header.epoch)

    def counters(self):
        cdef uint64_t[3] values
        cdef int index
        self.check_open()
        for index in range(3):
            values[index] = shmpool_load64(&self.p.counters.rotation[index].value)
        return {"input": values[0], "output": values[1], "scratch": values[2]}

    # -- claiming ------------------------------------------------------------------------------------------------

    cdef Claim claim(self, uint64_t nbytes, object region, object timeout):
        """Claim a span for nbytes and back it with memory."""
        cdef Claim claim = Claim.__new__(Claim)
        self.check_open()
        index = REGION_INDEX.get(region)
        if index is None:
            raise ValueError(f"region must be one of {', '.join(REGIONS)}; got {region!r}")
        if timeout is not None:
            seconds(timeout)
        cdef int region_index = index
        cdef uint64_t slots = (nbytes + self.p.geometry.slot_nbytes - 1) // self.p.geometry.slot_nbytes
        cdef uint32_t head = 0
        cdef uint64_t generation = 0
        cdef int rc
        if slots == 0:
            slots = 1
        if slots > self.p.geometry.n_slots:
            pool_nbytes = self.p.geometry.n_slots * self.p.geometry.slot_nbytes
            raise errors.PayloadTooLargeError(
                f"the array needs {nbytes} bytes, the whole pool has {pool_nbytes}.",
                hint="create the pool with larger slots (slot_nbytes) or more of them",
                nbytes=nbytes, pool_nbytes=pool_nbytes,
            )
        cdef uint32_t span = <uint32_t>slots
        cdef uint64_t ticket
        self.check_open()
        self.live += 1
        try:
            ticket = shmpool_ticket(&self.p, region_index, span)
            rc = shmpool_claim(&self.p, region_index, span, ticket, shmpool_os_monotonic_ns(), &head, &generation)
            if rc == SHMPOOL_EFULL:
                rc = self.wait_for_claim(region_index, span, ticket, timeout, &head, &generation)
            if rc != SHMPOOL_OK:
                _raise(rc, "claim")
        except BaseException:
            self.release()
            raise
        claim.core = self  # the count in `live` is the claim's from here on
        claim.head = head
        claim.span = span
        claim.generation = generation
        SHMPOOL_FAILPOINT("put.claimed")
        self.back(head, nbytes, True)
        return claim

    cdef int wait_for_claim(self, int region, uint32_t span, uint64_t ticket, object timeout, uint32_t *head,
                            uint64_t *generation) except? 99:
        timeout = self.default_timeout if timeout is None else seconds(timeout)
        cdef uint64_t start = shmpool_os_monotonic_ns()
        cdef uint64_t now = start
        cdef uint64_t deadline = <uint64_t>0xffffffffffffffff
        if timeout < 1e9:
            deadline = start + <uint64_t>(timeout * 1e9)
        cdef uint32_t seen
        cdef uint64_t pause
        cdef uint64_t jitter = self.p.nonce | 1
        cdef int rc
        while True:
            shmpool_store32(&self.p.counters.waiters, 1)  # SYNC-4: before the words are read again
            seen = shmpool_load32(&self.p.counters.wake_seq)
            self.reclaim_dead()
            now = shmpool_os_monotonic_ns()
            rc = shmpool_claim(&self.p, region, span, ticket, now, head, generation)
            if rc != SHMPOOL_EFULL:
                return rc
            if now >= deadline:
                break
            PyErr_CheckSignals()
            pause = min(deadline - now, WAIT_PERIOD_NS)
            if span > 1:
                # Claimants of spans that back off in step could undo each other for ever.
                jitter ^= jitter << 13
                jitter ^= jitter >> 7
                jitter ^= jitter << 17
                pause = pause // 2 + jitter % (pause // 2 + 1)
            with nogil:
                shmpool_os_wait(&self.p.counters.wake_seq, seen, pause,
                                shmpool_wake_key(&self.p, &self.p.counters.wake_seq))
            self.check_open()
        from .stat import full_error
        raise full_error(self, REGIONS[region], span, (now - start) / 1e9)

    cdef int back(self, uint32_t head, uint64_t nbytes, bint write) except -1:
        """Have memory behind the first nbytes of a span (write), and this process's page tables filled for them.

        The reservation is what keeps a full tmpfs from becoming a SIGBUS; populating is speed only, so its failure
        is ignored.
        """
        cdef uint64_t slot_nbytes = self.p.geometry.slot_nbytes
        cdef uint32_t slot = head
        cdef uint64_t left = max(nbytes, <uint64_t>1)
        cdef uint64_t need, old
        if write:
            self.check_space(head, left)
        while left > 0:
            need = min(left, slot_nbytes)
            old = shmpool_relaxed64(&self.p.slots[slot].reserved_nbytes)
            if write and old < need:
                self.reserve_slot(slot, old, need)
            if need >= POPULATE_NBYTES and self.populated[slot] < need:
                # Reading maps 16 present pages at a time, writably on tmpfs; only new pages want to be written.
                with nogil:
                    self.populate(slot, self.populated[slot], min(need, old), False)
                    self.populate(slot, max(old, self.populated[slot]), need, write)
                self.populated[slot] = max(self.populated[slot], need)
            left -= need
            slot += 1
        return 0

    cdef int check_space(self, uint32_t head, uint64_t nbytes) except -1:
        """Refuse a span that cannot be backed before any part of it is: what was reserved stays reserved."""
        cdef uint64_t missing = 0
        cdef uint64_t need, have
        cdef uint32_t slot = head
        cdef uint64_t left = nbytes
        while left > 0:
            need = min(left, self.p.geometry.slot_nbytes)
            have = shmpool_relaxed64(&self.p.slots[slot].reserved_nbytes)
            if have < need:
                missing += need - have
            left -= need
            slot += 1
        if missing == 0:
            return 0
        if not self.file.holds():
            _raise(SHMPOOL_EEVICTED, "claim")
        if missing > shmpool_os_available(self.file.fd):
            from .space import space_error
            raise space_error(ENOSPC, self.file, missing)
        return 0

    cdef int reserve_slot(self, uint32_t slot, uint64_t have, uint64_t need) except -1:
        """Back bytes `have` to `need` of a slot that we own, or raise and leave it as it was."""
        cdef uint64_t want = min(round_up(need, RESERVE_STEP), self.p.geometry.slot_nbytes)
        cdef uint64_t offset = self.p.geometry.slots_offset + slot * self.p.geometry.slot_nbytes
        # One call for all of it, because the kernel takes a whole failed call back. Only a signal, which makes it start
        # over, cuts the call into pieces: a fast timer could otherwise keep it from ever ending.
        cdef uint64_t piece = want - have
        cdef uint64_t done = have
        cdef int rc = 0
        cdef int fd = self.file.fd
        while done < want:
            with nogil:
                rc = shmpool_os_reserve(fd, offset + done, min(piece, want - done))
            if rc == -EINTR:
                PyErr_CheckSignals()
                piece = RESERVE_STEP
            elif (rc == -ENOSPC or rc == -EFBIG) and want > round_up(need, SHMPOOL_PAGE):
                want = max(round_up(need, SHMPOOL_PAGE), done)  # no room for the whole step: what is needed will do
            elif rc < 0:
                from .space import space_error
                raise space_error(-rc, self.file, need - min(need, done))
            else:
                done += min(piece, want - done)
                shmpool_raise64(&self.p.slots[slot].reserved_nbytes, done)
        return 0

    cdef void populate(self, uint32_t slot, uint64_t start, uint64_t end, bint write) noexcept nogil:
        cdef uint8_t *data = shmpool_slot_data(&self.p, slot)
        cdef uint64_t at = start // SHMPOOL_PAGE * SHMPOOL_PAGE
        cdef uint64_t piece
        end = round_up(end, SHMPOOL_PAGE)
        while at < end:
            piece = min(end - at, PIECE_NBYTES)
            if shmpool_os_populate(data + at, piece, write) < 0:
                break
            at += piece

    def warm(self, uint32_t slot, uint64_t nbytes):
        """Prepare the first nbytes of a slot for use, whoever owns it; contents are not touched.

        New pages are populated, never reserved: a reservation of ours that fails would take back pages which the
        slot's owner has reserved and not touched yet, and the owner would meet a SIGBUS. What is populated is there for
        good, so the mark may say so. Returns False when there was no memory, or after `close`.
        """
        self.check_open()
        cdef uint8_t *data = shmpool_slot_data(&self.p, slot)
        cdef uint64_t at = 0
        cdef uint64_t piece
        cdef int rc
        nbytes = min(nbytes, self.p.geometry.slot_nbytes)
        self.live += 1
        try:
            while at < nbytes and not self.closed:
                piece = min(nbytes - at, PIECE_NBYTES)
                with nogil:
                    rc = shmpool_os_populate(
                        data + at, piece, shmpool_relaxed64(&self.p.slots[slot].reserved_nbytes) < at + piece)
                if rc < 0:
                    return False
                at += piece
                shmpool_raise64(&self.p.slots[slot].reserved_nbytes, at)
                self.populated[slot] = max(self.populated[slot], at)
            return at >= nbytes
        finally:
            self.release()

    # -- writing -------------------------------------------------------------------------------------------------

    cdef Handle publish(self, Claim claim, cnp.dtype dtype, int ndim, const cnp.npy_intp *dims, bint fortran,
                        uint64_t nbytes, uint64_t data_offset, bint keep_pin):
        """Write the descriptor and seal. After it, `claim` is a pin (keep_pin) or is spent."""
        cdef bytes text = text_of(dtype)
        cdef shmpool_descriptor_t d
        cdef int k
        cdef int rc
        cdef Handle handle
        if not shmpool_holds(&self.p, claim.head, claim.generation):
            _raise(SHMPOOL_EEVICTED, "seal")
        d.nbytes = nbytes
        d.data_offset = data_offset
        d.span = claim.span
        d.dtype_nbytes = <uint16_t>PyBytes_Size(text)
        d.ndim = <uint8_t>ndim
        d.order = 1 if fortran else 0
        d.dtype_offset = 0
        for k in range(ndim):
            d.shape[k] = dims[k]
        if PyBytes_Size(text) <= SHMPOOL_DTYPE_NBYTES:
            memcpy(d.dtype, PyBytes_AsString(text), PyBytes_Size(text))
        else:
            d.dtype_offset = text_offset(data_offset + nbytes)
            memcpy(shmpool_slot_data(&self.p, claim.head) + d.dtype_offset, PyBytes_AsString(text),
                   PyBytes_Size(text))
        shmpool_describe(&self.p, claim.head, &d)
        SHMPOOL_FAILPOINT("put.described")
        if keep_pin:
            # Ours before anybody can know the handle: needs no second look.
            shmpool_add32(shmpool_pin_cell(&self.p, claim.head, self.p.me), 1)
        rc = shmpool_seal(&self.p, claim.head, claim.generation, shmpool_os_monotonic_ns())
        if rc != SHMPOOL_OK:
            _raise(rc, "seal")
        handle = Handle.__new__(Handle)
        handle._uuid = self.uuid
        handle.slot = claim.head
        handle.span = claim.span
        handle.generation = claim.generation
        handle.nbytes = nbytes
        if keep_pin:
            claim.sealed = True
        else:
            claim.core = None
            self.release()
        return handle

    cdef uint64_t room_for(self, uint64_t nbytes, bytes text) except? 0:
        """Bytes a span needs for an array and, if it does not fit in the record, its dtype text."""
        if PyBytes_Size(text) <= SHMPOOL_DTYPE_NBYTES:
            return nbytes
        if PyBytes_Size(text) > 0xffff:
            raise errors.UnsupportedDtypeError("the dtype's description has more than 65535 characters.")
        return text_offset(nbytes) + PyBytes_Size(text)

    def put(self, object array, object region, object timeout):
        """Copy an ndarray into the pool and seal it. See `Pool.put`."""
        cdef cnp.ndarray a = array
        cdef bint fortran = False
        cdef Claim claim
        cdef cnp.dtype dtype = descr_of(a)
        cdef uint64_t nbytes = cnp.PyArray_NBYTES(a)
        cdef bytes text = text_of(dtype)
        cdef void *dst
        cdef const void *src
        cdef bint contiguous = True
        self.check_open()
        if not cnp.PyArray_IS_C_CONTIGUOUS(a):
            fortran = cnp.PyArray_IS_F_CONTIGUOUS(a)
            contiguous = fortran
        if contiguous and nbytes > 0 and cnp.PyArray_BASE(a) != NULL and self.owns_address(cnp.PyArray_DATA(a)):
            inner = self.loaned_base(a)
            if inner is not None:
                return self.seal_claim(<Claim>inner.base, inner, a)
        claim = self.claim(self.room_for(nbytes, text), region, timeout)
        dst = shmpool_slot_data(&self.p, claim.head)
        if not shmpool_holds(&self.p, claim.head, claim.generation):
            _raise(SHMPOOL_EEVICTED, "put")
        if contiguous:
            src = cnp.PyArray_DATA(a)
            if nbytes < 65536:
                memcpy(dst, src, nbytes)
            else:
                with nogil:
                    SHMPOOL_FAILPOINT("put.before_copy")
                    shmpool_copy(dst, src, nbytes, 0)
        else:
            Py_INCREF(dtype)
            target = PyArray_NewFromDescr(&PyArray_Type, dtype, cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), NULL, dst,
                                          cnp.NPY_ARRAY_WRITEABLE | cnp.NPY_ARRAY_ALIGNED, None)
            np.copyto(target, a)
            del target
        SHMPOOL_FAILPOINT("put.copied")
        return self.publish(claim, dtype, cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), fortran, nbytes, 0, False)

    def loan(self, object shape, object dtype, object order, object region, object timeout):
        """Claim a span as a writable array. See `Pool.loan`."""
        cdef cnp.dtype d = np.dtype(dtype)
        cdef bytes text = text_of(d)
        cdef cnp.npy_intp[64] dims
        cdef int ndim = 0
        cdef object total = d.itemsize
        cdef Claim claim
        cdef Loan loan
        if order not in ("C", "F"):
            raise ValueError(f"order must be 'C' or 'F', got {order!r}")
        if d.subdtype is not None:
            raise errors.UnsupportedDtypeError("a loan's dtype cannot be a sub-array; put its shape into `shape`.")
        shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        if len(shape) > SHMPOOL_MAX_NDIM:
            raise ValueError(f"{len(shape)} dimensions; NumPy and a pool know at most {SHMPOOL_MAX_NDIM}")
        for n in shape:
            n = operator.index(n)
            if n < 0:
                raise ValueError(f"negative dimension in shape {shape}")
            dims[ndim] = n
            ndim += 1
            total *= n
        if total >= 2**62:
            raise errors.PayloadTooLargeError(f"an array of shape {shape} and dtype {d} has {total} bytes.",
                                              nbytes=total, pool_nbytes=self.geometry.nbytes)
        cdef uint64_t nbytes = total
        claim = self.claim(self.room_for(nbytes, text), region, timeout)
        cdef int flags = cnp.NPY_ARRAY_WRITEABLE | cnp.NPY_ARRAY_ALIGNED
        Py_INCREF(d)
        inner = PyArray_NewFromDescr(&PyArray_Type, d, ndim, dims, NULL, shmpool_slot_data(&self.p, claim.head),
                                     flags | (cnp.NPY_ARRAY_F_CONTIGUOUS if order == "F" else 0), None)
        cnp.set_array_base(inner, claim)
        loan = Loan.__new__(Loan)
        loan.claim = claim
        loan.inner = inner
        loan.outer = inner.view()
        claim.loan = <PyObject *>loan
        return loan

    cdef inline bint owns_address(self, const void *address) noexcept:
        cdef const uint8_t *a = <const uint8_t *>address
        return self.p.base <= a and a < self.p.base + self.p.geometry.file_nbytes

    cdef object loaned_base(self, cnp.ndarray array):
        """The innermost array of the unsealed loan of this pool that `array` lies in, else None."""
        current = array
        while isinstance(current, np.ndarray):
            base = (<object>current).base
            if isinstance(base, Claim):
                return current if (<Claim>base).core is self and not (<Claim>base).sealed else None
            current = base
        return None

    cdef Handle seal_claim(self, Claim claim, object inner_array, object array):
        """Seal a loan with the shape, dtype and place of `array`, which is its array or a view of it.

        Refuses while other writable views exist: they could change the bytes under a reader.
        """
        cdef cnp.ndarray a = array
        cdef cnp.ndarray inner = inner_array
        cdef Loan loan = <Loan><object>claim.loan if claim.loan != NULL else None
        cdef bint is_outer = loan is not None and array is loan.outer
        # References to `inner`: the caller's and our typed one, the loan's and its outer array's, that of the view that
        # is sealed. Each one more is a view that somebody else holds.
        cdef Py_ssize_t known = 2
        if loan is not None:
            known += 2
        if not is_outer and array is not inner_array:
            known += 1
        cdef Py_ssize_t extra = Py_REFCNT(<PyObject *>inner) - known
        self.check_open()
        if extra > 0:
            raise errors.LoanError(
                f"{extra} view(s) of the loaned array are alive and could change it after the seal.",
                hint="delete them first (also loop variables over the array)", n_views=extra,
            )
        cdef uint64_t offset = <uint64_t>(<uint8_t *>cnp.PyArray_DATA(a) - shmpool_slot_data(&self.p, claim.head))
        cdef bint fortran = not cnp.PyArray_IS_C_CONTIGUOUS(a)
        cdef bytes text = text_of(descr_of(a))
        cdef uint64_t nbytes = cnp.PyArray_NBYTES(a)
        if nbytes == 0:
            offset = 0
        if (PyBytes_Size(text) > SHMPOOL_DTYPE_NBYTES
                and text_offset(offset + nbytes) + PyBytes_Size(text)
                > claim.span * self.p.geometry.slot_nbytes):
            raise errors.UnsupportedDtypeError("no room behind the array for the description of its dtype.")
        handle = self.publish(claim, descr_of(a), cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), fortran, nbytes,
                              offset, True)
        cnp.PyArray_CLEARFLAGS(a, cnp.NPY_ARRAY_WRITEABLE)
        cnp.PyArray_CLEARFLAGS(inner, cnp.NPY_ARRAY_WRITEABLE)
        if loan is not None:
            cnp.PyArray_CLEARFLAGS(loan.outer, cnp.NPY_ARRAY_WRITEABLE)
            loan.end()
        return handle

    # -- reading -------------------------------------------------------------------------------------------------

    cdef int pin_handle(self, Handle handle, shmpool_descriptor_t *d) except -1:
        """Pin and read the descriptor; on any failure nothing is pinned."""
        self.check_handle(handle)
        cdef int rc = shmpool_pin(&self.p, handle.slot, handle.generation)
        if rc != SHMPOOL_OK:
            _raise(rc, f"get {handle!r}")
        self.live += 1
        rc = shmpool_read_descriptor(&self.p, handle.slot, d)
        if rc == SHMPOOL_OK and (d.span != handle.span or d.nbytes != handle.nbytes):
            self.end_pin(handle.slot)
            raise errors.HandleError(
                f"{handle!r} does not match its slot, which holds {d.nbytes} bytes in {d.span} slot(s).",
                hint="handles come from put() and seal(); do not make them by hand",
            )
        if rc != SHMPOOL_OK:
            self.end_pin(handle.slot)
            _raise(rc, f"get {handle!r}")
        return 0

    cdef object view_of(self, uint32_t slot, shmpool_descriptor_t *d):
        """The read-only array of a pinned span. Consumes the pin, also on failure."""
        cdef Pin pin = Pin.__new__(Pin)
        pin.core = self
        pin.slot = slot
        cdef uint8_t *data = shmpool_slot_data(&self.p, slot)
        cdef const char *text = &d.dtype[0]
        if d.dtype_offset != 0:
            text = <const char *>(data + d.dtype_offset)
        cdef cnp.dtype dtype = dtype_of(PyBytes_FromStringAndSize(text, d.dtype_nbytes))
        cdef cnp.npy_intp[64] dims
        cdef int k
        cdef uint64_t product = dtype.itemsize
        cdef bint overflow = False
        for k in range(d.ndim):
            dims[k] = d.shape[k]
            if product != 0 and <uint64_t>d.shape[k] > (<uint64_t>1 << 62) // product:
                overflow = True
                break
            product *= <uint64_t>d.shape[k]
        if overflow or product != d.nbytes or dtype.subdtype is not None:
            raise errors.PoolCorruptedError(
                f"slot {slot}: shape and dtype {dtype} do not make up its {d.nbytes} bytes.")
        cdef int flags = cnp.NPY_ARRAY_F_CONTIGUOUS if d.order == 1 else cnp.NPY_ARRAY_C_CONTIGUOUS
        Py_INCREF(dtype)
        try:
            array = PyArray_NewFromDescr(&PyArray_Type, dtype, d.ndim, dims, NULL, data + d.data_offset, flags, None)
        except ValueError as error:  # dimensions that NumPy refuses although one of them is zero
            raise errors.PoolCorruptedError(f"slot {slot}: its shape is impossible ({error}).") from None
        cnp.PyArray_UpdateFlags(array, cnp.NPY_ARRAY_UPDATE_ALL)
        cnp.PyArray_CLEARFLAGS(array, cnp.NPY_ARRAY_WRITEABLE)
        cnp.set_array_base(array, pin)
        return array

    def get(self, Handle handle, bint copy):
        """The array behind a handle, as a read-only view or a private copy. See `Pool.get`."""
        cdef shmpool_descriptor_t d
        self.pin_handle(handle, &d)
        if d.nbytes >= POPULATE_NBYTES:
            self.live += 1
            try:
                self.back(handle.slot, d.data_offset + d.nbytes, False)
            finally:
                self.release()
        view = self.view_of(handle.slot, &d)
        if not copy:
            return view
        fresh = np.empty_like(view, order="K", subok=False)
        cdef void *dst = cnp.PyArray_DATA(fresh)
        cdef const void *src = cnp.PyArray_DATA(view)
        cdef uint64_t nbytes = d.nbytes
        with nogil:
            shmpool_copy(dst, src, nbytes, 0)
        return fresh

    def handle_of(self, cnp.ndarray array not None):
        """The handle of an array that `get` returned as it is; None for any other. See `Pool.handle_of`."""
        cdef shmpool_descriptor_t d
        cdef Handle handle
        cdef int k
        cdef PyObject *found = cnp.PyArray_BASE(array)
        base = None if found == NULL else <object>found
        if type(base) is not Pin or (<Pin>base).core is not self:
            return None
        cdef uint32_t slot = (<Pin>base).slot
        # Pinned by the array itself: neither the descriptor nor the generation changes.
        if shmpool_read_descriptor(&self.p, slot, &d) != SHMPOOL_OK or d.ndim != cnp.PyArray_NDIM(array):
            return None
        if (<uint8_t *>cnp.PyArray_DATA(array) != shmpool_slot_data(&self.p, slot) + d.data_offset
                or <uint64_t>cnp.PyArray_NBYTES(array) != d.nbytes or d.dtype_offset != 0
                or text_of(descr_of(array)) != PyBytes_FromStringAndSize(d.dtype, d.dtype_nbytes)):
            return None
        for k in range(d.ndim):
            if cnp.PyArray_DIM(array, k) != d.shape[k]:
                return None
        if not (cnp.PyArray_IS_F_CONTIGUOUS(array) if d.order == 1 else cnp.PyArray_IS_C_CONTIGUOUS(array)):
            return None
        handle = Handle.__new__(Handle)
        handle._uuid = self.uuid
        handle.slot = slot
        handle.span = d.span
        handle.generation = shmpool_word_generation(shmpool_load64(&self.p.slots[slot].word))
        handle.nbytes = d.nbytes
        return handle

    def free(self, Handle handle):
        """Free a sealed array: now, or when its last pin goes."""
        self.check_handle(handle)
        cdef int rc = shmpool_free(&self.p, handle.slot, handle.generation)
        if rc != SHMPOOL_OK:
            _raise(rc, f"free {handle!r}")
        self.wake()

    # -- ownership -----------------------------------------------------------------------------------------------

    def give(self, Handle handle, uint32_t client, uint64_t nonce):
        """Make another client, or this one, the owner of a sealed array."""
        self.check_handle(handle)
        cdef int rc = shmpool_give(&self.p, handle.slot, handle.generation, client, nonce)
        if rc != SHMPOOL_OK:
            self.wake()
            _raise(rc, f"give {handle!r}")

    def owner(self, Handle handle):
        """(index, nonce) of the owner of a sealed array, or None if it has none."""
        self.check_handle(handle)
        if handle.slot >= self.p.geometry.n_slots:
            _raise(SHMPOOL_ESTALE, f"owner of {handle!r}")
        cdef uint64_t word = shmpool_load64(&self.p.slots[handle.slot].word)
        if shmpool_word_generation(word) != handle.generation or shmpool_word_state(word) != SHMPOOL_SEALED:
            _raise(SHMPOOL_ESTALE, f"owner of {handle!r}")
        cdef uint32_t index = shmpool_word_owner(word)
        if index == 0 or index > self.p.geometry.max_clients:
            return None
        return index - 1, shmpool_load64(&self.p.clients[index - 1].nonce)

    def is_alive(self, uint32_t client, uint64_t nonce):
        """Whether that very attachment lives, by its kernel lock."""
        self.check_open()
        if client >= self.p.geometry.max_clients or nonce == 0:
            return False
        if shmpool_load64(&self.p.clients[client].nonce) != nonce:
            return False
        if client == self.p.me:
            return True
        cdef Descriptor cleaner = self.cleaner()
        cdef int rc = shmpool_os_lock(cleaner.fd, LOCK_BYTE_CLIENTS + client, SHMPOOL_LOCK_SHARED)
        cleaner.release()
        return rc != 0

    cdef Descriptor cleaner(self):
        """A description of the lock file to clean through, after proving that we are alive ourselves.

        Never our own description: its number may name another file if foreign code closed it, and a lock that is
        granted there would prove the death of everybody. And a shared lock on our own byte that is granted proves that
        we are dead to the others: then we clean nobody.
        """
        cdef int fd = shmpool_os_open_again(PyBytes_AsString(self.lock_path), &self.lock_file.file)
        if fd == -ENOENT:
            raise errors.PoolCorruptedError(
                f"the lock file {self.lock_path.decode('utf-8', 'replace')} was removed or replaced while the pool is "
                "in use: nobody can tell who is alive.",
                hint="end the processes that use the pool, then open it again; exclude it from temporary-file cleaners",
            )
        if fd < 0:
            raise OSError(-fd, "opening the lock file failed")
        cdef Descriptor cleaner = Descriptor(fd)
        cdef int rc = shmpool_os_lock(cleaner.fd, LOCK_BYTE_CLIENTS + self.p.me, SHMPOOL_LOCK_SHARED)
        if rc == 0:
            cleaner.release()
            _raise(SHMPOOL_EEVICTED, "reclaim")
        return cleaner

    cdef int reclaim_dead(self) except -1:
        """Clean up after every dead client; how many were found with something left. Several threads may."""
        cdef uint32_t index
        cdef int found = 0
        cdef Descriptor cleaner = self.cleaner()
        for index in range(shmpool_high_water(&self.p)):
            if index == self.p.me:
                continue
            if shmpool_os_lock(cleaner.fd, LOCK_BYTE_CLIENTS + index, SHMPOOL_LOCK_SHARED) != 0:
                continue
            if shmpool_load64(&self.p.clients[index].nonce) != 0:
                found += 1
            shmpool_reclaim(&self.p, index)
            SHMPOOL_FAILPOINT("reclaim.before_unlock")
            shmpool_os_lock(cleaner.fd, LOCK_BYTE_CLIENTS + index, SHMPOOL_LOCK_NONE)
        cleaner.release()
        if shmpool_channels_unswept(&self.p):
            self.sweep_channels()
        if found:
            self.wake()
        return found

    # -- channels ------------------------------------------------------------------------------------------------

    cdef int sweep_channels(self) except -1:
        """Remove channels that nobody is attached to, unless somebody is making or removing one right now."""
        held = self.lock_channels()
        if held is not None:
            shmpool_channels_sweep(&self.p)
            (<Descriptor>held).release()
            self.wake()
        return 0

    def lock_channels(self):
        """The right to make, join and remove channels, until the result is closed; None if somebody else has it.

        A description of its own, as for cleaning: threads of this process exclude each other too.
        """
        self.check_open()
        cdef Descriptor held = self.cleaner()
        return held if held.lock(LOCK_BYTE_CHANNELS, SHMPOOL_LOCK_EXCLUSIVE) else None

    def reserve_channel(self, uint64_t offset, uint64_t nbytes):
        """Back a part of a channel's extent with memory."""
        self.check_open()
        try:
            reserve(self.file.fileno(), offset, nbytes)
        except OSError as error:
            from .space import space_error
            raise space_error(error.errno, self.file, nbytes) from None

    def hold(self):
        """Keep the mapping beyond `close`, until `let_go`."""
        self.check_open()
        self.live += 1

    def let_go(self):
        """Undo one `hold`."""
        self.release()

    def lend(self):
        """A capsule with the C structures, for `_channel`. Good for as long as this object lives."""
        self.check_open()
        self.lent.pool = &self.p
        self.lent.forks = shmpool_os_fork_counter()
        self.lent.born = self.born_in_fork
        self.lent.closed = <const int *>&self.closed
        return PyCapsule_New(&self.lent, SHMPOOL_BRIDGE_NAME, NULL)

    def prepare_read(self, uint32_t slot, uint64_t nbytes):
        """Fill this process's page tables for a pinned span."""
        if nbytes >= POPULATE_NBYTES:
            self.back(slot, nbytes, False)

    def reclaim(self):
        """Free what dead clients left behind; how many such clients there were."""
        self.check_open()
        self.live += 1
        try:
            return self.reclaim_dead()
        finally:
            self.release()

    # -- inspection ----------------------------------------------------------------------------------------------

    def snapshot(self):
        """(now_ns, slots, clients) as plain tuples; each value is true at its own instant.

        A slot: (state, owner index or None, generation, span, nbytes, claimed_ns, sealed_ns, reserved_nbytes,
        head or None, {client: pins}). A client: (index, nonce, pid, pid_namespace, attached_ns, label, alive).
        """
        self.check_open()
        self.live += 1
        try:
            return self.take_snapshot()
        finally:
            self.release()

    cdef object take_snapshot(self):
        cdef uint32_t slot, client, state, owner, count
        cdef uint32_t high = shmpool_high_water(&self.p)
        cdef shmpool_slot_t *s
        cdef uint64_t word
        slots = []
        for slot in range(self.p.geometry.n_slots):
            s = &self.p.slots[slot]
            word = shmpool_load64(&s.word)
            state = shmpool_word_state(word)
            owner = shmpool_word_owner(word)
            pins = {}
            for client in range(high):
                count = shmpool_load32(shmpool_pin_cell(&self.p, slot, client))
                if count:
                    pins[client] = count
            slots.append((
                STATES[state] if state < 5 else "corrupt",
                owner - 1 if 0 < owner < SHMPOOL_CUSTODY else None,  # None and sealed: a channel's
                shmpool_word_generation(word),
                shmpool_relaxed32(&s.span),
                shmpool_relaxed64(&s.nbytes),
                shmpool_relaxed64(&s.claimed_ns),
                shmpool_relaxed64(&s.sealed_ns),
                shmpool_relaxed64(&s.reserved_nbytes),
                shmpool_relaxed32(&s.link_slot) if state == SHMPOOL_TAIL else None,
                pins,
            ))
        clients = []
        cdef shmpool_client_t *c
        cdef char label[129]
        for client in range(high):
            c = &self.p.clients[client]
            nonce = shmpool_load64(&c.nonce)
            if nonce == 0:
                continue
            memcpy(label, c.label, 128)
            label[128] = 0
            clients.append((client, nonce, shmpool_relaxed32(&c.pid), shmpool_relaxed64(&c.pid_namespace),
                            shmpool_relaxed64(&c.attached_ns), (<bytes>label).decode("utf-8", "replace"),
                            self.is_alive(client, nonce)))
        return shmpool_os_monotonic_ns(), slots, clients

    def address(self, uint32_t slot):
        """Where a slot begins in this process: for registering the memory with a device."""
        self.check_open()
        if slot >= self.p.geometry.n_slots:
            raise IndexError(slot)
        return <uintptr_t>shmpool_slot_data(&self.p, slot)

    def n_free(self, object region):
        """Free slots of a region at this moment."""
        cdef int index = REGION_INDEX[region]
        cdef uint32_t slot
        cdef uint32_t first = self.p.geometry.region_start[index]
        cdef int n = 0
        self.check_open()
        for slot in range(first, first + self.p.geometry.region_slots[index]):
            if shmpool_word_state(shmpool_load64(&self.p.slots[slot].word)) == SHMPOOL_FREE:
                n += 1
        return n

    def n_kept(self, object region):
        """(slots of a region that are free but for somebody's pins, slots of the region)."""
        cdef int index = REGION_INDEX[region]
        cdef uint32_t slot
        cdef uint32_t first = self.p.geometry.region_start[index]
        cdef uint32_t n = self.p.geometry.region_slots[index]
        cdef uint32_t kept = 0
        self.check_open()
        for slot in range(first, first + n):
            if shmpool_word_state(shmpool_load64(&self.p.slots[slot].word)) == SHMPOOL_RETIRED:
                kept += min(shmpool_relaxed32(&self.p.slots[slot].span), n)
        return kept, n


def fast_copy(cnp.ndarray target not None, cnp.ndarray source not None, int n_threads=0):
    """Copy between two C-contiguous arrays of the same size with the engine of `put`, the GIL released."""
    cdef uint64_t nbytes = cnp.PyArray_NBYTES(source)
    if not (cnp.PyArray_IS_C_CONTIGUOUS(source) and cnp.PyArray_IS_C_CONTIGUOUS(target)):
        raise ValueError("fast_copy needs C-contiguous arrays")
    if nbytes != <uint64_t>cnp.PyArray_NBYTES(target) or not cnp.PyArray_ISWRITEABLE(target):
        raise ValueError("fast_copy needs a writable target of the same size")
    cdef void *dst = cnp.PyArray_DATA(target)
    cdef const void *src = cnp.PyArray_DATA(source)
    with nogil:
        shmpool_copy(dst, src, nbytes, n_threads)


def copy_isa():
    """Which streaming stores large copies use on this CPU: ``avx512``, ``avx2``, ``sse2``, or ``memcpy`` for none."""
    for isa, name in ((SHMPOOL_COPY_AVX512, "avx512"), (SHMPOOL_COPY_AVX2, "avx2"), (SHMPOOL_COPY_SSE2, "sse2")):
        if shmpool_copy_find_kernel(isa) != NULL:
            return name
    return "memcpy"


cdef object hash_bytes(const void *data, uint64_t nbytes, uint64_t seed):
    cdef shmpool_hash_t found
    if nbytes <= HASH_WITH_GIL_NBYTES:
        found = shmpool_hash(data, nbytes, seed)
    else:
        with nogil:
            found = shmpool_hash(data, nbytes, seed)
    return (<object>found.high << 64) | <object>found.low


def checksum(data, uint64_t seed=0):
    """XXH3-128 of the bytes of an array or a buffer, as an integer.

    Finds accidents: two contents that differ have the same checksum with a probability of 2**-128. It does not keep
    out somebody who wants a collision.

    Parameters
    ----------
    data : ndarray or bytes-like
        Contiguous, in C or in Fortran order. What counts are the bytes as they lie in memory: dtype, shape and order
        do not.
    seed : int, default 0
        0 to 2**64 - 1; another seed gives an unrelated checksum.

    Returns
    -------
    int
        0 to 2**128 - 1, the same on every machine and in every implementation of XXH3-128.

    Raises
    ------
    BufferLayoutError
        The bytes do not lie in one piece.
    UnsupportedDtypeError
        The array holds Python objects.

    Notes
    -----
    Concurrency: any thread; the GIL is released from 16 KiB on. Somebody who writes to `data` meanwhile makes the
    checksum meaningless.
    Blocking: one pass over the bytes; figures are in ``docs/performance.md``.

    Examples
    --------
    >>> import shmpool
    >>> hex(shmpool.checksum(b"abc"))
    '0x6b05ab6733a618578af5f94892f3950'
    """
    cdef cnp.ndarray array
    cdef Py_buffer view
    if isinstance(data, np.ndarray):
        array = data
        if array.dtype.hasobject:
            raise errors.UnsupportedDtypeError(
                f"an array of dtype {array.dtype} holds pointers, whose checksum means nothing.",
                hint="convert it to a dtype of fixed size",
            )
        if not (cnp.PyArray_IS_C_CONTIGUOUS(array) or cnp.PyArray_IS_F_CONTIGUOUS(array)):
            raise errors.BufferLayoutError(
                f"the array of shape {data.shape} and strides {data.strides} does not lie in one piece.",
                hint="numpy.ascontiguousarray(array) makes a copy that does",
            )
        return hash_bytes(cnp.PyArray_DATA(array), cnp.PyArray_NBYTES(array), seed)
    try:
        PyObject_GetBuffer(data, &view, PyBUF_ANY_CONTIGUOUS)
    except BufferError as error:
        raise errors.BufferLayoutError(f"the buffer does not lie in one piece: {error}") from None
    try:
        return hash_bytes(view.buf, view.len, seed)
    finally:
        PyBuffer_Release(&view)
