/* SPDX-License-Identifier: BSD-3-Clause */
/* layout.h: what a geometry may be and what follows from it, what a header is judged to be, words.
 * Prints "N passed, N failed" last; exits non-zero on a failure. */
#include "check.h"

static int geometry_rc(uint64_t slot_nbytes, uint32_t a, uint32_t b, uint32_t c, uint32_t clients) {
    shmpool_geometry_t g;
    const uint32_t regions[3] = {a, b, c};
    return shmpool_geometry_init(&g, slot_nbytes, regions, clients);
}

static void test_geometry(void) {
    test_name = "geometry";
    CHECK(geometry_rc(4096, 1, 0, 0, 1) == SHMPOOL_OK);
    CHECK(geometry_rc(0, 1, 1, 1, 1) == SHMPOOL_EINVAL);
    CHECK(geometry_rc(4095, 1, 1, 1, 1) == SHMPOOL_EINVAL);
    CHECK(geometry_rc(4097, 1, 1, 1, 1) == SHMPOOL_EINVAL);
    CHECK(geometry_rc((UINT64_C(1) << 46) + 4096, 1, 1, 1, 1) == SHMPOOL_EINVAL);
    CHECK(geometry_rc(UINT64_MAX - 4095, 1, 1, 1, 1) == SHMPOOL_EINVAL);
    CHECK(geometry_rc(4096, 0, 0, 0, 1) == SHMPOOL_EINVAL);
    CHECK(geometry_rc(4096, 1, 1, 1, 0) == SHMPOOL_EINVAL);
    CHECK(geometry_rc(4096, 1, 1, 1, SHMPOOL_MAX_CLIENTS) == SHMPOOL_OK);
    CHECK(geometry_rc(4096, 1, 1, 1, SHMPOOL_MAX_CLIENTS + 1) == SHMPOOL_EINVAL);
    CHECK(geometry_rc(4096, SHMPOOL_MAX_SLOTS, 0, 0, 1) == SHMPOOL_OK);
    CHECK(geometry_rc(4096, SHMPOOL_MAX_SLOTS, 1, 0, 1) == SHMPOOL_EINVAL);
    CHECK(geometry_rc(4096, SHMPOOL_MAX_SLOTS + 1, 0, 0, 1) == SHMPOOL_EINVAL);
    /* sums and products that would wrap round 32 or 64 bits if they were formed first */
    CHECK(geometry_rc(4096, UINT32_MAX, 2, 0, 1) == SHMPOOL_EINVAL);
    CHECK(geometry_rc(4096, UINT32_MAX, UINT32_MAX, 3, UINT32_MAX) == SHMPOOL_EINVAL);
    CHECK(geometry_rc(UINT64_C(1) << 63, 2, 0, 0, 1) == SHMPOOL_EINVAL);

    static const struct {
        uint64_t slot_nbytes;
        uint32_t regions[3];
        uint32_t clients;
    } good[] = {{4096, {1, 0, 0}, 1},
                {4096, {3, 5, 7}, 17},
                {65536, {0, 0, 4096}, 4094},
                {2u << 20, {4, 4, 8}, 256},
                {UINT64_C(256) << 20, {4, 4, 8}, 256},
                {UINT64_C(1) << 46, {1365, 1365, 1366}, 4094}};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        shmpool_geometry_t g;
        CHECK(shmpool_geometry_init(&g, good[i].slot_nbytes, good[i].regions, good[i].clients) ==
              SHMPOOL_OK);
        uint64_t align = g.slot_nbytes >= SHMPOOL_HUGE_PAGE ? SHMPOOL_HUGE_PAGE : SHMPOOL_PAGE;
        CHECK(g.n_slots == good[i].regions[0] + good[i].regions[1] + good[i].regions[2]);
        CHECK(g.region_start[0] == 0 && g.region_start[1] == good[i].regions[0] &&
              g.region_start[2] == good[i].regions[0] + good[i].regions[1]);
        CHECK(g.client_table_offset == 8192 + (uint64_t)g.n_slots * 1024);
        CHECK(g.pin_table_offset == g.client_table_offset + (uint64_t)g.max_clients * 256);
        CHECK(g.pin_stride % 64 == 0 && g.pin_stride >= g.max_clients * 4u &&
              g.pin_stride < g.max_clients * 4u + 64);
        CHECK(g.slots_offset % align == 0);
        CHECK(g.slots_offset >= g.pin_table_offset + g.n_slots * g.pin_stride);
        CHECK(g.witness_offset % SHMPOOL_WITNESS_STRIDE == 0);
        CHECK(g.witness_offset >= g.slots_offset + g.n_slots * g.slot_nbytes);
        CHECK(g.witness_offset - SHMPOOL_WITNESS_STRIDE <
              g.slots_offset + g.n_slots * g.slot_nbytes);
        CHECK(g.file_nbytes == g.witness_offset + SHMPOOL_WITNESS_NBYTES);
        CHECK(g.file_nbytes <= (uint64_t)INT64_MAX);
        CHECK(g.table_nbytes % SHMPOOL_PAGE == 0 && g.table_nbytes <= g.slots_offset);
        CHECK(g.table_nbytes >= g.pin_table_offset + g.n_slots * g.pin_stride);
    }
}

static void test_words(void) {
    test_name = "words";
    uint64_t w = shmpool_word(SHMPOOL_GENERATION_MASK, 4095, 15);
    CHECK(w == UINT64_MAX);
    w = shmpool_word(0x123456789abc, 0x7de, SHMPOOL_RETIRED);
    CHECK(shmpool_word_generation(w) == 0x123456789abc);
    CHECK(shmpool_word_owner(w) == 0x7de);
    CHECK(shmpool_word_state(w) == SHMPOOL_RETIRED);
    CHECK(shmpool_word(UINT64_MAX, 0, 0) == SHMPOOL_GENERATION_MASK << 16);
    CHECK(shmpool_crc32((const uint8_t *)"123456789", 9) == 0xCBF43926u);
}

static shmpool_header_t ready_header(shmpool_geometry_t *g) {
    static const uint8_t uuid[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    const uint32_t regions[3] = {4, 2, 2};
    shmpool_header_t h;
    CHECK(shmpool_geometry_init(g, 65536, regions, 16) == SHMPOOL_OK);
    shmpool_header_mark_creating(&h);
    shmpool_header_fill(&h, g, uuid, 12345);
    h.init_state = SHMPOOL_READY;
    return h;
}

static void test_header(void) {
    test_name = "header";
    shmpool_geometry_t g, found;
    shmpool_header_t good = ready_header(&g), h = good;
    CHECK(shmpool_header_check(&h, g.file_nbytes, &found) == SHMPOOL_OK);
    CHECK(memcmp(&found, &g, sizeof g) == 0);
    CHECK(memcmp(&h, &good, sizeof h) == 0); /* judging writes nothing */
    CHECK(shmpool_header_check(&h, UINT64_MAX, &found) == SHMPOOL_OK);
    CHECK(shmpool_header_check(&h, g.file_nbytes - 1, &found) == SHMPOOL_ETRUNCATED);
    CHECK(shmpool_header_check(&h, 0, &found) == SHMPOOL_ETRUNCATED);

    /* every single flipped bit of the checked part is noticed, and as what it is */
    for (unsigned bit = 0; bit < 128 * 8; bit++) {
        h = good;
        ((uint8_t *)&h)[bit / 8] ^= (uint8_t)(1u << bit % 8);
        int rc = shmpool_header_check(&h, g.file_nbytes, &found);
        unsigned byte = bit / 8;
        int expected = byte < 8    ? SHMPOOL_EMAGIC
                       : byte < 12 ? SHMPOOL_EVERSION
                       : byte < 16 ? SHMPOOL_ELAYOUT
                                   : SHMPOOL_ECORRUPT;
        CHECK(rc == expected);
    }
    h = good;
    h.epoch = 99; /* changes in a living pool, so it is outside the checksum */
    CHECK(shmpool_header_check(&h, g.file_nbytes, &found) == SHMPOOL_OK);
    h = good;
    h.init_state = SHMPOOL_CREATING;
    CHECK(shmpool_header_check(&h, 0, &found) == SHMPOOL_ENOTREADY);
    memset(&h, 0, sizeof h);
    CHECK(shmpool_header_check(&h, 1 << 20, &found) == SHMPOOL_EMAGIC);
    shmpool_header_mark_creating(&h);
    CHECK(shmpool_header_check(&h, 4096, &found) == SHMPOOL_ENOTREADY);

    /* nonsense with a valid checksum: a hostile or foreign writer, not an accident */
    for (int field = 0; field < 10; field++) {
        h = good;
        switch (field) {
        case 0:
            h.slot_nbytes = UINT64_MAX - 4095;
            break;
        case 1:
            h.region_slots[0] = UINT32_MAX;
            break;
        case 2:
            h.region_slots[1] = 0;
            h.region_slots[0] = 0;
            h.region_slots[2] = 0;
            break;
        case 3:
            h.max_clients = 5000;
            break;
        case 4:
            h.client_table_offset ^= 64;
            break;
        case 5:
            h.pin_table_offset += 64;
            break;
        case 6:
            h.pin_stride = 0;
            break;
        case 7:
            h.slots_offset = 0;
            break;
        case 8:
            h.file_nbytes = 4096;
            break;
        case 9:
            h.max_clients = 17;
            break; /* other offsets follow from it */
        }
        h.header_crc = shmpool_header_crc(&h);
        CHECK(shmpool_header_check(&h, UINT64_MAX, &found) == SHMPOOL_ECORRUPT);
    }
    uint64_t seed = 42;
    for (int i = 0; i < 2000; i++) { /* arbitrary pages: any verdict but OK, and no surprise */
        uint8_t page[sizeof h];
        for (size_t k = 0; k < 136; k++)
            page[k] = (uint8_t)next_random(&seed);
        memset(page + 136, 0, sizeof page - 136);
        memcpy(&h, page, sizeof h);
        if (i % 2) {
            memcpy(h.magic, "SHMPOOL", 8);
            h.format_version = SHMPOOL_FORMAT_VERSION;
            h.layout_stamp = shmpool_layout_stamp();
            h.init_state = SHMPOOL_READY;
            h.header_crc = shmpool_header_crc(&h);
        }
        CHECK(shmpool_header_check(&h, next_random(&seed), &found) != SHMPOOL_OK);
    }
}

static void test_bind(void) {
    test_name = "bind";
    shmpool_geometry_t g;
    shmpool_header_t h = ready_header(&g);
    uint8_t *base = (uint8_t *)zeroed(g.file_nbytes);
    memcpy(base, &h, sizeof h);
    shmpool_t p;
    shmpool_bind(&p, &g, base);
    CHECK((uint8_t *)p.header == base && (uint8_t *)p.counters == base + 4096);
    CHECK((uint8_t *)p.slots == base + 8192);
    CHECK((uint8_t *)p.clients == base + g.client_table_offset);
    CHECK(shmpool_slot_data(&p, 7) + g.slot_nbytes <= base + g.witness_offset);
    CHECK((uint8_t *)shmpool_pin_cell(&p, 7, 15) + 4 <= shmpool_slot_data(&p, 0));
    CHECK((uint8_t *)shmpool_pin_cell(&p, 3, 5) ==
          base + g.pin_table_offset + 3 * g.pin_stride + 20);
    free(base);
}

int main(void) {
    test_geometry();
    test_words();
    test_header();
    test_bind();
    return check_report();
}
