/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * XXH3-128, whole buffers only: the digest by which a receiver judges bytes that came through
 * something it does not trust, and by which an array's content can be named.
 *
 * The algorithm and its constants are those of the xxHash specification
 * (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md), so any other implementation
 * can check the result; the tests compare with the reference one for every kind of length.
 * It finds accidents, not attacks: somebody who wants two buffers with one digest can make them.
 *
 * Plain C11, no Python, no I/O, no allocation, no mutable globals.
 */
#ifndef SHMPOOL_HASH_H
#define SHMPOOL_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if (defined(__x86_64__) && defined(__GNUC__)) || (defined(_MSC_VER) && defined(_M_X64))
#define SHMPOOL_HASH_X86 1
#include <immintrin.h>
#else
#define SHMPOOL_HASH_X86 0
#endif

/* As in copy.h: on Windows GCC spills wide vectors to a stack that is aligned to 16 bytes only. */
#if SHMPOOL_HASH_X86 && !defined(_WIN32)
#define SHMPOOL_HASH_X86_WIDE 1
#else
#define SHMPOOL_HASH_X86_WIDE 0
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#elif __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the words of the input are read as little-endian"
#endif

typedef struct {
    uint64_t low;
    uint64_t high;
} shmpool_hash_t;

enum {
    SHMPOOL_HASH_SECRET_NBYTES = 192,
    SHMPOOL_HASH_STRIPE_NBYTES = 64,
    SHMPOOL_HASH_BLOCK_STRIPES = 16,
};

static const uint32_t SHMPOOL_HASH_P32_1 = 0x9E3779B1u;
static const uint32_t SHMPOOL_HASH_P32_2 = 0x85EBCA77u;
static const uint32_t SHMPOOL_HASH_P32_3 = 0xC2B2AE3Du;
static const uint64_t SHMPOOL_HASH_P64_1 = 0x9E3779B185EBCA87u;
static const uint64_t SHMPOOL_HASH_P64_2 = 0xC2B2AE3D27D4EB4Fu;
static const uint64_t SHMPOOL_HASH_P64_3 = 0x165667B19E3779F9u;
static const uint64_t SHMPOOL_HASH_P64_4 = 0x85EBCA77C2B2AE63u;
static const uint64_t SHMPOOL_HASH_P64_5 = 0x27D4EB2F165667C5u;
static const uint64_t SHMPOOL_HASH_MX1 = 0x165667919E3779F9u;
static const uint64_t SHMPOOL_HASH_MX2 = 0x9FB21C651E98DF25u;

static const uint8_t SHMPOOL_HASH_SECRET[SHMPOOL_HASH_SECRET_NBYTES] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static inline uint64_t shmpool_hash_read64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t shmpool_hash_read32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t shmpool_hash_swap32(uint32_t v) {
    return v << 24 | (v & 0xff00u) << 8 | (v >> 8 & 0xff00u) | v >> 24;
}

static inline uint64_t shmpool_hash_swap64(uint64_t v) {
    return (uint64_t)shmpool_hash_swap32((uint32_t)v) << 32 |
           shmpool_hash_swap32((uint32_t)(v >> 32));
}

/* 64 by 64 bits to 128. */
static inline shmpool_hash_t shmpool_hash_multiply(uint64_t a, uint64_t b) {
    shmpool_hash_t product;
#if defined(_MSC_VER) && !defined(__clang__)
#if defined(_M_X64)
    product.low = _umul128(a, b, &product.high);
#else
    product.low = a * b;
    product.high = __umulh(a, b);
#endif
#else
    __extension__ typedef unsigned __int128 wide_t;
    const wide_t wide = (wide_t)a * b;
    product.low = (uint64_t)wide;
    product.high = (uint64_t)(wide >> 64);
#endif
    return product;
}

static inline uint64_t shmpool_hash_fold(uint64_t a, uint64_t b) {
    const shmpool_hash_t product = shmpool_hash_multiply(a, b);
    return product.low ^ product.high;
}

static inline uint64_t shmpool_hash_avalanche(uint64_t v) {
    v = (v ^ v >> 37) * SHMPOOL_HASH_MX1;
    return v ^ v >> 32;
}

static inline uint64_t shmpool_hash_avalanche_old(uint64_t v) {
    v = (v ^ v >> 33) * SHMPOOL_HASH_P64_2;
    v = (v ^ v >> 29) * SHMPOOL_HASH_P64_3;
    return v ^ v >> 32;
}

/* ---------------------------------------------------------------- up to 16 bytes */

static inline shmpool_hash_t shmpool_hash_tiny(const uint8_t *p, size_t n, uint64_t seed) {
    const uint8_t *secret = SHMPOOL_HASH_SECRET;
    shmpool_hash_t h;
    if (n > 8) {
        const uint64_t first = shmpool_hash_read64(p);
        const uint64_t last = shmpool_hash_read64(p + n - 8);
        const uint64_t a =
            ((shmpool_hash_read64(secret + 32) ^ shmpool_hash_read64(secret + 40)) - seed) ^ first ^
            last;
        const uint64_t b =
            ((shmpool_hash_read64(secret + 48) ^ shmpool_hash_read64(secret + 56)) + seed) ^ last;
        const shmpool_hash_t m = shmpool_hash_multiply(a, SHMPOOL_HASH_P64_1);
        uint64_t low = m.low + ((uint64_t)(n - 1) << 54);
        const uint64_t high = m.high + b + (uint64_t)(uint32_t)b * (SHMPOOL_HASH_P32_2 - 1);
        low ^= shmpool_hash_swap64(high);
        h = shmpool_hash_multiply(low, SHMPOOL_HASH_P64_2);
        h.high += high * SHMPOOL_HASH_P64_2;
        h.low = shmpool_hash_avalanche(h.low);
        h.high = shmpool_hash_avalanche(h.high);
    } else if (n >= 4) {
        const uint64_t both = shmpool_hash_read32(p) | (uint64_t)shmpool_hash_read32(p + n - 4)
                                                           << 32;
        const uint64_t turned = seed ^ (uint64_t)shmpool_hash_swap32((uint32_t)seed) << 32;
        const uint64_t v =
            ((shmpool_hash_read64(secret + 16) ^ shmpool_hash_read64(secret + 24)) + turned) ^ both;
        h = shmpool_hash_multiply(v, SHMPOOL_HASH_P64_1 + ((uint64_t)n << 2));
        h.high += h.low << 1;
        h.low ^= h.high >> 3;
        h.low = (h.low ^ h.low >> 35) * SHMPOOL_HASH_MX2;
        h.low ^= h.low >> 28;
        h.high = shmpool_hash_avalanche(h.high);
    } else if (n > 0) {
        const uint32_t v =
            p[n - 1] | (uint32_t)n << 8 | (uint32_t)p[0] << 16 | (uint32_t)p[n >> 1] << 24;
        const uint32_t swapped = shmpool_hash_swap32(v);
        const uint32_t turned = swapped << 13 | swapped >> 19;
        const uint32_t a = shmpool_hash_read32(secret) ^ shmpool_hash_read32(secret + 4);
        const uint32_t b = shmpool_hash_read32(secret + 8) ^ shmpool_hash_read32(secret + 12);
        h.low = shmpool_hash_avalanche_old((a + seed) ^ v);
        h.high = shmpool_hash_avalanche_old((b - seed) ^ turned);
    } else {
        h.low = shmpool_hash_avalanche_old(seed ^ shmpool_hash_read64(secret + 64) ^
                                           shmpool_hash_read64(secret + 72));
        h.high = shmpool_hash_avalanche_old(seed ^ shmpool_hash_read64(secret + 80) ^
                                            shmpool_hash_read64(secret + 88));
    }
    return h;
}

/* ---------------------------------------------------------------- 17 to 240 bytes */

static inline uint64_t shmpool_hash_mix(const uint8_t *p, const uint8_t *secret, uint64_t seed) {
    return shmpool_hash_fold(shmpool_hash_read64(p) ^ (shmpool_hash_read64(secret) + seed),
                             shmpool_hash_read64(p + 8) ^ (shmpool_hash_read64(secret + 8) - seed));
}

static inline void shmpool_hash_mix_two(shmpool_hash_t *h, const uint8_t *a, const uint8_t *b,
                                        const uint8_t *secret, uint64_t seed) {
    h->low += shmpool_hash_mix(a, secret, seed);
    h->high += shmpool_hash_mix(b, secret + 16, seed);
    h->low ^= shmpool_hash_read64(b) + shmpool_hash_read64(b + 8);
    h->high ^= shmpool_hash_read64(a) + shmpool_hash_read64(a + 8);
}

static inline shmpool_hash_t shmpool_hash_medium(const uint8_t *p, size_t n, uint64_t seed) {
    const uint8_t *secret = SHMPOOL_HASH_SECRET;
    shmpool_hash_t h = {(uint64_t)n * SHMPOOL_HASH_P64_1, 0};
    if (n <= 128) {
        for (size_t i = (n - 1) / 32 + 1; i-- > 0;)
            shmpool_hash_mix_two(&h, p + 16 * i, p + n - 16 * i - 16, secret + 32 * i, seed);
    } else {
        for (size_t i = 0; i < 4; i++)
            shmpool_hash_mix_two(&h, p + 32 * i, p + 32 * i + 16, secret + 32 * i, seed);
        h.low = shmpool_hash_avalanche(h.low);
        h.high = shmpool_hash_avalanche(h.high);
        for (size_t i = 4; i < n / 32; i++)
            shmpool_hash_mix_two(&h, p + 32 * i, p + 32 * i + 16, secret + 32 * (i - 4) + 3, seed);
        shmpool_hash_mix_two(&h, p + n - 16, p + n - 32, secret + 103, 0 - seed);
    }
    const shmpool_hash_t sum = {h.low + h.high, h.low * SHMPOOL_HASH_P64_1 +
                                                    h.high * SHMPOOL_HASH_P64_4 +
                                                    ((uint64_t)n - seed) * SHMPOOL_HASH_P64_2};
    h.low = shmpool_hash_avalanche(sum.low);
    h.high = 0 - shmpool_hash_avalanche(sum.high);
    return h;
}

/* ---------------------------------------------------------------- more than 240 bytes */

/*
 * Runs `n_stripes` stripes of 64 bytes into the eight accumulators. Each stripe uses the secret 8
 * bytes further on; after every 16th the accumulators are scrambled and the secret starts over.
 */
typedef void shmpool_hash_kernel(uint64_t *acc, const uint8_t *data, size_t n_stripes,
                                 const uint8_t *secret);

static inline void shmpool_hash_plain(uint64_t *acc, const uint8_t *data, size_t n_stripes,
                                      const uint8_t *secret) {
    for (size_t n = 0; n < n_stripes; n++, data += SHMPOOL_HASH_STRIPE_NBYTES) {
        const uint8_t *part = secret + 8 * (n % SHMPOOL_HASH_BLOCK_STRIPES);
        for (size_t i = 0; i < 8; i++) {
            const uint64_t word = shmpool_hash_read64(data + 8 * i);
            const uint64_t v = word ^ shmpool_hash_read64(part + 8 * i);
            acc[i ^ 1] += word;
            acc[i] += (v & 0xffffffffu) * (v >> 32);
        }
        if (n % SHMPOOL_HASH_BLOCK_STRIPES == SHMPOOL_HASH_BLOCK_STRIPES - 1) {
            part = secret + SHMPOOL_HASH_SECRET_NBYTES - SHMPOOL_HASH_STRIPE_NBYTES;
            for (size_t i = 0; i < 8; i++)
                acc[i] = (acc[i] ^ acc[i] >> 47 ^ shmpool_hash_read64(part + 8 * i)) *
                         SHMPOOL_HASH_P32_1;
        }
    }
}

#if SHMPOOL_HASH_X86

#if defined(__GNUC__)
#define SHMPOOL_HASH_UNROLL _Pragma("GCC unroll 8")
#else
#define SHMPOOL_HASH_UNROLL
#endif

/* One body for every vector width: `vec` holds a part of the eight accumulators. */
#define SHMPOOL_HASH_DEFINE(name, attr, vec, load, store, add, mul, xor_, shuffle, shr, shl, set)  \
    attr static inline void name(uint64_t *acc, const uint8_t *data, size_t n_stripes,             \
                                 const uint8_t *secret) {                                          \
        enum { STEP = sizeof(vec), N = SHMPOOL_HASH_STRIPE_NBYTES / sizeof(vec) };                 \
        const uint8_t *last = secret + SHMPOOL_HASH_SECRET_NBYTES - SHMPOOL_HASH_STRIPE_NBYTES;    \
        const vec prime = set((int)SHMPOOL_HASH_P32_1);                                            \
        vec a[N];                                                                                  \
        SHMPOOL_HASH_UNROLL                                                                        \
        for (int i = 0; i < N; i++)                                                                \
            a[i] = load((const vec *)(const void *)((const uint8_t *)acc + i * STEP));             \
        while (n_stripes > 0) {                                                                    \
            const size_t here = n_stripes < SHMPOOL_HASH_BLOCK_STRIPES                             \
                                    ? n_stripes                                                    \
                                    : (size_t)SHMPOOL_HASH_BLOCK_STRIPES;                          \
            for (size_t n = 0; n < here; n++, data += SHMPOOL_HASH_STRIPE_NBYTES) {                \
                SHMPOOL_HASH_UNROLL                                                                \
                for (int i = 0; i < N; i++) {                                                      \
                    const vec d = load((const vec *)(const void *)(data + i * STEP));              \
                    const vec k = load((const vec *)(const void *)(secret + 8 * n + i * STEP));    \
                    const vec v = xor_(d, k);                                                      \
                    a[i] = add(a[i], add(mul(v, shr(v, 32)), shuffle(d, 0x4e)));                   \
                }                                                                                  \
            }                                                                                      \
            n_stripes -= here;                                                                     \
            if (here == SHMPOOL_HASH_BLOCK_STRIPES) {                                              \
                SHMPOOL_HASH_UNROLL                                                                \
                for (int i = 0; i < N; i++) {                                                      \
                    const vec k = load((const vec *)(const void *)(last + i * STEP));              \
                    const vec v = xor_(xor_(a[i], shr(a[i], 47)), k);                              \
                    a[i] = add(mul(v, prime), shl(mul(shr(v, 32), prime), 32));                    \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
        SHMPOOL_HASH_UNROLL                                                                        \
        for (int i = 0; i < N; i++)                                                                \
            store((vec *)(void *)((uint8_t *)acc + i * STEP), a[i]);                               \
    }

SHMPOOL_HASH_DEFINE(shmpool_hash_sse2, , __m128i, _mm_loadu_si128, _mm_storeu_si128, _mm_add_epi64,
                    _mm_mul_epu32, _mm_xor_si128, _mm_shuffle_epi32, _mm_srli_epi64, _mm_slli_epi64,
                    _mm_set1_epi32)

#if SHMPOOL_HASH_X86_WIDE
SHMPOOL_HASH_DEFINE(shmpool_hash_avx2, __attribute__((target("avx2"))), __m256i, _mm256_loadu_si256,
                    _mm256_storeu_si256, _mm256_add_epi64, _mm256_mul_epu32, _mm256_xor_si256,
                    _mm256_shuffle_epi32, _mm256_srli_epi64, _mm256_slli_epi64, _mm256_set1_epi32)
#endif
#endif /* SHMPOOL_HASH_X86 */

static inline shmpool_hash_kernel *shmpool_hash_find_kernel(void) {
#if SHMPOOL_HASH_X86_WIDE
    if (__builtin_cpu_supports("avx2"))
        return shmpool_hash_avx2;
#endif
#if SHMPOOL_HASH_X86
    return shmpool_hash_sse2;
#else
    return shmpool_hash_plain;
#endif
}

static inline uint64_t shmpool_hash_merge(const uint64_t *acc, const uint8_t *secret,
                                          uint64_t start) {
    for (size_t i = 0; i < 4; i++)
        start += shmpool_hash_fold(acc[2 * i] ^ shmpool_hash_read64(secret + 16 * i),
                                   acc[2 * i + 1] ^ shmpool_hash_read64(secret + 16 * i + 8));
    return shmpool_hash_avalanche(start);
}

static inline shmpool_hash_t shmpool_hash_large(const uint8_t *p, size_t n, uint64_t seed,
                                                shmpool_hash_kernel *kernel) {
    uint64_t acc[8] = {SHMPOOL_HASH_P32_3, SHMPOOL_HASH_P64_1, SHMPOOL_HASH_P64_2,
                       SHMPOOL_HASH_P64_3, SHMPOOL_HASH_P64_4, SHMPOOL_HASH_P32_2,
                       SHMPOOL_HASH_P64_5, SHMPOOL_HASH_P32_1};
    uint64_t words[SHMPOOL_HASH_SECRET_NBYTES / 8];
    const uint8_t *secret = (const uint8_t *)words;
    for (size_t i = 0; i < SHMPOOL_HASH_SECRET_NBYTES / 8; i++)
        words[i] = shmpool_hash_read64(SHMPOOL_HASH_SECRET + 8 * i) + (i % 2 ? 0 - seed : seed);
    /* The last block is never scrambled, not even a full one: its last stripe always goes below. */
    kernel(acc, p, (n - 1) / SHMPOOL_HASH_STRIPE_NBYTES, secret);
    kernel(acc, p + n - SHMPOOL_HASH_STRIPE_NBYTES, 1, secret + SHMPOOL_HASH_SECRET_NBYTES - 71);
    const shmpool_hash_t h = {
        shmpool_hash_merge(acc, secret + 11, (uint64_t)n * SHMPOOL_HASH_P64_1),
        shmpool_hash_merge(acc, secret + SHMPOOL_HASH_SECRET_NBYTES - 75,
                           ~((uint64_t)n * SHMPOOL_HASH_P64_2))};
    return h;
}

/* As shmpool_hash, with a kernel of the caller's choice. */
static inline shmpool_hash_t shmpool_hash_with(const void *data, size_t nbytes, uint64_t seed,
                                               shmpool_hash_kernel *kernel) {
    const uint8_t *p = (const uint8_t *)data;
    if (nbytes <= 16)
        return shmpool_hash_tiny(p, nbytes, seed);
    if (nbytes <= 240)
        return shmpool_hash_medium(p, nbytes, seed);
    return shmpool_hash_large(p, nbytes, seed, kernel);
}

/* XXH3-128 of `nbytes` bytes. `data` may be NULL when there are none. */
static inline shmpool_hash_t shmpool_hash(const void *data, size_t nbytes, uint64_t seed) {
    return shmpool_hash_with(data, nbytes, seed, shmpool_hash_find_kernel());
}

#endif /* SHMPOOL_HASH_H */
