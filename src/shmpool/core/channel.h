/* SPDX-License-Identifier: BSD-3-Clause */
/* Channels: bounded rings of messages inside the pool file. docs/channels.md states the algorithms;
 * this file is their correctness argument in place.
 *
 * The rules of slots.h hold: no Python, no I/O, no allocation, nothing blocks; any thread of any
 * attached process may call at any time, and may die after any instruction.
 *
 * SYNC-5  message: what a sender writes to a cell happens before the CAS to FULL; pairs with the
 *         receiver's load of the word. What a receiver reads happens before the CAS to EMPTY (or
 *         of its cursor); pairs with the load by the sender that takes the cell next.
 * SYNC-6  head: a cleaner makes a cell FULL and then lowers `head`; a receiver advances `head` past
 *         READING and then looks at the cell again. All four are sequentially consistent, so one of
 *         the two sees the other, and no FULL cell stays behind `head`.
 * SYNC-7  wake: a sleeper stores its flag and then tries again; whoever publishes changes a word
 *         and then reads the flag. One of the two sees the other.
 * SYNC-8  cursor: a new receiver stores its cursor and then reads `tail`; a sender takes the cell
 *         at `tail` and, a lap later, reads the cursors before it takes that cell again. */
#ifndef SHMPOOL_CHANNEL_H
#define SHMPOOL_CHANNEL_H

#include "slots.h"

#define SHMPOOL_CELL_EMPTY 0u
#define SHMPOOL_CELL_WRITING 1u
#define SHMPOOL_CELL_FULL 2u
#define SHMPOOL_CELL_READING 3u
#define SHMPOOL_CELL_LOST 4u

#define SHMPOOL_ROLE_ATTACHED 1u
#define SHMPOOL_ROLE_SENDS 2u
#define SHMPOOL_ROLE_RECEIVES 4u
#define SHMPOOL_ROLE_CURSOR 8u

#define SHMPOOL_BROADCAST 1u

/* One channel as one of its users knows it: checked private copies of what must not change. */
typedef struct {
    const shmpool_t *p;
    shmpool_channel_t *c;
    shmpool_attachment_t *attachments;
    shmpool_cell_t *cells;
    uint8_t *payloads;
    uint64_t generation;
    uint32_t capacity;
    uint32_t cell_nbytes;
    uint32_t flags;
    uint32_t mine; /* my attachment */
} shmpool_ring_t;

static inline uint32_t shmpool_channel_high_water(const shmpool_t *p) {
    uint32_t n = shmpool_load32(&p->counters->channel_high_water);
    return n > p->geometry.max_channels ? p->geometry.max_channels : n;
}

/* Where everything of a record lies. SHMPOOL_ECORRUPT when its numbers do not fit its extent. */
static inline int shmpool_ring_bind(shmpool_ring_t *r, const shmpool_t *p, uint32_t index) {
    memset(r, 0, sizeof *r);
    uint8_t *extent =
        p->base + p->geometry.channels_offset + (uint64_t)index * p->geometry.channel_nbytes;
    r->p = p;
    r->c = &p->channels[index];
    r->attachments = (shmpool_attachment_t *)extent;
    r->cells = (shmpool_cell_t *)(extent + SHMPOOL_CELLS_OFFSET);
    r->payloads = extent + SHMPOOL_PAYLOAD_OFFSET;
    r->generation = shmpool_word_generation(shmpool_load64(&r->c->word));
    r->flags = shmpool_relaxed32(&r->c->flags);
    r->capacity = shmpool_relaxed32(&r->c->capacity);
    r->cell_nbytes = shmpool_relaxed32(&r->c->cell_nbytes);
    if (r->capacity == 0 || r->capacity > SHMPOOL_MAX_CELLS || r->cell_nbytes == 0 ||
        r->cell_nbytes % 64 != 0 ||
        (uint64_t)r->capacity * r->cell_nbytes >
            p->geometry.channel_nbytes - SHMPOOL_PAYLOAD_OFFSET)
        return SHMPOOL_ECORRUPT;
    return SHMPOOL_OK;
}

static inline shmpool_cell_t *shmpool_ring_cell(const shmpool_ring_t *r, uint64_t position) {
    return &r->cells[position % r->capacity];
}

static inline uint8_t *shmpool_ring_payload(const shmpool_ring_t *r, uint64_t position) {
    return r->payloads + position % r->capacity * r->cell_nbytes;
}

static inline uint32_t shmpool_ring_attachments(const shmpool_ring_t *r) {
    uint32_t n = shmpool_load32(&r->c->attach_high_water);
    return n > SHMPOOL_MAX_ATTACHMENTS ? SHMPOOL_MAX_ATTACHMENTS : n;
}

/* True when somebody may sleep there: the caller then wakes `seq` through the OS. */
static inline int shmpool_ring_wake_needed(uint32_t *seq, uint32_t *waiters) {
    if (shmpool_load32(waiters) == 0 || shmpool_swap32(waiters, 0) == 0) /* SYNC-7 */
        return 0;
    shmpool_add32(seq, 1);
    return 1;
}

static inline void shmpool_ring_lower_head(const shmpool_ring_t *r, uint64_t position) {
    for (;;) {
        uint64_t head = shmpool_load64(&r->c->head);
        if (head <= position || shmpool_cas64(&r->c->head, head, position))
            return;
    }
}

/* -- custody ----------------------------------------------------------------------------------- */

/* Change the owner of a sealed slot from exactly `from` to `to`. */
static inline int shmpool_slot_hand(const shmpool_t *p, uint32_t slot, uint64_t generation,
                                    uint32_t from, uint32_t to) {
    return slot < p->geometry.n_slots && generation != 0 &&
           shmpool_cas64(&p->slots[slot].word, shmpool_word(generation, from, SHMPOOL_SEALED),
                         shmpool_word(generation, to, SHMPOOL_SEALED));
}

/* Free a slot if it is in the custody of a cell. The caller knows that it is that of its cell, or
 * that the generation is not in custody at all. */
static inline void shmpool_custody_free(const shmpool_t *p, uint32_t slot, uint64_t generation) {
    if (slot >= p->geometry.n_slots || generation == 0)
        return;
    if (shmpool_cas64(&p->slots[slot].word,
                      shmpool_word(generation, SHMPOOL_CUSTODY, SHMPOOL_SEALED),
                      shmpool_word(generation, 0, SHMPOOL_RETIRED))) {
        SHMPOOL_FAILPOINT("custody.retired");
        shmpool_finalize(p, slot);
    }
}

/* -- broadcast: cursors ------------------------------------------------------------------------ */

/* Whether every receiver has passed `position`. */
static inline int shmpool_ring_passed(const shmpool_ring_t *r, uint64_t position) {
    uint32_t n = shmpool_ring_attachments(r);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t w = shmpool_load64(&r->attachments[i].word);
        if ((shmpool_word_state(w) & SHMPOOL_ROLE_CURSOR) && shmpool_word_generation(w) <= position)
            return 0;
    }
    return 1;
}

/* Free the slot of a cell that everybody has passed. The handle was read between two equal looks at
 * the word, so it is that of this message; freeing it twice finds another generation or owner. */
static inline void shmpool_ring_trim_cell(const shmpool_ring_t *r, uint64_t position) {
    shmpool_cell_t *cell = shmpool_ring_cell(r, position);
    uint64_t w = shmpool_load64(&cell->word);
    if (w != shmpool_word(position, 0, SHMPOOL_CELL_FULL))
        return;
    uint64_t generation = shmpool_load64(&cell->generation);
    uint32_t slot = shmpool_relaxed32(&cell->slot);
    if (generation == 0 || !shmpool_ring_passed(r, position) || shmpool_load64(&cell->word) != w)
        return;
    shmpool_custody_free(r->p, slot, generation);
}

static inline void shmpool_ring_trim(const shmpool_ring_t *r) {
    for (uint32_t i = 0; i < r->capacity; i++)
        shmpool_ring_trim_cell(r, shmpool_word_generation(shmpool_load64(&r->cells[i].word)));
}

/* -- sending ----------------------------------------------------------------------------------- */

/* Take the next cell: SHMPOOL_OK with *position, SHMPOOL_EFULL, SHMPOOL_EEVICTED. */
static inline int shmpool_ring_claim(const shmpool_ring_t *r, uint64_t *position) {
    const shmpool_t *p = r->p;
    if (shmpool_evicted(p))
        return SHMPOOL_EEVICTED;
    for (;;) { /* each turn sees progress of somebody, or ends */
        uint64_t t = shmpool_load64(&r->c->tail);
        shmpool_cell_t *cell = shmpool_ring_cell(r, t);
        uint64_t w = shmpool_load64(&cell->word);
        uint64_t at = shmpool_word_generation(w);
        uint32_t state = shmpool_word_state(w);
        uint64_t mine = shmpool_word(t, p->me + 1, SHMPOOL_CELL_WRITING);
        if (at > t || (at == t && state != SHMPOOL_CELL_EMPTY)) {
            /* taken; whoever took it may have died before it said so */
            shmpool_cas64(&r->c->tail, t, t + 1);
            continue;
        }
        if (at == t) {
            SHMPOOL_FAILPOINT("send.before_claim");
            if (!shmpool_cas64(&cell->word, w, mine))
                continue;
        } else if (at + r->capacity != t || state > SHMPOOL_CELL_LOST) {
            return SHMPOOL_ECORRUPT;
        } else if (r->flags & SHMPOOL_BROADCAST) {
            if ((state != SHMPOOL_CELL_FULL && state != SHMPOOL_CELL_LOST) ||
                !shmpool_ring_passed(r, at)) /* SYNC-8 */
                return SHMPOOL_EFULL;
            if (!shmpool_cas64(&cell->word, w, mine))
                continue;
            /* What the cell named is unreachable now. If we die before the next line, reclaim finds
             * it in a cell that we were writing, and frees it for that reason. */
            SHMPOOL_FAILPOINT("send.recycled");
            shmpool_custody_free(p, shmpool_relaxed32(&cell->slot),
                                 shmpool_load64(&cell->generation));
        } else if (state == SHMPOOL_CELL_LOST) {
            shmpool_cas64(&cell->word, w, shmpool_word(t, 0, SHMPOOL_CELL_EMPTY));
            continue;
        } else {
            if (state == SHMPOOL_CELL_FULL) /* given back behind `head`, and nobody said so */
                shmpool_ring_lower_head(r, at);
            return SHMPOOL_EFULL;
        }
        SHMPOOL_FAILPOINT("send.claimed");
        shmpool_cas64(&r->c->tail, t, t + 1);
        SHMPOOL_FAILPOINT("send.advanced");
        *position = t;
        return SHMPOOL_OK;
    }
}

/* Name the slot of the message and put it into the custody of my cell; without a slot, say so. The
 * generation is stored last: a half-written handle is one that is in nobody's custody. */
static inline int shmpool_ring_entrust(const shmpool_ring_t *r, uint64_t position, uint32_t slot,
                                       uint32_t span, uint64_t generation) {
    shmpool_cell_t *cell = shmpool_ring_cell(r, position);
    shmpool_store64(&cell->generation, 0);
    if (generation == 0)
        return SHMPOOL_OK;
    shmpool_set32(&cell->slot, slot);
    shmpool_set32(&cell->span, span);
    SHMPOOL_FAILPOINT("send.before_generation");
    shmpool_store64(&cell->generation, generation);
    SHMPOOL_FAILPOINT("send.before_custody");
    if (!shmpool_slot_hand(r->p, slot, generation, r->p->me + 1, SHMPOOL_CUSTODY))
        return SHMPOOL_ESTALE;
    SHMPOOL_FAILPOINT("send.after_custody");
    return SHMPOOL_OK;
}

static inline int shmpool_ring_publish(const shmpool_ring_t *r, uint64_t position) {
    shmpool_cell_t *cell = shmpool_ring_cell(r, position);
    SHMPOOL_FAILPOINT("send.before_publish");
    int done = shmpool_cas64(&cell->word, /* SYNC-5 */
                             shmpool_word(position, r->p->me + 1, SHMPOOL_CELL_WRITING),
                             shmpool_word(position, 0, SHMPOOL_CELL_FULL));
    SHMPOOL_FAILPOINT("send.after_publish");
    return done ? SHMPOOL_OK : SHMPOOL_EEVICTED;
}

/* Leave a tombstone where no message can be: mine, or that of the dead client `owner` - 1. */
static inline int shmpool_ring_bury(const shmpool_ring_t *r, uint64_t position, uint32_t owner) {
    shmpool_cell_t *cell = shmpool_ring_cell(r, position);
    uint64_t w = shmpool_word(position, owner, SHMPOOL_CELL_WRITING);
    uint64_t generation = shmpool_load64(&cell->generation);
    uint32_t slot = shmpool_relaxed32(&cell->slot);
    if (shmpool_load64(&cell->word) != w) /* so the handle belongs to this word */
        return 0;
    shmpool_custody_free(r->p, slot, generation);
    SHMPOOL_FAILPOINT("heal.before_lost");
    return shmpool_cas64(&cell->word, w, shmpool_word(position, 0, SHMPOOL_CELL_LOST));
}

/* -- receiving, one receiver per message ------------------------------------------------------- */

/* Whether a cell from `from` up to `to` holds a message that may be taken. */
static inline int shmpool_ring_any_full(const shmpool_ring_t *r, uint64_t from, uint64_t to) {
    for (uint64_t q = from; q < to; q++)
        if (shmpool_load64(&shmpool_ring_cell(r, q)->word) == shmpool_word(q, 0, SHMPOOL_CELL_FULL))
            return 1;
    return 0;
}

/* Take the oldest message: SHMPOOL_OK with *position, SHMPOOL_EEMPTY, SHMPOOL_EEVICTED. */
static inline int shmpool_ring_take(const shmpool_ring_t *r, uint64_t *position) {
    const shmpool_t *p = r->p;
    if (shmpool_evicted(p))
        return SHMPOOL_EEVICTED;
    for (;;) {
        uint64_t h = shmpool_load64(&r->c->head);
        shmpool_cell_t *cell = shmpool_ring_cell(r, h);
        uint64_t w = shmpool_load64(&cell->word);
        uint64_t at = shmpool_word_generation(w);
        uint32_t state = shmpool_word_state(w);
        if (state > SHMPOOL_CELL_LOST)
            return SHMPOOL_ECORRUPT;
        if (at > h) {
            shmpool_cas64(&r->c->head, h, h + 1);
        } else if (at < h) { /* the ring is full of what others are reading, or gave back */
            if (state != SHMPOOL_CELL_FULL)
                return SHMPOOL_EEMPTY;
            shmpool_ring_lower_head(r, at);
        } else if (state == SHMPOOL_CELL_EMPTY) {
            return SHMPOOL_EEMPTY;
        } else if (state == SHMPOOL_CELL_LOST) {
            shmpool_cas64(&cell->word, w, shmpool_word(h + r->capacity, 0, SHMPOOL_CELL_EMPTY));
        } else if (state == SHMPOOL_CELL_READING) {
            shmpool_cas64(&r->c->head, h, h + 1);
            if (shmpool_load64(&cell->word) == shmpool_word(h, 0, SHMPOOL_CELL_FULL)) /* SYNC-6 */
                shmpool_ring_lower_head(r, h);
        } else if (state == SHMPOOL_CELL_FULL) {
            SHMPOOL_FAILPOINT("recv.before_take");
            if (!shmpool_cas64(&cell->word, w, shmpool_word(h, p->me + 1, SHMPOOL_CELL_READING)))
                continue;
            SHMPOOL_FAILPOINT("recv.taken");
            shmpool_cas64(&r->c->head, h, h + 1);
            *position = h;
            return SHMPOOL_OK;
        } else { /* WRITING: a later message, if all before it were still under way when it was done
                  */
            uint64_t q = h + 1;
            uint64_t end = h + r->capacity;
            for (; q < end; q++) {
                w = shmpool_load64(&shmpool_ring_cell(r, q)->word);
                if (shmpool_word_generation(w) == q && shmpool_word_state(w) == SHMPOOL_CELL_EMPTY)
                    return SHMPOOL_EEMPTY;
                if (w == shmpool_word(q, 0, SHMPOOL_CELL_FULL))
                    break;
            }
            if (q == end)
                return SHMPOOL_EEMPTY;
            if (shmpool_ring_any_full(r, h, q))
                continue;
            if (!shmpool_cas64(&shmpool_ring_cell(r, q)->word, w,
                               shmpool_word(q, p->me + 1, SHMPOOL_CELL_READING)))
                continue;
            SHMPOOL_FAILPOINT("recv.taken_ahead");
            *position = q;
            return SHMPOOL_OK;
        }
    }
}

/* Take the slot of my message out of custody. The caller has pinned it. */
static inline int shmpool_ring_redeem(const shmpool_ring_t *r, uint32_t slot, uint64_t generation) {
    SHMPOOL_FAILPOINT("recv.before_redeem");
    int done = shmpool_slot_hand(r->p, slot, generation, SHMPOOL_CUSTODY, r->p->me + 1);
    SHMPOOL_FAILPOINT("recv.after_redeem");
    return done ? SHMPOOL_OK : SHMPOOL_ESTALE;
}

/* The message is mine: the only point at which it leaves the ring. */
static inline int shmpool_ring_accept(const shmpool_ring_t *r, uint64_t position) {
    shmpool_cell_t *cell = shmpool_ring_cell(r, position);
    SHMPOOL_FAILPOINT("recv.before_accept");
    int done = shmpool_cas64(&cell->word, /* SYNC-5 */
                             shmpool_word(position, r->p->me + 1, SHMPOOL_CELL_READING),
                             shmpool_word(position + r->capacity, 0, SHMPOOL_CELL_EMPTY));
    SHMPOOL_FAILPOINT("recv.after_accept");
    return done ? SHMPOOL_OK : SHMPOOL_EEVICTED;
}

/* Give a message back that `owner` - 1, I or a dead client, was reading. */
static inline int shmpool_ring_give_back(const shmpool_ring_t *r, uint64_t position,
                                         uint32_t owner) {
    shmpool_cell_t *cell = shmpool_ring_cell(r, position);
    uint64_t w = shmpool_word(position, owner, SHMPOOL_CELL_READING);
    uint64_t generation = shmpool_load64(&cell->generation);
    uint32_t slot = shmpool_relaxed32(&cell->slot);
    if (shmpool_load64(&cell->word) != w)
        return 0;
    shmpool_slot_hand(r->p, slot, generation, owner, SHMPOOL_CUSTODY);
    SHMPOOL_FAILPOINT("heal.before_full");
    if (!shmpool_cas64(&cell->word, w, shmpool_word(position, 0, SHMPOOL_CELL_FULL)))
        return 0;
    SHMPOOL_FAILPOINT("heal.before_lower");
    shmpool_ring_lower_head(r, position); /* SYNC-6 */
    return 1;
}

/* Look through all cells for messages behind `head`: for receivers that have slept long. A cleaner
 * that died between two lines of give_back leaves one there. */
static inline int shmpool_ring_rescue(const shmpool_ring_t *r) {
    int found = 0;
    for (uint32_t i = 0; i < r->capacity; i++) {
        uint64_t w = shmpool_load64(&r->cells[i].word);
        if (shmpool_word_state(w) == SHMPOOL_CELL_FULL &&
            shmpool_word_generation(w) < shmpool_load64(&r->c->head)) {
            shmpool_ring_lower_head(r, shmpool_word_generation(w));
            found = 1;
        }
    }
    return found;
}

/* -- receiving, broadcast ---------------------------------------------------------------------- */

/* Find my next message: SHMPOOL_OK with *position; nothing is changed but for tombstones passed. */
static inline int shmpool_ring_peek(const shmpool_ring_t *r, uint64_t *position) {
    if (shmpool_evicted(r->p))
        return SHMPOOL_EEVICTED;
    uint64_t *own = &r->attachments[r->mine].word;
    for (;;) {
        uint64_t w = shmpool_load64(own);
        uint64_t cursor = shmpool_word_generation(w);
        if (!(shmpool_word_state(w) & SHMPOOL_ROLE_CURSOR))
            return SHMPOOL_EINVAL;
        uint64_t cw = shmpool_load64(&shmpool_ring_cell(r, cursor)->word);
        if (shmpool_word_generation(cw) != cursor) {
            if (shmpool_word_generation(cw) > cursor && shmpool_load64(own) == w)
                return SHMPOOL_ECORRUPT; /* written over under our cursor */
            if (shmpool_word_generation(cw) > cursor)
                continue; /* another thread of ours moved on */
            return SHMPOOL_EEMPTY;
        }
        if (shmpool_word_state(cw) == SHMPOOL_CELL_LOST) {
            shmpool_cas64(own, w, shmpool_word(cursor + 1, r->p->me + 1, shmpool_word_state(w)));
            continue;
        }
        if (shmpool_word_state(cw) != SHMPOOL_CELL_FULL)
            return SHMPOOL_EEMPTY;
        *position = cursor;
        return SHMPOOL_OK;
    }
}

/* Move my cursor from `position` on: the acceptance. 0 when another thread of mine was faster. */
static inline int shmpool_ring_advance(const shmpool_ring_t *r, uint64_t position) {
    uint64_t *own = &r->attachments[r->mine].word;
    for (;;) { /* the role may change under us */
        uint64_t w = shmpool_load64(own);
        if (shmpool_word_generation(w) != position || shmpool_word_owner(w) != r->p->me + 1)
            return 0;
        SHMPOOL_FAILPOINT("recv.before_cursor");
        if (shmpool_cas64(own, w, shmpool_word(position + 1, r->p->me + 1, shmpool_word_state(w))))
            break;
    }
    SHMPOOL_FAILPOINT("recv.after_cursor");
    shmpool_ring_trim_cell(r, position);
    return 1;
}

/* -- looking without taking: hints for whoever is about to sleep ------------------------------- */

static inline uint32_t shmpool_ring_count(const shmpool_ring_t *r) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->capacity; i++)
        n += shmpool_word_state(shmpool_load64(&r->cells[i].word)) == SHMPOOL_CELL_FULL;
    return n;
}

static inline int shmpool_ring_has_message(const shmpool_ring_t *r) {
    uint64_t position;
    return r->flags & SHMPOOL_BROADCAST ? shmpool_ring_peek(r, &position) != SHMPOOL_EEMPTY
                                        : shmpool_ring_count(r) != 0;
}

static inline int shmpool_ring_has_room(const shmpool_ring_t *r) {
    uint64_t t = shmpool_load64(&r->c->tail);
    uint64_t w = shmpool_load64(&shmpool_ring_cell(r, t)->word);
    if (shmpool_word_generation(w) >= t || shmpool_word_state(w) == SHMPOOL_CELL_LOST)
        return 1;
    return (r->flags & SHMPOOL_BROADCAST) && shmpool_word_state(w) == SHMPOOL_CELL_FULL &&
           shmpool_ring_passed(r, shmpool_word_generation(w));
}

/* Whether a receiver that has just made room should wake senders: only when half of the ring is
 * free. With fewer, the receiver has enough to do, and a sender that sleeps and wakes for every
 * single cell would cost both more than the message. */
static inline int shmpool_ring_roomy(const shmpool_ring_t *r, uint64_t position) {
    return shmpool_load64(&r->c->tail) - position <= r->capacity / 2 + 1;
}

/* -- attachments ------------------------------------------------------------------------------- */

/* Take an attachment. The caller holds the channel lock. SHMPOOL_EFULL when all are taken. */
static inline int shmpool_ring_attach(shmpool_ring_t *r) {
    for (uint32_t i = 0; i < SHMPOOL_MAX_ATTACHMENTS; i++) {
        if (shmpool_load64(&r->attachments[i].word) != 0)
            continue;
        /* before the entry: whoever counts must look as far as it */
        for (;;) {
            uint32_t high = shmpool_load32(&r->c->attach_high_water);
            if (high > i || shmpool_cas32(&r->c->attach_high_water, high, i + 1))
                break;
        }
        if (shmpool_cas64(&r->attachments[i].word, 0,
                          shmpool_word(0, r->p->me + 1, SHMPOOL_ROLE_ATTACHED))) {
            r->mine = i;
            SHMPOOL_FAILPOINT("channel.attached");
            return SHMPOOL_OK;
        }
    }
    return SHMPOOL_EFULL;
}

static inline int shmpool_ring_attached(const shmpool_ring_t *r) {
    return shmpool_word_owner(shmpool_load64(&r->attachments[r->mine].word)) == r->p->me + 1;
}

/* Become a sender or a receiver too; in a broadcast a receiver gets a cursor. */
static inline void shmpool_ring_declare(const shmpool_ring_t *r, uint32_t roles) {
    uint64_t *own = &r->attachments[r->mine].word;
    uint32_t owner = r->p->me + 1;
    int cursor = (roles & SHMPOOL_ROLE_RECEIVES) && (r->flags & SHMPOOL_BROADCAST);
    for (;;) {
        uint64_t w = shmpool_load64(own);
        uint32_t have = shmpool_word_state(w);
        if (shmpool_word_owner(w) != owner)
            return;
        if (cursor && !(have & SHMPOOL_ROLE_CURSOR)) {
            uint64_t tail = shmpool_load64(&r->c->tail);
            uint64_t with = shmpool_word(
                tail, owner, have | roles | SHMPOOL_ROLE_CURSOR | SHMPOOL_ROLE_ATTACHED);
            if (!shmpool_cas64(own, w, with))
                continue;
            while (shmpool_load64(&r->c->tail) != tail) { /* SYNC-8 */
                tail = shmpool_load64(&r->c->tail);
                uint64_t next = shmpool_word(tail, owner, shmpool_word_state(with));
                if (!shmpool_cas64(own, with, next))
                    break; /* another thread of ours receives already */
                with = next;
            }
            break;
        }
        if ((have & roles) == roles ||
            shmpool_cas64(own, w, shmpool_word(shmpool_word_generation(w), owner, have | roles)))
            break;
    }
    for (;;) { /* after the entry: `ever` without anybody there would say that all have gone */
        uint32_t ever = shmpool_load32(&r->c->ever);
        if ((ever & roles) == roles || shmpool_cas32(&r->c->ever, ever, ever | roles))
            return;
    }
}

/* Whether all who played `role` are gone: there has been one, and nobody is left who does, or who
 * is undecided. */
static inline int shmpool_ring_deserted(const shmpool_ring_t *r, uint32_t role) {
    if (!(shmpool_load32(&r->c->ever) & role))
        return 0;
    uint32_t n = shmpool_ring_attachments(r);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t state = shmpool_word_state(shmpool_load64(&r->attachments[i].word));
        if ((state & role) || state == SHMPOOL_ROLE_ATTACHED)
            return 0;
    }
    return 1;
}

static inline int shmpool_ring_unused(const shmpool_ring_t *r) {
    uint32_t n = shmpool_ring_attachments(r);
    for (uint32_t i = 0; i < n; i++)
        if (shmpool_load64(&r->attachments[i].word) != 0)
            return 0;
    return 1;
}

/* Leave. The caller has no send or receive under way on this attachment. */
static inline void shmpool_ring_detach(const shmpool_ring_t *r) {
    uint64_t *own = &r->attachments[r->mine].word;
    for (;;) {
        uint64_t w = shmpool_load64(own);
        if (w == 0 || shmpool_word_owner(w) != r->p->me + 1)
            break;
        SHMPOOL_FAILPOINT("channel.before_detach");
        if (shmpool_cas64(own, w, 0))
            break;
    }
    if (r->flags & SHMPOOL_BROADCAST)
        shmpool_ring_trim(r);
    shmpool_add32(&r->c->recv_seq, 1);
    shmpool_add32(&r->c->send_seq, 1);
}

/* -- making and removing; all under the channel lock ------------------------------------------- */

/* Begin a record: what is set here must be there before READY. The extent has memory already. */
static inline void shmpool_channel_make(const shmpool_t *p, uint32_t index, const char *name,
                                        uint32_t name_nbytes, uint32_t capacity,
                                        uint32_t cell_nbytes, uint32_t flags, uint64_t now_ns) {
    shmpool_channel_t *c = &p->channels[index];
    uint64_t generation = shmpool_word_generation(shmpool_load64(&c->word)) + 1;
    shmpool_store64(&c->word, shmpool_word(generation, 0, SHMPOOL_CHANNEL_CREATING));
    SHMPOOL_FAILPOINT("channel.creating");
    for (;;) {
        uint32_t high = shmpool_load32(&p->counters->channel_high_water);
        if (high > index || shmpool_cas32(&p->counters->channel_high_water, high, index + 1))
            break;
    }
    shmpool_set32(&c->flags, flags);
    shmpool_set32(&c->capacity, capacity);
    shmpool_set32(&c->cell_nbytes, cell_nbytes);
    c->name_nbytes = name_nbytes;
    c->created_ns = now_ns;
    memset(c->name, 0, sizeof c->name);
    memcpy(c->name, name, name_nbytes);
    shmpool_ring_t r;
    shmpool_ring_bind(&r, p, index);
    for (uint32_t i = 0; i < SHMPOOL_MAX_ATTACHMENTS; i++)
        shmpool_store64(&r.attachments[i].word, 0);
    for (uint32_t i = 0; i < capacity; i++)
        shmpool_store64(&r.cells[i].word, shmpool_word(i, 0, SHMPOOL_CELL_EMPTY));
    shmpool_store64(&c->tail, 0);
    shmpool_store64(&c->head, 0);
    shmpool_store32(&c->attach_high_water, 0);
    shmpool_store32(&c->ever, 0);
    SHMPOOL_FAILPOINT("channel.before_ready");
    shmpool_store64(&c->word, shmpool_word(generation, 0, SHMPOOL_CHANNEL_READY));
    SHMPOOL_FAILPOINT("channel.ready");
}

/* Remove a channel that nobody is attached to, or finish what somebody who died began. */
static inline void shmpool_channel_remove(const shmpool_t *p, uint32_t index) {
    shmpool_channel_t *c = &p->channels[index];
    uint64_t w = shmpool_load64(&c->word);
    uint64_t generation = shmpool_word_generation(w);
    shmpool_ring_t r;
    shmpool_store64(&c->word, shmpool_word(generation, 0, SHMPOOL_CHANNEL_REMOVING));
    SHMPOOL_FAILPOINT("channel.removing");
    if (shmpool_word_state(w) != SHMPOOL_CHANNEL_CREATING &&
        shmpool_ring_bind(&r, p, index) == SHMPOOL_OK)
        for (uint32_t i = 0; i < r.capacity; i++)
            if (shmpool_word_state(shmpool_load64(&r.cells[i].word)) == SHMPOOL_CELL_FULL)
                shmpool_custody_free(p, shmpool_relaxed32(&r.cells[i].slot),
                                     shmpool_load64(&r.cells[i].generation));
    SHMPOOL_FAILPOINT("channel.before_free");
    shmpool_store64(&c->word, shmpool_word(generation, 0, SHMPOOL_CHANNEL_FREE));
}

/* Whether shmpool_channels_sweep has something to do; needs no lock. */
static inline int shmpool_channels_unswept(const shmpool_t *p) {
    uint32_t n = shmpool_channel_high_water(p);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t state = shmpool_word_state(shmpool_load64(&p->channels[i].word));
        shmpool_ring_t r;
        if (state == SHMPOOL_CHANNEL_READY
                ? shmpool_ring_bind(&r, p, i) == SHMPOOL_OK && shmpool_ring_unused(&r)
                : state != SHMPOOL_CHANNEL_FREE)
            return 1;
    }
    return 0;
}

/* Remove every channel that nobody is attached to. */
static inline void shmpool_channels_sweep(const shmpool_t *p) {
    uint32_t n = shmpool_channel_high_water(p);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t state = shmpool_word_state(shmpool_load64(&p->channels[i].word));
        shmpool_ring_t r;
        if (state == SHMPOOL_CHANNEL_FREE)
            continue;
        if (state == SHMPOOL_CHANNEL_READY && shmpool_ring_bind(&r, p, i) == SHMPOOL_OK &&
            !shmpool_ring_unused(&r))
            continue;
        shmpool_channel_remove(p, i);
    }
}

/* The channel part of shmpool_reclaim: nothing of the dead `client` stays in any cell. Before its
 * slots are freed, because a message that it had begun to take may have a slot that it owns. */
static inline void shmpool_channels_heal(const shmpool_t *p, uint32_t client) {
    uint32_t owner = client + 1;
    uint32_t n = shmpool_channel_high_water(p);
    for (uint32_t i = 0; i < n; i++) {
        shmpool_ring_t r;
        if (shmpool_word_state(shmpool_load64(&p->channels[i].word)) != SHMPOOL_CHANNEL_READY ||
            shmpool_ring_bind(&r, p, i) != SHMPOOL_OK)
            continue;
        uint32_t attachments = shmpool_ring_attachments(&r);
        int was_there = 0;
        for (uint32_t k = 0; k < attachments; k++)
            if (shmpool_word_owner(shmpool_load64(&r.attachments[k].word)) == owner)
                was_there = 1;
        if (!was_there)
            continue;
        for (uint32_t k = 0; k < r.capacity; k++) {
            uint64_t w = shmpool_load64(&r.cells[k].word);
            uint64_t position = shmpool_word_generation(w);
            if (shmpool_word_owner(w) != owner || position % r.capacity != k)
                continue;
            if (shmpool_word_state(w) == SHMPOOL_CELL_WRITING)
                shmpool_ring_bury(&r, position, owner);
            else if (shmpool_word_state(w) == SHMPOOL_CELL_READING)
                shmpool_ring_give_back(&r, position, owner);
        }
        for (uint32_t k = 0; k < attachments; k++) {
            uint64_t w = shmpool_load64(&r.attachments[k].word);
            SHMPOOL_FAILPOINT("heal.before_detach");
            if (shmpool_word_owner(w) == owner)
                shmpool_cas64(&r.attachments[k].word, w, 0);
        }
        if (r.flags & SHMPOOL_BROADCAST)
            shmpool_ring_trim(&r);
        shmpool_add32(&r.c->recv_seq, 1);
        shmpool_add32(&r.c->send_seq, 1);
    }
}

#endif
