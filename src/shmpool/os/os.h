/* SPDX-License-Identifier: BSD-3-Clause */
/* Everything the pool asks of an operating system: files, locks, memory, waiting, fork.
 *
 * Results are 0 or a negative errno value; SHMPOOL_OS_REFUSED says that somebody else holds a lock.
 * One implementation per system, included here; the rest of the code knows this file only. */
#ifndef SHMPOOL_OS_H
#define SHMPOOL_OS_H

#include <stddef.h>
#include <stdint.h>

#define SHMPOOL_OS_REFUSED 1

#define SHMPOOL_LOCK_NONE 0
#define SHMPOOL_LOCK_SHARED 1
#define SHMPOOL_LOCK_EXCLUSIVE 2

/* How to open a file. None follows a link at the end of the path. */
#define SHMPOOL_OPEN_READ 0   /* to look at */
#define SHMPOOL_OPEN_WRITE 1  /* an existing one */
#define SHMPOOL_OPEN_CREATE 2 /* also one that is not there yet, for this user alone */
#define SHMPOOL_OPEN_REMOVE 3 /* an existing one, in order to remove it */

/* What shmpool_os_access() finds. */
#define SHMPOOL_ACCESS_PRIVATE 0
#define SHMPOOL_ACCESS_FOREIGN 1 /* it belongs to another user */
#define SHMPOOL_ACCESS_OPEN 2    /* others may read or write it */
#define SHMPOOL_ACCESS_NO_FILE 3 /* it is something else than a file */

#ifdef _WIN32
#include "win32.h"
#else
#include "linux.h"
#endif

#endif
