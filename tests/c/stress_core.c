/* SPDX-License-Identifier: BSD-3-Clause */
/* Threads on one pool, each a client in its own right: they claim, write, seal, pin, verify, free,
 * abort and give, with spans, clean up after each other, and die at random failpoints in the middle
 * of anything, cleaning included.
 *
 *     stress_core [operations per thread] [threads] [seed]
 *
 * One rwlock per client index stands for its byte of the lock file: held exclusively for life,
 * taken shared (without waiting) by cleaners, dropped at death. Handles travel through relaxed
 * atomics, so that under ThreadSanitizer nothing but the core's own synchronisation orders payload
 * writes and reads.
 *
 * Every word of a payload is a function of slot, generation and place: any reader can tell whether
 * bytes are foreign, torn or from another time. Prints "N passed, N failed" last. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define SHMPOOL_FAILPOINTS 1
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>

#include "check.h"

enum { SLOT_NBYTES = 4096, WORDS = SLOT_NBYTES / 8, MAX_THREADS = 16, N_BOXES = 4 };

/* One death in this many failpoints: a few per thousand operations. */
enum { MORTALITY = 3000, YIELDING = 40 };

static shmpool_t pool; /* the tables; `me` and `nonce` are each thread's own */
static pthread_rwlock_t life[MAX_THREADS + 2];
static uint32_t n_clients;
static uint64_t boxes[N_BOXES]; /* handles: generation << 8 | slot; 0 is none */
static uint64_t n_operations;

typedef struct {
    uint64_t random;
    uint64_t left;
    shmpool_t p;
    jmp_buf death;
    int mortal;
    uint32_t index;    /* whose lock is held exclusively */
    uint32_t cleaning; /* whose lock is held shared, or n_clients */
    uint64_t n_put, n_verified, n_stale, n_full, n_freed, n_given, n_aborted, n_deaths, n_reclaims;
    uint64_t n_wrong;
    const char *wrong;
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

/* Counted, not printed: printing would order the threads. */
static void expect(worker_t *w, int ok, const char *what) {
    if (!ok) {
        w->n_wrong++;
        w->wrong = what;
    }
}

static uint64_t expected_word(uint32_t slot, uint64_t generation, uint64_t at) {
    uint64_t state = (generation << 8 | slot) * UINT64_C(0x9E3779B97F4A7C15) + at;
    return next_random(&state);
}

static int content_holds(const worker_t *w, uint32_t slot, uint64_t generation, uint64_t words) {
    const uint64_t *data = (const uint64_t *)shmpool_slot_data(&w->p, slot);
    for (uint64_t i = 0; i < words; i++)
        if (data[i] != expected_word(slot, generation, i))
            return 0;
    return 1;
}

static void do_reclaim(worker_t *w) {
    for (uint32_t i = 0; i < n_clients; i++) {
        if (i == w->p.me || pthread_rwlock_tryrdlock(&life[i]) != 0)
            continue;
        w->cleaning = i;
        shmpool_reclaim(&w->p, i);
        w->cleaning = n_clients;
        pthread_rwlock_unlock(&life[i]);
        w->n_reclaims++;
    }
}

static void do_put(worker_t *w, int keep) {
    uint64_t r = next_random(&w->random);
    uint32_t span = r % 4 == 0 ? 1 + (uint32_t)(r >> 8) % 4 : 1;
    int region = (int)((r >> 16) % 3);
    uint64_t words = span == 1 ? 1 + (r >> 24) % WORDS : (span - 1) * WORDS + 1 + (r >> 24) % WORDS;
    uint32_t slot = 0;
    uint64_t generation = 0;
    uint64_t ticket = shmpool_ticket(&w->p, region, span);
    int rc = shmpool_claim(&w->p, region, span, ticket, 1, &slot, &generation);
    if (rc == SHMPOOL_EFULL) {
        w->n_full++;
        do_reclaim(w);
        return;
    }
    expect(w, rc == SHMPOOL_OK, "claim of a living client");
    if (rc != SHMPOOL_OK)
        return;
    uint64_t *data = (uint64_t *)shmpool_slot_data(&w->p, slot);
    for (uint64_t i = 0; i < words; i++)
        data[i] = expected_word(slot, generation, i);
    if (r >> 60 == 0)
        sched_yield();
    SHMPOOL_FAILPOINT("stress.written");
    expect(w, content_holds(w, slot, generation, words), "somebody else wrote to my claim");
    if (!keep) {
        memset(data, 0xAB, words * 8);
        expect(w, shmpool_abort(&w->p, slot, generation, span) == SHMPOOL_OK, "abort");
        w->n_aborted++;
        return;
    }
    shmpool_descriptor_t d = described(span, words * 8);
    shmpool_describe(&w->p, slot, &d);
    expect(w, shmpool_seal(&w->p, slot, generation, 1) == SHMPOOL_OK, "seal");
    w->n_put++;
    uint64_t *box = &boxes[next_random(&w->random) % N_BOXES];
    uint64_t before = __atomic_exchange_n(box, generation << 8 | slot, __ATOMIC_RELAXED);
    if (before != 0 && r >> 58 != 0) /* some are forgotten: their owner's death frees them */
        w->n_freed += shmpool_free(&w->p, (uint32_t)(before & 0xff), before >> 8) == SHMPOOL_OK;
}

static void do_get(worker_t *w, uint64_t handle, int and_free) {
    uint32_t slot = (uint32_t)(handle & 0xff);
    uint64_t generation = handle >> 8;
    if (shmpool_pin(&w->p, slot, generation) != SHMPOOL_OK) {
        w->n_stale++;
        return;
    }
    shmpool_descriptor_t d;
    int rc = shmpool_read_descriptor(&w->p, slot, &d);
    expect(w, rc == SHMPOOL_OK, "descriptor under a pin");
    if (rc == SHMPOOL_OK) {
        expect(w, content_holds(w, slot, generation, d.nbytes / 8), "content under a pin");
        SHMPOOL_FAILPOINT("stress.reading");
        if (and_free)
            w->n_freed += shmpool_free(&w->p, slot, generation) == SHMPOOL_OK;
        if (next_random(&w->random) % 8 == 0)
            sched_yield();
        expect(w, content_holds(w, slot, generation, d.nbytes / 8), "content changed under a pin");
        w->n_verified++;
    }
    shmpool_unpin(&w->p, slot);
}

static void operate(worker_t *w) {
    uint64_t r = next_random(&w->random);
    uint64_t handle = __atomic_load_n(&boxes[(r >> 40) % N_BOXES], __ATOMIC_RELAXED);
    uint32_t slot = (uint32_t)(handle & 0xff);
    uint64_t generation = handle >> 8;
    uint32_t other = (uint32_t)(r >> 20) % n_clients;
    unsigned what = (unsigned)(r % 100);
    if (what < 35)
        do_put(w, 1);
    else if (what < 40)
        do_put(w, 0);
    else if (what < 42)
        do_reclaim(w);
    else if (handle == 0)
        return;
    else if (what < 75)
        do_get(w, handle, 0);
    else if (what < 83)
        do_get(w, handle, 1);
    else if (what < 92)
        w->n_freed += shmpool_free(&w->p, slot, generation) == SHMPOOL_OK;
    else if (what < 96)
        w->n_given += shmpool_give(&w->p, slot, generation, w->p.me, w->p.nonce) == SHMPOOL_OK;
    else
        w->n_given += shmpool_give(&w->p, slot, generation, other,
                                   shmpool_load64(&w->p.clients[other].nonce)) == SHMPOOL_OK;
    expect(w, !shmpool_evicted(&w->p), "a living client was evicted");
}

/* One life: take an index, act, and end by leaving or by dying somewhere. */
static void live(worker_t *w) {
    w->index = (uint32_t)(next_random(&w->random) % n_clients);
    while (pthread_rwlock_trywrlock(&life[w->index]) !=
           0) { /* there are more indices than threads */
        w->index = (w->index + 1) % n_clients;
        sched_yield();
    }
    w->cleaning = n_clients;
    if (setjmp(w->death) == 0) {
        w->mortal = 1;
        shmpool_client_enter(&w->p, w->index, next_random(&w->random) | 1, 1, 1, 0, "stress");
        uint64_t span_of_life = 200 + next_random(&w->random) % 2000;
        for (uint64_t i = 0; i < span_of_life && w->left > 0; i++, w->left--)
            operate(w);
        shmpool_client_leave(&w->p);
    } else {
        w->n_deaths++;
        if (w->left > 0)
            w->left--;
    }
    w->mortal = 0;
    if (w->cleaning != n_clients) /* the kernel drops these with the process */
        pthread_rwlock_unlock(&life[w->cleaning]);
    pthread_rwlock_unlock(&life[w->index]);
}

static void *work(void *argument) {
    worker_t *w = (worker_t *)argument;
    self = w;
    w->p = pool;
    w->left = n_operations;
    while (w->left > 0)
        live(w);
    self = NULL;
    return NULL;
}

int main(int argc, char **argv) {
    n_operations = argc > 1 ? strtoull(argv[1], NULL, 10) : 20000;
    uint32_t n_threads = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 4;
    uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    if (n_operations == 0 || n_threads == 0 || n_threads > MAX_THREADS) {
        fprintf(stderr, "usage: stress_core [operations] [threads, at most %d] [seed]\n",
                MAX_THREADS);
        return 2;
    }
    static const uint32_t regions[3] = {4, 2, 2};
    shmpool_geometry_t g;
    n_clients = n_threads + 2;
    if (shmpool_geometry_init(&g, SLOT_NBYTES, regions, n_clients) != SHMPOOL_OK)
        return 2;
    shmpool_bind(&pool, &g, (uint8_t *)zeroed(g.file_nbytes));
    for (uint32_t i = 0; i < n_clients; i++)
        pthread_rwlock_init(&life[i], NULL);
    static worker_t workers[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    for (uint32_t i = 0; i < n_threads; i++) {
        workers[i].random = (seed * 1000 + i + 1) * UINT64_C(0x9E3779B97F4A7C15) | 1;
        if (pthread_create(&threads[i], NULL, work, &workers[i]) != 0)
            return 2;
    }
    worker_t sum;
    memset(&sum, 0, sizeof sum);
    for (uint32_t i = 0; i < n_threads; i++) {
        pthread_join(threads[i], NULL);
        const worker_t *w = &workers[i];
        test_name = w->wrong ? w->wrong : "worker";
        CHECK(w->n_wrong == 0);
        sum.n_put += w->n_put;
        sum.n_verified += w->n_verified;
        sum.n_stale += w->n_stale;
        sum.n_full += w->n_full;
        sum.n_freed += w->n_freed;
        sum.n_given += w->n_given;
        sum.n_aborted += w->n_aborted;
        sum.n_deaths += w->n_deaths;
        sum.n_reclaims += w->n_reclaims;
    }
    test_name = "rest";
    shmpool_t last = pool; /* everybody is dead or gone: one sweep must free everything */
    for (uint32_t i = 0; i < n_clients; i++) {
        CHECK(pthread_rwlock_tryrdlock(&life[i]) == 0);
        shmpool_reclaim(&last, i);
    }
    CHECK(all_free(&last));
    shmpool_client_enter(&last, 0, 4711, 1, 0, 0, "last");
    CHECK(claim(&last, SHMPOOL_INPUT, g.n_slots).rc == SHMPOOL_OK);
    test_name = "the run met what it is about";
    CHECK(sum.n_put > 0 && sum.n_verified > 0 && sum.n_stale > 0 && sum.n_freed > 0);
    CHECK(sum.n_given > 0 && sum.n_aborted > 0 && sum.n_deaths > 0 && sum.n_reclaims > 0);
    printf("put %llu, verified %llu, stale %llu, full %llu, freed %llu, given %llu, aborted %llu, "
           "deaths %llu, reclaims %llu\n",
           (unsigned long long)sum.n_put, (unsigned long long)sum.n_verified,
           (unsigned long long)sum.n_stale, (unsigned long long)sum.n_full,
           (unsigned long long)sum.n_freed, (unsigned long long)sum.n_given,
           (unsigned long long)sum.n_aborted, (unsigned long long)sum.n_deaths,
           (unsigned long long)sum.n_reclaims);
    free(pool.base);
    return check_report();
}
