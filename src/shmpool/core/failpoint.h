/* SPDX-License-Identifier: BSD-3-Clause */
/* Labelled places at which a test build may kill or stop its own process.
 *
 * Nothing in a normal build. With SHMPOOL_FAILPOINTS defined, the Python extension brings its own
 * shmpool_failpoint_hit() (failpoint_impl.h), any other including program supplies one; the tests
 * find the labels by searching the sources for the macro. */
#ifndef SHMPOOL_FAILPOINT_H
#define SHMPOOL_FAILPOINT_H

#ifdef SHMPOOL_FAILPOINTS
#ifdef Py_PYTHON_H
#include "failpoint_impl.h"
#else
void shmpool_failpoint_hit(const char *label);
#endif
#define SHMPOOL_FAILPOINT(label) shmpool_failpoint_hit(label)
#else
#define SHMPOOL_FAILPOINT(label) ((void)0)
#endif

#endif
