/* SPDX-License-Identifier: BSD-3-Clause */
/* What a failpoint of a test build of the extension does. Never part of a normal build.
 *
 * SHMPOOL_FAILPOINT="label:action[:nth]" in the environment, read at every hit so that a test can
 * arm it late; at the nth hit (1 is the first) of that label, once: kill   SIGKILL stop   SIGSTOP;
 * goes on after SIGCONT exit   _exit(86) pause  sleep until a signal handler has run
 * On Windows kill and stop only: what ends or suspends a process from outside, done from inside.
 * SHMPOOL_FAILPOINT_LOG=path: append the label of every hit to that file. */
#ifndef SHMPOOL_FAILPOINT_IMPL_H
#define SHMPOOL_FAILPOINT_IMPL_H

#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <windows.h>

static void shmpool_failpoint_log(const char *log, const char *line, size_t nbytes) {
    HANDLE file = CreateFileA(log, FILE_APPEND_DATA, FILE_SHARE_READ | FILE_SHARE_WRITE, NULL,
                              OPEN_ALWAYS, FILE_ATTRIBUTE_NORMAL, NULL);
    DWORD n;
    if (file == INVALID_HANDLE_VALUE || !WriteFile(file, line, (DWORD)nbytes, &n, NULL))
        abort();
    CloseHandle(file);
}

static void shmpool_failpoint_act(const char *action) {
    typedef LONG(NTAPI * suspend_t)(HANDLE);
    FARPROC suspend = GetProcAddress(GetModuleHandleA("ntdll.dll"), "NtSuspendProcess");
    if (strncmp(action, "kill", 4) == 0)
        TerminateProcess(GetCurrentProcess(), 1);
    else if (strncmp(action, "stop", 4) == 0 && suspend != NULL)
        ((suspend_t)(void (*)(void))suspend)(GetCurrentProcess());
    else
        abort();
}

/* The environment as os.environ of Python changes it: this C library has a copy of its own. */
static const char *shmpool_failpoint_setting(const char *name, char *buffer, DWORD nbytes) {
    DWORD n = GetEnvironmentVariableA(name, buffer, nbytes);
    return n > 0 && n < nbytes ? buffer : NULL;
}
#else
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

static void shmpool_failpoint_log(const char *log, const char *line, size_t nbytes) {
    int fd = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, line, nbytes) < 0)
        abort();
    close(fd);
}

static void shmpool_failpoint_act(const char *action) {
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

static const char *shmpool_failpoint_setting(const char *name, char *buffer, size_t nbytes) {
    (void)buffer;
    (void)nbytes;
    return getenv(name);
}
#endif

static void shmpool_failpoint_hit(const char *label) {
    static unsigned long hits;
    static int done;
    char log_buffer[512], wanted_buffer[128];
    size_t n = strlen(label);
    const char *log =
        shmpool_failpoint_setting("SHMPOOL_FAILPOINT_LOG", log_buffer, sizeof log_buffer);
    if (log != NULL) {
        char line[128];
        size_t length = n < sizeof line - 1 ? n : sizeof line - 1;
        memcpy(line, label, length);
        line[length] = '\n';
        shmpool_failpoint_log(log, line, length + 1);
    }
    const char *wanted =
        shmpool_failpoint_setting("SHMPOOL_FAILPOINT", wanted_buffer, sizeof wanted_buffer);
    if (wanted == NULL || strncmp(wanted, label, n) != 0 || wanted[n] != ':')
        return;
    const char *action = wanted + n + 1;
    const char *nth = strchr(action, ':');
    unsigned long at = nth == NULL ? 1 : strtoul(nth + 1, NULL, 10);
    if (__atomic_add_fetch(&hits, 1, __ATOMIC_SEQ_CST) < at ||
        __atomic_exchange_n(&done, 1, __ATOMIC_SEQ_CST) != 0)
        return;
    shmpool_failpoint_act(action);
}

#endif
