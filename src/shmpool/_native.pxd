# SPDX-License-Identifier: BSD-3-Clause
"""The C core as `_core` and `_channel` see it: only declarations, no module of its own.

What only `_core` may use (files, locks, the copy threads) is declared there: including those headers twice would give
each module its own fork handlers.
"""

cimport numpy as cnp
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "core/failpoint.h" nogil:
    void SHMPOOL_FAILPOINT(const char *label)

cdef extern from "core/channel.h" nogil:
    enum:
        SHMPOOL_OK, SHMPOOL_EFULL, SHMPOOL_EEMPTY, SHMPOOL_ESTALE, SHMPOOL_EEVICTED, SHMPOOL_ETOOLARGE
        SHMPOOL_ECORRUPT, SHMPOOL_EMAGIC, SHMPOOL_EVERSION, SHMPOOL_ELAYOUT, SHMPOOL_ETRUNCATED, SHMPOOL_ENOTREADY
        SHMPOOL_EINVAL, SHMPOOL_EGONE
        SHMPOOL_READY, SHMPOOL_TAIL, SHMPOOL_FREE, SHMPOOL_SEALED, SHMPOOL_RETIRED
        SHMPOOL_MAX_NDIM, SHMPOOL_LABEL_NBYTES, SHMPOOL_N_REGIONS, SHMPOOL_PAGE
        SHMPOOL_FORMAT_VERSION, SHMPOOL_HUGE_PAGE, SHMPOOL_MAX_SLOTS, SHMPOOL_MAX_CLIENTS
        SHMPOOL_MAX_CHANNELS, SHMPOOL_MAX_CELLS, SHMPOOL_MAX_ATTACHMENTS, SHMPOOL_PAYLOAD_OFFSET
        SHMPOOL_CHANNEL_NAME_NBYTES, SHMPOOL_CUSTODY
        SHMPOOL_WITNESS_STRIDE, SHMPOOL_WITNESS_LANES
        SHMPOOL_ROLE_ATTACHED, SHMPOOL_ROLE_SENDS, SHMPOOL_ROLE_RECEIVES, SHMPOOL_ROLE_CURSOR
        SHMPOOL_BROADCAST, SHMPOOL_CHANNEL_FREE, SHMPOOL_CHANNEL_READY

    Py_ssize_t SHMPOOL_DTYPE_NBYTES

    ctypedef struct shmpool_header_t:
        uint8_t magic[8]
        uint32_t format_version
        uint32_t layout_stamp
        uint32_t init_state
        uint8_t uuid[16]
        uint64_t created_ns
        uint64_t epoch

    ctypedef struct shmpool_rotation_t "struct { uint64_t value; uint8_t pad[120]; }":
        uint64_t value

    ctypedef struct shmpool_counters_t:
        shmpool_rotation_t rotation[3]
        uint32_t wake_seq
        uint32_t waiters
        uint32_t client_high_water

    ctypedef struct shmpool_slot_t:
        uint64_t word
        uint64_t link_generation
        uint32_t link_slot
        uint64_t reserved_nbytes
        uint64_t claimed_ns
        uint64_t sealed_ns
        uint64_t nbytes
        uint32_t span

    ctypedef struct shmpool_client_t:
        uint64_t nonce
        uint64_t attached_ns
        uint32_t pid
        uint64_t pid_namespace
        char label[128]

    ctypedef struct shmpool_channel_t:
        uint64_t word
        uint32_t flags
        uint32_t capacity
        uint32_t cell_nbytes
        uint32_t name_nbytes
        uint64_t created_ns
        char *name
        uint64_t tail
        uint64_t head
        uint32_t recv_seq
        uint32_t recv_waiters
        uint32_t send_seq
        uint32_t send_waiters

    ctypedef struct shmpool_cell_t:
        uint64_t word
        uint64_t generation
        uint32_t slot
        uint32_t span
        uint32_t meta_nbytes
        uint32_t data_offset
        uint64_t data_nbytes
        uint64_t meta_offset

    ctypedef struct shmpool_attachment_t:
        uint64_t word

    ctypedef struct shmpool_geometry_t:
        uint32_t max_channels
        uint64_t channel_nbytes
        uint64_t channels_offset
        uint64_t slot_nbytes
        uint32_t region_slots[3]
        uint32_t region_start[3]
        uint32_t n_slots
        uint32_t max_clients
        uint64_t table_nbytes
        uint64_t slots_offset
        uint64_t witness_offset
        uint64_t file_nbytes

    ctypedef struct shmpool_t:
        shmpool_geometry_t geometry
        uint8_t *base
        shmpool_header_t *header
        shmpool_counters_t *counters
        shmpool_slot_t *slots
        shmpool_client_t *clients
        shmpool_channel_t *channels
        uint32_t me
        uint64_t nonce
        uint64_t wake_key

    ctypedef struct shmpool_ring_t:
        const shmpool_t *p
        shmpool_channel_t *c
        shmpool_attachment_t *attachments
        uint32_t capacity
        uint32_t cell_nbytes
        uint32_t flags
        uint32_t mine
        uint64_t generation

    ctypedef struct shmpool_descriptor_t:
        uint64_t nbytes
        uint64_t data_offset
        uint64_t dtype_offset
        uint32_t span
        uint16_t dtype_nbytes
        uint8_t ndim
        uint8_t order
        int64_t shape[64]
        char dtype[280]

    uint64_t shmpool_load64(const uint64_t *p) noexcept
    uint32_t shmpool_load32(const uint32_t *p) noexcept
    uint64_t shmpool_relaxed64(const uint64_t *p) noexcept
    uint32_t shmpool_relaxed32(const uint32_t *p) noexcept
    void shmpool_set64(uint64_t *p, uint64_t v) noexcept
    void shmpool_store32(uint32_t *p, uint32_t v) noexcept
    void shmpool_raise64(uint64_t *p, uint64_t v) noexcept
    uint64_t shmpool_add64(uint64_t *p, uint64_t v) noexcept
    uint32_t shmpool_add32(uint32_t *p, uint32_t v) noexcept

    int shmpool_geometry_init_all(shmpool_geometry_t *g, uint64_t slot_nbytes, const uint32_t *region_slots,
                                  uint32_t max_clients, uint32_t max_channels, uint64_t channel_nbytes) noexcept
    void shmpool_header_mark_creating(shmpool_header_t *h) noexcept
    void shmpool_header_fill(shmpool_header_t *h, const shmpool_geometry_t *g, const uint8_t *uuid,
                             uint64_t created_ns) noexcept
    int shmpool_header_check(const shmpool_header_t *h, uint64_t file_nbytes, shmpool_geometry_t *g) noexcept
    uint32_t shmpool_layout_stamp() noexcept
    uint64_t shmpool_wake_key(const shmpool_t *p, const uint32_t *word) noexcept
    void shmpool_bind(shmpool_t *p, const shmpool_geometry_t *g, uint8_t *base) noexcept
    uint8_t *shmpool_slot_data(const shmpool_t *p, uint32_t slot) noexcept
    uint32_t *shmpool_pin_cell(const shmpool_t *p, uint32_t slot, uint32_t client) noexcept
    uint64_t shmpool_word_generation(uint64_t w) noexcept
    uint32_t shmpool_word_owner(uint64_t w) noexcept
    uint32_t shmpool_word_state(uint64_t w) noexcept

    uint32_t shmpool_high_water(const shmpool_t *p) noexcept
    int shmpool_evicted(const shmpool_t *p) noexcept
    int shmpool_wake_needed(const shmpool_t *p) noexcept
    int shmpool_abort(const shmpool_t *p, uint32_t head, uint64_t generation, uint32_t span) noexcept
    uint64_t shmpool_ticket(const shmpool_t *p, int region, uint32_t span) noexcept
    int shmpool_claim(const shmpool_t *p, int region, uint32_t span, uint64_t ticket, uint64_t now_ns,
                      uint32_t *head, uint64_t *generation) noexcept
    int shmpool_holds(const shmpool_t *p, uint32_t head, uint64_t generation) noexcept
    void shmpool_describe(const shmpool_t *p, uint32_t head, const shmpool_descriptor_t *d) noexcept
    int shmpool_seal(const shmpool_t *p, uint32_t head, uint64_t generation, uint64_t now_ns) noexcept
    int shmpool_pin(const shmpool_t *p, uint32_t slot, uint64_t generation) noexcept
    int shmpool_unpin(const shmpool_t *p, uint32_t slot) noexcept
    int shmpool_read_descriptor(const shmpool_t *p, uint32_t slot, shmpool_descriptor_t *d) noexcept
    int shmpool_free(const shmpool_t *p, uint32_t slot, uint64_t generation) noexcept
    int shmpool_give(const shmpool_t *p, uint32_t slot, uint64_t generation, uint32_t client,
                     uint64_t nonce) noexcept
    void shmpool_reclaim(const shmpool_t *p, uint32_t client) noexcept
    void shmpool_client_enter(shmpool_t *p, uint32_t client, uint64_t nonce, uint64_t now_ns, uint32_t pid,
                              uint64_t pid_namespace, const char *label) noexcept
    void shmpool_client_leave(const shmpool_t *p) noexcept

    uint32_t shmpool_channel_high_water(const shmpool_t *p) noexcept
    int shmpool_channels_unswept(const shmpool_t *p) noexcept
    void shmpool_channels_sweep(const shmpool_t *p) noexcept
    void shmpool_channel_make(const shmpool_t *p, uint32_t index, const char *name, uint32_t name_nbytes,
                              uint32_t capacity, uint32_t cell_nbytes, uint32_t flags, uint64_t now_ns) noexcept
    int shmpool_ring_bind(shmpool_ring_t *r, const shmpool_t *p, uint32_t index) noexcept
    shmpool_cell_t *shmpool_ring_cell(const shmpool_ring_t *r, uint64_t position) noexcept
    uint8_t *shmpool_ring_payload(const shmpool_ring_t *r, uint64_t position) noexcept
    uint32_t shmpool_ring_attachments(const shmpool_ring_t *r) noexcept
    int shmpool_ring_wake_needed(uint32_t *seq, uint32_t *waiters) noexcept
    int shmpool_ring_claim(const shmpool_ring_t *r, uint64_t *position) noexcept
    int shmpool_ring_entrust(const shmpool_ring_t *r, uint64_t position, uint32_t slot, uint32_t span,
                             uint64_t generation) noexcept
    int shmpool_ring_publish(const shmpool_ring_t *r, uint64_t position) noexcept
    int shmpool_ring_bury(const shmpool_ring_t *r, uint64_t position, uint32_t owner) noexcept
    int shmpool_ring_take(const shmpool_ring_t *r, uint64_t *position) noexcept
    int shmpool_ring_redeem(const shmpool_ring_t *r, uint32_t slot, uint64_t generation) noexcept
    int shmpool_ring_accept(const shmpool_ring_t *r, uint64_t position) noexcept
    int shmpool_ring_give_back(const shmpool_ring_t *r, uint64_t position, uint32_t owner) noexcept
    int shmpool_ring_rescue(const shmpool_ring_t *r) noexcept
    int shmpool_ring_peek(const shmpool_ring_t *r, uint64_t *position) noexcept
    int shmpool_ring_advance(const shmpool_ring_t *r, uint64_t position) noexcept
    uint32_t shmpool_ring_count(const shmpool_ring_t *r) noexcept
    int shmpool_ring_has_message(const shmpool_ring_t *r) noexcept
    int shmpool_ring_has_room(const shmpool_ring_t *r) noexcept
    int shmpool_ring_roomy(const shmpool_ring_t *r, uint64_t position) noexcept
    int shmpool_ring_attach(shmpool_ring_t *r) noexcept
    int shmpool_ring_attached(const shmpool_ring_t *r) noexcept
    void shmpool_ring_declare(const shmpool_ring_t *r, uint32_t roles) noexcept
    int shmpool_ring_deserted(const shmpool_ring_t *r, uint32_t role) noexcept
    void shmpool_ring_detach(const shmpool_ring_t *r) noexcept

cdef extern from "core/bridge.h" nogil:
    const char *SHMPOOL_BRIDGE_NAME

    ctypedef struct shmpool_bridge_t:
        const shmpool_t *pool
        const uint32_t *forks
        uint32_t born
        const int *closed

cdef extern from "os/wait.h" nogil:
    uint64_t shmpool_os_monotonic_ns() noexcept
    void shmpool_os_wait(uint32_t *word, uint32_t expected, uint64_t timeout_ns, uint64_t key) noexcept
    void shmpool_os_wake(uint32_t *word, uint64_t key) noexcept
    void shmpool_os_yield() noexcept

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(PyObject *subtype, cnp.dtype descr, int nd, const cnp.npy_intp *dims,
                                const cnp.npy_intp *strides, void *data, int flags, object obj)
    PyObject PyArray_Type "PyArray_Type"
