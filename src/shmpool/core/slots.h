/* SPDX-License-Identifier: BSD-3-Clause */
/* The life of a slot: claim, seal, pin, unpin, free, abort, adopt, reclaim. docs/format.md states
 * the algorithms; this file is their correctness argument in place.
 *
 * No Python, no I/O, no allocation, no statics, nothing blocks. Every function may be called by any
 * thread of any attached process at any time unless it says otherwise, and its caller may die after
 * any instruction. Results are SHMPOOL_OK or a negative SHMPOOL_E*.
 *
 * SYNC-1  publish: everything written to a slot (payload, descriptor) happens before the CAS to
 *         SEALED in shmpool_seal(); pairs with the load of the word in shmpool_pin().
 * SYNC-2  pin against retire: shmpool_pin() adds to the row and then reads the word;
 *         shmpool_free()/reclaim change the word and then read the row (shmpool_finalize). All four
 *         are sequentially consistent, so at least one side sees the other (Dekker).
 * SYNC-3  reuse: the reads of the last pinned reader happen before its subtraction in
 *         shmpool_unpin(); pairs with the reading of the row in shmpool_finalize(), which precedes
 *         FREE, which precedes the next claim.
 * SYNC-4  wake: a waiter stores `waiters`, then reads the words; whoever frees changes the word,
 * then swaps `waiters`. One of the two sees the other. */
#ifndef SHMPOOL_SLOTS_H
#define SHMPOOL_SLOTS_H

#include "layout.h"

static inline uint32_t shmpool_high_water(const shmpool_t *p) {
    uint32_t n = shmpool_load32(&p->counters->client_high_water);
    return n > p->geometry.max_clients ? p->geometry.max_clients : n; /* the file may lie */
}

static inline int shmpool_evicted(const shmpool_t *p) {
    return shmpool_load64(&p->clients[p->me].nonce) != p->nonce;
}

/* True when somebody may be asleep: the caller then bumps and wakes `wake_seq` through the OS.
 * Dying between the two costs the sleeper one period (10 ms), because every sleep is bounded. */
static inline int shmpool_wake_needed(const shmpool_t *p) {
    if (shmpool_load32(&p->counters->waiters) == 0 || shmpool_swap32(&p->counters->waiters, 0) == 0)
        return 0;
    shmpool_add32(&p->counters->wake_seq, 1);
    return 1;
}

/* What to answer to a handle whose slot does not have its generation sealed. */
static inline int shmpool_stale_or_corrupt(uint64_t word) {
    return shmpool_word_state(word) > SHMPOOL_TAIL ? SHMPOOL_ECORRUPT : SHMPOOL_ESTALE;
}

static inline int shmpool_is_pinned(const shmpool_t *p, uint32_t slot) {
    const uint32_t *row = shmpool_pin_cell(p, slot, 0);
    uint32_t n = shmpool_high_water(p);
    for (uint32_t i = 0; i < n; i++)
        if (shmpool_load32(&row[i]) != 0)
            return 1;
    return 0;
}

/* Free the tails that link to {head, generation}. A link is written only between the claim of its
 * slot and the CAS to TAIL, so it stands as long as the word stands: the CAS below succeeds only if
 * the link that was read belonged to this very word. Stale values of `count` or of the link can
 * therefore make us skip work that somebody else has done, never undo anybody's claim. */
static inline void shmpool_release_tails(const shmpool_t *p, uint32_t head, uint64_t generation,
                                         uint32_t count) {
    uint32_t end = p->geometry.n_slots - head - 1 < count ? p->geometry.n_slots : head + 1 + count;
    for (uint32_t t = head + 1; t < end; t++) {
        shmpool_slot_t *tail = &p->slots[t];
        uint64_t w = shmpool_load64(&tail->word);
        if (shmpool_word_state(w) != SHMPOOL_TAIL || shmpool_relaxed32(&tail->link_slot) != head ||
            shmpool_relaxed64(&tail->link_generation) != generation)
            continue;
        SHMPOOL_FAILPOINT("release.before_tail");
        shmpool_cas64(&tail->word, w, shmpool_word(shmpool_word_generation(w), 0, SHMPOOL_FREE));
    }
}

/* Complete the free of a RETIRED span if no pin is left. Any number of callers at once. The head
 * goes last: as long as anything remains to be done it is still RETIRED, and the next claim comes
 * here. */
static inline void shmpool_finalize(const shmpool_t *p, uint32_t slot) {
    shmpool_slot_t *s = &p->slots[slot];
    uint64_t w = shmpool_load64(&s->word);
    if (shmpool_word_state(w) != SHMPOOL_RETIRED)
        return;
    uint32_t span = shmpool_relaxed32(&s->span);
    if (shmpool_is_pinned(p, slot)) /* SYNC-2, SYNC-3 */
        return;
    uint64_t generation = shmpool_word_generation(w);
    if (span > 1)
        shmpool_release_tails(p, slot, generation, span - 1);
    SHMPOOL_FAILPOINT("finalize.before_head");
    shmpool_cas64(&s->word, w, shmpool_word(generation, 0, SHMPOOL_FREE));
    SHMPOOL_FAILPOINT("finalize.after_head");
}

/* Give back a claim that was never sealed. Only its owner calls this. Tails first, so that a death
 * in between leaves a head that says WRITING with a dead owner, which reclaim understands. */
static inline int shmpool_abort(const shmpool_t *p, uint32_t head, uint64_t generation,
                                uint32_t span) {
    SHMPOOL_FAILPOINT("abort.begin");
    if (span > 1)
        shmpool_release_tails(p, head, generation, span - 1);
    SHMPOOL_FAILPOINT("abort.before_head");
    return shmpool_cas64(&p->slots[head].word, shmpool_word(generation, p->me + 1, SHMPOOL_WRITING),
                         shmpool_word(generation, 0, SHMPOOL_FREE))
               ? SHMPOOL_OK
               : SHMPOOL_EEVICTED;
}

/* One slot FREE -> WRITING(me); its new generation, or 0 if it is not to be had. The owner is in
 * the same word as the state: at no instant is a slot taken by nobody knows whom. */
static inline uint64_t shmpool_take(const shmpool_t *p, uint32_t slot) {
    shmpool_slot_t *s = &p->slots[slot];
    uint64_t w = shmpool_load64(&s->word);
    if (shmpool_word_state(w) == SHMPOOL_RETIRED) {
        shmpool_finalize(p, slot);
        w = shmpool_load64(&s->word);
    }
    if (shmpool_word_state(w) != SHMPOOL_FREE)
        return 0;
    uint64_t generation = (shmpool_word_generation(w) + 1) & SHMPOOL_GENERATION_MASK;
    if (generation == 0) /* after 2**48 claims; 0 is kept for "no generation" */
        generation = 1;
    return shmpool_cas64(&s->word, w, shmpool_word(generation, p->me + 1, SHMPOOL_WRITING))
               ? generation
               : 0;
}

/* Take `span` adjacent slots from `head` upwards; the head's generation or 0, with *blocker the
 * slot that was not to be had. Ascending order; what was taken is given back on failure, so two
 * claimants cannot hold each other's rest. */
static inline uint64_t shmpool_take_span(const shmpool_t *p, uint32_t head, uint32_t span,
                                         uint32_t *blocker) {
    uint64_t generation = shmpool_take(p, head);
    if (generation == 0) {
        *blocker = head;
        return 0;
    }
    for (uint32_t k = 1; k < span; k++) {
        SHMPOOL_FAILPOINT("claim.between_slots");
        uint64_t tail_generation = shmpool_take(p, head + k);
        if (tail_generation == 0) {
            *blocker = head + k;
            shmpool_abort(p, head, generation, k);
            return 0;
        }
        /* Linked as soon as it is taken: from here on the fate of this slot is that of the head, so
         * giving back needs nothing but the head. */
        shmpool_slot_t *tail = &p->slots[head + k];
        shmpool_set32(&tail->link_slot, head);
        shmpool_set64(&tail->link_generation, generation);
        SHMPOOL_FAILPOINT("claim.before_tail");
        if (!shmpool_cas64(&tail->word, shmpool_word(tail_generation, p->me + 1, SHMPOOL_WRITING),
                           shmpool_word(tail_generation, p->me + 1, SHMPOOL_TAIL))) {
            *blocker = head + k; /* evicted; the caller's fence check says so */
            shmpool_abort(p, head, generation, k);
            return 0;
        }
    }
    return generation;
}

/* Advance a region's rotation counter by `span`; where the search starts. Once per claim, also when
 * the claim then has to wait, so that the order of slots does not depend on who waited. */
static inline uint64_t shmpool_ticket(const shmpool_t *p, int region, uint32_t span) {
    return shmpool_add64(&p->counters->rotation[region].value, span);
}

/* Claim `span` adjacent slots. SHMPOOL_OK with *head and *generation; SHMPOOL_EFULL when nothing is
 * free now; SHMPOOL_ETOOLARGE when it can never succeed; SHMPOOL_EEVICTED.
 * What does not fit in the region may take any run of the pool. */
static inline int shmpool_claim(const shmpool_t *p, int region, uint32_t span, uint64_t ticket,
                                uint64_t now_ns, uint32_t *head, uint64_t *generation) {
    const shmpool_geometry_t *g = &p->geometry;
    uint32_t first = g->region_start[region], n = g->region_slots[region];
    if (span == 0 || span > g->n_slots)
        return SHMPOOL_ETOOLARGE;
    if (span > n) {
        first = 0;
        n = g->n_slots;
    }
    if (shmpool_evicted(p))
        return SHMPOOL_EEVICTED;
    uint32_t positions = n - span + 1;
    uint32_t at = (uint32_t)(ticket % n);
    if (at >= positions) /* a run does not wrap round the end of its region */
        at = 0;
    for (uint32_t tried = 0; tried < positions;) {
        uint32_t blocker = 0;
        uint64_t got = shmpool_take_span(p, first + at, span, &blocker);
        if (got != 0) {
            SHMPOOL_FAILPOINT("claim.taken");
            shmpool_set64(&p->slots[first + at].claimed_ns, now_ns);
            *head = first + at;
            *generation = got;
            return SHMPOOL_OK;
        }
        uint32_t skip = blocker - (first + at) + 1; /* no run across the blocker can succeed */
        tried += skip;
        at += skip;
        if (at >= positions) {
            tried -= at - positions < tried ? at - positions : tried;
            at = 0;
        }
    }
    return shmpool_evicted(p) ? SHMPOOL_EEVICTED : SHMPOOL_EFULL;
}

/* Whether a claim of mine still stands. Asked before the slot's bytes and record are written: an
 * evicted client would write into its successor's. */
static inline int shmpool_holds(const shmpool_t *p, uint32_t head, uint64_t generation) {
    return !shmpool_evicted(p) && shmpool_load64(&p->slots[head].word) ==
                                      shmpool_word(generation, p->me + 1, SHMPOOL_WRITING);
}

typedef struct {
    uint64_t nbytes;
    uint64_t data_offset;
    uint64_t dtype_offset;
    uint32_t span;
    uint16_t dtype_nbytes;
    uint8_t ndim;
    uint8_t order;
    int64_t shape[SHMPOOL_MAX_NDIM];
    char dtype[SHMPOOL_DTYPE_NBYTES];
} shmpool_descriptor_t;

/* Write the descriptor. Only the owner, between claim and seal. A text that does not fit in the
 * record has been stored in the slot by the caller, at d->dtype_offset. */
static inline void shmpool_describe(const shmpool_t *p, uint32_t head,
                                    const shmpool_descriptor_t *d) {
    shmpool_slot_t *s = &p->slots[head];
    shmpool_set64(&s->nbytes, d->nbytes); /* atomic: inspection reads it without a pin */
    s->data_offset = d->data_offset;
    shmpool_set32(&s->span, d->span); /* atomic: a late finalizer of the slot's past may read it */
    s->dtype_nbytes = d->dtype_nbytes;
    s->ndim = d->ndim;
    s->order = d->order;
    s->dtype_offset = d->dtype_offset;
    memcpy(s->shape, d->shape, d->ndim * sizeof d->shape[0]);
    if (d->dtype_offset == 0)
        memcpy(s->dtype, d->dtype,
               d->dtype_nbytes < SHMPOOL_DTYPE_NBYTES ? d->dtype_nbytes : SHMPOOL_DTYPE_NBYTES);
}

/* Publish. The only step that makes a span visible. */
static inline int shmpool_seal(const shmpool_t *p, uint32_t head, uint64_t generation,
                               uint64_t now_ns) {
    if (shmpool_evicted(p))
        return SHMPOOL_EEVICTED;
    shmpool_set64(&p->slots[head].sealed_ns, now_ns);
    SHMPOOL_FAILPOINT("seal.before_publish");
    int done =
        shmpool_cas64(&p->slots[head].word, shmpool_word(generation, p->me + 1, SHMPOOL_WRITING),
                      shmpool_word(generation, p->me + 1, SHMPOOL_SEALED)); /* SYNC-1 */
    SHMPOOL_FAILPOINT("seal.after_publish");
    return done ? SHMPOOL_OK : SHMPOOL_EEVICTED;
}

/* Drop one pin of mine. The reads through the view happen before the subtraction (SYNC-3). Whoever
 * subtracts looks at the word afterwards: if a free was put off by this very pin, it is completed
 * here; if we die in between, the next claim does it. True when something may have become free. */
static inline int shmpool_unpin(const shmpool_t *p, uint32_t slot) {
    if (shmpool_evicted(p)) /* the row was zeroed; by now the cell may count for a successor */
        return 0;
    shmpool_add32(shmpool_pin_cell(p, slot, p->me), (uint32_t)-1);
    SHMPOOL_FAILPOINT("unpin.before_finalize");
    if (shmpool_word_state(shmpool_load64(&p->slots[slot].word)) != SHMPOOL_RETIRED)
        return 0;
    shmpool_finalize(p, slot);
    return 1;
}

/* Pin a sealed span for reading. The count cannot overflow: each pin is an object of the process
 * that holds it, and 2**32 of those do not fit in memory. */
static inline int shmpool_pin(const shmpool_t *p, uint32_t slot, uint64_t generation) {
    if (slot >= p->geometry.n_slots)
        return SHMPOOL_ESTALE;
    /* A look before the count: stale handles that are tried again and again would otherwise put off
     * the finalizer with stray counts. It decides nothing; the look after the count does. */
    uint64_t w = shmpool_load64(&p->slots[slot].word);
    if (shmpool_word_generation(w) != generation || shmpool_word_state(w) != SHMPOOL_SEALED)
        return shmpool_stale_or_corrupt(w);
    if (shmpool_evicted(p))
        return SHMPOOL_EEVICTED;
    SHMPOOL_FAILPOINT("pin.before_count");
    shmpool_add32(shmpool_pin_cell(p, slot, p->me), 1);
    SHMPOOL_FAILPOINT("pin.before_recheck");
    w = shmpool_load64(&p->slots[slot].word); /* SYNC-2 */
    if (shmpool_word_generation(w) != generation || shmpool_word_state(w) != SHMPOOL_SEALED) {
        shmpool_unpin(p, slot);
        return shmpool_stale_or_corrupt(w);
    }
    if (shmpool_evicted(p)) /* our row may have been zeroed under us: the pin protects nothing */
        return SHMPOOL_EEVICTED;
    SHMPOOL_FAILPOINT("pin.held");
    return SHMPOOL_OK;
}

/* Read and check the descriptor. Only under a pin (or by the owner of the claim). */
static inline int shmpool_read_descriptor(const shmpool_t *p, uint32_t slot,
                                          shmpool_descriptor_t *d) {
    const shmpool_slot_t *s = &p->slots[slot];
    d->nbytes = shmpool_relaxed64(&s->nbytes);
    d->data_offset = s->data_offset;
    d->span = shmpool_relaxed32(&s->span);
    d->dtype_nbytes = s->dtype_nbytes;
    d->ndim = s->ndim;
    d->order = s->order;
    d->dtype_offset = s->dtype_offset;
    if (d->span == 0 || d->span > p->geometry.n_slots - slot || d->ndim > SHMPOOL_MAX_NDIM ||
        d->order > 1)
        return SHMPOOL_ECORRUPT;
    uint64_t room = d->span * p->geometry.slot_nbytes;
    if (d->nbytes > room || d->data_offset > room - d->nbytes)
        return SHMPOOL_ECORRUPT;
    if (d->dtype_offset == 0 ? d->dtype_nbytes > SHMPOOL_DTYPE_NBYTES
                             : d->dtype_nbytes > room || d->dtype_offset > room - d->dtype_nbytes)
        return SHMPOOL_ECORRUPT;
    memcpy(d->shape, s->shape, d->ndim * sizeof d->shape[0]);
    for (uint32_t i = 0; i < d->ndim; i++)
        if (d->shape[i] < 0)
            return SHMPOOL_ECORRUPT;
    if (d->dtype_offset == 0)
        memcpy(d->dtype, s->dtype, d->dtype_nbytes);
    return SHMPOOL_OK;
}

/* Free a sealed span: now, or when its last pin goes. Exactly one caller per generation succeeds.
 */
static inline int shmpool_free(const shmpool_t *p, uint32_t slot, uint64_t generation) {
    if (slot >= p->geometry.n_slots)
        return SHMPOOL_ESTALE;
    shmpool_slot_t *s = &p->slots[slot];
    for (;;) { /* ends: the owner changes by adoption only, anything else is stale */
        uint64_t w = shmpool_load64(&s->word);
        if (shmpool_word_generation(w) != generation || shmpool_word_state(w) != SHMPOOL_SEALED)
            return shmpool_stale_or_corrupt(w);
        SHMPOOL_FAILPOINT("free.before_retire");
        if (shmpool_cas64(&s->word, w,
                          shmpool_word(generation, shmpool_word_owner(w), SHMPOOL_RETIRED)))
            break;
    }
    SHMPOOL_FAILPOINT("free.after_retire");
    shmpool_finalize(p, slot);
    return SHMPOOL_OK;
}

/* Make `client` the owner of a sealed span: from then on it lives and dies with that client.
 * `nonce` names the very attachment. If that one is gone (SHMPOOL_EGONE) the span is freed, because
 * nobody else knows about it. A death of ours between the CAS and the second look may leave the
 * span with a successor of the client's index, until that one detaches: bounded, and rare enough.
 */
static inline int shmpool_give(const shmpool_t *p, uint32_t slot, uint64_t generation,
                               uint32_t client, uint64_t nonce) {
    if (slot >= p->geometry.n_slots)
        return SHMPOOL_ESTALE;
    if (client >= p->geometry.max_clients || nonce == 0)
        return SHMPOOL_EGONE;
    if (shmpool_evicted(p))
        return SHMPOOL_EEVICTED;
    shmpool_slot_t *s = &p->slots[slot];
    for (;;) {
        uint64_t w = shmpool_load64(&s->word);
        if (shmpool_word_generation(w) != generation || shmpool_word_state(w) != SHMPOOL_SEALED)
            return shmpool_stale_or_corrupt(w);
        SHMPOOL_FAILPOINT("give.before_transfer");
        if (shmpool_cas64(&s->word, w, shmpool_word(generation, client + 1, SHMPOOL_SEALED)))
            break;
    }
    SHMPOOL_FAILPOINT("give.after_transfer");
    /* A cleaner of `client` zeroes the nonce before it looks at the words: either it sees our CAS
     * and frees the span, or we see its zero. */
    if (shmpool_load64(&p->clients[client].nonce) == nonce)
        return SHMPOOL_OK;
    shmpool_free(p, slot, generation);
    return SHMPOOL_EGONE;
}

static inline void shmpool_channels_heal(const shmpool_t *p, uint32_t client); /* channel.h */

/* Free everything that `client` held. The caller has PROOF that the client is dead and that its
 * index cannot be handed out meanwhile: a lock on byte 64 + client, shared (a cleaner) or exclusive
 * (the newcomer who takes the index). Idempotent; any number of callers; each may die or stop
 * anywhere. */
static inline void shmpool_reclaim(const shmpool_t *p, uint32_t client) {
    uint32_t owner = client + 1;
    uint32_t n = p->geometry.n_slots;
    shmpool_store64(&p->clients[client].nonce, 0);
    SHMPOOL_FAILPOINT("reclaim.begin");
    for (uint32_t i = 0; i < n; i++) {
        uint32_t *cell = shmpool_pin_cell(p, i, client);
        if (shmpool_load32(cell) != 0)
            shmpool_store32(cell, 0);
    }
    SHMPOOL_FAILPOINT("reclaim.pins_cleared");
    shmpool_channels_heal(p, client);
    SHMPOOL_FAILPOINT("reclaim.channels_healed");
    for (uint32_t i = 0; i < n; i++) {
        shmpool_slot_t *s = &p->slots[i];
        uint64_t w = shmpool_load64(&s->word);
        uint64_t generation = shmpool_word_generation(w);
        if (shmpool_word_state(w) == SHMPOOL_RETIRED) {
            shmpool_finalize(p, i);
        } else if (shmpool_word_owner(w) != owner) {
            continue;
        } else if (shmpool_word_state(w) == SHMPOOL_WRITING) {
            SHMPOOL_FAILPOINT("reclaim.before_free");
            shmpool_cas64(&s->word, w, shmpool_word(generation, 0, SHMPOOL_FREE));
        } else if (shmpool_word_state(w) == SHMPOOL_SEALED) {
            SHMPOOL_FAILPOINT("reclaim.before_retire");
            if (shmpool_cas64(&s->word, w, shmpool_word(generation, 0, SHMPOOL_RETIRED)))
                shmpool_finalize(p, i);
        } else if (shmpool_word_state(w) == SHMPOOL_TAIL) {
            uint32_t head = shmpool_relaxed32(&s->link_slot);
            uint64_t head_generation = shmpool_relaxed64(&s->link_generation);
            uint64_t hw = head < i ? shmpool_load64(&p->slots[head].word) : 0;
            if (head < i && shmpool_word_generation(hw) == head_generation &&
                (shmpool_word_state(hw) == SHMPOOL_SEALED ||
                 shmpool_word_state(hw) == SHMPOOL_RETIRED))
                continue; /* its span lives: adopted by somebody, or still pinned */
            SHMPOOL_FAILPOINT("reclaim.before_tail");
            shmpool_cas64(&s->word, w, shmpool_word(generation, 0, SHMPOOL_FREE));
        }
    }
    SHMPOOL_FAILPOINT("reclaim.end");
}

/* Take possession of a client index. The caller holds byte 64 + client exclusively. */
static inline void shmpool_client_enter(shmpool_t *p, uint32_t client, uint64_t nonce,
                                        uint64_t now_ns, uint32_t pid, uint64_t pid_namespace,
                                        const char *label) {
    shmpool_reclaim(p, client);
    for (;;) { /* before the first pin: whoever reads a row must look as far as our cell */
        uint32_t high = shmpool_load32(&p->counters->client_high_water);
        if (high > client || shmpool_cas32(&p->counters->client_high_water, high, client + 1))
            break;
    }
    shmpool_client_t *c = &p->clients[client];
    shmpool_set64(&c->attached_ns, now_ns);
    shmpool_set32(&c->pid, pid);
    shmpool_set64(&c->pid_namespace, pid_namespace);
    size_t n = strlen(label);
    if (n >= SHMPOOL_LABEL_NBYTES)
        n = SHMPOOL_LABEL_NBYTES - 1;
    memset(c->label, 0, sizeof c->label);
    memcpy(c->label, label, n);
    p->me = client;
    p->nonce = nonce;
    SHMPOOL_FAILPOINT("enter.before_nonce");
    shmpool_store64(&c->nonce, nonce);
    SHMPOOL_FAILPOINT("enter.end");
}

/* Retire what I own and leave. Only when none of my claims and pins is in use any more. */
static inline void shmpool_client_leave(const shmpool_t *p) {
    if (!shmpool_evicted(p))
        shmpool_reclaim(p, p->me);
}

#include "channel.h"

#endif
