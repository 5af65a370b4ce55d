/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy engine of pool.put: moves one array into a shared mapping as fast as memory allows.
 *
 * Plain C11, no Python, no I/O, no mutable globals. The includer must define _GNU_SOURCE before its
 * first system header on Linux, because the CPU affinity calls hide behind it; without it the copy
 * still works, but counts CPUs that it may not use.
 *
 * The measurements behind every figure below are in docs/performance-notes.md.
 */
#ifndef SHMPOOL_COPY_H
#define SHMPOOL_COPY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if (defined(__x86_64__) && defined(__GNUC__)) || (defined(_MSC_VER) && defined(_M_X64))
#define SHMPOOL_COPY_X86 1
#include <immintrin.h>
#else
#define SHMPOOL_COPY_X86 0
#endif

/* Wide vectors stay off on Windows: GCC spills 32 and 64 byte vectors to a stack that the Win64 ABI
 * aligns to 16 bytes only (GCC bug 54412), which faults. SSE2 streams measure the same anyway. */
#if SHMPOOL_COPY_X86 && !defined(_WIN32)
#define SHMPOOL_COPY_X86_WIDE 1
#else
#define SHMPOOL_COPY_X86_WIDE 0
#endif

#if defined(_WIN32)
#define SHMPOOL_COPY_THREADS 1
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#elif defined(__GNUC__)
#define SHMPOOL_COPY_THREADS 1
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>
#else
#define SHMPOOL_COPY_THREADS 0
#endif

/* Below this a plain copy wins as long as it fits the last level cache, and it leaves its result
 * there for the reader that is told next; streaming pushes it out to memory. Break-even measured
 * between 6 and 8 MiB with 32 MiB of cache. */
#ifndef SHMPOOL_COPY_STREAM_MIN
#define SHMPOOL_COPY_STREAM_MIN ((size_t)8 << 20)
#endif

/* Below this, starting a thread costs about what its share of the copy saves: at 8 MiB two threads
 * measured slower than one, at 12 to 16 MiB even or better, from 32 MiB on clearly better. */
#ifndef SHMPOOL_COPY_THREAD_MIN
#define SHMPOOL_COPY_THREAD_MIN ((size_t)16 << 20)
#endif

/* Threads claim work in pieces of this size instead of fixed halves, because a fresh thread can
 * start milliseconds late or lose its CPU: whoever runs takes what is left, and nobody waits for
 * more than one piece. 256 KiB to 16 MiB measure alike, 64 KiB and less slower. */
#ifndef SHMPOOL_COPY_CHUNK
#define SHMPOOL_COPY_CHUNK ((size_t)1 << 20)
#endif

/* Not measured beyond two: there the second thread already meets the limit of the memory, and each
 * further one takes a CPU from the user for less. */
#ifndef SHMPOOL_COPY_MAX_THREADS
#define SHMPOOL_COPY_MAX_THREADS 4
#endif

/* How far ahead of the loads to prefetch: far enough to cover a DRAM access. The hardware does not
 * look across a page border, so this is what keeps loads busy there. 1 to 8 KiB measure alike. */
#ifndef SHMPOOL_COPY_PREFETCH
#define SHMPOOL_COPY_PREFETCH 2048
#endif

/* Which kernel moves the bytes. Anything but AUTO is for tests and benchmarks: it also ignores the
 * size thresholds, so that every path can be driven with small buffers. */
enum shmpool_copy_isa {
    SHMPOOL_COPY_AUTO,
    SHMPOOL_COPY_PLAIN,
    SHMPOOL_COPY_SSE2,
    SHMPOOL_COPY_AVX2,
    SHMPOOL_COPY_AVX512,
};

/* Largest vector of any kernel: all of them want whole cache lines, which is the same number. */
#define SHMPOOL_COPY_ALIGN 64

typedef void shmpool_copy_kernel(unsigned char *dst, const unsigned char *src, size_t nbytes);

static inline void shmpool_copy_plain(unsigned char *dst, const unsigned char *src, size_t nbytes) {
    memcpy(dst, src, nbytes);
}

#if SHMPOOL_COPY_X86

/*
 * The streaming kernels. dst is aligned to SHMPOOL_COPY_ALIGN; nbytes is anything.
 *
 * Why each one ends in a store fence: streaming stores are weakly ordered on x86. They wait in
 * write-combining buffers and may become visible after later ordinary stores of the same CPU, and
 * the release store that publishes a sealed block compiles to such an ordinary store. Without the
 * fence a reader could see the seal and then stale bytes. The fence orders the stores of the CPU
 * that executes it only, so it belongs to each thread's part and not to the thread that joins them.
 *
 * Four cache lines per turn, loads before stores: sixteen measured slower by half, and eight no
 * better. Prefetching stops early so that no address past the end of src is ever formed.
 */
#define SHMPOOL_COPY_DEFINE_STREAM(name, attr, vec, load, store)                                   \
    attr static inline void name(unsigned char *dst, const unsigned char *src, size_t nbytes) {    \
        const size_t turn = 4 * SHMPOOL_COPY_ALIGN;                                                \
        const size_t step = sizeof(vec);                                                           \
        for (; nbytes >= turn; nbytes -= turn, dst += turn, src += turn) {                         \
            if (nbytes >= SHMPOOL_COPY_PREFETCH + turn) {                                          \
                const char *ahead = (const char *)src + SHMPOOL_COPY_PREFETCH;                     \
                _mm_prefetch(ahead, _MM_HINT_NTA);                                                 \
                _mm_prefetch(ahead + 64, _MM_HINT_NTA);                                            \
                _mm_prefetch(ahead + 128, _MM_HINT_NTA);                                           \
                _mm_prefetch(ahead + 192, _MM_HINT_NTA);                                           \
            }                                                                                      \
            for (size_t at = 0; at < turn; at += 4 * step) {                                       \
                const vec a = load((const vec *)(const void *)(src + at));                         \
                const vec b = load((const vec *)(const void *)(src + at + step));                  \
                const vec c = load((const vec *)(const void *)(src + at + 2 * step));              \
                const vec d = load((const vec *)(const void *)(src + at + 3 * step));              \
                store((vec *)(void *)(dst + at), a);                                               \
                store((vec *)(void *)(dst + at + step), b);                                        \
                store((vec *)(void *)(dst + at + 2 * step), c);                                    \
                store((vec *)(void *)(dst + at + 3 * step), d);                                    \
            }                                                                                      \
        }                                                                                          \
        memcpy(dst, src, nbytes);                                                                  \
        _mm_sfence();                                                                              \
    }

SHMPOOL_COPY_DEFINE_STREAM(shmpool_copy_sse2, , __m128i, _mm_loadu_si128, _mm_stream_si128)

#if SHMPOOL_COPY_X86_WIDE
SHMPOOL_COPY_DEFINE_STREAM(shmpool_copy_avx2, __attribute__((target("avx2"))), __m256i,
                           _mm256_loadu_si256, _mm256_stream_si256)
SHMPOOL_COPY_DEFINE_STREAM(shmpool_copy_avx512, __attribute__((target("avx512f"))), __m512i,
                           _mm512_loadu_si512, _mm512_stream_si512)
#endif
#endif /* SHMPOOL_COPY_X86 */

/* NULL where this build or this CPU has no such kernel. */
static inline shmpool_copy_kernel *shmpool_copy_find_kernel(enum shmpool_copy_isa isa) {
    switch (isa) {
#if SHMPOOL_COPY_X86_WIDE
    case SHMPOOL_COPY_AVX512:
        return __builtin_cpu_supports("avx512f") ? shmpool_copy_avx512 : NULL;
    case SHMPOOL_COPY_AVX2:
        return __builtin_cpu_supports("avx2") ? shmpool_copy_avx2 : NULL;
#endif
#if SHMPOOL_COPY_X86
    case SHMPOOL_COPY_SSE2:
        return shmpool_copy_sse2;
#endif
    case SHMPOOL_COPY_PLAIN:
        return shmpool_copy_plain;
    case SHMPOOL_COPY_AUTO:
        for (int pick = SHMPOOL_COPY_AVX512; pick > SHMPOOL_COPY_AUTO; pick--) {
            shmpool_copy_kernel *kernel = shmpool_copy_find_kernel((enum shmpool_copy_isa)pick);
            if (kernel != NULL) {
                return kernel;
            }
        }
        return shmpool_copy_plain;
    default:
        return NULL;
    }
}

#if SHMPOOL_COPY_THREADS

/* CPU_COUNT stands for the whole family: it exists where sched_getaffinity was declared. */
#if defined(__linux__) && defined(CPU_COUNT)
#define SHMPOOL_COPY_AFFINITY 1
#else
#define SHMPOOL_COPY_AFFINITY 0
#endif

/* musl can count CPUs but not place a thread before it starts. */
#if SHMPOOL_COPY_AFFINITY && defined(__GLIBC__)
#define SHMPOOL_COPY_PLACEMENT 1
#else
#define SHMPOOL_COPY_PLACEMENT 0
#endif

struct shmpool_copy_work {
    unsigned char *dst;
    const unsigned char *src;
    size_t nbytes;
    size_t claimed;
    shmpool_copy_kernel *kernel;
#if SHMPOOL_COPY_PLACEMENT
    cpu_set_t usable;
    int is_placed;
#endif
};

static inline void shmpool_copy_share(struct shmpool_copy_work *work) {
    for (;;) {
        /* Relaxed is enough: only the claim has to be unique, and joining orders the data. */
#if defined(_WIN32)
        const size_t at = (size_t)InterlockedExchangeAdd64((volatile LONG64 *)&work->claimed,
                                                           (LONG64)SHMPOOL_COPY_CHUNK);
#else
        const size_t at = __atomic_fetch_add(&work->claimed, SHMPOOL_COPY_CHUNK, __ATOMIC_RELAXED);
#endif
        if (at >= work->nbytes) {
            return;
        }
        const size_t left = work->nbytes - at;
        work->kernel(work->dst + at, work->src + at,
                     left < SHMPOOL_COPY_CHUNK ? left : SHMPOOL_COPY_CHUNK);
    }
}

#if defined(_WIN32)
static DWORD WINAPI shmpool_copy_helper(void *arg) {
    shmpool_copy_share((struct shmpool_copy_work *)arg);
    return 0;
}

static inline int shmpool_copy_count_cpus(void) {
    DWORD_PTR usable = 0, all = 0;
    int n = 0;
    if (GetProcessAffinityMask(GetCurrentProcess(), &usable, &all))
        for (; usable != 0; usable &= usable - 1)
            n++;
    return n > 0 && n < SHMPOOL_COPY_MAX_THREADS ? n : SHMPOOL_COPY_MAX_THREADS;
}

static inline void shmpool_copy_threaded(struct shmpool_copy_work *work, int n_threads) {
    HANDLE helpers[SHMPOOL_COPY_MAX_THREADS];
    int started = 0;
    while (started < n_threads - 1 &&
           (helpers[started] = CreateThread(NULL, 1 << 16, shmpool_copy_helper, work, 0, NULL)) !=
               NULL)
        started++;
    shmpool_copy_share(work);
    while (started > 0) {
        (void)WaitForSingleObject(helpers[--started], INFINITE);
        (void)CloseHandle(helpers[started]);
    }
}
#else
static inline void *shmpool_copy_helper(void *arg) {
    struct shmpool_copy_work *work = (struct shmpool_copy_work *)arg;
#if SHMPOOL_COPY_PLACEMENT
    if (work->is_placed) {
        /* Being kept off one CPU was only meant for the start; from here the scheduler decides. */
        (void)sched_setaffinity(0, sizeof(work->usable), &work->usable);
    }
#endif
    shmpool_copy_share(work);
    return NULL;
}

/* CPUs this thread may use, asked anew each time because affinity can change while we run. */
static inline int shmpool_copy_count_cpus(void) {
#if SHMPOOL_COPY_AFFINITY
    cpu_set_t usable;
    if (sched_getaffinity(0, sizeof(usable), &usable) == 0) {
        return CPU_COUNT(&usable);
    }
#endif
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 && online < SHMPOOL_COPY_MAX_THREADS ? (int)online : SHMPOOL_COPY_MAX_THREADS;
}

#if SHMPOOL_COPY_PLACEMENT
/* The kernel tends to start a thread on the CPU of its creator, where it waits for milliseconds
 * behind the very copy that it should share. Ask for any other CPU. */
static inline void shmpool_copy_place(struct shmpool_copy_work *work, pthread_attr_t *attr) {
    const int here = sched_getcpu();
    cpu_set_t others;
    if (here < 0 || here >= CPU_SETSIZE ||
        sched_getaffinity(0, sizeof(work->usable), &work->usable) != 0) {
        return;
    }
    others = work->usable;
    CPU_CLR((size_t)here, &others);
    work->is_placed =
        CPU_COUNT(&others) > 0 && pthread_attr_setaffinity_np(attr, sizeof(others), &others) == 0;
}
#endif

/*
 * Threads live for one copy: a standing pool of them would have to survive fork, interpreter
 * shutdown and signals, and starting one costs microseconds against milliseconds of copying.
 */
static inline void shmpool_copy_threaded(struct shmpool_copy_work *work, int n_threads) {
    pthread_t helpers[SHMPOOL_COPY_MAX_THREADS];
    int started = 0;
    pthread_attr_t attr;
    sigset_t all, before;

    if (n_threads <= 1 || pthread_attr_init(&attr) != 0) {
        shmpool_copy_share(work);
        return;
    }
#if SHMPOOL_COPY_PLACEMENT
    shmpool_copy_place(work, &attr);
#endif
    /* Helpers inherit this mask. A signal delivered to one of them would run the handler on a
     * thread that Python does not know and leave the main thread's system calls uninterrupted. */
    sigfillset(&all);
    if (pthread_sigmask(SIG_SETMASK, &all, &before) == 0) {
        while (started < n_threads - 1 &&
               pthread_create(&helpers[started], &attr, shmpool_copy_helper, work) == 0) {
            started++;
        }
        (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    (void)pthread_attr_destroy(&attr);
    shmpool_copy_share(work);
    while (started > 0) {
        (void)pthread_join(helpers[--started], NULL);
    }
}
#endif /* _WIN32 */
#endif /* SHMPOOL_COPY_THREADS */

static inline void shmpool_copy_bulk(unsigned char *dst, const unsigned char *src, size_t nbytes,
                                     int n_threads, shmpool_copy_kernel *kernel) {
    size_t head = (SHMPOOL_COPY_ALIGN - (uintptr_t)dst % SHMPOOL_COPY_ALIGN) % SHMPOOL_COPY_ALIGN;
    if (head > nbytes) {
        head = nbytes;
    }
    memcpy(dst, src, head);
    dst += head;
    src += head;
    nbytes -= head;
#if SHMPOOL_COPY_THREADS
    if (n_threads != 1 && nbytes > SHMPOOL_COPY_CHUNK) {
        struct shmpool_copy_work work = {
            .dst = dst, .src = src, .nbytes = nbytes, .kernel = kernel};
        if (n_threads <= 0) {
            n_threads = nbytes < SHMPOOL_COPY_THREAD_MIN ? 1 : shmpool_copy_count_cpus();
        }
        if (n_threads > SHMPOOL_COPY_MAX_THREADS) {
            n_threads = SHMPOOL_COPY_MAX_THREADS;
        }
        shmpool_copy_threaded(&work, n_threads);
        return;
    }
#else
    (void)n_threads;
#endif
    kernel(dst, src, nbytes);
}

/* As shmpool_copy, but the caller chooses the kernel. An unknown or unusable one copies plainly. */
static inline void shmpool_copy_with(void *dst, const void *src, size_t nbytes, int n_threads,
                                     enum shmpool_copy_isa isa) {
    shmpool_copy_kernel *kernel = shmpool_copy_find_kernel(isa);
    if (nbytes > 0) {
        shmpool_copy_bulk((unsigned char *)dst, (const unsigned char *)src, nbytes, n_threads,
                          kernel != NULL ? kernel : shmpool_copy_plain);
    }
}

/*
 * Copy nbytes from src to dst, which must not overlap, with up to n_threads threads including the
 * caller's; 0 decides by size and usable CPUs. Everything is visible to a later release store of
 * the calling thread when this returns.
 */
static inline void shmpool_copy(void *dst, const void *src, size_t nbytes, int n_threads) {
    if (nbytes < SHMPOOL_COPY_STREAM_MIN) {
        /* memcpy does not allow NULL even for nothing, and an empty array may have it. */
        if (nbytes > 0) {
            memcpy(dst, src, nbytes);
        }
        return;
    }
    shmpool_copy_with(dst, src, nbytes, n_threads, SHMPOOL_COPY_AUTO);
}

#endif /* SHMPOOL_COPY_H */
