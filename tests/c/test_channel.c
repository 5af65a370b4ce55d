/* SPDX-License-Identifier: BSD-3-Clause */
/* Threads on one channel, each a client in its own right: producers and consumers that die at
 * random failpoints in the middle of anything, cleaning included, and are replaced.
 *
 *     test_channel [messages per producer life] [lives] [seed]
 *
 * One rwlock per client index stands for its byte of the lock file, as in stress_core.c. Every
 * message is a function of producer and number; every third one has a slot. In the end each is
 * accounted for: received once and whole, or its producer died sending it, or its consumer died
 * having accepted it. Prints "N passed, N failed" last. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define SHMPOOL_FAILPOINTS 1
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>

#include "check.h"

enum { N_THREADS = 4, N_CLIENTS = 6, CAPACITY = 5, CELL = 128, N_SLOTS = 6 };
enum { MAX_MESSAGES = 1 << 20, MORTALITY = 400, YIELDING = 30 };

static shmpool_t pool;
static pthread_rwlock_t life[N_CLIENTS];
static int n_messages = 400, n_lives = 1000, broadcast;
static uint32_t stop; /* consumers leave */

/* What became of message i: bits below, written by those who know, read in the end. */
enum { BEGUN = 1, SENT = 2, TAKEN = 4, TWICE = 8, TORN = 16, MAYBE = 32 };
static uint32_t fate[MAX_MESSAGES];
static uint32_t next_message;

typedef struct {
    uint64_t random;
    shmpool_t p;
    shmpool_ring_t r;
    jmp_buf death;
    int mortal, producer;
    uint32_t index, cleaning, deaths;
    uint32_t current; /* message + 1 that a consumer is about to accept */
    uint64_t cursor;  /* broadcast: the position expected next */
    uint64_t right, wrong;
    const char *what;
} worker_t;

static _Thread_local worker_t *self;

void shmpool_failpoint_hit(const char *label) {
    (void)label;
    if (self == NULL || !self->mortal)
        return;
    uint64_t r = next_random(&self->random);
    if (r % MORTALITY == 0)
        longjmp(self->death, 1);
    if (r / MORTALITY % YIELDING == 0)
        sched_yield();
}

static void mark(uint32_t message, uint32_t bit) {
    for (;;) {
        uint32_t old = shmpool_load32(&fate[message]);
        uint32_t with = old | bit | (bit == TAKEN && (old & TAKEN) ? TWICE : 0);
        if (shmpool_cas32(&fate[message], old, with))
            return;
    }
}

static uint64_t word_of(uint32_t message, uint32_t at) {
    uint64_t state = ((uint64_t)message << 8 | 1) * UINT64_C(0x9E3779B97F4A7C15) + at;
    return next_random(&state);
}

/* -- life and death -------------------------------------------------------------------------- */

static void clean(worker_t *w) {
    for (uint32_t i = 0; i < N_CLIENTS; i++) {
        if (i == w->index || pthread_rwlock_tryrdlock(&life[i]) != 0)
            continue;
        w->cleaning = i;
        shmpool_reclaim(&w->p, i);
        w->cleaning = N_CLIENTS;
        pthread_rwlock_unlock(&life[i]);
    }
}

/* Counted per thread: check_at() would order the threads, or race. */
#define EXPECT(cond)                                                                               \
    do {                                                                                           \
        if (!(cond) && w->wrong++ == 0)                                                            \
            w->what = #cond;                                                                       \
        w->right++;                                                                                \
    } while (0)

static __attribute__((noinline)) void be_born(worker_t *w) {
    for (uint32_t i = 0;; i = (i + 1) % N_CLIENTS)
        if (pthread_rwlock_trywrlock(&life[i]) == 0) {
            w->index = i;
            break;
        }
    w->p = pool;
    shmpool_client_enter(&w->p, w->index, next_random(&w->random) | 1, 1, 1, 0, "t");
    static pthread_mutex_t channels = PTHREAD_MUTEX_INITIALIZER; /* byte 1 */
    int mortal = w->mortal;
    w->mortal = 0; /* a mutex is not dropped by longjmp; deaths in there are the Python tests' */
    pthread_mutex_lock(&channels);
    EXPECT(shmpool_ring_bind(&w->r, &w->p, 0) == SHMPOOL_OK);
    EXPECT(shmpool_ring_attach(&w->r) == SHMPOOL_OK);
    pthread_mutex_unlock(&channels);
    w->mortal = mortal;
    shmpool_ring_declare(&w->r, w->producer ? SHMPOOL_ROLE_SENDS : SHMPOOL_ROLE_RECEIVES);
    w->cursor = shmpool_word_generation(shmpool_load64(&w->r.attachments[w->r.mine].word));
}

static void be_dead(worker_t *w) {
    if (w->cleaning != N_CLIENTS)
        pthread_rwlock_unlock(&life[w->cleaning]);
    w->cleaning = N_CLIENTS;
    pthread_rwlock_unlock(&life[w->index]);
}

/* -- messages -------------------------------------------------------------------------------- */

static __attribute__((noinline)) void produce(worker_t *w) {
    uint32_t message = shmpool_add32(&next_message, 1);
    if (message >= MAX_MESSAGES)
        abort();
    mark(message, BEGUN);
    claimed_t slot = {0, 0, SHMPOOL_EFULL};
    if (message % 3 == 0)
        while ((slot = claim(&w->p, SHMPOOL_INPUT, 1)).rc != SHMPOOL_OK) {
            clean(w);
            sched_yield();
        }
    if (slot.rc == SHMPOOL_OK) {
        uint64_t *data = (uint64_t *)shmpool_slot_data(&w->p, slot.slot);
        for (uint32_t k = 0; k < 64; k++)
            data[k] = word_of(message, k);
        seal(&w->p, slot, 1);
    }
    uint64_t position = 0;
    int rc;
    while ((rc = shmpool_ring_claim(&w->r, &position)) == SHMPOOL_EFULL) {
        clean(w);
        sched_yield();
    }
    EXPECT(rc == SHMPOOL_OK);
    EXPECT(shmpool_ring_entrust(&w->r, position, slot.slot, 1, slot.generation) == SHMPOOL_OK);
    uint64_t *payload = (uint64_t *)shmpool_ring_payload(&w->r, position);
    payload[0] = message;
    for (uint32_t k = 1; k < CELL / 8; k++)
        payload[k] = word_of(message, k);
    EXPECT(shmpool_ring_publish(&w->r, position) == SHMPOOL_OK);
    mark(message, SENT);
}

static __attribute__((noinline)) void consume(worker_t *w) {
    uint64_t position = 0;
    int rc = broadcast ? shmpool_ring_peek(&w->r, &position) : shmpool_ring_take(&w->r, &position);
    if (rc == SHMPOOL_EEMPTY) {
        if (!broadcast)
            shmpool_ring_rescue(&w->r);
        clean(w);
        sched_yield();
        return;
    }
    EXPECT(rc == SHMPOOL_OK);
    shmpool_cell_t *cell = shmpool_ring_cell(&w->r, position);
    uint64_t *payload = (uint64_t *)shmpool_ring_payload(&w->r, position);
    uint32_t message = (uint32_t)payload[0];
    int torn = message >= MAX_MESSAGES;
    for (uint32_t k = 1; k < CELL / 8; k++)
        torn |= payload[k] != word_of(message, k);
    uint64_t generation = shmpool_load64(&cell->generation);
    uint32_t slot = shmpool_relaxed32(&cell->slot);
    if (message % 3 == 0) {
        EXPECT(shmpool_pin(&w->p, slot, generation) == SHMPOOL_OK);
        uint64_t *data = (uint64_t *)shmpool_slot_data(&w->p, slot);
        for (uint32_t k = 0; k < 64; k++)
            torn |= data[k] != word_of(message, k);
    } else
        torn |= generation != 0;
    if (torn)
        mark(message % MAX_MESSAGES, TORN);
    w->current = message + 1;
    if (broadcast) {
        EXPECT(position >= w->cursor); /* in order, and what is skipped was lost */
        w->cursor = position + 1;
        EXPECT(shmpool_ring_advance(&w->r, position));
    } else {
        if (generation != 0)
            EXPECT(shmpool_ring_redeem(&w->r, slot, generation) == SHMPOOL_OK);
        EXPECT(shmpool_ring_accept(&w->r, position) == SHMPOOL_OK);
        if (generation != 0)
            EXPECT(shmpool_free(&w->p, slot, generation) == SHMPOOL_OK);
        mark(message, TAKEN);
    }
    w->current = 0;
    if (generation != 0)
        shmpool_unpin(&w->p, slot);
}

static void *work(void *argument) {
    worker_t *w = argument;
    self = w;
    w->cleaning = N_CLIENTS;
    for (volatile int lives = 0; lives < n_lives || !w->producer; lives++) {
        if (setjmp(w->death) == 0) {
            w->mortal = 0;
            be_born(w);
            w->mortal = 1;
            if (w->producer)
                for (int i = 0; i < n_messages; i++)
                    produce(w);
            else
                while (!shmpool_load32(&stop))
                    consume(w);
            w->mortal = 0;
            shmpool_ring_detach(&w->r);
            shmpool_client_leave(&w->p);
        } else {
            w->mortal = 0;
            w->deaths++;
            if (w->current != 0) /* it may or may not have been accepted */
                mark(w->current - 1, MAYBE);
            w->current = 0;
        }
        be_dead(w);
        if (!w->producer && shmpool_load32(&stop))
            break;
    }
    self = NULL;
    return NULL;
}

static void run(int kind, uint64_t seed) {
    broadcast = kind;
    test_name = kind ? "broadcast" : "queue";
    memset(fate, 0, sizeof fate);
    next_message = stop = 0;
    shmpool_geometry_t g;
    const uint32_t regions[3] = {N_SLOTS, 0, 0};
    if (shmpool_geometry_init_all(&g, 4096, regions, N_CLIENTS, 1,
                                  SHMPOOL_PAYLOAD_OFFSET + SHMPOOL_PAGE) != SHMPOOL_OK)
        abort();
    uint8_t *base = zeroed(g.file_nbytes);
    shmpool_bind(&pool, &g, base);
    for (int i = 0; i < N_CLIENTS; i++)
        pthread_rwlock_init(&life[i], NULL);
    shmpool_channel_make(&pool, 0, "c", 1, CAPACITY, CELL, kind ? SHMPOOL_BROADCAST : 0, 1);
    static worker_t workers[N_THREADS];
    memset(workers, 0, sizeof workers);
    pthread_t threads[N_THREADS];
    for (int i = 0; i < N_THREADS; i++) {
        workers[i].random = seed * 1000003 + (uint64_t)i * 7919 + 1;
        workers[i].producer = i % 2;
        pthread_create(&threads[i], NULL, work, &workers[i]);
    }
    for (int i = 1; i < N_THREADS; i += 2)
        pthread_join(threads[i], NULL);
    shmpool_store32(&stop, 1);
    for (int i = 0; i < N_THREADS; i += 2)
        pthread_join(threads[i], NULL);

    /* One survivor receives what is left; then nothing may be held by anybody. */
    worker_t last = {.random = seed | 1, .cleaning = N_CLIENTS};
    be_born(&last);
    clean(&last);
    if (!broadcast)
        while (shmpool_ring_rescue(&last.r) || shmpool_ring_count(&last.r) != 0)
            consume(&last);
    uint32_t deaths = 0, lost = 0;
    for (int i = 0; i < N_THREADS; i++)
        deaths += workers[i].deaths;
    for (int i = 0; i < N_THREADS; i++) {
        if (!CHECK(workers[i].wrong == 0))
            printf("  %s\n", workers[i].what);
        n_passed += (int)workers[i].right;
    }
    CHECK(last.wrong == 0);
    for (uint32_t i = 0; i < next_message; i++) {
        CHECK(!(fate[i] & (TWICE | TORN)));
        if (!broadcast && (fate[i] & SENT))
            CHECK(fate[i] & (TAKEN | MAYBE));
        lost += !(fate[i] & (TAKEN | SENT | MAYBE));
    }
    CHECK(lost <= deaths);
    CHECK(deaths > 0);
    shmpool_ring_detach(&last.r);
    CHECK(shmpool_channels_unswept(&last.p));
    shmpool_channels_sweep(&last.p);
    CHECK(!shmpool_channels_unswept(&last.p));
    CHECK(all_free(&last.p));
    printf("%s: %u messages, %u deaths, %u lost with their sender\n", test_name, next_message,
           deaths, lost);
    be_dead(&last);
    free(base);
}

int main(int argc, char **argv) {
    if (argc > 1)
        n_messages = atoi(argv[1]);
    if (argc > 2)
        n_lives = atoi(argv[2]);
    uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    run(0, seed);
    run(SHMPOOL_BROADCAST, seed);
    return check_report();
}
