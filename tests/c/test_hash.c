/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests of hash.h. Prints "N passed, N failed" last; exits non-zero when anything failed.
 *
 * That the results are XXH3-128 is tested from Python, against the reference implementation. Here:
 * every kernel gives what the plain one gives, and none reads a byte beyond the input. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/shmpool/core/hash.h"

static int n_passed;
static int n_failed;

static void check(int ok, const char *what, size_t nbytes, size_t offset) {
    if (ok) {
        n_passed++;
    } else {
        n_failed++;
        printf("FAILED %s: %zu bytes at offset %zu\n", what, nbytes, offset);
    }
}

static int equal(shmpool_hash_t a, shmpool_hash_t b) { return a.low == b.low && a.high == b.high; }

static struct {
    const char *name;
    shmpool_hash_kernel *kernel;
} kernels[] = {
    {"found", NULL},
#if SHMPOOL_HASH_X86
    {"sse2", shmpool_hash_sse2},
#endif
#if SHMPOOL_HASH_X86_WIDE
    {"avx2", shmpool_hash_avx2},
#endif
};

/* A block of exactly its size, so that AddressSanitizer sees the first byte too far. */
static void test_one(size_t nbytes, size_t offset) {
    uint8_t *block = malloc(nbytes + offset + (nbytes + offset == 0));
    if (block == NULL)
        abort();
    uint8_t *data = block + offset;
    uint64_t state = nbytes * 2 + 1;
    for (size_t i = 0; i < nbytes; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        data[i] = (uint8_t)(state >> 56);
    }
    const uint64_t seed = state * (nbytes % 3);
    const shmpool_hash_t plain = shmpool_hash_with(data, nbytes, seed, shmpool_hash_plain);
    for (size_t k = 0; k < sizeof kernels / sizeof *kernels; k++)
        if (kernels[k].kernel != NULL)
            check(equal(plain, shmpool_hash_with(data, nbytes, seed, kernels[k].kernel)),
                  kernels[k].name, nbytes, offset);
    check(equal(plain, shmpool_hash(data, nbytes, seed)), "chosen by itself", nbytes, offset);
    check(!equal(plain, shmpool_hash(data, nbytes, seed + 1)), "another seed", nbytes, offset);
    if (nbytes > 0) {
        /* A byte at either end and one in between: each counts. */
        const size_t at[3] = {0, nbytes / 2, nbytes - 1};
        for (int i = 0; i < 3; i++) {
            data[at[i]] ^= 0x40;
            check(!equal(plain, shmpool_hash(data, nbytes, seed)), "a changed byte", nbytes, at[i]);
            data[at[i]] ^= 0x40;
        }
    }
    free(block);
}

int main(void) {
#if SHMPOOL_HASH_X86_WIDE
    if (!__builtin_cpu_supports("avx2"))
        kernels[2].kernel = NULL;
#endif
    kernels[0].kernel = shmpool_hash_find_kernel();
    for (size_t nbytes = 0; nbytes <= 600; nbytes++)
        test_one(nbytes, nbytes % 5);
    /* Around the ends of stripes and blocks. */
    for (size_t n = 1; n <= 8; n++)
        for (size_t around = 0; around <= 130; around++)
            test_one(1024 * n + around - 65, around % 8);
    test_one((size_t)3 << 20, 1);
    check(equal(shmpool_hash(NULL, 0, 0), shmpool_hash("", 0, 0)), "nothing, nowhere", 0, 0);
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed != 0 || n_passed == 0;
}
