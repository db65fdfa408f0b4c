#include "team.h"
#include "thresholds.h"

#include <pthread.h>
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

#define PATIENCE 100000   /* nanoseconds of spinning before a wait sleeps; a wake-up takes 50000 */
#define IDLE 50000        /* nanoseconds of spinning before an idle worker sleeps */
#define SHORT_NAP 500000  /* nanoseconds, the first nap */
#define LONG_NAP 8000000  /* nanoseconds: two time slices of a busy core */
#define AWAKE 8           /* awake for this many naps, the next one is short again */
#define WORKERS 63

static struct {
    pthread_mutex_t in_use; /* held by the caller whose team works */
    pthread_mutex_t lock;   /* of the following, for sleeping workers */
    pthread_cond_t woken;
    int workers, asleep;
    pthread_t caller;
    team_work *work;
    void *argument;
    int members;
    _Atomic long vacant; /* how many more workers may join */
    counter left;        /* how many have joined and left */
} team = {.in_use = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .woken = PTHREAD_COND_INITIALIZER};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t counted;
} rest = {.lock = PTHREAD_MUTEX_INITIALIZER, .counted = PTHREAD_COND_INITIALIZER}; /* of threads that sleep on any counter */

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* Spins until the value reaches `least`; returns whether it did in time. */
static int spin(_Atomic long *value, long least, int64_t nanoseconds)
{
    int64_t start = 0;
    do {
        for (int i = 0; i < 64; i++) {
            if (atomic_load_explicit(value, memory_order_acquire) >= least)
                return 1;
            PAUSE();
        }
        if (!start)
            start = now(); /* not needed for the shortest waits */
    } while (now() - start < nanoseconds);
    return 0;
}

/* The awaited thread may have lost its core to another process or thread pool. sched_yield would lose this core as well, for
   milliseconds; a thread that slept gets a core at once. */
static void wait_until(counter *counter, long least)
{
    if (spin(&counter->count, least, PATIENCE))
        return;
    pthread_mutex_lock(&rest.lock);
    atomic_fetch_add(&counter->sleepers, 1);
    while (atomic_load(&counter->count) < least)
        pthread_cond_wait(&rest.counted, &rest.lock);
    atomic_fetch_sub(&counter->sleepers, 1);
    pthread_mutex_unlock(&rest.lock);
}

/* Sequentially consistent, as in wait_until: either the sleeper sees the new count, or this thread sees the sleeper. */
static void add(counter *counter, long more)
{
    atomic_fetch_add(&counter->count, more);
    if (atomic_load(&counter->sleepers)) {
        pthread_mutex_lock(&rest.lock);
        pthread_cond_broadcast(&rest.counted);
        pthread_mutex_unlock(&rest.lock);
    }
}

long multirnn_take(queue *queue, long end)
{
    long item = atomic_load_explicit(&queue->taken, memory_order_relaxed);
    while (item < end)
        if (atomic_compare_exchange_weak_explicit(&queue->taken, &item, item + 1, memory_order_relaxed, memory_order_relaxed))
            return item;
    return -1;
}

void multirnn_done(queue *queue) { add(&queue->done, 1); }

void multirnn_wait(queue *queue, long end) { wait_until(&queue->done, end); }

member multirnn_join(course *course, int home, int begins)
{
    if (course)
        atomic_fetch_add_explicit(&course->present, 1, memory_order_relaxed);
    return (member){.course = course, .home = home, .opens = begins};
}

#define PHASE(LEFT) ((LEFT) >> 32)
#define FIRST(LEFT) ((LEFT) >> 16 & MOST_PIECES)
#define END(LEFT) ((LEFT) & MOST_PIECES)

/* Another member has lost its core in the middle of a piece, perhaps to this thread's spinning. A napping member is not woken
   for each phase: it would be too late, or in the way of the member that opened it. Consecutive naps grow. */
static void nap(member *m)
{
    counter *over = &m->course->over;
    int64_t start = now();
    m->nap = start - m->woke > AWAKE * m->nap ? SHORT_NAP : m->nap < LONG_NAP ? 2 * m->nap : LONG_NAP;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until); /* the only clock that pthread_cond_timedwait takes on every system */
    int64_t nanoseconds = until.tv_nsec + m->nap;
    until = (struct timespec){until.tv_sec + nanoseconds / 1000000000, nanoseconds % 1000000000};
    pthread_mutex_lock(&rest.lock);
    atomic_fetch_add(&over->sleepers, 1);
    while (!atomic_load(&over->count) && !pthread_cond_timedwait(&rest.counted, &rest.lock, &until))
        ;
    atomic_fetch_sub(&over->sleepers, 1);
    pthread_mutex_unlock(&rest.lock);
    m->woke = now();
}

long multirnn_reach(member *m)
{
    course *c = m->course;
    m->alone = m->opens && (!c || atomic_load_explicit(&c->present, memory_order_relaxed) == 1);
    if (m->opens)
        return ++m->phase;
    _Atomic long *left = &c->homes[m->home < c->count ? m->home : 0].left;
    while (!spin(left, (m->phase + 1) << 32, PATIENCE + m->worked)) nap(m);
    return m->phase = PHASE(atomic_load_explicit(left, memory_order_acquire));
}

void multirnn_open(member *m, long pieces)
{
    course *c = m->course;
    m->pieces = pieces;
    m->done = 0;
    m->piece = (piece){-1, 0, pieces};
    if (!m->alone)
        m->start = now();
    if (!m->opens || !c || (m->alone && pieces))
        return;
    atomic_store_explicit(&c->done, 0, memory_order_relaxed);
    for (int rank = 0; rank < c->count; rank++) {
        long first, end;
        share(pieces, rank, c->count, &first, &end);
        atomic_store_explicit(&c->homes[rank].left, m->phase << 32 | first << 16 | end, memory_order_release);
    }
    if (!pieces)
        add(&c->over, 1);
}

int multirnn_take_piece(member *m)
{
    if (m->alone)
        return ++m->piece.index < m->pieces;
    course *c = m->course;
    for (int i = 0; i < c->count; i++) {
        int owner = (m->home + i) % c->count, own = owner == m->home;
        _Atomic long *left = &c->homes[owner].left;
        long seen = atomic_load_explicit(left, memory_order_relaxed);
        while (PHASE(seen) == m->phase && FIRST(seen) < END(seen)) {
            piece taken = {own ? FIRST(seen) : END(seen) - 1, 0, 0};
            share(m->pieces, owner, c->count, &taken.first, &taken.end);
            /* Leave the last piece to its owner, which begins the next phase with it in its cache. */
            if (!own && FIRST(seen) > taken.first && FIRST(seen) + 1 == END(seen))
                break;
            if (atomic_compare_exchange_weak_explicit(left, &seen, own ? seen + (1 << 16) : seen - 1, memory_order_relaxed,
                                                      memory_order_relaxed)) {
                m->piece = taken;
                m->done++;
                return 1;
            }
        }
    }
    return 0;
}

int multirnn_close(member *m)
{
    if (!m->alone) {
        m->opens =
            m->done && atomic_fetch_add_explicit(&m->course->done, m->done, memory_order_acq_rel) + m->done == m->pieces;
        m->worked = m->done ? (now() - m->start) / m->done : 0;
    }
    return m->opens;
}

static struct {
    pthread_mutex_t lock;
    struct piece {
        size_t bytes;
        void *memory;
    } kept[4];
} memory = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void lock_memory(void) { pthread_mutex_lock(&memory.lock); }

static void unlock_memory(void) { pthread_mutex_unlock(&memory.lock); }

/* A forked child has the forking thread only, and other locks in any state. */
static void reset_in_child(void)
{
    pthread_mutex_init(&team.in_use, NULL);
    pthread_mutex_init(&team.lock, NULL);
    pthread_cond_init(&team.woken, NULL);
    pthread_mutex_init(&rest.lock, NULL);
    pthread_cond_init(&rest.counted, NULL);
    unlock_memory();
    team.workers = team.asleep = 0;
    atomic_store(&team.vacant, 0);
    atomic_store(&team.left.sleepers, 0);
}

__attribute__((constructor)) static void prepare(void) { pthread_atfork(lock_memory, unlock_memory, reset_in_child); }

static void wait_for_call(void)
{
    if (spin(&team.vacant, 1, IDLE))
        return;
    pthread_mutex_lock(&team.lock);
    team.asleep++;
    while (atomic_load_explicit(&team.vacant, memory_order_relaxed) <= 0)
        pthread_cond_wait(&team.woken, &team.lock);
    team.asleep--;
    pthread_mutex_unlock(&team.lock);
}

static void work_if_vacant(void)
{
    long vacant = atomic_load_explicit(&team.vacant, memory_order_relaxed);
    while (vacant > 0 && !atomic_compare_exchange_weak_explicit(&team.vacant, &vacant, vacant - 1, memory_order_acquire,
                                                               memory_order_relaxed))
        ;
    if (vacant > 0) {
        team.work(team.argument, team.members - (int)vacant);
        add(&team.left, 1);
    }
}

static void *worker(void *unused)
{
    (void)unused;
    for (;;) {
        wait_for_call();
        work_if_vacant();
    }
    return NULL;
}

static void lead(void)
{
    team.work(team.argument, 0);
    long empty = atomic_exchange_explicit(&team.vacant, 0, memory_order_relaxed);
    wait_until(&team.left, team.members - 1 - empty);
}

/* Run by every thread of a lent pool, the caller's included. */
static void work_as_lent(void *unused)
{
    (void)unused;
    if (pthread_equal(pthread_self(), team.caller))
        lead();
    else
        work_if_vacant();
}

static void start_workers(int workers)
{
    pthread_t thread;
    for (; team.workers < workers && !pthread_create(&thread, NULL, worker, NULL); team.workers++)
        pthread_detach(thread);
}

void multirnn_team(team_work *work, void *argument, int members, lent_pool *lent)
{
    if (members <= 1) {
        work(argument, 0);
        return;
    }
    pthread_mutex_lock(&team.in_use);
    if (!lent) {
        start_workers(members - 1 < WORKERS ? members - 1 : WORKERS);
        if (team.workers < members - 1)
            members = team.workers + 1;
    }
    team.caller = pthread_self();
    team.work = work;
    team.argument = argument;
    team.members = members;
    atomic_store_explicit(&team.left.count, 0, memory_order_relaxed);
    pthread_mutex_lock(&team.lock);
    atomic_store_explicit(&team.vacant, members - 1, memory_order_release);
    if (team.asleep && !lent)
        pthread_cond_broadcast(&team.woken);
    pthread_mutex_unlock(&team.lock);
    if (lent)
        lent(work_as_lent, NULL, 0, 0); /* on all: GOMP ends threads that it does not need, and later starts new ones */
    else
        lead();
    pthread_mutex_unlock(&team.in_use);
}

struct head {
    size_t bytes;
    char padding[64 - sizeof(size_t)];
};

enum { KEPT = sizeof memory.kept / sizeof *memory.kept };

void *multirnn_allocate(size_t bytes)
{
    struct head *found = NULL;
    lock_memory();
    for (int i = 0; i < KEPT && !found; i++) {
        struct piece *piece = &memory.kept[i];
        if (piece->memory && piece->bytes >= bytes) {
            found = piece->memory;
            *piece = (struct piece){0, NULL};
        }
    }
    unlock_memory();
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

/* Whether it fits among the kept pieces, perhaps in place of smaller ones. */
static int keep(struct head *head)
{
    while (head->bytes <= KEPT_BYTES) {
        struct piece *empty = NULL, *smallest = NULL;
        size_t all = head->bytes;
        for (int i = 0; i < KEPT; i++) {
            struct piece *piece = &memory.kept[i];
            all += piece->bytes;
            if (!piece->memory)
                empty = piece;
            else if (!smallest || piece->bytes < smallest->bytes)
                smallest = piece;
        }
        if (empty && all <= KEPT_BYTES) {
            *empty = (struct piece){head->bytes, head};
            return 1;
        }
        if (smallest->bytes >= head->bytes)
            break;
        free(smallest->memory);
        *smallest = (struct piece){0, NULL};
    }
    return 0;
}

void multirnn_free(void *given)
{
    struct head *head = (struct head *)given - 1;
    lock_memory();
    int kept = keep(head);
    unlock_memory();
    if (!kept)
        free(head);
}

void multirnn_free_kept(void)
{
    lock_memory();
    for (int i = 0; i < KEPT; i++) {
        free(memory.kept[i].memory);
        memory.kept[i] = (struct piece){0, NULL};
    }
    unlock_memory();
}
