/* SPDX-License-Identifier: BSD-3-Clause */
/* What the module `_core` lends to the module `_channel` of the same build, in a capsule. */
#ifndef SHMPOOL_BRIDGE_H
#define SHMPOOL_BRIDGE_H

#include "layout.h"

#define SHMPOOL_BRIDGE_NAME "shmpool._core.bridge"

typedef struct {
    const shmpool_t *pool;
    const uint32_t *forks; /* how often this process is a forked child; compare with `born` */
    uint32_t born;
    const int *closed; /* whether the pool object was closed */
} shmpool_bridge_t;

#endif
