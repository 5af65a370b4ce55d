/* SPDX-License-Identifier: BSD-3-Clause */
/* What a failpoint of a test build of the extension does. Never part of a normal build.
 *
 * SHMPOOL_FAILPOINT="label:action[:nth]" in the environment, read at every hit so that a test can
 * arm it late; at the nth hit (1 is the first) of that label, once: kill   SIGKILL stop   SIGSTOP;
 * goes on after SIGCONT exit   _exit(86) pause  sleep until a signal handler has run
 * SHMPOOL_FAILPOINT_LOG=path: append the label of every hit to that file. */
#ifndef SHMPOOL_FAILPOINT_IMPL_H
#define SHMPOOL_FAILPOINT_IMPL_H

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void shmpool_failpoint_hit(const char *label) {
    static unsigned long hits;
    static int done;
    size_t n = strlen(label);
    const char *log = getenv("SHMPOOL_FAILPOINT_LOG");
    if (log != NULL) {
        int fd = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        char line[128];
        size_t length = n < sizeof line - 1 ? n : sizeof line - 1;
        memcpy(line, label, length);
        line[length] = '\n';
        if (fd < 0 || write(fd, line, length + 1) < 0)
            abort();
        close(fd);
    }
    const char *wanted = getenv("SHMPOOL_FAILPOINT");
    if (wanted == NULL || strncmp(wanted, label, n) != 0 || wanted[n] != ':')
        return;
    const char *action = wanted + n + 1;
    const char *nth = strchr(action, ':');
    unsigned long at = nth == NULL ? 1 : strtoul(nth + 1, NULL, 10);
    if (__atomic_add_fetch(&hits, 1, __ATOMIC_SEQ_CST) < at ||
        __atomic_exchange_n(&done, 1, __ATOMIC_SEQ_CST) != 0)
        return;
    /* raise(): the signal goes to this very thread, so it does not take one step more */
    if (strncmp(action, "kill", 4) == 0)
        raise(SIGKILL);
    else if (strncmp(action, "stop", 4) == 0)
        raise(SIGSTOP);
    else if (strncmp(action, "exit", 4) == 0)
        _exit(86);
    else if (strncmp(action, "pause", 5) == 0)
        pause();
    else
        abort();
}

#endif
