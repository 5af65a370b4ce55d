/* SPDX-License-Identifier: BSD-3-Clause */
/* What one slot's life costs in the core: claim + seal + pin + unpin + free, without a copy.
 *
 *     bench_core [cycles]
 *
 * Default geometry (4 + 4 + 8 slots, 256 clients), with 1 client and with more: a free looks at the
 * pins of every client that was ever there. The bar is 300 ns per cycle. Tables in ordinary memory:
 * it is the same memory to the CPU as a shared mapping. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../../src/shmpool/core/slots.h"

static double now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* One cycle as _core.pyx makes it: the descriptor of a small 2-d array, two time stamps. */
static int cycle(const shmpool_t *p, const shmpool_descriptor_t *described, uint32_t span,
                 uint64_t now) {
    uint32_t slot;
    uint64_t generation;
    shmpool_descriptor_t d;
    uint64_t ticket = shmpool_ticket(p, SHMPOOL_INPUT, span);
    if (shmpool_claim(p, SHMPOOL_INPUT, span, ticket, now, &slot, &generation) != SHMPOOL_OK)
        return 0;
    shmpool_describe(p, slot, described);
    if (shmpool_seal(p, slot, generation, now) != SHMPOOL_OK ||
        shmpool_pin(p, slot, generation) != SHMPOOL_OK ||
        shmpool_read_descriptor(p, slot, &d) != SHMPOOL_OK)
        return 0;
    shmpool_unpin(p, slot);
    return shmpool_free(p, slot, generation) == SHMPOOL_OK;
}

int main(int argc, char **argv) {
    long cycles = argc > 1 ? atol(argv[1]) : 1000000;
    static const uint32_t regions[3] = {4, 4, 8};
    static const uint32_t high_water[] = {1, 8, 64, 256};
    shmpool_geometry_t g;
    if (cycles <= 0 || shmpool_geometry_init(&g, UINT64_C(256) << 20, regions, 256) != SHMPOOL_OK)
        return 2;
    size_t tables = (size_t)(g.pin_table_offset + g.n_slots * g.pin_stride);
    uint8_t *base = (uint8_t *)aligned_alloc(4096, (tables + 4095) / 4096 * 4096);
    if (base == NULL)
        return 2;
    shmpool_descriptor_t d;
    memset(&d, 0, sizeof d);
    d.nbytes = 4096;
    d.ndim = 2;
    d.shape[0] = 128;
    d.shape[1] = 8;
    memcpy(d.dtype, "<f4", 3);
    d.dtype_nbytes = 3;
    for (size_t i = 0; i < sizeof high_water / sizeof high_water[0]; i++)
        for (uint32_t span = 1; span <= 2; span++) {
            memset(base, 0, tables);
            shmpool_t p;
            shmpool_bind(&p, &g, base);
            shmpool_client_enter(&p, high_water[i] - 1, 4711, 1, 1, 1, "bench_core");
            d.span = span;
            double best = 0;
            for (int round = 0; round < 5; round++) {
                double start = now_ns();
                for (long k = 0; k < cycles / 5 + 1; k++)
                    if (!cycle(&p, &d, span, (uint64_t)k)) {
                        fprintf(stderr, "a cycle failed\n");
                        return 1;
                    }
                double each = (now_ns() - start) / (double)(cycles / 5 + 1);
                if (round == 0 || each < best)
                    best = each;
            }
            printf("claim+seal+pin+unpin+free, span %u, clients' high water %3u: %6.1f ns\n", span,
                   high_water[i], best);
        }
    free(base);
    return 0;
}
