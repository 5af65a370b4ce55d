/* SPDX-License-Identifier: BSD-3-Clause */
/* slots.h, one operation after the other: what each does to words, rows and links, whom it refuses,
 * and that nothing a file says makes the core leave its tables. Deaths and intruders in the middle
 * of an operation: test_deaths.c; threads: stress_core.c. Prints "N passed, N failed" last. */
#include "check.h"

/* -- claiming -- */

static void test_rotation(void) {
    test_name = "rotation";
    arena_t a;
    arena_init(&a, 4096, 4, 3, 2, 4);
    shmpool_t p = arena_enter(&a, 0, 11);
    static const uint32_t input[] = {0, 1, 2, 3, 0, 1}, output[] = {4, 5, 6, 4, 5, 6},
                          scratch[] = {7, 8, 7, 8, 7, 8};
    for (int i = 0; i < 6; i++) {
        claimed_t x = put(&p, SHMPOOL_INPUT, 1), y = put(&p, SHMPOOL_OUTPUT, 1),
                  z = put(&p, SHMPOOL_SCRATCH, 1);
        CHECK(x.slot == input[i] && y.slot == output[i] && z.slot == scratch[i]);
        CHECK(shmpool_free(&p, x.slot, x.generation) == SHMPOOL_OK);
        CHECK(shmpool_free(&p, y.slot, y.generation) == SHMPOOL_OK);
        CHECK(shmpool_free(&p, z.slot, z.generation) == SHMPOOL_OK);
    }
    CHECK(p.counters->rotation[0].value == 6);
    /* a slot in use is passed over, wherever the counter points */
    claimed_t held = put(&p, SHMPOOL_INPUT, 1); /* slot 2 */
    CHECK(held.slot == 2);
    static const uint32_t rest[] = {3, 0, 1, 3, 3, 0, 1, 3};
    for (int i = 0; i < 8; i++) {
        claimed_t x = put(&p, SHMPOOL_INPUT, 1);
        CHECK(x.slot == rest[i]);
        CHECK(shmpool_free(&p, x.slot, x.generation) == SHMPOOL_OK);
    }
    /* the counter is free-running: its wrap is only a change of the start */
    shmpool_store64(&p.counters->rotation[0].value, UINT64_MAX);
    claimed_t x = claim(&p, SHMPOOL_INPUT, 1), y = claim(&p, SHMPOOL_INPUT, 1);
    CHECK(x.rc == SHMPOOL_OK && y.rc == SHMPOOL_OK && p.counters->rotation[0].value == 1);
    CHECK(x.slot == 3 && y.slot == 0);
    arena_end(&a);
}

static void test_span(void) {
    test_name = "span";
    arena_t a;
    arena_init(&a, 4096, 4, 2, 2, 4);
    shmpool_t p = arena_enter(&a, 2, 11);
    claimed_t c = claim(&p, SHMPOOL_INPUT, 3);
    CHECK(c.rc == SHMPOOL_OK && c.slot == 0 && c.generation == 1);
    CHECK(state_of(&p, 0) == SHMPOOL_WRITING && owner_of(&p, 0) == 3);
    for (uint32_t t = 1; t < 3; t++) {
        CHECK(state_of(&p, t) == SHMPOOL_TAIL && owner_of(&p, t) == 3);
        CHECK(p.slots[t].link_slot == 0 && p.slots[t].link_generation == 1);
    }
    CHECK(state_of(&p, 3) == SHMPOOL_FREE);
    CHECK(claim(&p, SHMPOOL_INPUT, 2).rc == SHMPOOL_EFULL);
    CHECK(state_of(&p, 3) == SHMPOOL_FREE); /* a run that did not work out is given back */
    CHECK(shmpool_abort(&p, c.slot, c.generation, 3) == SHMPOOL_OK);
    CHECK(all_free(&p));
    c = put(&p, SHMPOOL_INPUT, 4);
    CHECK(c.rc == SHMPOOL_OK && c.slot == 0);
    CHECK(shmpool_pin(&p, 1, shmpool_word_generation(p.slots[1].word)) == SHMPOOL_ESTALE);
    CHECK(shmpool_free(&p, 1, shmpool_word_generation(p.slots[1].word)) == SHMPOOL_ESTALE);
    CHECK(pins_of(&p, 1) == 0);
    CHECK(shmpool_free(&p, c.slot, c.generation) == SHMPOOL_OK);
    CHECK(all_free(&p));
    /* larger than its region: any run of the pool; larger than the pool: never */
    claimed_t whole = claim(&p, SHMPOOL_OUTPUT, 8);
    CHECK(whole.rc == SHMPOOL_OK && whole.slot == 0);
    CHECK(shmpool_abort(&p, 0, whole.generation, 8) == SHMPOOL_OK);
    CHECK(claim(&p, SHMPOOL_INPUT, 9).rc == SHMPOOL_ETOOLARGE);
    CHECK(claim(&p, SHMPOOL_INPUT, 0).rc == SHMPOOL_ETOOLARGE);
    CHECK(claim(&p, SHMPOOL_INPUT, UINT32_MAX).rc == SHMPOOL_ETOOLARGE);
    CHECK(all_free(&p));
    arena_end(&a);
    /* a region of no slots */
    arena_init(&a, 4096, 0, 1, 0, 2);
    p = arena_enter(&a, 0, 5);
    c = claim(&p, SHMPOOL_INPUT, 1);
    CHECK(c.rc == SHMPOOL_OK && c.slot == 0);
    arena_end(&a);
}

/* Every occupation of 3 + 2 + 1 slots, every span, region and start: the claim finds exactly the
 * run that a naive search finds, and a failed one leaves every slot as it was. */
static void test_claim_exhaustive(void) {
    test_name = "claim, exhaustive";
    enum { N = 6 };
    static const uint32_t sizes[3] = {3, 2, 1};
    for (uint32_t mask = 0; mask < 1u << N; mask++)
        for (int region = 0; region < 3; region++)
            for (uint32_t span = 1; span <= N; span++)
                for (uint64_t ticket = 0; ticket < N; ticket++) {
                    arena_t a;
                    arena_init(&a, 4096, sizes[0], sizes[1], sizes[2], 2);
                    shmpool_t p = arena_enter(&a, 1, 5);
                    for (uint32_t i = 0; i < N; i++)
                        if (mask >> i & 1)
                            p.slots[i].word = shmpool_word(9, 1, SHMPOOL_SEALED);
                    uint32_t first = a.geometry.region_start[region], n = sizes[region];
                    if (span > n) {
                        first = 0;
                        n = N;
                    }
                    uint32_t positions = n - span + 1, start = (uint32_t)(ticket % n);
                    if (start >= positions)
                        start = 0;
                    uint32_t expected = N;
                    for (uint32_t k = 0; k < positions && expected == N; k++) {
                        uint32_t at = first + (start + k) % positions;
                        if ((mask >> at & ((1u << span) - 1)) == 0)
                            expected = at;
                    }
                    uint32_t head = 99;
                    uint64_t generation = 0;
                    int rc = shmpool_claim(&p, region, span, ticket, 7, &head, &generation);
                    CHECK(rc == (expected == N ? SHMPOOL_EFULL : SHMPOOL_OK));
                    CHECK(rc != SHMPOOL_OK || head == expected);
                    for (uint32_t i = 0; i < N; i++) {
                        int mine = rc == SHMPOOL_OK && i >= head && i < head + span;
                        uint32_t state = mask >> i & 1 ? SHMPOOL_SEALED
                                         : !mine       ? SHMPOOL_FREE
                                         : i == head   ? SHMPOOL_WRITING
                                                       : SHMPOOL_TAIL;
                        if (state_of(&p, i) != state)
                            CHECK(state_of(&p, i) == state);
                    }
                    arena_end(&a);
                }
}

static void test_generation_wrap(void) {
    test_name = "generation wrap";
    arena_t a;
    arena_init(&a, 4096, 2, 0, 0, 2);
    shmpool_t p = arena_enter(&a, 0, 5);
    for (int i = 0; i < 2; i++)
        p.slots[i].word = shmpool_word(SHMPOOL_GENERATION_MASK - 1, 0, SHMPOOL_FREE);
    claimed_t last = put(&p, SHMPOOL_INPUT, 2);
    CHECK(last.generation == SHMPOOL_GENERATION_MASK);
    CHECK(shmpool_pin(&p, 0, last.generation) == SHMPOOL_OK);
    CHECK(shmpool_free(&p, 0, last.generation) == SHMPOOL_OK);
    CHECK(shmpool_unpin(&p, 0) == 1);
    CHECK(all_free(&p));
    claimed_t next = put(&p, SHMPOOL_INPUT, 2);
    CHECK(next.generation == 1); /* 0 is kept for "none" */
    CHECK(shmpool_free(&p, 0, last.generation) == SHMPOOL_ESTALE);
    CHECK(shmpool_free(&p, 0, next.generation) == SHMPOOL_OK);
    CHECK(all_free(&p));
    arena_end(&a);
}

/* -- life -- */

static void test_life(void) {
    test_name = "life";
    arena_t a;
    arena_init(&a, 4096, 3, 0, 0, 4);
    shmpool_t p = arena_enter(&a, 0, 5), q = arena_enter(&a, 3, 6);
    claimed_t c = claim(&p, SHMPOOL_INPUT, 2);
    CHECK(shmpool_pin(&q, c.slot, c.generation) == SHMPOOL_ESTALE); /* not sealed yet */
    CHECK(shmpool_free(&q, c.slot, c.generation) == SHMPOOL_ESTALE);
    CHECK(shmpool_give(&q, c.slot, c.generation, 3, 6) == SHMPOOL_ESTALE);
    CHECK(pins_of(&p, c.slot) == 0);
    CHECK(seal(&p, c, 2) == SHMPOOL_OK);
    CHECK(seal(&p, c, 2) == SHMPOOL_EEVICTED); /* once */
    shmpool_descriptor_t d;
    CHECK(shmpool_read_descriptor(&p, c.slot, &d) == SHMPOOL_OK && d.span == 2 && d.nbytes == 100);
    CHECK(p.slots[c.slot].claimed_ns == 7 && p.slots[c.slot].sealed_ns == 8);

    /* pins of two clients, each order of the last steps */
    for (int order = 0; order < 6; order++) {
        claimed_t h = order == 0 ? c : put(&p, SHMPOOL_INPUT, 2);
        CHECK(h.rc == SHMPOOL_OK);
        CHECK(shmpool_pin(&p, h.slot, h.generation) == SHMPOOL_OK);
        CHECK(shmpool_pin(&q, h.slot, h.generation) == SHMPOOL_OK);
        CHECK(pins_of(&p, h.slot) == 2);
        static const char steps[6][3] = {"fpq", "fqp", "pfq", "qfp", "pqf", "qpf"};
        for (int k = 0; k < 3; k++) {
            CHECK(state_of(&p, h.slot) != SHMPOOL_FREE);
            switch (steps[order][k]) {
            case 'f':
                CHECK(shmpool_free(&q, h.slot, h.generation) == SHMPOOL_OK);
                CHECK(shmpool_free(&p, h.slot, h.generation) == SHMPOOL_ESTALE); /* twice */
                CHECK(shmpool_pin(&p, h.slot, h.generation) == SHMPOOL_ESTALE);
                break;
            case 'p':
                shmpool_unpin(&p, h.slot);
                break;
            case 'q':
                shmpool_unpin(&q, h.slot);
                break;
            }
        }
        CHECK(all_free(&p));
    }
    /* a retired slot that nobody pins any more (its finalizer died) is found by the next claim */
    claimed_t h = put(&p, SHMPOOL_INPUT, 3);
    p.slots[h.slot].word = shmpool_word(h.generation, 1, SHMPOOL_RETIRED);
    CHECK(claim(&q, SHMPOOL_INPUT, 3).rc == SHMPOOL_OK);
    arena_end(&a);

    arena_init(&a, 4096, 1, 0, 0, 1);
    p = arena_enter(&a, 0, 5);
    CHECK(shmpool_pin(&p, 1, 1) == SHMPOOL_ESTALE); /* outside the pool */
    CHECK(shmpool_pin(&p, UINT32_MAX, 1) == SHMPOOL_ESTALE);
    CHECK(shmpool_free(&p, 1, 1) == SHMPOOL_ESTALE);
    CHECK(shmpool_give(&p, 1, 1, 0, 5) == SHMPOOL_ESTALE);
    claimed_t old = put(&p, SHMPOOL_INPUT, 1);
    CHECK(shmpool_free(&p, 0, old.generation) == SHMPOOL_OK);
    claimed_t young = put(&p, SHMPOOL_INPUT, 1);
    CHECK(young.generation == old.generation + 1);
    CHECK(shmpool_pin(&p, 0, old.generation) == SHMPOOL_ESTALE); /* the slot has moved on */
    CHECK(shmpool_free(&p, 0, old.generation) == SHMPOOL_ESTALE);
    CHECK(shmpool_give(&p, 0, old.generation, 0, 5) == SHMPOOL_ESTALE);
    CHECK(shmpool_free(&p, 0, young.generation) == SHMPOOL_OK);
    CHECK(all_free(&p));
    arena_end(&a);
}

static void test_descriptor(void) {
    test_name = "descriptor";
    arena_t a;
    arena_init(&a, 4096, 4, 0, 0, 1);
    shmpool_t p = arena_enter(&a, 0, 5);
    claimed_t c = claim(&p, SHMPOOL_INPUT, 4);
    shmpool_descriptor_t d = described(4, 4 * 4096), found;
    d.ndim = 64;
    for (int i = 0; i < 64; i++)
        d.shape[i] = i;
    d.order = 1;
    memset(d.dtype, 'x', sizeof d.dtype);
    d.dtype_nbytes = SHMPOOL_DTYPE_NBYTES;
    uint64_t word_before = p.slots[c.slot + 1].word;
    shmpool_describe(&p, c.slot, &d);
    CHECK(p.slots[c.slot + 1].word == word_before);
    CHECK(shmpool_read_descriptor(&p, c.slot, &found) == SHMPOOL_OK);
    CHECK(memcmp(found.shape, d.shape, sizeof d.shape) == 0 && found.order == 1 &&
          found.ndim == 64);
    CHECK(memcmp(found.dtype, d.dtype, sizeof d.dtype) == 0);
    shmpool_slot_t *s = &p.slots[c.slot], good = *s;
#define BROKEN(change)                                                                             \
    do {                                                                                           \
        *s = good;                                                                                 \
        change;                                                                                    \
        CHECK(shmpool_read_descriptor(&p, c.slot, &found) == SHMPOOL_ECORRUPT);                    \
    } while (0)
    BROKEN(s->span = 0);
    BROKEN(s->span = 5);
    BROKEN(s->span = UINT32_MAX);
    BROKEN(s->ndim = 65);
    BROKEN(s->order = 2);
    BROKEN(s->nbytes = 4 * 4096 + 1);
    BROKEN(s->nbytes = UINT64_MAX);
    BROKEN(s->data_offset = 1);
    BROKEN(s->data_offset = UINT64_MAX);
    BROKEN((s->nbytes = 1, s->data_offset = 4 * 4096));
    BROKEN(s->dtype_nbytes = SHMPOOL_DTYPE_NBYTES + 1);
    BROKEN((s->dtype_offset = 4 * 4096 - 10, s->dtype_nbytes = 11));
    BROKEN((s->dtype_offset = UINT64_MAX, s->dtype_nbytes = 1));
    BROKEN((s->dtype_offset = 1, s->dtype_nbytes = 65535));
    BROKEN(s->shape[63] = -1);
#undef BROKEN
    *s = good;
    s->dtype_offset = 4 * 4096 - 10;
    s->dtype_nbytes = 10;
    CHECK(shmpool_read_descriptor(&p, c.slot, &found) == SHMPOOL_OK);
    s->nbytes = 0;
    s->data_offset = 4 * 4096;
    CHECK(shmpool_read_descriptor(&p, c.slot, &found) == SHMPOOL_OK);
    arena_end(&a);
}

static void test_abort(void) {
    test_name = "abort";
    arena_t a;
    arena_init(&a, 4096, 4, 0, 0, 2);
    shmpool_t p = arena_enter(&a, 0, 5), q = arena_enter(&a, 1, 6);
    for (uint32_t span = 1; span <= 4; span++) {
        claimed_t c = claim(&p, SHMPOOL_INPUT, span);
        CHECK(shmpool_abort(&q, c.slot, c.generation, span) == SHMPOOL_EEVICTED || span > 1);
        shmpool_abort(&p, c.slot, c.generation, span);
        CHECK(all_free(&p));
    }
    claimed_t mine = put(&p, SHMPOOL_INPUT, 2);
    CHECK(shmpool_abort(&p, mine.slot, mine.generation, 1) == SHMPOOL_EEVICTED); /* sealed */
    CHECK(state_of(&p, mine.slot) == SHMPOOL_SEALED);
    arena_end(&a);
}

/* A finalizer may come late: what lies behind its head belongs to others by then. */
static void test_foreign_tails(void) {
    test_name = "foreign tails";
    static const struct {
        uint32_t head;
        uint64_t generation;
        int ours;
    } links[] = {{0, 5, 1}, {0, 6, 0}, {0, 4, 0}, {1, 5, 0}, {UINT32_MAX, 5, 0}};
    for (size_t i = 0; i < sizeof links / sizeof links[0]; i++)
        for (uint32_t at = 1; at < 4; at++) {
            arena_t a;
            arena_init(&a, 4096, 4, 0, 0, 2);
            shmpool_t p = arena_enter(&a, 0, 5);
            p.slots[0].word = shmpool_word(5, 1, SHMPOOL_RETIRED);
            p.slots[0].span = 3;
            p.slots[at].word = shmpool_word(77, 2, SHMPOOL_TAIL);
            p.slots[at].link_slot = links[i].head;
            p.slots[at].link_generation = links[i].generation;
            shmpool_finalize(&p, 0);
            CHECK(state_of(&p, 0) == SHMPOOL_FREE);
            CHECK(state_of(&p, at) == (links[i].ours && at < 3 ? SHMPOOL_FREE : SHMPOOL_TAIL));
            CHECK(shmpool_word_generation(p.slots[at].word) == 77);
            arena_end(&a);
        }
}

static void test_give(void) {
    test_name = "give";
    arena_t a;
    arena_init(&a, 4096, 4, 0, 0, 3);
    shmpool_t p = arena_enter(&a, 0, 5), q = arena_enter(&a, 1, 6);
    claimed_t c = put(&p, SHMPOOL_INPUT, 2);
    CHECK(shmpool_give(&p, c.slot, c.generation, 1, 6) == SHMPOOL_OK);
    CHECK(owner_of(&p, c.slot) == 2 && state_of(&p, c.slot) == SHMPOOL_SEALED);
    CHECK(shmpool_give(&p, c.slot, c.generation, 0, 5) == SHMPOOL_OK); /* adopt */
    CHECK(owner_of(&p, c.slot) == 1);
    CHECK(shmpool_give(&q, c.slot, c.generation, 1, 0) == SHMPOOL_EGONE);
    CHECK(shmpool_give(&q, c.slot, c.generation, 3, 6) == SHMPOOL_EGONE);
    CHECK(shmpool_give(&q, c.slot, c.generation, UINT32_MAX, 6) == SHMPOOL_EGONE);
    CHECK(owner_of(&p, c.slot) == 1); /* such a client cannot be: nothing was done */
    CHECK(shmpool_give(&p, c.slot, c.generation, 2, 77) == SHMPOOL_EGONE); /* gone: freed */
    CHECK(all_free(&p));
    c = put(&p, SHMPOOL_INPUT, 1);
    CHECK(shmpool_pin(&q, c.slot, c.generation) == SHMPOOL_OK);
    CHECK(shmpool_give(&p, c.slot, c.generation, 2, 77) == SHMPOOL_EGONE);
    CHECK(state_of(&p, c.slot) == SHMPOOL_RETIRED); /* gone, but a reader still looks at it */
    CHECK(shmpool_give(&p, c.slot, c.generation, 1, 6) == SHMPOOL_ESTALE);
    shmpool_unpin(&q, c.slot);
    CHECK(all_free(&p));
    arena_end(&a);
}

/* -- death -- */

static void test_reclaim_states(void) {
    test_name = "reclaim";
    arena_t a;
    arena_init(&a, 4096, 8, 0, 0, 4);
    shmpool_t dead = arena_enter(&a, 1, 5), p = arena_enter(&a, 0, 6), q = arena_enter(&a, 2, 7);

    claim(&dead, SHMPOOL_INPUT, 3); /* writing, with tails */
    put(&dead, SHMPOOL_INPUT, 3);   /* sealed, with tails */
    shmpool_reclaim(&p, 1);
    CHECK(all_free(&p));
    CHECK(p.clients[1].nonce == 0);

    dead = arena_enter(&a, 1, 8);
    claimed_t c = put(&dead, SHMPOOL_INPUT, 3);
    CHECK(shmpool_pin(&q, c.slot, c.generation) == SHMPOOL_OK);
    shmpool_reclaim(&p, 1); /* sealed, pinned by a living reader: its bytes stay */
    CHECK(state_of(&p, c.slot) == SHMPOOL_RETIRED && state_of(&p, c.slot + 2) == SHMPOOL_TAIL);
    shmpool_reclaim(&p, 1);
    CHECK(state_of(&p, c.slot) == SHMPOOL_RETIRED && pins_of(&p, c.slot) == 1);
    shmpool_unpin(&q, c.slot);
    CHECK(all_free(&p));

    dead = arena_enter(&a, 1, 9); /* the dead held the last pin of what another freed */
    c = put(&p, SHMPOOL_INPUT, 2);
    CHECK(shmpool_pin(&dead, c.slot, c.generation) == SHMPOOL_OK);
    CHECK(shmpool_pin(&dead, c.slot, c.generation) == SHMPOOL_OK);
    CHECK(shmpool_free(&p, c.slot, c.generation) == SHMPOOL_OK);
    CHECK(state_of(&p, c.slot) == SHMPOOL_RETIRED);
    shmpool_reclaim(&q, 1);
    CHECK(all_free(&p));

    dead = arena_enter(&a, 1,
                       10); /* adopted by a living client: head and tails stay, and go with it */
    c = put(&dead, SHMPOOL_INPUT, 3);
    CHECK(shmpool_give(&q, c.slot, c.generation, 2, 7) == SHMPOOL_OK);
    shmpool_reclaim(&p, 1);
    CHECK(state_of(&p, c.slot) == SHMPOOL_SEALED && owner_of(&p, c.slot) == 3);
    CHECK(state_of(&p, c.slot + 1) == SHMPOOL_TAIL && state_of(&p, c.slot + 2) == SHMPOOL_TAIL);
    CHECK(shmpool_free(&p, c.slot, c.generation) == SHMPOOL_OK);
    CHECK(all_free(&p));

    dead =
        arena_enter(&a, 1, 11); /* adopted, then the adopter dies too; in both orders of cleaning */
    for (int order = 0; order < 2; order++) {
        c = put(&dead, SHMPOOL_INPUT, 3);
        CHECK(shmpool_give(&q, c.slot, c.generation, 2, q.nonce) == SHMPOOL_OK);
        shmpool_reclaim(&p, order ? 1 : 2);
        shmpool_reclaim(&p, order ? 2 : 1);
        CHECK(all_free(&p));
        dead = arena_enter(&a, 1, 12);
        q = arena_enter(&a, 2, 13);
    }
    /* orphan tails, by hand: heads that moved on, were never there, or lie behind */
    p.slots[3].word = shmpool_word(4, 2, SHMPOOL_TAIL);
    p.slots[3].link_slot = 2;
    p.slots[3].link_generation = 1;
    p.slots[4].word = shmpool_word(4, 2, SHMPOOL_TAIL);
    p.slots[4].link_slot = 4;
    p.slots[5].word = shmpool_word(4, 2, SHMPOOL_TAIL);
    p.slots[5].link_slot = UINT32_MAX;
    shmpool_reclaim(&p, 1);
    CHECK(all_free(&p));
    /* of the living nothing is touched */
    claimed_t w = claim(&q, SHMPOOL_INPUT, 2), s = put(&q, SHMPOOL_INPUT, 2);
    CHECK(shmpool_pin(&q, s.slot, s.generation) == SHMPOOL_OK);
    shmpool_reclaim(&p, 1);
    shmpool_reclaim(&p, 3);
    CHECK(state_of(&p, w.slot) == SHMPOOL_WRITING && state_of(&p, w.slot + 1) == SHMPOOL_TAIL);
    CHECK(state_of(&p, s.slot) == SHMPOOL_SEALED && pins_of(&p, s.slot) == 1);
    shmpool_client_leave(&q);
    CHECK(all_free(&p));
    arena_end(&a);
}

static void test_eviction(void) {
    test_name = "eviction";
    arena_t a;
    arena_init(&a, 4096, 4, 0, 0, 2);
    shmpool_t p = arena_enter(&a, 0, 5), q = arena_enter(&a, 1, 6);
    claimed_t w = claim(&q, SHMPOOL_INPUT, 2), s = put(&q, SHMPOOL_INPUT, 1),
              other = put(&p, SHMPOOL_INPUT, 1);
    CHECK(shmpool_pin(&q, s.slot, s.generation) == SHMPOOL_OK);
    shmpool_reclaim(&p, 1); /* q is taken for dead, though it is not */
    CHECK(shmpool_evicted(&q) && !shmpool_evicted(&p));
    for (int successor = 0; successor < 2; successor++) {
        shmpool_t r;
        claimed_t theirs = {0, 0, 0};
        if (successor) { /* somebody else has the index by now, and uses the same slots */
            r = arena_enter(&a, 1, 7);
            theirs = put(&r, SHMPOOL_INPUT, 3);
            CHECK(theirs.rc == SHMPOOL_OK);
            CHECK(shmpool_pin(&r, theirs.slot, theirs.generation) == SHMPOOL_OK);
        }
        CHECK(shmpool_evicted(&q));
        CHECK(claim(&q, SHMPOOL_INPUT, 1).rc == SHMPOOL_EEVICTED);
        CHECK(shmpool_seal(&q, w.slot, w.generation, 1) == SHMPOOL_EEVICTED);
        CHECK(shmpool_pin(&q, other.slot, other.generation) == SHMPOOL_EEVICTED);
        CHECK(shmpool_give(&q, other.slot, other.generation, 1, 6) == SHMPOOL_EEVICTED);
        CHECK(shmpool_abort(&q, w.slot, w.generation, 2) == SHMPOOL_EEVICTED);
        uint32_t counts[4];
        for (uint32_t i = 0; i < 4; i++)
            counts[i] = pins_of(&p, i);
        for (uint32_t i = 0; i < 4; i++)
            CHECK(shmpool_unpin(&q, i) == 0);
        shmpool_client_leave(&q);
        for (uint32_t i = 0; i < 4; i++)
            CHECK(pins_of(&p, i) == counts[i]);
        CHECK(state_of(&p, other.slot) == SHMPOOL_SEALED && pins_of(&p, other.slot) == 0);
        if (successor) {
            CHECK(!shmpool_evicted(&r));
            CHECK(state_of(&p, theirs.slot) == SHMPOOL_SEALED && pins_of(&p, theirs.slot) == 1);
            CHECK(state_of(&p, theirs.slot + 2) == SHMPOOL_TAIL);
        }
    }
    arena_end(&a);
}

/* -- waking, high water, entries -- */

static void test_wake(void) {
    test_name = "wake";
    arena_t a;
    arena_init(&a, 4096, 1, 0, 0, 1);
    shmpool_t p = arena_enter(&a, 0, 5);
    CHECK(!shmpool_wake_needed(&p) && p.counters->wake_seq == 0);
    p.counters->waiters = 1;
    CHECK(shmpool_wake_needed(&p) && p.counters->wake_seq == 1 && p.counters->waiters == 0);
    CHECK(!shmpool_wake_needed(&p) && p.counters->wake_seq == 1);
    arena_end(&a);
}

static void test_enter(void) {
    test_name = "enter";
    arena_t a;
    arena_init(&a, 4096, 2, 0, 0, 8);
    shmpool_t p = a.view;
    char label[300];
    memset(label, 'y', sizeof label - 1);
    label[299] = 0;
    shmpool_client_enter(&p, 5, 99, 3, 4, 5, label);
    CHECK(shmpool_high_water(&p) == 6);
    CHECK(p.clients[5].label[126] == 'y' && p.clients[5].label[127] == 0);
    CHECK(p.clients[5].pid == 4 && p.clients[5].pid_namespace == 5 &&
          p.clients[5].attached_ns == 3);
    shmpool_t q = arena_enter(&a, 2, 98);
    CHECK(shmpool_high_water(&q) == 6); /* never falls */
    claimed_t c = put(&q, SHMPOOL_INPUT, 1);
    CHECK(shmpool_pin(&p, c.slot, c.generation) == SHMPOOL_OK);
    CHECK(shmpool_is_pinned(&q, c.slot));
    p.counters->client_high_water = UINT32_MAX; /* the file may lie */
    CHECK(shmpool_high_water(&p) == 8);
    CHECK(shmpool_is_pinned(&q, c.slot) && !shmpool_is_pinned(&q, 1 - c.slot));
    /* the index of somebody who left something behind */
    shmpool_t r = arena_enter(&a, 2, 97);
    CHECK(shmpool_evicted(&q) && !shmpool_evicted(&r));
    CHECK(state_of(&p, c.slot) == SHMPOOL_RETIRED);
    arena_end(&a);
}

/* -- nonsense in the file -- */

static void test_corrupt_states(void) {
    test_name = "corrupt states";
    arena_t a;
    arena_init(&a, 4096, 1, 0, 0, 2);
    shmpool_t p = arena_enter(&a, 0, 5);
    for (uint32_t state = 5; state < 16; state++)
        for (uint32_t owner = 0; owner < 4096; owner += 455) {
            uint64_t w = shmpool_word(3, owner, state);
            p.slots[0].word = w;
            CHECK(claim(&p, SHMPOOL_INPUT, 1).rc == SHMPOOL_EFULL); /* never handed out */
            CHECK(shmpool_pin(&p, 0, 3) == SHMPOOL_ECORRUPT);
            CHECK(shmpool_free(&p, 0, 3) == SHMPOOL_ECORRUPT);
            CHECK(shmpool_give(&p, 0, 3, 0, 5) == SHMPOOL_ECORRUPT);
            shmpool_reclaim(&p, 1);
            shmpool_finalize(&p, 0);
            CHECK(p.slots[0].word == w && pins_of(&p, 0) == 0); /* nor repaired into something */
        }
    arena_end(&a);
}

/* Random nonsense in every shared field between random operations. The tables are separate heap
 * blocks: under AddressSanitizer this is the proof that no index from the file is believed. Without
 * it, that nothing crashes or hangs. */
static void test_corrupt_everything(void) {
    test_name = "corrupt everything";
    uint64_t seed = 1234567;
    arena_t a;
    arena_init(&a, 4096, 4, 3, 2, 5);
    shmpool_t p[3] = {arena_enter(&a, 0, 5), arena_enter(&a, 4, 6), arena_enter(&a, 2, 7)};
    static const uint32_t odd[] = {0,    1,    2,          8,          9,         10,
                                   4095, 4096, 0x7fffffff, 0x80000000, UINT32_MAX};
    int n_done = 0;
    for (int i = 0; i < 60000; i++) {
        shmpool_t *me = &p[next_random(&seed) % 3];
        uint32_t slot = (uint32_t)(next_random(&seed) % 9);
        shmpool_slot_t *s = &me->slots[slot];
        uint32_t value = odd[next_random(&seed) % (sizeof odd / sizeof odd[0])];
        uint64_t wild = next_random(&seed);
        switch (next_random(&seed) % 12) {
        case 0:
            s->word = wild;
            break;
        case 1:
            s->word = shmpool_word(wild % 3, value, (uint32_t)(wild >> 40) % 6);
            break;
        case 2:
            s->link_slot = value;
            break;
        case 3:
            s->link_generation = wild % 3;
            break;
        case 4:
            s->span = value;
            break;
        case 5:
            me->counters->client_high_water = value;
            break;
        case 6:
            *shmpool_pin_cell(me, slot, (uint32_t)(wild % 5)) = value;
            break;
        case 7:
            s->ndim = (uint8_t)wild;
            s->order = (uint8_t)(wild >> 8) % 3;
            break;
        case 8:
            s->nbytes = wild % 3 ? value : wild;
            s->data_offset = wild % 5 ? 0 : wild;
            break;
        case 9:
            s->dtype_nbytes = (uint16_t)wild;
            s->dtype_offset = wild % 2 ? 0 : wild >> 50;
            break;
        case 10:
            me->counters->rotation[wild % 3].value = wild;
            break;
        case 11:
            me->clients[wild % 5].nonce = wild % 7 ? me->nonce : wild;
            break;
        }
        uint64_t generation = shmpool_word_generation(s->word);
        shmpool_descriptor_t d;
        claimed_t c;
        switch (next_random(&seed) % 9) {
        case 0:
            c = claim(me, (int)(wild % 3), (uint32_t)(wild >> 20) % 11);
            break;
        case 1:
            c = put(me, (int)(wild % 3), 1 + (uint32_t)(wild >> 20) % 9);
            n_done += c.rc == SHMPOOL_OK;
            break;
        case 2:
            shmpool_pin(me, slot, generation);
            break;
        case 3:
            shmpool_unpin(me, slot);
            break;
        case 4:
            shmpool_free(me, slot, generation);
            break;
        case 5:
            shmpool_give(me, slot, generation, value, 6);
            break;
        case 6:
            shmpool_reclaim(me, (uint32_t)(wild % 5));
            break;
        case 7:
            shmpool_abort(me, slot, generation, value);
            break;
        case 8:
            if (shmpool_read_descriptor(me, slot, &d) == SHMPOOL_OK)
                n_done += d.span <= 9 - slot && d.nbytes <= d.span * UINT64_C(4096);
            break;
        }
        if (shmpool_evicted(me))
            *me = arena_enter(&a, me->me, 1 + wild);
    }
    CHECK(n_done > 100);
    arena_end(&a);
}

int main(void) {
    test_rotation();
    test_span();
    test_claim_exhaustive();
    test_generation_wrap();
    test_life();
    test_descriptor();
    test_abort();
    test_foreign_tails();
    test_give();
    test_reclaim_states();
    test_eviction();
    test_wake();
    test_enter();
    test_corrupt_states();
    test_corrupt_everything();
    return check_report();
}
