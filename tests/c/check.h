/* SPDX-License-Identifier: BSD-3-Clause */
/* What the C tests share: counting checks, small pools in private memory, descriptors. */
#ifndef SHMPOOL_TEST_CHECK_H
#define SHMPOOL_TEST_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/shmpool/core/slots.h"

static int n_passed;
static int n_failed;
static const char *test_name = "?"; /* what was being tested when a check failed */

/* Prints the first failures only: a broken invariant inside a loop would otherwise drown the rest.
 */
static int check_at(int ok, const char *what, const char *file, int line) {
    if (ok) {
        n_passed++;
        return 1;
    }
    if (++n_failed <= 30)
        printf("FAILED %s:%d: %s (%s)\n", file, line, what, test_name);
    return 0;
}
#define CHECK(cond) check_at(!!(cond), #cond, __FILE__, __LINE__)

static inline int check_report(void) {
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed != 0 || n_passed == 0;
}

/* A pool whose tables lie in separate heap blocks of exactly their size: AddressSanitizer then sees
 * an index that leaves one table for the next, which inside one mapping would be silent. */
typedef struct {
    shmpool_geometry_t geometry;
    shmpool_t view;
    void *blocks[5];
} arena_t;

static inline void *zeroed(size_t nbytes) {
    size_t rounded = (nbytes + 127) / 128 * 128; /* the counters want their own lines */
    void *block = aligned_alloc(128, rounded);
    if (block == NULL)
        abort();
    memset(block, 0, rounded);
    return block;
}

static inline void arena_init(arena_t *a, uint64_t slot_nbytes, uint32_t input, uint32_t output,
                              uint32_t scratch, uint32_t clients) {
    const uint32_t regions[3] = {input, output, scratch};
    memset(a, 0, sizeof *a);
    if (shmpool_geometry_init(&a->geometry, slot_nbytes, regions, clients) != SHMPOOL_OK)
        abort();
    shmpool_geometry_t *g = &a->geometry;
    a->view.geometry = *g;
    a->view.header = (shmpool_header_t *)(a->blocks[0] = zeroed(sizeof(shmpool_header_t)));
    a->view.counters = (shmpool_counters_t *)(a->blocks[1] = zeroed(sizeof(shmpool_counters_t)));
    a->view.slots = (shmpool_slot_t *)(a->blocks[2] = zeroed(g->n_slots * sizeof(shmpool_slot_t)));
    a->view.clients =
        (shmpool_client_t *)(a->blocks[3] = zeroed(g->max_clients * sizeof(shmpool_client_t)));
    a->view.pins = (uint8_t *)(a->blocks[4] = zeroed(g->n_slots * g->pin_stride));
}

static inline void arena_end(arena_t *a) {
    for (int i = 0; i < 5; i++)
        free(a->blocks[i]);
}

/* Another process's view of the same pool, attached as `client`. */
static inline shmpool_t arena_enter(const arena_t *a, uint32_t client, uint64_t nonce) {
    shmpool_t p = a->view;
    shmpool_client_enter(&p, client, nonce, 1, 1000 + client, 0, "test");
    return p;
}

static inline shmpool_descriptor_t described(uint32_t span, uint64_t nbytes) {
    shmpool_descriptor_t d;
    memset(&d, 0, sizeof d);
    d.nbytes = nbytes;
    d.span = span;
    d.ndim = 1;
    d.shape[0] = (int64_t)nbytes;
    memcpy(d.dtype, "|u1", 3);
    d.dtype_nbytes = 3;
    return d;
}

typedef struct {
    uint32_t slot;
    uint64_t generation;
    int rc;
} claimed_t;

static inline claimed_t claim(const shmpool_t *p, int region, uint32_t span) {
    claimed_t c = {0, 0, 0};
    c.rc =
        shmpool_claim(p, region, span, shmpool_ticket(p, region, span), 7, &c.slot, &c.generation);
    return c;
}

static inline int seal(const shmpool_t *p, claimed_t c, uint32_t span) {
    shmpool_descriptor_t d = described(span, 100);
    shmpool_describe(p, c.slot, &d);
    return shmpool_seal(p, c.slot, c.generation, 8);
}

static inline claimed_t put(const shmpool_t *p, int region, uint32_t span) {
    claimed_t c = claim(p, region, span);
    if (c.rc == SHMPOOL_OK)
        c.rc = seal(p, c, span);
    return c;
}

static inline uint32_t state_of(const shmpool_t *p, uint32_t slot) {
    return shmpool_word_state(shmpool_load64(&p->slots[slot].word));
}

static inline uint32_t owner_of(const shmpool_t *p, uint32_t slot) {
    return shmpool_word_owner(shmpool_load64(&p->slots[slot].word));
}

static inline uint32_t pins_of(const shmpool_t *p, uint32_t slot) {
    uint32_t n = 0;
    for (uint32_t c = 0; c < p->geometry.max_clients; c++)
        n += shmpool_load32(shmpool_pin_cell(p, slot, c));
    return n;
}

/* Nobody holds anything. */
static inline int all_free(const shmpool_t *p) {
    for (uint32_t i = 0; i < p->geometry.n_slots; i++)
        if (state_of(p, i) != SHMPOOL_FREE || owner_of(p, i) != 0 || pins_of(p, i) != 0)
            return 0;
    return 1;
}

static inline uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state * UINT64_C(0x2545F4914F6CDD1D);
}

#endif
