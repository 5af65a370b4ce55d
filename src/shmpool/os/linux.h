/* SPDX-License-Identifier: BSD-3-Clause */
/* os.h for Linux. Included by exactly one translation unit: it holds the fork bookkeeping. */
#ifndef SHMPOOL_OS_LINUX_H
#define SHMPOOL_OS_LINUX_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "linux_wait.h"

#ifndef F_OFD_SETLK
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

/* Filling page tables with one call is faster than faulting from this size on
 * (docs/performance-notes.md). */
#define SHMPOOL_OS_POPULATE_MIN ((uint64_t)256 << 10)

/* What a new pool file needs memory for at once: the rest is reserved claim by claim. */
static inline uint64_t shmpool_os_first_reservation(uint64_t table_nbytes, uint64_t file_nbytes) {
    (void)file_nbytes;
    return table_nbytes;
}

static inline int shmpool_os_open(const char *path, int how) {
    /* O_NONBLOCK: a FIFO that somebody only wants to look at is refused later, not waited for */
    int flags =
        O_CLOEXEC | O_NOFOLLOW | (how == SHMPOOL_OPEN_READ ? O_RDONLY | O_NONBLOCK : O_RDWR);
    for (;;) {
        int fd = open(path, flags | (how == SHMPOOL_OPEN_CREATE ? O_CREAT : 0), 0600);
        if (fd >= 0)
            return fd;
        if (errno != EINTR)
            return -errno;
    }
}

static inline int shmpool_os_access(int fd) {
    struct stat st;
    if (fstat(fd, &st) != 0)
        return -errno;
    return !S_ISREG(st.st_mode)      ? SHMPOOL_ACCESS_NO_FILE
           : st.st_uid != geteuid()  ? SHMPOOL_ACCESS_FOREIGN
           : (st.st_mode & 077) != 0 ? SHMPOOL_ACCESS_OPEN
                                     : SHMPOOL_ACCESS_PRIVATE;
}

/* Unlink a file that was opened with SHMPOOL_OPEN_REMOVE. */
static inline int shmpool_os_remove(int fd, const char *path) {
    (void)fd;
    return unlink(path) == 0 ? 0 : -errno;
}

/* Bytes read, fewer only at the end of the file. */
static inline int64_t shmpool_os_read(int fd, void *data, uint64_t nbytes, uint64_t offset) {
    uint64_t done = 0;
    while (done < nbytes) {
        ssize_t n = pread(fd, (char *)data + done, (size_t)(nbytes - done), (off_t)(offset + done));
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n == 0)
            break;
        if (n > 0)
            done += (uint64_t)n;
    }
    return (int64_t)done;
}

static inline int shmpool_os_write(int fd, const void *data, uint64_t nbytes, uint64_t offset) {
    uint64_t done = 0;
    while (done < nbytes) {
        ssize_t n =
            pwrite(fd, (const char *)data + done, (size_t)(nbytes - done), (off_t)(offset + done));
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0)
            done += (uint64_t)n;
    }
    return 0;
}

static inline int shmpool_os_resize(int fd, uint64_t nbytes) {
    while (ftruncate(fd, (off_t)nbytes) != 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

static inline int64_t shmpool_os_size(int fd) {
    struct stat st;
    return fstat(fd, &st) == 0 ? (int64_t)st.st_size : -errno;
}

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

/* From exclusive to shared, with no moment in between. */
static inline int shmpool_os_downgrade(int fd, int64_t byte) {
    return shmpool_os_lock(fd, byte, SHMPOOL_LOCK_SHARED);
}

/* 1 if somebody holds the byte, exclusively or in any way; asks only. */
static inline int shmpool_os_is_locked(int fd, int64_t byte, int exclusively) {
    struct flock lock = {0};
    lock.l_type = exclusively ? F_RDLCK : F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    return fcntl(fd, F_OFD_GETLK, &lock) == 0 ? lock.l_type != F_UNLCK : -errno;
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

/* Which file a descriptor names. Code that closes descriptors it does not own (os.closerange,
 * daemonisers) makes our numbers name other files; whoever is about to lock, reserve or close asks
 * first. */
typedef struct {
    uint64_t device;
    uint64_t inode;
} shmpool_os_file_t;

static inline int shmpool_os_identify(int fd, shmpool_os_file_t *file) {
    struct stat st;
    if (fstat(fd, &st) != 0)
        return -errno;
    file->device = (uint64_t)st.st_dev;
    file->inode = (uint64_t)st.st_ino;
    return 0;
}

static inline int shmpool_os_names(int fd, const shmpool_os_file_t *file) {
    shmpool_os_file_t found = {0, 0};
    return shmpool_os_identify(fd, &found) == 0 && found.device == file->device &&
           found.inode == file->inode;
}

/* A forked child shares our open file descriptions, and with them our proof of life: it would keep
 * a dead parent alive, and an unlock by the child would kill a living one. So the child closes its
 * copies at once, in the fork handler, which may only do what a signal handler may: close(). It
 * never unlocks.
 *
 * The table also tells two owners of one number apart: if a descriptor was closed behind its
 * owner's back and the number was handed out again, to another pool perhaps, the new registration
 * replaces the old one, and the old owner's ticket is void. Entries are changed under the GIL only;
 * atomics are for the fork handler, which may meet any state of another thread. */
#define SHMPOOL_OS_MAX_FDS 2048
static uint64_t shmpool_os_fds[SHMPOOL_OS_MAX_FDS]; /* ticket << 32 | fd + 1; 0 is empty */
static uint32_t shmpool_os_last_ticket;
static uint32_t shmpool_os_forks;
static pthread_once_t shmpool_os_once = PTHREAD_ONCE_INIT;

static void shmpool_os_after_fork_in_child(void) {
    for (int i = 0; i < SHMPOOL_OS_MAX_FDS; i++) {
        uint64_t entry = __atomic_exchange_n(&shmpool_os_fds[i], 0, __ATOMIC_SEQ_CST);
        if (entry != 0)
            close((int)(uint32_t)entry - 1);
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

/* Register a descriptor for closing in forked children; its ticket (> 0), or -EMFILE. */
static inline int64_t shmpool_os_own(int fd) {
    pthread_once(&shmpool_os_once, shmpool_os_install_fork_handler);
    int place = -1;
    for (int i = 0; i < SHMPOOL_OS_MAX_FDS; i++) {
        uint64_t entry = __atomic_load_n(&shmpool_os_fds[i], __ATOMIC_SEQ_CST);
        if ((uint32_t)entry == (uint32_t)fd + 1) {
            place = i;
            break;
        }
        if (entry == 0 && place < 0)
            place = i;
    }
    if (place < 0)
        return -EMFILE;
    if (++shmpool_os_last_ticket == 0)
        ++shmpool_os_last_ticket;
    __atomic_store_n(&shmpool_os_fds[place],
                     (uint64_t)shmpool_os_last_ticket << 32 | ((uint32_t)fd + 1), __ATOMIC_SEQ_CST);
    return shmpool_os_last_ticket;
}

static inline int shmpool_os_owns(int fd, int64_t ticket) {
    uint64_t wanted = (uint64_t)ticket << 32 | ((uint32_t)fd + 1);
    for (int i = 0; i < SHMPOOL_OS_MAX_FDS; i++)
        if (__atomic_load_n(&shmpool_os_fds[i], __ATOMIC_SEQ_CST) == wanted)
            return 1;
    return 0;
}

/* Close a registered descriptor, unless the number has become somebody else's. */
static inline void shmpool_os_close(int fd, int64_t ticket, const shmpool_os_file_t *file) {
    uint64_t wanted = (uint64_t)ticket << 32 | ((uint32_t)fd + 1);
    for (int i = 0; i < SHMPOOL_OS_MAX_FDS; i++)
        if (__atomic_compare_exchange_n(&shmpool_os_fds[i], &(uint64_t){wanted}, 0, 0,
                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
            if (shmpool_os_names(fd, file))
                close(fd);
            return;
        }
}

/* A description of its own of a lock file, provided that the path still names that very file;
 * -ENOENT if not. Cleaners work through one: it shares no lock with the process's proof of life,
 * other threads have their own, and closing it releases everything. */
static inline int shmpool_os_open_again(const char *path, const shmpool_os_file_t *file) {
    int fd = shmpool_os_open(path, SHMPOOL_OPEN_WRITE);
    if (fd >= 0 && !shmpool_os_names(fd, file)) {
        close(fd);
        return -ENOENT;
    }
    return fd;
}

/* Bytes that the file system of a descriptor can still give; UINT64_MAX where it has no limit. */
static inline uint64_t shmpool_os_available(int fd) {
    struct statvfs st;
    if (fstatvfs(fd, &st) != 0 || st.f_blocks == 0)
        return UINT64_MAX;
    return (uint64_t)st.f_bavail * st.f_frsize;
}

#endif
