/* SPDX-License-Identifier: BSD-3-Clause */
/* wait.h for Linux: futexes. */
#ifndef SHMPOOL_OS_LINUX_WAIT_H
#define SHMPOOL_OS_LINUX_WAIT_H

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static inline uint64_t shmpool_os_monotonic_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Sleep until *word differs from `expected`, somebody wakes us, or the time is over. Returning
 * early is always allowed. The futex is not private: the kernel's key is the file's page. */
static inline void shmpool_os_wait(uint32_t *word, uint32_t expected, uint64_t timeout_ns,
                                   uint64_t key) {
    (void)key;
    struct timespec t = {(time_t)(timeout_ns / 1000000000u), (long)(timeout_ns % 1000000000u)};
    syscall(SYS_futex, word, FUTEX_WAIT, expected, &t, NULL, 0);
}

static inline void shmpool_os_wake(uint32_t *word, uint64_t key) {
    (void)key;
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* Let somebody else have this CPU for a moment. */
static inline void shmpool_os_yield(void) { sched_yield(); }

#endif
