/* SPDX-License-Identifier: BSD-3-Clause */
/* os.h for Linux. Included by exactly one translation unit: it holds the fork bookkeeping. */
#ifndef SHMPOOL_OS_LINUX_H
#define SHMPOOL_OS_LINUX_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "linux_wait.h"

#ifndef F_OFD_SETLK
#define F_OFD_SETLK 37
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

/* Lock, convert or unlock one byte of an open file description, without waiting. A byte of one's
 * own never conflicts: callers keep their own bytes apart. */
static inline int shmpool_os_lock(int fd, int64_t byte, int mode) {
    struct flock lock = {0};
    lock.l_type = mode == SHMPOOL_LOCK_EXCLUSIVE ? F_WRLCK
                  : mode == SHMPOOL_LOCK_SHARED  ? F_RDLCK
                                                 : F_UNLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    for (;;) {
        if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
            return 0;
        if (errno == EAGAIN || errno == EACCES)
            return SHMPOOL_OS_REFUSED;
        if (errno != EINTR)
            return -errno;
    }
}

/* Back [offset, offset + nbytes) of the file with memory, or fail. On tmpfs the kernel takes a
 * failed call back: it removes the pages of the range that nobody has touched yet. That includes
 * pages which an EARLIER reservation of the same range made, so only the owner of a slot may
 * reserve in it. -EINTR: a signal came first and everything is as before. */
static inline int shmpool_os_reserve(int fd, uint64_t offset, uint64_t nbytes) {
    if (fallocate(fd, 0, (off_t)offset, (off_t)nbytes) == 0)
        return 0;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return -errno;
    /* emulates by writing, and returns the error instead of setting errno */
    return -posix_fallocate(fd, (off_t)offset, (off_t)nbytes);
}

static inline int shmpool_os_map(int fd, uint64_t nbytes, void **base) {
    void *p = mmap(NULL, (size_t)nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        return -errno;
    *base = p;
    return 0;
}

static inline void shmpool_os_unmap(void *base, uint64_t nbytes) { munmap(base, (size_t)nbytes); }

static inline void shmpool_os_close(int fd) { close(fd); }

/* Fill this process's page tables for a range in one call. Best effort: a kernel before 5.14 says
 * EINVAL and pages are faulted one by one instead. */
static inline int shmpool_os_populate(void *address, uint64_t nbytes, int write) {
    for (;;) {
        if (madvise(address, (size_t)nbytes, write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) == 0)
            return 0;
        if (errno != EINTR && errno != EAGAIN)
            return -errno;
    }
}

static inline uint64_t shmpool_os_pid_namespace(void) {
    struct stat st;
    return stat("/proc/self/ns/pid", &st) == 0 ? (uint64_t)st.st_ino : 0;
}

/* A forked child shares our open file description, and with it our proof of life: it would keep a
 * dead parent alive, and an unlock by the child would kill a living one. So the child closes its
 * copies at once, in the fork handler, which may only do what a signal handler may: close(). It
 * never unlocks. */
#define SHMPOOL_OS_MAX_LOCK_FDS 1024
static int shmpool_os_lock_fds[SHMPOOL_OS_MAX_LOCK_FDS]; /* fd + 1; 0 is empty */
static uint32_t shmpool_os_forks;
static pthread_once_t shmpool_os_once = PTHREAD_ONCE_INIT;

static void shmpool_os_after_fork_in_child(void) {
    for (int i = 0; i < SHMPOOL_OS_MAX_LOCK_FDS; i++) {
        int fd = __atomic_exchange_n(&shmpool_os_lock_fds[i], 0, __ATOMIC_SEQ_CST) - 1;
        if (fd >= 0)
            close(fd);
    }
    __atomic_fetch_add(&shmpool_os_forks, 1, __ATOMIC_SEQ_CST);
}

static void shmpool_os_install_fork_handler(void) {
    pthread_atfork(NULL, NULL, shmpool_os_after_fork_in_child);
}

/* How often this process is a forked child of the one that loaded us; objects compare it with the
 * value at their birth. */
static inline uint32_t shmpool_os_fork_count(void) {
    return __atomic_load_n(&shmpool_os_forks, __ATOMIC_RELAXED);
}

/* Where that number is, for other modules of this process. */
static inline const uint32_t *shmpool_os_fork_counter(void) { return &shmpool_os_forks; }

/* Register a lock descriptor for closing in forked children. -EMFILE when the table is full. */
static inline int shmpool_os_watch_fork(int fd) {
    pthread_once(&shmpool_os_once, shmpool_os_install_fork_handler);
    for (int i = 0; i < SHMPOOL_OS_MAX_LOCK_FDS; i++) {
        int empty = 0;
        if (__atomic_compare_exchange_n(&shmpool_os_lock_fds[i], &empty, fd + 1, 0,
                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return 0;
    }
    return -EMFILE;
}

static inline void shmpool_os_unwatch_fork(int fd) {
    for (int i = 0; i < SHMPOOL_OS_MAX_LOCK_FDS; i++) {
        int mine = fd + 1;
        if (__atomic_compare_exchange_n(&shmpool_os_lock_fds[i], &mine, 0, 0, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST))
            return;
    }
}

#endif
