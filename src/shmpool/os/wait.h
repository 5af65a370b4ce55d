/* SPDX-License-Identifier: BSD-3-Clause */
/* The part of os.h that has no state: clock, wait, wake, yield. Any translation unit may include
 * it. */
#ifndef SHMPOOL_OS_WAIT_H
#define SHMPOOL_OS_WAIT_H

#ifdef _WIN32
#error "shmpool: the Windows implementation of wait.h is not written yet"
#else
#include "linux_wait.h"
#endif

#endif
