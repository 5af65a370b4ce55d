/* SPDX-License-Identifier: BSD-3-Clause */
/* Everything the pool asks of an operating system: map, lock, reserve, populate, wait, wake, fork.
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

#ifdef _WIN32
#error "shmpool: the Windows implementation of os.h is not written yet"
#else
#include "linux.h"
#endif

#endif
