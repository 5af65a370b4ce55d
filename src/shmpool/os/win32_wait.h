/* SPDX-License-Identifier: BSD-3-Clause */
/* wait.h for Windows: named events.
 *
 * WaitOnAddress knows its own process only. So who sleeps until a word leaves a value waits for an
 * event named after word and value, and who has changed the word sets the event of the value before
 * it, if there is such an event. An event is set once and never reset: the next value has another
 * one, and an event ends with its last user. Creating it comes before the last look at the word,
 * and changing the word before the search for the event, so one of the two sees the other.
 *
 * An event can be missed: by a waker that died or was overtaken by two others, where another user
 * made an object of that name first, and by processes of another kernel that share the file (wine
 * beside Linux). So nobody sleeps longer than 16 ms without a look at the word. */
#ifndef SHMPOOL_OS_WIN32_WAIT_H
#define SHMPOOL_OS_WIN32_WAIT_H

#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <stddef.h>
#include <stdint.h>
#include <windows.h>

#include "../core/atomic.h"

#define SHMPOOL_OS_LONGEST_NAP_MS 16

static inline uint64_t shmpool_os_monotonic_ns(void) {
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    uint64_t t = (uint64_t)ticks.QuadPart, f = (uint64_t)per_second.QuadPart;
    return t / f * 1000000000u + t % f * 1000000000u / f;
}

#define SHMPOOL_OS_EVENT_PREFIX L"Global\\shmpool-"
#define SHMPOOL_OS_EVENT_LENGTH (sizeof SHMPOOL_OS_EVENT_PREFIX / sizeof(wchar_t) - 1)

typedef wchar_t shmpool_os_event_t[SHMPOOL_OS_EVENT_LENGTH + 16 + 1 + 8 + 1];

/* "Global": the same user may run a service or a second session. */
static inline void shmpool_os_name_event(shmpool_os_event_t name, uint64_t key, uint32_t value) {
    static const wchar_t prefix[] = SHMPOOL_OS_EVENT_PREFIX;
    static const wchar_t digits[] = L"0123456789abcdef";
    wchar_t *at = name;
    for (const wchar_t *p = prefix; *p != 0; p++)
        *at++ = *p;
    for (int shift = 60; shift >= 0; shift -= 4)
        *at++ = digits[key >> shift & 15];
    *at++ = L'-';
    for (int shift = 28; shift >= 0; shift -= 4)
        *at++ = digits[value >> shift & 15];
    *at = 0;
}

/* Sleep until *word differs from `expected`, somebody wakes us, or the time is over. Returning
 * early is always allowed. */
static inline void shmpool_os_wait(uint32_t *word, uint32_t expected, uint64_t timeout_ns,
                                   uint64_t key) {
    shmpool_os_event_t name;
    shmpool_os_name_event(name, key, expected);
    HANDLE event = CreateEventW(NULL, TRUE, FALSE, name);
    uint64_t start = shmpool_os_monotonic_ns();
    DWORD nap = 1;
    while (shmpool_load32(word) == expected) {
        uint64_t gone = shmpool_os_monotonic_ns() - start;
        if (gone >= timeout_ns)
            break;
        uint64_t left_ms = (timeout_ns - gone + 999999u) / 1000000u;
        DWORD ms = left_ms < nap ? (DWORD)left_ms : nap;
        if (event == NULL)
            Sleep(ms);
        else if (WaitForSingleObject(event, ms) != WAIT_TIMEOUT)
            break;
        nap = nap * 2 < SHMPOOL_OS_LONGEST_NAP_MS ? nap * 2 : SHMPOOL_OS_LONGEST_NAP_MS;
    }
    if (event != NULL)
        CloseHandle(event);
}

/* The caller has just added to the word. Somebody else may have added again meanwhile: two steps
 * back cover that. */
static inline void shmpool_os_wake(uint32_t *word, uint64_t key) {
    uint32_t value = shmpool_load32(word);
    for (uint32_t back = 1; back <= 2; back++) {
        shmpool_os_event_t name;
        shmpool_os_name_event(name, key, value - back);
        HANDLE event = OpenEventW(EVENT_MODIFY_STATE, FALSE, name);
        if (event != NULL) {
            SetEvent(event);
            CloseHandle(event);
        }
    }
}

/* Let somebody else have this CPU for a moment. */
static inline void shmpool_os_yield(void) { SwitchToThread(); }

#endif
