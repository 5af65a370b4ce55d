/* SPDX-License-Identifier: BSD-3-Clause */
/* slots.h, interrupted: a death at every failpoint of a client's life and of the cleaner that comes
 * after it, and somebody else acting at every failpoint of an operation. In one thread, so every
 * case is met in every run. Prints "N passed, N failed" last; exits non-zero on a failure. */
#define SHMPOOL_FAILPOINTS 1
#include <setjmp.h>

#include "check.h"

/* -- failpoints: die at the n-th one, or let somebody else act there -- */

static jmp_buf death;
static int hits;           /* failpoints met since the last reset */
static int die_at;         /* 0: never */
static const char *act_at; /* label at which `intruder` acts, once */
static void (*intruder)(void);

void shmpool_failpoint_hit(const char *label) {
    hits++;
    if (die_at != 0 && hits == die_at) {
        die_at = 0;
        longjmp(death, 1);
    }
    if (act_at != NULL && strcmp(label, act_at) == 0) {
        act_at = NULL;
        intruder();
    }
}

/* What a client does in its life, for the deaths below: every operation, with spans. */
static arena_t stage;
static shmpool_t actor, witness;

static void life_of_actor(void) {
    actor = arena_enter(&stage, 1, 500 + (uint64_t)hits);
    claimed_t c = claim(&actor, SHMPOOL_INPUT, 3);
    shmpool_abort(&actor, c.slot, c.generation, 3);
    claimed_t s = put(&actor, SHMPOOL_INPUT, 3);
    if (shmpool_pin(&actor, s.slot, s.generation) == SHMPOOL_OK) {
        shmpool_free(&actor, s.slot, s.generation);
        shmpool_unpin(&actor, s.slot);
    }
    s = put(&actor, SHMPOOL_INPUT, 2);
    shmpool_give(&actor, s.slot, s.generation, 0, witness.nonce);
    s = put(&actor, SHMPOOL_INPUT, 2);
    shmpool_pin(&actor, s.slot, s.generation);
    shmpool_give(&actor, s.slot, s.generation, 2, 999); /* gone */
    claimed_t blocked = claim(&actor, SHMPOOL_INPUT, 4);
    CHECK(blocked.rc == SHMPOOL_EFULL || blocked.rc == SHMPOOL_OK);
    put(&actor, SHMPOOL_INPUT, 2);
    shmpool_client_leave(&actor);
}

/* Kill the actor at every failpoint of its life, and the first cleaner at every failpoint of its
 * work; the second cleaner must leave nothing of the dead, and nothing may be lost for good. */
static void test_every_death(void) {
    test_name = "every death";
    static int n_deaths, n_cleaner_deaths; /* static: longjmp leaves locals undefined */
    for (volatile int at = 1;; at++) {
        volatile int finished = 0;
        for (volatile int cleaner_at = 1;; cleaner_at++) {
            volatile int cleaned = 0;
            arena_init(&stage, 4096, 6, 0, 0, 3);
            witness = arena_enter(&stage, 0, 6);
            hits = 0;
            die_at = at;
            if (setjmp(death) == 0) {
                life_of_actor();
                finished = 1;
            }
            die_at = 0;
            if (cleaner_at == 1)
                n_deaths += !finished;
            hits = 0;
            die_at = cleaner_at;
            if (setjmp(death) == 0) {
                shmpool_reclaim(&witness, 1);
                cleaned = 1;
            }
            die_at = 0;
            n_cleaner_deaths += !cleaned;
            for (uint32_t i = 1; i < 3; i++) /* 2 was given something after its end */
                shmpool_reclaim(&witness, i);
            /* what was given to the witness is its own; the rest is free */
            for (uint32_t i = 0; i < 6; i++) {
                uint32_t state = state_of(&witness, i);
                CHECK(
                    state == SHMPOOL_FREE || owner_of(&witness, i) == 1 ||
                    (state == SHMPOOL_TAIL && owner_of(&witness, witness.slots[i].link_slot) == 1));
                CHECK(pins_of(&witness, i) == 0);
            }
            shmpool_client_leave(&witness);
            CHECK(all_free(&witness));
            witness = arena_enter(&stage, 0, 7);
            claimed_t whole = claim(&witness, SHMPOOL_INPUT, 6);
            CHECK(whole.rc == SHMPOOL_OK);
            arena_end(&stage);
            if (cleaned)
                break;
        }
        if (finished)
            break;
    }
    CHECK(n_deaths > 40);
    CHECK(n_cleaner_deaths > 100);
}

/* -- interleaving: somebody else acts in the middle of an operation -- */

static claimed_t target; /* a sealed span of 2 that both know */
static int intruder_pinned;

static void intrude_free(void) { shmpool_free(&witness, target.slot, target.generation); }
static void intrude_pin(void) {
    intruder_pinned = shmpool_pin(&witness, target.slot, target.generation) == SHMPOOL_OK;
}
static void intrude_reuse(void) {
    shmpool_free(&witness, target.slot, target.generation);
    put(&witness, SHMPOOL_INPUT, 4);
}
static void intrude_adopt(void) {
    shmpool_give(&witness, target.slot, target.generation, 0, witness.nonce);
}
static void intrude_claim(void) { claim(&witness, SHMPOOL_INPUT, 1); }
static void intrude_evict(void) { shmpool_reclaim(&witness, 1); }
static void intrude_evict_replace(void) {
    shmpool_reclaim(&witness, 1);
    shmpool_t r = arena_enter(&stage, 1, 4711);
    put(&r, SHMPOOL_INPUT, 2);
}

static void (*const intruders[])(void) = {intrude_free,         intrude_pin,   intrude_reuse,
                                          intrude_adopt,        intrude_claim, intrude_evict,
                                          intrude_evict_replace};
static const char *const labels[] = {"release.before_tail",   "finalize.before_head",
                                     "finalize.after_head",   "abort.begin",
                                     "abort.before_head",     "claim.between_slots",
                                     "claim.before_tail",     "claim.taken",
                                     "seal.before_publish",   "seal.after_publish",
                                     "unpin.before_finalize", "pin.before_recheck",
                                     "pin.before_count",      "pin.held",
                                     "free.before_retire",    "free.after_retire",
                                     "give.before_transfer",  "give.after_transfer"};

static void test_interleavings(void) {
    test_name = "interleavings";
    int n_intrusions = 0;
    for (size_t who = 0; who < sizeof intruders / sizeof intruders[0]; who++)
        for (size_t where = 0; where < sizeof labels / sizeof labels[0]; where++)
            for (int operation = 0; operation < 6; operation++) {
                arena_init(&stage, 4096, 4, 0, 0, 3);
                witness = arena_enter(&stage, 0, 6);
                actor = arena_enter(&stage, 1, 7);
                intruder_pinned = 0;
                target = put(&actor, SHMPOOL_INPUT, 2);
                claimed_t more = {0, 0, SHMPOOL_EFULL};
                if (operation == 3 || operation == 4)
                    more = claim(&actor, SHMPOOL_INPUT, 2);
                int pinned = operation == 5 &&
                             shmpool_pin(&actor, target.slot, target.generation) == SHMPOOL_OK;
                intruder = intruders[who];
                act_at = labels[where];
                switch (operation) {
                case 0:
                    pinned = shmpool_pin(&actor, target.slot, target.generation) == SHMPOOL_OK;
                    break;
                case 1:
                    shmpool_free(&actor, target.slot, target.generation);
                    break;
                case 2:
                    shmpool_give(&actor, target.slot, target.generation, 1, 7);
                    break;
                case 3:
                    seal(&actor, more, 2);
                    break;
                case 4:
                    shmpool_abort(&actor, more.slot, more.generation, 2);
                    break;
                case 5:
                    more = claim(&actor, SHMPOOL_INPUT, 2);
                    break;
                }
                n_intrusions += act_at == NULL;
                int happened = act_at == NULL;
                act_at = NULL;
                /* a pin that was granted, and whose holder is believed alive, protects its bytes */
                uint64_t w = witness.slots[target.slot].word;
                int protects = intruder_pinned || (pinned && !shmpool_evicted(&actor));
                if (protects) {
                    CHECK(shmpool_word_generation(w) == target.generation);
                    CHECK(shmpool_word_state(w) == SHMPOOL_SEALED ||
                          shmpool_word_state(w) == SHMPOOL_RETIRED);
                    CHECK(state_of(&witness, target.slot + 1) == SHMPOOL_TAIL);
                    CHECK(pins_of(&witness, target.slot) >= 1);
                }
                /* the target was freed by at most one of the two */
                if (happened && operation == 1 && intruders[who] == intrude_free)
                    CHECK(shmpool_word_state(w) == SHMPOOL_FREE);
                if (pinned)
                    shmpool_unpin(&actor, target.slot);
                if (intruder_pinned)
                    shmpool_unpin(&witness, target.slot);
                shmpool_reclaim(&witness, 1);
                shmpool_client_leave(&witness);
                CHECK(all_free(&witness));
                arena_end(&stage);
            }
    CHECK(n_intrusions > 60);
}

int main(void) {
    test_every_death();
    test_interleavings();
    return check_report();
}
