/* SPDX-License-Identifier: BSD-3-Clause */
/* The atomic operations that the pool needs, on plain integers, per compiler.
 *
 * Plain fields (not _Atomic) keep the shared structures readable from Cython, struct and C++. Every
 * read-modify-write is sequentially consistent: the pin/retire handshake (slots.h, SYNC-2) is a
 * Dekker pattern and needs exactly that, and on x86-64 and LSE arm64 the weaker forms cost the
 * same. Stand-alone fences are avoided because ThreadSanitizer does not model them. */
#ifndef SHMPOOL_ATOMIC_H
#define SHMPOOL_ATOMIC_H

#include <stdint.h>

#if defined(_MSC_VER) && !defined(__clang__)
/* Compiled by nobody yet: MSVC is not available to the authors. Kept small on purpose. */
#include <intrin.h>

static inline uint64_t shmpool_load64(const uint64_t *p) {
    return (uint64_t)_InterlockedCompareExchange64((volatile __int64 *)p, 0, 0);
}
static inline uint32_t shmpool_load32(const uint32_t *p) {
    return (uint32_t)_InterlockedCompareExchange((volatile long *)p, 0, 0);
}
static inline void shmpool_store64(uint64_t *p, uint64_t v) {
    _InterlockedExchange64((volatile __int64 *)p, (__int64)v);
}
static inline void shmpool_store32(uint32_t *p, uint32_t v) {
    _InterlockedExchange((volatile long *)p, (long)v);
}
static inline uint64_t shmpool_relaxed64(const uint64_t *p) {
    return *(const volatile uint64_t *)p;
}
static inline uint32_t shmpool_relaxed32(const uint32_t *p) {
    return *(const volatile uint32_t *)p;
}
static inline void shmpool_set64(uint64_t *p, uint64_t v) { *(volatile uint64_t *)p = v; }
static inline void shmpool_set32(uint32_t *p, uint32_t v) { *(volatile uint32_t *)p = v; }
static inline int shmpool_cas64(uint64_t *p, uint64_t expected, uint64_t desired) {
    return (uint64_t)_InterlockedCompareExchange64((volatile __int64 *)p, (__int64)desired,
                                                   (__int64)expected) == expected;
}
static inline int shmpool_cas32(uint32_t *p, uint32_t expected, uint32_t desired) {
    return (uint32_t)_InterlockedCompareExchange((volatile long *)p, (long)desired,
                                                 (long)expected) == expected;
}
static inline uint64_t shmpool_add64(uint64_t *p, uint64_t v) {
    return (uint64_t)_InterlockedExchangeAdd64((volatile __int64 *)p, (__int64)v);
}
static inline uint32_t shmpool_add32(uint32_t *p, uint32_t v) {
    return (uint32_t)_InterlockedExchangeAdd((volatile long *)p, (long)v);
}
static inline uint32_t shmpool_swap32(uint32_t *p, uint32_t v) {
    return (uint32_t)_InterlockedExchange((volatile long *)p, (long)v);
}

#else /* gcc, clang, mingw-w64 */

#if !defined(__GCC_ATOMIC_LLONG_LOCK_FREE) || __GCC_ATOMIC_LLONG_LOCK_FREE != 2
#error "shmpool needs lock-free 64-bit atomics: a lock inside one process protects nothing here"
#endif

static inline uint64_t shmpool_load64(const uint64_t *p) {
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
static inline uint32_t shmpool_load32(const uint32_t *p) {
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
static inline void shmpool_store64(uint64_t *p, uint64_t v) {
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);
}
static inline void shmpool_store32(uint32_t *p, uint32_t v) {
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);
}
/* Relaxed access, for fields whose validity a later compare-and-swap proves, or that only people
 * read: atomic so that a racing read is a stale value and not undefined behaviour. */
static inline uint64_t shmpool_relaxed64(const uint64_t *p) {
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}
static inline uint32_t shmpool_relaxed32(const uint32_t *p) {
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}
static inline void shmpool_set64(uint64_t *p, uint64_t v) {
    __atomic_store_n(p, v, __ATOMIC_RELAXED);
}
static inline void shmpool_set32(uint32_t *p, uint32_t v) {
    __atomic_store_n(p, v, __ATOMIC_RELAXED);
}
static inline int shmpool_cas64(uint64_t *p, uint64_t expected, uint64_t desired) {
    return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_SEQ_CST,
                                       __ATOMIC_SEQ_CST);
}
static inline int shmpool_cas32(uint32_t *p, uint32_t expected, uint32_t desired) {
    return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_SEQ_CST,
                                       __ATOMIC_SEQ_CST);
}
static inline uint64_t shmpool_add64(uint64_t *p, uint64_t v) {
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
}
static inline uint32_t shmpool_add32(uint32_t *p, uint32_t v) {
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
}
static inline uint32_t shmpool_swap32(uint32_t *p, uint32_t v) {
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);
}
#endif

/* Raise a mark that only grows, against others who raise it too. */
static inline void shmpool_raise64(uint64_t *p, uint64_t v) {
    for (uint64_t old = shmpool_relaxed64(p); old < v; old = shmpool_relaxed64(p))
        if (shmpool_cas64(p, old, v))
            return;
}

#endif
