/* SPDX-License-Identifier: BSD-3-Clause */
/* The part of os.h that has no state: clock, wait, wake, yield. Any translation unit may include
 * it.
 *
 * A word that processes wait on has a key, the same in all of them and different from those of
 * other words: where the system finds sleepers by address it is not used. */
#ifndef SHMPOOL_OS_WAIT_H
#define SHMPOOL_OS_WAIT_H

#ifdef _WIN32
#include "win32_wait.h"
#else
#include "linux_wait.h"
#endif

#endif
