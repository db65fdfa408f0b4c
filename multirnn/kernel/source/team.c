#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

/* In a virtual machine the thread that is waited for may not be running at all, so nobody spins for long. */
#define PAUSES_BEFORE_YIELD 2000
#define IDLE_NANOSECONDS 50000 /* how long a worker looks out for the next call before it goes to sleep */
#define WORKERS 63

static void wait_while(_Atomic int *value, int unchanged)
{
    for (;;) {
        for (int i = 0; i < PAUSES_BEFORE_YIELD; i++) {
            if (atomic_load_explicit(value, memory_order_acquire) != unchanged)
                return;
            PAUSE();
        }
        sched_yield();
    }
}

void multirnn_meet(meeting *place, int members)
{
    if (members == 1)
        return;
    int generation = atomic_load_explicit(&place->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&place->arrived, 1, memory_order_acq_rel) == members - 1) {
        atomic_store_explicit(&place->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&place->generation, generation + 1, memory_order_release);
    } else
        wait_while(&place->generation, generation);
}

static struct {
    pthread_mutex_t in_use; /* held by the caller whose work is being done */
    pthread_mutex_t lock;   /* of what follows, for the workers that sleep */
    pthread_cond_t woken;
    int workers, asleep;
    _Atomic int call; /* counts the calls */
    team_work *work;
    void *argument;
    int members;
    meeting end;
} team = {.in_use = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .woken = PTHREAD_COND_INITIALIZER};

static struct {
    pthread_mutex_t lock;
    struct piece {
        size_t bytes;
        void *memory;
    } kept[4];
} memory = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* The child of a fork has the forking thread alone, and locks as they happened to be. */
static void begin_again(void)
{
    pthread_mutex_init(&team.in_use, NULL);
    pthread_mutex_init(&team.lock, NULL);
    pthread_cond_init(&team.woken, NULL);
    pthread_mutex_init(&memory.lock, NULL);
    team.workers = team.asleep = 0;
    team.end = (meeting){0};
}

__attribute__((constructor)) static void prepare(void) { pthread_atfork(NULL, NULL, begin_again); }

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void wait_for_call(int seen)
{
    int64_t start = now();
    do
        for (int i = 0; i < 64; i++) {
            if (atomic_load_explicit(&team.call, memory_order_acquire) != seen)
                return;
            PAUSE();
        }
    while (now() - start < IDLE_NANOSECONDS);
    pthread_mutex_lock(&team.lock);
    team.asleep++;
    while (atomic_load_explicit(&team.call, memory_order_acquire) == seen)
        pthread_cond_wait(&team.woken, &team.lock);
    team.asleep--;
    pthread_mutex_unlock(&team.lock);
}

struct birth {
    int rank, seen;
};

static void *worker(void *argument)
{
    struct birth birth = *(struct birth *)argument;
    free(argument);
    for (int seen = birth.seen;; seen++) {
        wait_for_call(seen);
        if (birth.rank < team.members)
            team.work(team.argument, birth.rank, team.members);
        /* Every worker comes, so that none still reads of a call when the next one is written. */
        multirnn_meet(&team.end, team.workers + 1);
    }
    return NULL;
}

static void hire(int workers)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (team.workers < workers) {
        struct birth *birth = malloc(sizeof *birth);
        pthread_t thread;
        if (!birth)
            break;
        *birth = (struct birth){team.workers + 1, atomic_load(&team.call)};
        if (pthread_create(&thread, &attributes, worker, birth)) {
            free(birth);
            break;
        }
        team.workers++;
    }
    pthread_attr_destroy(&attributes);
}

void multirnn_team(team_work *work, void *argument, int members)
{
    if (members <= 1) {
        work(argument, 0, 1);
        return;
    }
    pthread_mutex_lock(&team.in_use);
    hire(members - 1 < WORKERS ? members - 1 : WORKERS);
    if (team.workers < members - 1)
        members = team.workers + 1;
    team.work = work;
    team.argument = argument;
    team.members = members;
    pthread_mutex_lock(&team.lock);
    atomic_fetch_add_explicit(&team.call, 1, memory_order_release);
    if (team.asleep)
        pthread_cond_broadcast(&team.woken);
    pthread_mutex_unlock(&team.lock);
    work(argument, 0, members);
    multirnn_meet(&team.end, team.workers + 1);
    pthread_mutex_unlock(&team.in_use);
}

/* Fresh pages cost more than what is computed in them: the last few pieces are kept, the large ones among them not. */
#define KEPT_BYTES ((size_t)128 << 20)

/* Weights beyond a cache are beyond the pages that a core knows by heart, too. */
#define HUGE_PAGE ((size_t)2 << 20)

struct head {
    size_t bytes;
    char padding[64 - sizeof(size_t)];
};

void *multirnn_borrow(size_t bytes)
{
    struct head *found = NULL;
    pthread_mutex_lock(&memory.lock);
    for (size_t i = 0; i < sizeof memory.kept / sizeof *memory.kept; i++) {
        struct piece *piece = &memory.kept[i];
        if (piece->memory && piece->bytes >= bytes) {
            found = piece->memory;
            piece->memory = NULL;
            break;
        }
    }
    pthread_mutex_unlock(&memory.lock);
    if (!found) {
        void *fresh;
        if (posix_memalign(&fresh, bytes < HUGE_PAGE ? 64 : HUGE_PAGE, bytes + sizeof *found))
            return NULL;
#ifdef MADV_HUGEPAGE
        if (bytes >= HUGE_PAGE)
            madvise(fresh, bytes + sizeof *found, MADV_HUGEPAGE);
#endif
        found = fresh;
        found->bytes = bytes;
    }
    return found + 1;
}

void multirnn_give_back(void *given)
{
    struct head *head = (struct head *)given - 1;
    void *unwanted = head;
    if (head->bytes <= KEPT_BYTES) {
        pthread_mutex_lock(&memory.lock);
        struct piece *smallest = memory.kept;
        for (size_t i = 0; i < sizeof memory.kept / sizeof *memory.kept; i++) {
            struct piece *piece = &memory.kept[i];
            if (!piece->memory || (smallest->memory && piece->bytes < smallest->bytes))
                smallest = piece;
        }
        if (!smallest->memory || smallest->bytes < head->bytes) {
            unwanted = smallest->memory;
            *smallest = (struct piece){head->bytes, head};
        }
        pthread_mutex_unlock(&memory.lock);
    }
    free(unwanted);
}
