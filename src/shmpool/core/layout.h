/* SPDX-License-Identifier: BSD-3-Clause */
/* The pool file as C structures: the format specification (docs/format.md) in code.
 *
 * No Python, no I/O, no allocation, no statics. Nothing here trusts what a file says: the functions
 * that read a header work on a private copy and recompute every offset from four numbers. */
#ifndef SHMPOOL_LAYOUT_H
#define SHMPOOL_LAYOUT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "atomic.h"
#include "failpoint.h"

#ifdef __cplusplus
#define SHMPOOL_STATIC_ASSERT(cond, text) static_assert(cond, text)
#else
#define SHMPOOL_STATIC_ASSERT(cond, text) _Static_assert(cond, text)
#endif

#define SHMPOOL_FORMAT_VERSION 1u
#define SHMPOOL_PAGE 4096u
#define SHMPOOL_HUGE_PAGE (2u << 20)
#define SHMPOOL_MAX_SLOTS 4096u
#define SHMPOOL_MAX_CLIENTS 4094u /* 12 bits hold index + 1; 4095 is reserved */
#define SHMPOOL_MAX_NDIM 64u      /* NumPy 2's own limit */
#define SHMPOOL_DTYPE_NBYTES 280
#define SHMPOOL_LABEL_NBYTES 128u
#define SHMPOOL_CUSTODY 4095u /* owner of a slot that a channel's cell owns */
#define SHMPOOL_MAX_CHANNELS 4096u
#define SHMPOOL_MAX_CELLS 4096u
#define SHMPOOL_MAX_ATTACHMENTS 256u
#define SHMPOOL_CHANNEL_NAME_NBYTES 224u
/* The witness area, behind the slots: pages that are written by one side only (docs/format.md). */
#define SHMPOOL_WITNESS_STRIDE 65536u
#define SHMPOOL_WITNESS_LANES 8u
#define SHMPOOL_WITNESS_NBYTES (SHMPOOL_WITNESS_LANES * 2u * SHMPOOL_WITNESS_STRIDE)

#define SHMPOOL_INPUT 0
#define SHMPOOL_OUTPUT 1
#define SHMPOOL_SCRATCH 2
#define SHMPOOL_N_REGIONS 3

#define SHMPOOL_CREATING 1u
#define SHMPOOL_READY 2u

#define SHMPOOL_FREE 0u
#define SHMPOOL_WRITING 1u
#define SHMPOOL_SEALED 2u
#define SHMPOOL_RETIRED 3u
#define SHMPOOL_TAIL 4u

/* Results of the core. One table (shmpool/errors.py) turns them into exceptions. */
enum {
    SHMPOOL_OK = 0,
    SHMPOOL_EFULL = -1,     /* nothing free at this moment */
    SHMPOOL_ESTALE = -2,    /* the generation has moved on, or the slot is not sealed */
    SHMPOOL_EEVICTED = -3,  /* our proof of life was lost and somebody cleaned up after us */
    SHMPOOL_ETOOLARGE = -4, /* more slots than the pool has */
    SHMPOOL_ECORRUPT = -5,  /* the file contradicts itself */
    SHMPOOL_EMAGIC = -6,    /* not a pool */
    SHMPOOL_EVERSION = -7,  /* a pool of another format version */
    SHMPOOL_ELAYOUT = -8,   /* same version, but a build with other structures */
    SHMPOOL_ETRUNCATED = -9,
    SHMPOOL_ENOTREADY = -10, /* its creator died before it was ready */
    SHMPOOL_EINVAL = -11,
    SHMPOOL_EEMPTY = -13, /* no message at this moment */
    SHMPOOL_EGONE = -12   /* the client is not attached (any more) */
};

typedef struct {
    uint8_t magic[8];
    uint32_t format_version;
    uint32_t layout_stamp;
    uint32_t init_state;
    uint32_t header_crc;
    uint8_t uuid[16];
    uint64_t slot_nbytes;
    uint32_t region_slots[SHMPOOL_N_REGIONS];
    uint32_t max_clients;
    uint64_t client_table_offset;
    uint64_t pin_table_offset;
    uint64_t pin_stride;
    uint64_t slots_offset;
    uint64_t file_nbytes;
    uint64_t created_ns;
    uint32_t max_channels;
    uint32_t channel_kib;
    uint64_t channel_table_offset;
    uint64_t epoch;
    uint8_t pad[SHMPOOL_PAGE - 136];
} shmpool_header_t;

typedef struct {
    struct {
        uint64_t value;
        uint8_t pad[120];
    } rotation[SHMPOOL_N_REGIONS];
    uint32_t wake_seq;
    uint8_t pad_seq[124];
    uint32_t waiters;
    uint8_t pad_waiters[124];
    uint32_t client_high_water;
    uint8_t pad_clients[124];
    uint32_t channel_high_water;
    uint8_t pad[SHMPOOL_PAGE - 772];
} shmpool_counters_t;

typedef struct {
    uint64_t word;
    uint8_t pad_word[56];
    uint64_t link_generation;
    uint32_t link_slot;
    uint8_t pad_link[52];
    uint64_t reserved_nbytes;
    uint64_t claimed_ns;
    uint8_t pad_claim[48];
    uint64_t sealed_ns;
    uint64_t nbytes;
    uint64_t data_offset;
    uint32_t span;
    uint16_t dtype_nbytes;
    uint8_t ndim;
    uint8_t order;
    uint64_t dtype_offset;
    int64_t shape[SHMPOOL_MAX_NDIM];
    char dtype[SHMPOOL_DTYPE_NBYTES];
} shmpool_slot_t;

typedef struct {
    uint64_t nonce;
    uint64_t attached_ns;
    uint32_t pid;
    uint32_t pad_pid;
    uint64_t pid_namespace;
    char label[SHMPOOL_LABEL_NBYTES];
    uint8_t pad[96];
} shmpool_client_t;

/* A channel (docs/channels.md). What changes all the time stands alone on 128 bytes. */
typedef struct {
    uint64_t word; /* generation, state: SHMPOOL_CHANNEL_* */
    uint32_t flags;
    uint32_t capacity;
    uint32_t cell_nbytes;
    uint32_t name_nbytes;
    uint64_t created_ns;
    char name[SHMPOOL_CHANNEL_NAME_NBYTES];
    uint64_t tail;
    uint8_t pad_tail[120];
    uint64_t head;
    uint8_t pad_head[120];
    uint32_t recv_seq;
    uint8_t pad_recv_seq[124];
    uint32_t recv_waiters;
    uint8_t pad_recv_waiters[124];
    uint32_t send_seq;
    uint8_t pad_send_seq[124];
    uint32_t send_waiters;
    uint8_t pad_send_waiters[124];
    uint32_t attach_high_water;
    uint32_t ever;
    uint8_t pad[1016];
} shmpool_channel_t;

typedef struct {
    uint64_t word; /* cursor, owner, role */
    uint8_t pad[56];
} shmpool_attachment_t;

typedef struct {
    uint64_t word;       /* position, owner, state: SHMPOOL_CELL_* */
    uint64_t generation; /* of the slot; 0: everything is in the cell */
    uint32_t slot;
    uint32_t span;
    uint32_t meta_nbytes;
    uint32_t data_offset; /* of the data in the cell, when there is no slot */
    uint64_t data_nbytes;
    uint64_t meta_offset; /* of the meta text in the slot; 0: it is in the cell */
    uint8_t pad[16];
} shmpool_cell_t;

/* An extent: attachments, cell heads, payloads. The first two lie where they lie whatever channel
 * uses the extent, so that a cleaner that comes late meets words and nothing else. */
#define SHMPOOL_CELLS_OFFSET ((uint64_t)SHMPOOL_MAX_ATTACHMENTS * 64u)
#define SHMPOOL_PAYLOAD_OFFSET (SHMPOOL_CELLS_OFFSET + (uint64_t)SHMPOOL_MAX_CELLS * 64u)

#define SHMPOOL_CHANNEL_FREE 0u
#define SHMPOOL_CHANNEL_CREATING 1u
#define SHMPOOL_CHANNEL_READY 2u
#define SHMPOOL_CHANNEL_REMOVING 3u

SHMPOOL_STATIC_ASSERT(offsetof(shmpool_header_t, max_channels) == 112, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_header_t, channel_table_offset) == 120, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_counters_t, channel_high_water) == 768, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_channel_t, name) == 32, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_channel_t, tail) == 256, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_channel_t, head) == 384, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_channel_t, recv_seq) == 512, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_channel_t, recv_waiters) == 640, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_channel_t, send_seq) == 768, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_channel_t, send_waiters) == 896, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_channel_t, attach_high_water) == 1024, "format 1");
SHMPOOL_STATIC_ASSERT(sizeof(shmpool_channel_t) == 2048, "format 1");
SHMPOOL_STATIC_ASSERT(sizeof(shmpool_attachment_t) == 64, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_cell_t, data_nbytes) == 32, "format 1");
SHMPOOL_STATIC_ASSERT(sizeof(shmpool_cell_t) == 64, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_header_t, format_version) == 8, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_header_t, init_state) == 16, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_header_t, uuid) == 24, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_header_t, slot_nbytes) == 40, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_header_t, max_clients) == 60, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_header_t, slots_offset) == 88, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_header_t, created_ns) == 104, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_header_t, epoch) == 128, "format 1");
SHMPOOL_STATIC_ASSERT(sizeof(shmpool_header_t) == SHMPOOL_PAGE, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_counters_t, wake_seq) == 384, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_counters_t, waiters) == 512, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_counters_t, client_high_water) == 640, "format 1");
SHMPOOL_STATIC_ASSERT(sizeof(shmpool_counters_t) == SHMPOOL_PAGE, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_slot_t, link_generation) == 64, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_slot_t, reserved_nbytes) == 128, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_slot_t, sealed_ns) == 192, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_slot_t, span) == 216, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_slot_t, shape) == 232, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_slot_t, dtype) == 744, "format 1");
SHMPOOL_STATIC_ASSERT(sizeof(shmpool_slot_t) == 1024, "format 1");
SHMPOOL_STATIC_ASSERT(offsetof(shmpool_client_t, label) == 32, "format 1");
SHMPOOL_STATIC_ASSERT(sizeof(shmpool_client_t) == 256, "format 1");

/* What a process knows about a pool, in its own memory: computed or checked once, at attach. */
typedef struct {
    uint64_t slot_nbytes;
    uint32_t region_slots[SHMPOOL_N_REGIONS];
    uint32_t region_start[SHMPOOL_N_REGIONS];
    uint32_t n_slots;
    uint32_t max_clients;
    uint64_t client_table_offset;
    uint64_t pin_table_offset;
    uint64_t pin_stride;
    uint32_t max_channels;
    uint64_t channel_nbytes; /* of one extent */
    uint64_t channel_table_offset;
    uint64_t table_nbytes; /* header, counters and tables, in whole pages: what must be reserved */
    uint64_t channels_offset; /* of the first extent: right behind the tables */
    uint64_t slots_offset;
    uint64_t witness_offset;
    uint64_t file_nbytes;
} shmpool_geometry_t;

typedef struct {
    shmpool_geometry_t geometry;
    uint8_t *base;
    shmpool_header_t *header;
    shmpool_counters_t *counters;
    shmpool_slot_t *slots;
    shmpool_client_t *clients;
    uint8_t *pins;
    shmpool_channel_t *channels;
    uint32_t me;       /* my client index */
    uint64_t nonce;    /* what my client entry must say for as long as I am believed to be alive */
    uint64_t wake_key; /* of this pool among all; the same in all of its processes */
} shmpool_t;

/* By which processes find the sleepers of a word where the system does not know them by address. */
static inline uint64_t shmpool_wake_key(const shmpool_t *p, const uint32_t *word) {
    return p->wake_key + (uint64_t)((const uint8_t *)word - p->base);
}

static inline uint32_t shmpool_fnv(uint32_t hash, uint64_t value) {
    for (int i = 0; i < 8; i++) {
        hash = (hash ^ (uint32_t)(value & 0xff)) * 16777619u;
        value >>= 8;
    }
    return hash;
}

/* Two builds whose structures differ must not share a file, even when somebody forgot to raise the
 * version: the stamp is computed from what the compiler really made of them. */
static inline uint32_t shmpool_layout_stamp(void) {
    uint32_t h = 2166136261u;
    h = shmpool_fnv(h, sizeof(shmpool_header_t));
    h = shmpool_fnv(h, sizeof(shmpool_counters_t));
    h = shmpool_fnv(h, sizeof(shmpool_slot_t));
    h = shmpool_fnv(h, sizeof(shmpool_client_t));
    h = shmpool_fnv(h, offsetof(shmpool_slot_t, link_generation));
    h = shmpool_fnv(h, offsetof(shmpool_slot_t, sealed_ns));
    h = shmpool_fnv(h, offsetof(shmpool_slot_t, shape));
    h = shmpool_fnv(h, offsetof(shmpool_slot_t, dtype));
    h = shmpool_fnv(h, offsetof(shmpool_client_t, label));
    h = shmpool_fnv(h, sizeof(shmpool_channel_t));
    h = shmpool_fnv(h, offsetof(shmpool_channel_t, tail));
    h = shmpool_fnv(h, offsetof(shmpool_channel_t, attach_high_water));
    h = shmpool_fnv(h, sizeof(shmpool_cell_t));
    h = shmpool_fnv(h, offsetof(shmpool_cell_t, data_nbytes));
    h = shmpool_fnv(h, SHMPOOL_PAYLOAD_OFFSET);
    h = shmpool_fnv(h, SHMPOOL_MAX_NDIM);
    h = shmpool_fnv(h, SHMPOOL_TAIL);
    h = shmpool_fnv(h, SHMPOOL_WITNESS_NBYTES);
    h = shmpool_fnv(h, sizeof(void *));
    return h;
}

static inline uint32_t shmpool_crc32(const uint8_t *data, size_t nbytes) {
    uint32_t crc = ~0u;
    for (size_t i = 0; i < nbytes; i++) {
        crc ^= data[i];
        for (int k = 0; k < 8; k++)
            crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
    }
    return ~crc;
}

/* Offsets from the four numbers that define a pool. SHMPOOL_EINVAL when they make no sense or
 * overflow; limits are checked before anything is multiplied. */
static inline int shmpool_geometry_init_all(shmpool_geometry_t *g, uint64_t slot_nbytes,
                                            const uint32_t region_slots[SHMPOOL_N_REGIONS],
                                            uint32_t max_clients, uint32_t max_channels,
                                            uint64_t channel_nbytes) {
    memset(g, 0, sizeof *g);
    if (slot_nbytes == 0 || slot_nbytes % SHMPOOL_PAGE != 0 || slot_nbytes > (UINT64_C(1) << 46))
        return SHMPOOL_EINVAL;
    if (max_clients == 0 || max_clients > SHMPOOL_MAX_CLIENTS)
        return SHMPOOL_EINVAL;
    if (max_channels > SHMPOOL_MAX_CHANNELS)
        return SHMPOOL_EINVAL;
    if (max_channels == 0 ? channel_nbytes != 0
                          : channel_nbytes % SHMPOOL_PAGE != 0 ||
                                channel_nbytes < SHMPOOL_PAYLOAD_OFFSET + SHMPOOL_PAGE ||
                                channel_nbytes > (UINT64_C(1) << 40))
        return SHMPOOL_EINVAL;
    for (int r = 0; r < SHMPOOL_N_REGIONS; r++) {
        if (region_slots[r] > SHMPOOL_MAX_SLOTS)
            return SHMPOOL_EINVAL;
        g->region_slots[r] = region_slots[r];
        g->region_start[r] = g->n_slots;
        g->n_slots += region_slots[r];
    }
    if (g->n_slots == 0 || g->n_slots > SHMPOOL_MAX_SLOTS)
        return SHMPOOL_EINVAL;
    g->slot_nbytes = slot_nbytes;
    g->max_clients = max_clients;
    g->client_table_offset = 2 * SHMPOOL_PAGE + (uint64_t)g->n_slots * sizeof(shmpool_slot_t);
    g->pin_table_offset = g->client_table_offset + (uint64_t)max_clients * sizeof(shmpool_client_t);
    g->pin_stride = ((uint64_t)max_clients * 4 + 63) / 64 * 64;
    uint64_t align = slot_nbytes >= SHMPOOL_HUGE_PAGE ? SHMPOOL_HUGE_PAGE : SHMPOOL_PAGE;
    g->max_channels = max_channels;
    g->channel_nbytes = channel_nbytes;
    g->channel_table_offset = g->pin_table_offset + g->n_slots * g->pin_stride;
    uint64_t end = g->channel_table_offset + (uint64_t)max_channels * sizeof(shmpool_channel_t);
    g->table_nbytes = (end + SHMPOOL_PAGE - 1) / SHMPOOL_PAGE * SHMPOOL_PAGE;
    g->channels_offset = g->table_nbytes;
    end = g->channels_offset + max_channels * channel_nbytes;
    g->slots_offset = (end + align - 1) / align * align;
    end = g->slots_offset + g->n_slots * slot_nbytes;
    g->witness_offset =
        (end + SHMPOOL_WITNESS_STRIDE - 1) / SHMPOOL_WITNESS_STRIDE * SHMPOOL_WITNESS_STRIDE;
    g->file_nbytes = g->witness_offset + SHMPOOL_WITNESS_NBYTES;
    return g->file_nbytes > (uint64_t)INT64_MAX ? SHMPOOL_EINVAL : SHMPOOL_OK;
}

/* A pool without channels. */
static inline int shmpool_geometry_init(shmpool_geometry_t *g, uint64_t slot_nbytes,
                                        const uint32_t region_slots[SHMPOOL_N_REGIONS],
                                        uint32_t max_clients) {
    return shmpool_geometry_init_all(g, slot_nbytes, region_slots, max_clients, 0, 0);
}

static inline uint32_t shmpool_header_crc(const shmpool_header_t *h) {
    return shmpool_crc32((const uint8_t *)h + 24, 128 - 24);
}

static inline void shmpool_header_mark_creating(shmpool_header_t *h) {
    memset(h, 0, sizeof *h);
    memcpy(h->magic, "SHMPOOL", 8);
    h->format_version = SHMPOOL_FORMAT_VERSION;
    h->layout_stamp = shmpool_layout_stamp();
    h->init_state = SHMPOOL_CREATING;
}

/* Fill everything but init_state. The caller stores READY when the rest of the file is in place. */
static inline void shmpool_header_fill(shmpool_header_t *h, const shmpool_geometry_t *g,
                                       const uint8_t uuid[16], uint64_t created_ns) {
    memcpy(h->uuid, uuid, 16);
    h->slot_nbytes = g->slot_nbytes;
    memcpy(h->region_slots, g->region_slots, sizeof h->region_slots);
    h->max_clients = g->max_clients;
    h->client_table_offset = g->client_table_offset;
    h->pin_table_offset = g->pin_table_offset;
    h->pin_stride = g->pin_stride;
    h->slots_offset = g->slots_offset;
    h->file_nbytes = g->file_nbytes;
    h->created_ns = created_ns;
    h->max_channels = g->max_channels;
    h->channel_kib = (uint32_t)(g->channel_nbytes / 1024);
    h->channel_table_offset = g->channel_table_offset;
    h->epoch = 0; /* its creator, being alone, makes it 1 */
    h->header_crc = shmpool_header_crc(h);
}

/* Verify a PRIVATE copy of a header against the size of its file; fill g from it.
 * Never writes to the file. The order decides what the user is told. */
static inline int shmpool_header_check(const shmpool_header_t *h, uint64_t file_nbytes,
                                       shmpool_geometry_t *g) {
    if (memcmp(h->magic, "SHMPOOL", 8) != 0)
        return SHMPOOL_EMAGIC;
    if (h->format_version != SHMPOOL_FORMAT_VERSION)
        return SHMPOOL_EVERSION;
    if (h->layout_stamp != shmpool_layout_stamp())
        return SHMPOOL_ELAYOUT;
    if (h->init_state == SHMPOOL_CREATING)
        return SHMPOOL_ENOTREADY;
    if (h->init_state != SHMPOOL_READY || h->header_crc != shmpool_header_crc(h))
        return SHMPOOL_ECORRUPT;
    if (shmpool_geometry_init_all(g, h->slot_nbytes, h->region_slots, h->max_clients,
                                  h->max_channels, (uint64_t)h->channel_kib * 1024) != SHMPOOL_OK)
        return SHMPOOL_ECORRUPT;
    if (g->client_table_offset != h->client_table_offset ||
        g->pin_table_offset != h->pin_table_offset || g->pin_stride != h->pin_stride ||
        g->channel_table_offset != h->channel_table_offset || g->slots_offset != h->slots_offset ||
        g->file_nbytes != h->file_nbytes)
        return SHMPOOL_ECORRUPT;
    if (file_nbytes < g->file_nbytes)
        return SHMPOOL_ETRUNCATED;
    return SHMPOOL_OK;
}

static inline void shmpool_bind(shmpool_t *p, const shmpool_geometry_t *g, uint8_t *base) {
    memset(p, 0, sizeof *p);
    p->geometry = *g;
    p->base = base;
    p->header = (shmpool_header_t *)base;
    p->counters = (shmpool_counters_t *)(base + SHMPOOL_PAGE);
    p->slots = (shmpool_slot_t *)(base + 2 * SHMPOOL_PAGE);
    p->clients = (shmpool_client_t *)(base + g->client_table_offset);
    p->pins = base + g->pin_table_offset;
    p->channels = (shmpool_channel_t *)(base + g->channel_table_offset);
}

static inline uint8_t *shmpool_slot_data(const shmpool_t *p, uint32_t slot) {
    return p->base + p->geometry.slots_offset + (uint64_t)slot * p->geometry.slot_nbytes;
}

static inline uint32_t *shmpool_pin_cell(const shmpool_t *p, uint32_t slot, uint32_t client) {
    return (uint32_t *)(p->pins + (uint64_t)slot * p->geometry.pin_stride) + client;
}

/* The slot word: generation 48 bits, owner 12, state 4. */
#define SHMPOOL_GENERATION_MASK ((UINT64_C(1) << 48) - 1)

static inline uint64_t shmpool_word(uint64_t generation, uint32_t owner, uint32_t state) {
    return (generation & SHMPOOL_GENERATION_MASK) << 16 | (uint64_t)owner << 4 | state;
}
static inline uint64_t shmpool_word_generation(uint64_t w) { return w >> 16; }
static inline uint32_t shmpool_word_owner(uint64_t w) { return (uint32_t)(w >> 4) & 0xfffu; }
static inline uint32_t shmpool_word_state(uint64_t w) { return (uint32_t)w & 0xfu; }

#endif
