/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Times the copy engine against memcpy, into a warm shared mapping, and prints time ratios: below
 * 1.00 means faster than memcpy into the same place. The contenders of one size take turns, because
 * a machine with other work on it drifts, and the median over the turns is reported.
 *
 *   bench_copy [largest MiB, default 512] [turns, default 9]
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../../src/shmpool/core/copy.h"

#define MAX_TURNS 101

/* Small copies are repeated within one timing, so that reading the clock does not count. */
#define MIN_BYTES_PER_TIMING ((size_t)32 << 20)

struct contender {
    const char *name;
    int isa; /* -1: memcpy, -2: shmpool_copy with its own thresholds */
    int n_threads;
};

static const struct contender contenders[] = {
    {"memcpy", -1, 1},
    {"default", -2, 0},
    {"plain x2", SHMPOOL_COPY_PLAIN, 2},
    {"sse2 x1", SHMPOOL_COPY_SSE2, 1},
    {"sse2 x2", SHMPOOL_COPY_SSE2, 2},
    {"avx2 x1", SHMPOOL_COPY_AVX2, 1},
    {"avx2 x2", SHMPOOL_COPY_AVX2, 2},
    {"avx512 x1", SHMPOOL_COPY_AVX512, 1},
    {"avx512 x2", SHMPOOL_COPY_AVX512, 2},
};
#define N_CONTENDERS (sizeof(contenders) / sizeof(contenders[0]))

static double read_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void run_contender(const struct contender *who, void *dst, const void *src, size_t nbytes) {
    if (who->isa == -1) {
        memcpy(dst, src, nbytes);
    } else if (who->isa == -2) {
        shmpool_copy(dst, src, nbytes, who->n_threads);
    } else {
        shmpool_copy_with(dst, src, nbytes, who->n_threads, (enum shmpool_copy_isa)who->isa);
    }
    /* Keeps the compiler from dropping a copy whose result nobody reads. */
    __asm__ volatile("" : : "r"(dst) : "memory");
}

static int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void *map_shared_file(size_t nbytes) {
    char name[64];
    snprintf(name, sizeof(name), "/shmpool-bench-copy-%ld", (long)getpid());
    const int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0) {
        return MAP_FAILED;
    }
    /* Unlinked at once: the memory goes with the process, however that ends. */
    shm_unlink(name);
    void *at = MAP_FAILED;
    if (ftruncate(fd, (off_t)nbytes) == 0) {
        at = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    close(fd);
    return at;
}

int main(int argc, char **argv) {
    const size_t largest = (size_t)(argc > 1 ? atoi(argv[1]) : 512) << 20;
    const int n_turns = argc > 2 ? atoi(argv[2]) : 9;
    if (largest == 0 || n_turns < 1 || n_turns > MAX_TURNS) {
        fprintf(stderr, "usage: %s [largest MiB] [turns, at most %d]\n", argv[0], MAX_TURNS);
        return 2;
    }
    unsigned char *dst = map_shared_file(largest);
    unsigned char *src =
        mmap(NULL, largest, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (dst == MAP_FAILED || src == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
#ifdef MADV_HUGEPAGE
    /* What NumPy asks for its own large arrays, which are the usual source. */
    (void)madvise(src, largest, MADV_HUGEPAGE);
#endif
    memset(src, 1, largest);
    memset(dst, 2, largest);

    printf("%10s %12s", "size KiB", "memcpy us");
    for (size_t k = 1; k < N_CONTENDERS; k++) {
        printf(" %9s", contenders[k].name);
    }
    printf("\n");
    for (size_t nbytes = 4096; nbytes <= largest; nbytes *= 2) {
        const size_t rounds = nbytes < MIN_BYTES_PER_TIMING ? MIN_BYTES_PER_TIMING / nbytes : 1;
        double times[N_CONTENDERS][MAX_TURNS];
        double medians[N_CONTENDERS];
        for (int turn = 0; turn < n_turns; turn++) {
            for (size_t k = 0; k < N_CONTENDERS; k++) {
                const double start = read_clock();
                for (size_t round = 0; round < rounds; round++) {
                    run_contender(&contenders[k], dst, src, nbytes);
                }
                times[k][turn] = (read_clock() - start) / (double)rounds;
            }
        }
        printf("%10zu", nbytes >> 10);
        for (size_t k = 0; k < N_CONTENDERS; k++) {
            qsort(times[k], (size_t)n_turns, sizeof(double), compare_doubles);
            medians[k] = times[k][n_turns / 2];
            const int unusable =
                contenders[k].isa > 0 &&
                shmpool_copy_find_kernel((enum shmpool_copy_isa)contenders[k].isa) == NULL;
            if (k == 0) {
                printf(" %12.1f", medians[0] * 1e6);
            } else if (unusable) {
                printf(" %9s", "-");
            } else {
                printf(" %9.2f", medians[k] / medians[0]);
            }
        }
        printf("\n");
        fflush(stdout);
    }
    munmap(dst, largest);
    munmap(src, largest);
    return 0;
}
