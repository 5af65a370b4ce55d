/* SPDX-License-Identifier: BSD-3-Clause */
/* os.h for Windows. Not called windows.h: that name is taken, and Microsoft's compiler looks for it
 * in the folders of the including files first.
 *
 * Descriptors are HANDLEs in an int: only 32 bits of them are significant, by Microsoft's promise
 * to programs of both widths.
 *
 * Share modes: users let others read and write, but not remove or rename. So a pool and its lock
 * file cannot be taken away from under them, and who means to remove them finds out. Who only looks
 * is in nobody's way. */
#ifndef SHMPOOL_OS_WIN32_H
#define SHMPOOL_OS_WIN32_H

#ifndef _WIN64
#error "shmpool needs a 64-bit system: pools are larger than 32-bit address spaces"
#endif

#include "win32_wait.h"

#include <errno.h>
#include <stdlib.h>

#include "win32_access.h"

/* What Python's errno module calls ELOOP and EDQUOT here; the C library has other numbers. */
#define SHMPOOL_OS_ELOOP 10062
#define SHMPOOL_OS_EDQUOT 10069

/* Filling page tables is no faster than faulting: there is no call for it. */
#define SHMPOOL_OS_POPULATE_MIN UINT64_MAX

#ifndef ERROR_DISK_QUOTA_EXCEEDED /* not in older mingw */
#define ERROR_DISK_QUOTA_EXCEEDED 1295L
#endif

static inline HANDLE shmpool_os_handle(int fd) { return (HANDLE)(intptr_t)fd; }

static inline int shmpool_os_code(DWORD code) {
    switch (code) {
    case ERROR_FILE_NOT_FOUND:
    case ERROR_PATH_NOT_FOUND:
    case ERROR_INVALID_NAME:
    case ERROR_INVALID_DRIVE:
    case ERROR_BAD_NETPATH:
    case ERROR_BAD_NET_NAME:
    case ERROR_BAD_PATHNAME:
    case ERROR_FILENAME_EXCED_RANGE:
        return -ENOENT;
    case ERROR_ACCESS_DENIED:
    case ERROR_PRIVILEGE_NOT_HELD:
        return -EACCES;
    case ERROR_WRITE_PROTECT:
        return -EROFS;
    case ERROR_SHARING_VIOLATION:
    case ERROR_LOCK_VIOLATION:
    case ERROR_DELETE_PENDING:
    case ERROR_USER_MAPPED_FILE:
        return -EBUSY;
    case ERROR_DISK_FULL:
    case ERROR_HANDLE_DISK_FULL:
        return -ENOSPC;
    case ERROR_DISK_QUOTA_EXCEEDED:
        return -SHMPOOL_OS_EDQUOT;
    case ERROR_FILE_TOO_LARGE:
        return -EFBIG;
    case ERROR_NOT_ENOUGH_MEMORY:
    case ERROR_OUTOFMEMORY:
    case ERROR_COMMITMENT_LIMIT:
    case ERROR_NO_SYSTEM_RESOURCES:
        return -ENOMEM;
    case ERROR_INVALID_HANDLE:
        return -EBADF;
    case ERROR_INVALID_FUNCTION:
    case ERROR_NOT_SUPPORTED:
    case ERROR_CALL_NOT_IMPLEMENTED:
        return -ENOSYS;
    default:
        return -EIO;
    }
}

static inline int shmpool_os_error(void) { return shmpool_os_code(GetLastError()); }

/* A file that somebody is removing at this moment says "access denied", as one that is not ours
 * does; the kernel's own code tells the two apart. */
static inline int shmpool_os_is_going(void) {
    typedef LONG(WINAPI * last_status_t)(void);
    HMODULE ntdll = GetModuleHandleW(L"ntdll.dll");
    FARPROC found = ntdll == NULL ? NULL : GetProcAddress(ntdll, "RtlGetLastNtStatus");
    const LONG delete_pending = (LONG)0xC0000056;
    return found != NULL && ((last_status_t)(void (*)(void))found)() == delete_pending;
}

/* Wide text of a path given in UTF-8, to be freed; NULL if it is none. */
static inline wchar_t *shmpool_os_widen(const char *path) {
    /* No MB_ERR_INVALID_CHARS: a lone surrogate in a name becomes one that does not exist */
    int n = MultiByteToWideChar(CP_UTF8, 0, path, -1, NULL, 0);
    wchar_t *wide = n > 0 ? (wchar_t *)malloc((size_t)n * sizeof(wchar_t)) : NULL;
    if (wide != NULL)
        MultiByteToWideChar(CP_UTF8, 0, path, -1, wide, n);
    return wide;
}

static inline int shmpool_os_open(const char *path, int how) {
    wchar_t *wide = shmpool_os_widen(path);
    if (wide == NULL)
        return -ENOMEM;
    shmpool_os_security_t mine = {0};
    int rc = how == SHMPOOL_OPEN_CREATE ? shmpool_os_mine_alone(&mine) : 0;
    if (rc < 0) {
        free(wide);
        return rc;
    }
    DWORD access = how == SHMPOOL_OPEN_READ ? GENERIC_READ : GENERIC_READ | GENERIC_WRITE;
    DWORD share = FILE_SHARE_READ | FILE_SHARE_WRITE;
    HANDLE file = CreateFileW(
        wide, how == SHMPOOL_OPEN_REMOVE ? access | DELETE : access,
        how == SHMPOOL_OPEN_READ ? share | FILE_SHARE_DELETE : share,
        how == SHMPOOL_OPEN_CREATE ? &mine.attributes : NULL,
        how == SHMPOOL_OPEN_CREATE ? OPEN_ALWAYS : OPEN_EXISTING,
        /* TEMPORARY: keep it in memory while there is some. REPARSE_POINT: do not follow links. */
        FILE_ATTRIBUTE_TEMPORARY | FILE_ATTRIBUTE_NOT_CONTENT_INDEXED |
            FILE_FLAG_OPEN_REPARSE_POINT,
        NULL);
    rc = file != INVALID_HANDLE_VALUE                                     ? 0
         : GetLastError() == ERROR_ACCESS_DENIED && shmpool_os_is_going() ? -EBUSY
                                                                          : shmpool_os_error();
    shmpool_os_forget_security(&mine);
    free(wide);
    if (rc < 0)
        return rc;
    BY_HANDLE_FILE_INFORMATION found;
    if (GetFileType(file) != FILE_TYPE_DISK)
        rc = -ENXIO; /* NUL, CON, a pipe */
    else if (!GetFileInformationByHandle(file, &found))
        rc = shmpool_os_error();
    else if (found.dwFileAttributes & FILE_ATTRIBUTE_REPARSE_POINT)
        rc = -SHMPOOL_OS_ELOOP;
    if (rc < 0) {
        CloseHandle(file);
        return rc;
    }
    return (int)(intptr_t)file;
}

/* Remove a file that was opened with SHMPOOL_OPEN_REMOVE: its name goes with this handle. */
static inline int shmpool_os_remove(int fd, const char *path) {
    (void)path;
    FILE_DISPOSITION_INFO going = {TRUE};
    return SetFileInformationByHandle(shmpool_os_handle(fd), FileDispositionInfo, &going,
                                      sizeof going)
               ? 0
               : shmpool_os_error();
}

static inline OVERLAPPED shmpool_os_at(uint64_t offset) {
    OVERLAPPED at;
    memset(&at, 0, sizeof at);
    at.Offset = (DWORD)offset;
    at.OffsetHigh = (DWORD)(offset >> 32);
    return at;
}

#define SHMPOOL_OS_PIECE ((uint64_t)1 << 20)

/* Bytes read, fewer only at the end of the file. */
static inline int64_t shmpool_os_read(int fd, void *data, uint64_t nbytes, uint64_t offset) {
    uint64_t done = 0;
    while (done < nbytes) {
        OVERLAPPED at = shmpool_os_at(offset + done);
        DWORD n = 0;
        uint64_t piece = nbytes - done < SHMPOOL_OS_PIECE ? nbytes - done : SHMPOOL_OS_PIECE;
        if (!ReadFile(shmpool_os_handle(fd), (char *)data + done, (DWORD)piece, &n, &at) &&
            GetLastError() != ERROR_HANDLE_EOF)
            return shmpool_os_error();
        if (n == 0)
            break;
        done += n;
    }
    return (int64_t)done;
}

static inline int shmpool_os_write(int fd, const void *data, uint64_t nbytes, uint64_t offset) {
    uint64_t done = 0;
    while (done < nbytes) {
        OVERLAPPED at = shmpool_os_at(offset + done);
        DWORD n = 0;
        uint64_t piece = nbytes - done < SHMPOOL_OS_PIECE ? nbytes - done : SHMPOOL_OS_PIECE;
        if (!WriteFile(shmpool_os_handle(fd), (const char *)data + done, (DWORD)piece, &n, &at))
            return shmpool_os_error();
        if (n == 0)
            return -ENOSPC;
        done += n;
    }
    return 0;
}

static inline int shmpool_os_resize(int fd, uint64_t nbytes) {
    FILE_END_OF_FILE_INFO end;
    end.EndOfFile.QuadPart = (LONGLONG)nbytes;
    return SetFileInformationByHandle(shmpool_os_handle(fd), FileEndOfFileInfo, &end, sizeof end)
               ? 0
               : shmpool_os_error();
}

static inline int64_t shmpool_os_size(int fd) {
    LARGE_INTEGER size;
    return GetFileSizeEx(shmpool_os_handle(fd), &size) ? size.QuadPart : shmpool_os_error();
}

/* Lock or unlock one byte of an open file, without waiting. Locks belong to the handle, as those of
 * Linux belong to the open file description; but they do not convert (shmpool_os_downgrade). */
static inline int shmpool_os_lock(int fd, int64_t byte, int mode) {
    OVERLAPPED at = shmpool_os_at((uint64_t)byte);
    if (mode == SHMPOOL_LOCK_NONE)
        return UnlockFileEx(shmpool_os_handle(fd), 0, 1, 0, &at) ||
                       GetLastError() == ERROR_NOT_LOCKED
                   ? 0
                   : shmpool_os_error();
    DWORD flags = LOCKFILE_FAIL_IMMEDIATELY;
    if (mode == SHMPOOL_LOCK_EXCLUSIVE)
        flags |= LOCKFILE_EXCLUSIVE_LOCK;
    if (LockFileEx(shmpool_os_handle(fd), flags, 0, 1, 0, &at))
        return 0;
    DWORD code = GetLastError();
    return code == ERROR_LOCK_VIOLATION || code == ERROR_IO_PENDING ? SHMPOOL_OS_REFUSED
                                                                    : shmpool_os_code(code);
}

/* From exclusive to shared, with no moment in between: a handle may add a shared lock to its own
 * exclusive one, and the first unlock of the two takes the exclusive one away. */
static inline int shmpool_os_downgrade(int fd, int64_t byte) {
    int rc = shmpool_os_lock(fd, byte, SHMPOOL_LOCK_SHARED);
    return rc == 0 ? shmpool_os_lock(fd, byte, SHMPOOL_LOCK_NONE) : rc;
}

/* 1 if somebody else holds the byte, exclusively or in any way. There is no way to ask but to try:
 * the lock is held for a moment, which callers of shmpool_os_lock must expect. */
static inline int shmpool_os_is_locked(int fd, int64_t byte, int exclusively) {
    int rc = shmpool_os_lock(fd, byte, exclusively ? SHMPOOL_LOCK_SHARED : SHMPOOL_LOCK_EXCLUSIVE);
    if (rc == 0)
        rc = shmpool_os_lock(fd, byte, SHMPOOL_LOCK_NONE);
    return rc;
}

static inline int shmpool_os_is_backed(int fd) {
    FILE_STANDARD_INFO info;
    return GetFileInformationByHandleEx(shmpool_os_handle(fd), FileStandardInfo, &info,
                                        sizeof info) &&
           info.AllocationSize.QuadPart >= info.EndOfFile.QuadPart;
}

/* NTFS gives a file that is not sparse all of its clusters when it is sized, or fails then: there
 * is nothing left to reserve. Elsewhere (a compressed folder, wine) zeros are written, which only
 * the owner of the range may do. */
static inline int shmpool_os_reserve(int fd, uint64_t offset, uint64_t nbytes) {
    static const char zeros[1 << 16];
    if (shmpool_os_is_backed(fd))
        return 0;
    for (uint64_t done = 0; done < nbytes; done += sizeof zeros) {
        uint64_t piece = nbytes - done < sizeof zeros ? nbytes - done : sizeof zeros;
        int rc = shmpool_os_write(fd, zeros, piece, offset + done);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* What a new pool file needs memory for at once: all, so that later reservations find it there. */
static inline uint64_t shmpool_os_first_reservation(uint64_t table_nbytes, uint64_t file_nbytes) {
    (void)table_nbytes;
    return file_nbytes;
}

static inline int shmpool_os_map(int fd, uint64_t nbytes, void **base) {
    HANDLE section = CreateFileMappingW(shmpool_os_handle(fd), NULL, PAGE_READWRITE, 0, 0, NULL);
    if (section == NULL)
        return shmpool_os_error();
    *base = MapViewOfFile(section, FILE_MAP_READ | FILE_MAP_WRITE, 0, 0, (SIZE_T)nbytes);
    int rc = *base == NULL ? shmpool_os_error() : 0;
    CloseHandle(section); /* the view keeps it */
    return rc;
}

static inline void shmpool_os_unmap(void *base, uint64_t nbytes) {
    (void)nbytes;
    UnmapViewOfFile(base);
}

/* Have the pages of a range in memory and in this process's page tables, by touching them: for the
 * background thread. Contents are not changed, whoever may be writing there. */
static inline int shmpool_os_populate(void *address, uint64_t nbytes, int write) {
    for (uint64_t at = 0; at < nbytes; at += 4096) {
        uint32_t *word = (uint32_t *)((char *)address + at);
        if (write)
            shmpool_add32(word, 0);
        else
            shmpool_load32(word);
    }
    return 0;
}

/* For people: tells a process id of Windows from those of the Linux beside it. "WIN" */
static inline uint64_t shmpool_os_pid_namespace(void) { return 0x57494e; }

typedef struct {
    uint64_t device;
    uint8_t id[16];
} shmpool_os_file_t;

static inline int shmpool_os_identify(int fd, shmpool_os_file_t *file) {
    FILE_ID_INFO info;
    if (!GetFileInformationByHandleEx(shmpool_os_handle(fd), FileIdInfo, &info, sizeof info))
        return shmpool_os_error();
    file->device = info.VolumeSerialNumber;
    memcpy(file->id, &info.FileId, sizeof file->id);
    return 0;
}

static inline int shmpool_os_names(int fd, const shmpool_os_file_t *file) {
    shmpool_os_file_t found;
    return shmpool_os_identify(fd, &found) == 0 && found.device == file->device &&
           memcmp(found.id, file->id, sizeof found.id) == 0;
}

/* There is no fork, and handles are not inherited: nothing has to be closed in children. */
static const uint32_t shmpool_os_forks = 0;
static inline uint32_t shmpool_os_fork_count(void) { return 0; }
static inline const uint32_t *shmpool_os_fork_counter(void) { return &shmpool_os_forks; }

static inline int64_t shmpool_os_own(int fd) {
    (void)fd;
    return 1;
}

static inline int shmpool_os_owns(int fd, int64_t ticket) {
    (void)fd;
    return ticket == 1;
}

static inline void shmpool_os_close(int fd, int64_t ticket, const shmpool_os_file_t *file) {
    if (ticket == 1 && shmpool_os_names(fd, file))
        CloseHandle(shmpool_os_handle(fd));
}

/* A handle of its own of a lock file, provided that the path still names that very file; -ENOENT if
 * not. Cleaners work through one: it shares no lock with the process's proof of life. */
static inline int shmpool_os_open_again(const char *path, const shmpool_os_file_t *file) {
    int fd = shmpool_os_open(path, SHMPOOL_OPEN_WRITE);
    if (fd >= 0 && !shmpool_os_names(fd, file)) {
        CloseHandle(shmpool_os_handle(fd));
        return -ENOENT;
    }
    return fd;
}

/* Bytes that the volume of a file can still give; UINT64_MAX where the file has all it needs. */
static inline uint64_t shmpool_os_available(int fd) {
    uint64_t result = UINT64_MAX;
    if (shmpool_os_is_backed(fd))
        return result;
    DWORD length = GetFinalPathNameByHandleW(shmpool_os_handle(fd), NULL, 0, FILE_NAME_NORMALIZED);
    wchar_t *path = (wchar_t *)malloc(((size_t)length + 1) * sizeof(wchar_t));
    if (path == NULL || length == 0 ||
        GetFinalPathNameByHandleW(shmpool_os_handle(fd), path, length + 1, FILE_NAME_NORMALIZED) >
            length) {
        free(path);
        return result;
    }
    for (wchar_t *end = path + wcslen(path); end > path && end[-1] != L'\\'; end--)
        end[-1] = 0; /* the folder */
    ULARGE_INTEGER available;
    if (GetDiskFreeSpaceExW(path, &available, NULL, NULL))
        result = available.QuadPart;
    free(path);
    return result;
}

#endif
