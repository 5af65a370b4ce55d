/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests of copy.h. Prints "N passed, N failed" last; exits non-zero when anything failed. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/shmpool/core/copy.h"

#define GUARD 256
#define GUARD_BYTE 0xA5

static int n_passed;
static int n_failed;

static const char *const isa_names[] = {"auto", "plain", "sse2", "avx2", "avx512"};

static void check(int ok, const char *what, enum shmpool_copy_isa isa, size_t nbytes,
                  size_t dst_off, size_t src_off, int n_threads) {
    if (ok) {
        n_passed++;
        return;
    }
    n_failed++;
    printf("FAILED %s: %s, %zu bytes, dst+%zu, src+%zu, %d threads\n", what, isa_names[isa], nbytes,
           dst_off, src_off, n_threads);
}

static int is_filled(const unsigned char *at, size_t nbytes) {
    for (size_t i = 0; i < nbytes; i++) {
        if (at[i] != GUARD_BYTE) {
            return 0;
        }
    }
    return 1;
}

/* Bytes that do not repeat, so that a chunk copied to the wrong place cannot match by accident. */
static void fill_pattern(unsigned char *at, size_t nbytes, uint64_t seed) {
    uint64_t state = seed * 2 + 1;
    for (size_t i = 0; i < nbytes; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        at[i] = (unsigned char)(state >> 56);
    }
}

static void copy_and_check(enum shmpool_copy_isa isa, int forced, size_t nbytes, size_t dst_off,
                           size_t src_off, int n_threads, unsigned char *dst_base,
                           unsigned char *src_base) {
    unsigned char *dst = dst_base + GUARD + dst_off;
    unsigned char *src = src_base + src_off;
    memset(dst - GUARD, GUARD_BYTE, nbytes + 2 * GUARD);
    if (forced) {
        shmpool_copy_with(dst, src, nbytes, n_threads, isa);
    } else {
        shmpool_copy(dst, src, nbytes, n_threads);
    }
    check(memcmp(dst, src, nbytes) == 0, "content", isa, nbytes, dst_off, src_off, n_threads);
    check(is_filled(dst - GUARD, GUARD), "guard before", isa, nbytes, dst_off, src_off, n_threads);
    check(is_filled(dst + nbytes, GUARD), "guard after", isa, nbytes, dst_off, src_off, n_threads);
}

static void *allocate_or_die(size_t nbytes) {
    void *block = malloc(nbytes);
    if (block == NULL) {
        printf("out of memory\n0 passed, 1 failed\n");
        exit(1);
    }
    return block;
}

static unsigned char *align_up(unsigned char *at) {
    return at + (SHMPOOL_COPY_ALIGN - (uintptr_t)at % SHMPOOL_COPY_ALIGN) % SHMPOOL_COPY_ALIGN;
}

static void test_small_sizes(enum shmpool_copy_isa isa, unsigned char *dst, unsigned char *src) {
    for (size_t nbytes = 0; nbytes <= 3 * 4 * SHMPOOL_COPY_ALIGN + 1; nbytes++) {
        copy_and_check(isa, 1, nbytes, 0, 0, 1, dst, src);
        copy_and_check(isa, 1, nbytes, 1, 3, 1, dst, src);
        copy_and_check(isa, 1, nbytes, SHMPOOL_COPY_ALIGN - 1, 0, 1, dst, src);
    }
}

static void test_misalignments(enum shmpool_copy_isa isa, unsigned char *dst, unsigned char *src) {
    static const size_t sizes[] = {63, 64, 257, 1023, SHMPOOL_COPY_PREFETCH + 256 + 64};
    for (size_t k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++) {
        for (size_t dst_off = 0; dst_off < SHMPOOL_COPY_ALIGN; dst_off++) {
            for (size_t src_off = 0; src_off < SHMPOOL_COPY_ALIGN; src_off++) {
                copy_and_check(isa, 1, sizes[k], dst_off, src_off, 1, dst, src);
            }
        }
    }
}

/* A source that ends exactly at the end of its block: nothing may be read past it. */
static void test_exact_source(enum shmpool_copy_isa isa, unsigned char *dst) {
    static const size_t sizes[] = {1,
                                   64,
                                   255,
                                   256,
                                   257,
                                   SHMPOOL_COPY_PREFETCH,
                                   SHMPOOL_COPY_PREFETCH + 255,
                                   SHMPOOL_COPY_PREFETCH + 257};
    for (size_t k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++) {
        unsigned char *src = allocate_or_die(sizes[k]);
        fill_pattern(src, sizes[k], k);
        copy_and_check(isa, 1, sizes[k], 5, 0, 1, dst, src);
        free(src);
    }
}

static void test_threads(enum shmpool_copy_isa isa, unsigned char *dst, unsigned char *src) {
    static const size_t chunks[] = {1, 2, 3, 5};
    for (size_t k = 0; k < sizeof(chunks) / sizeof(chunks[0]); k++) {
        for (int delta = -65; delta <= 65; delta += 65) {
            const size_t nbytes = chunks[k] * SHMPOOL_COPY_CHUNK + (size_t)(65 + delta) - 65;
            for (int n_threads = 0; n_threads <= 4; n_threads++) {
                copy_and_check(isa, 1, nbytes, 0, 0, n_threads, dst, src);
                copy_and_check(isa, 1, nbytes, 17, 9, n_threads, dst, src);
            }
        }
    }
}

static void test_public_borders(unsigned char *dst, unsigned char *src) {
    static const size_t borders[] = {0, SHMPOOL_COPY_STREAM_MIN, SHMPOOL_COPY_THREAD_MIN};
    for (size_t k = 0; k < sizeof(borders) / sizeof(borders[0]); k++) {
        for (int delta = borders[k] > 0 ? -1 : 0; delta <= 1; delta++) {
            const size_t nbytes = borders[k] + (size_t)(1 + delta) - 1;
            for (int n_threads = -1; n_threads <= 64; n_threads += n_threads < 4 ? 1 : 60) {
                copy_and_check(SHMPOOL_COPY_AUTO, 0, nbytes, 40, 11, n_threads, dst, src);
            }
        }
    }
    shmpool_copy(NULL, NULL, 0, 0);
    shmpool_copy_with(NULL, NULL, 0, 2, SHMPOOL_COPY_AUTO);
    check(1, "empty", SHMPOOL_COPY_AUTO, 0, 0, 0, 0);
}

#if SHMPOOL_COPY_THREADS
/* The caller's signal mask is borrowed for starting threads and must come back as it was. */
static void test_signal_mask(unsigned char *dst, unsigned char *src) {
    sigset_t mine, before, after;
    sigemptyset(&mine);
    sigaddset(&mine, SIGUSR1);
    pthread_sigmask(SIG_SETMASK, &mine, &before);
    copy_and_check(SHMPOOL_COPY_AUTO, 1, 3 * SHMPOOL_COPY_CHUNK, 0, 0, 3, dst, src);
    pthread_sigmask(SIG_SETMASK, &before, &after);
    check(sigismember(&after, SIGUSR1) == 1 && sigismember(&after, SIGINT) == 0 &&
              sigismember(&after, SIGTERM) == 0,
          "signal mask", SHMPOOL_COPY_AUTO, 0, 0, 0, 3);
}
#endif

#if SHMPOOL_COPY_THREADS && SHMPOOL_COPY_AFFINITY
/* One usable CPU leaves no other one to start helpers on: the copy must still be right, and the
 * affinity of the caller must be untouched. */
static void test_single_cpu(unsigned char *dst, unsigned char *src) {
    cpu_set_t before, one, after;
    if (sched_getaffinity(0, sizeof(before), &before) != 0) {
        return;
    }
    CPU_ZERO(&one);
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &before)) {
            CPU_SET(cpu, &one);
            break;
        }
    }
    if (sched_setaffinity(0, sizeof(one), &one) != 0) {
        return;
    }
    for (int n_threads = 0; n_threads <= 3; n_threads++) {
        copy_and_check(SHMPOOL_COPY_AUTO, 1, 3 * SHMPOOL_COPY_CHUNK, 0, 0, n_threads, dst, src);
    }
    check(sched_getaffinity(0, sizeof(after), &after) == 0 && CPU_EQUAL(&one, &after), "affinity",
          SHMPOOL_COPY_AUTO, 0, 0, 0, 0);
    (void)sched_setaffinity(0, sizeof(before), &before);
}
#endif

int main(void) {
    const size_t largest = 2 * SHMPOOL_COPY_THREAD_MIN + 5 * SHMPOOL_COPY_CHUNK;
    unsigned char *dst_block = allocate_or_die(largest + 2 * GUARD + 4 * SHMPOOL_COPY_ALIGN);
    unsigned char *src_block = allocate_or_die(largest + 4 * SHMPOOL_COPY_ALIGN);
    unsigned char *dst = align_up(dst_block);
    unsigned char *src = align_up(src_block);
    fill_pattern(src, largest + 2 * SHMPOOL_COPY_ALIGN, 42);

    for (int k = SHMPOOL_COPY_AUTO; k <= SHMPOOL_COPY_AVX512; k++) {
        const enum shmpool_copy_isa isa = (enum shmpool_copy_isa)k;
        if (shmpool_copy_find_kernel(isa) == NULL) {
            printf("%s: not usable here, skipped\n", isa_names[k]);
            continue;
        }
        test_small_sizes(isa, dst, src);
        test_misalignments(isa, dst, src);
        test_exact_source(isa, dst);
        test_threads(isa, dst, src);
    }
    check(shmpool_copy_find_kernel((enum shmpool_copy_isa)99) == NULL, "unknown kernel",
          SHMPOOL_COPY_AUTO, 0, 0, 0, 0);
    test_public_borders(dst, src);
#if SHMPOOL_COPY_THREADS
    test_signal_mask(dst, src);
#endif
#if SHMPOOL_COPY_THREADS && SHMPOOL_COPY_AFFINITY
    test_single_cpu(dst, src);
#endif
    free(src_block);
    free(dst_block);
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed != 0;
}
