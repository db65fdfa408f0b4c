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

#define PATIENCE 100000   /* nanoseconds that somebody who is waited for may take longer; who wakes up takes 50000 */
#define IDLE 50000        /* nanoseconds that a worker looks out for the next call before it goes to sleep */
#define SHORT_NAP 500000  /* nanoseconds, the first nap */
#define LONG_NAP 8000000  /* nanoseconds: two turns of a busy core */
#define AWAKE 8           /* times a nap, after which the next is a first one again */
#define WORKERS 63

static struct {
    pthread_mutex_t in_use; /* held by the caller whose work is being done */
    pthread_mutex_t lock;   /* of what follows, for the workers that sleep */
    pthread_cond_t woken;
    int workers, asleep;
    pthread_t caller;
    team_work *work;
    void *argument;
    int members;
    _Atomic long seats; /* how many workers may still come in */
    counter gone;       /* how many have come and gone */
} team = {.in_use = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .woken = PTHREAD_COND_INITIALIZER};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t counted;
} rest = {.lock = PTHREAD_MUTEX_INITIALIZER, .counted = PTHREAD_COND_INITIALIZER}; /* of those who sleep, for any counter */

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* Returns whether the value has come so far. */
static int watch(_Atomic long *value, long least, int64_t nanoseconds)
{
    int64_t start = 0;
    do {
        for (int i = 0; i < 64; i++) {
            if (atomic_load_explicit(value, memory_order_acquire) >= least)
                return 1;
            PAUSE();
        }
        if (!start)
            start = now(); /* who waits for a moment only need not know the time */
    } while (now() - start < nanoseconds);
    return 0;
}

/* Who is waited for may not be running at all: another process, or another pool of this one, has its core. To yield would
   give this core away too, for some milliseconds; who slept gets it back at once. */
static void wait_until(counter *counter, long least)
{
    if (watch(&counter->count, least, PATIENCE))
        return;
    pthread_mutex_lock(&rest.lock);
    atomic_fetch_add(&counter->sleepers, 1);
    while (atomic_load(&counter->count) < least)
        pthread_cond_wait(&rest.counted, &rest.lock);
    atomic_fetch_sub(&counter->sleepers, 1);
    pthread_mutex_unlock(&rest.lock);
}

/* Sequentially consistent, as above: either who goes to sleep sees the new count, or who counts sees the sleeper. */
static void add(counter *counter, long more)
{
    atomic_fetch_add(&counter->count, more);
    if (atomic_load(&counter->sleepers)) {
        pthread_mutex_lock(&rest.lock);
        pthread_cond_broadcast(&rest.counted);
        pthread_mutex_unlock(&rest.lock);
    }
}

long multirnn_take(agenda *agenda, long end)
{
    long item = atomic_load_explicit(&agenda->taken, memory_order_relaxed);
    while (item < end)
        if (atomic_compare_exchange_weak_explicit(&agenda->taken, &item, item + 1, memory_order_relaxed, memory_order_relaxed))
            return item;
    return -1;
}

void multirnn_done(agenda *agenda) { add(&agenda->done, 1); }

void multirnn_wait(agenda *agenda, long end) { wait_until(&agenda->done, end); }

member multirnn_join(course *course, int home, int begins)
{
    if (course)
        atomic_fetch_add_explicit(&course->present, 1, memory_order_relaxed);
    return (member){.course = course, .home = home, .opens = begins};
}

#define PHASE(LEFT) ((LEFT) >> 32)
#define FIRST(LEFT) ((LEFT) >> 16 & MOST_PIECES)
#define END(LEFT) ((LEFT) & MOST_PIECES)

/* Somebody is kept from a core with a piece in its hands, and it may be this core. Who naps is not woken by every phase, in
   which it would come too late or, worse, in the way of the one that opened it. Naps grow while they follow one another. */
static void nap(member *m)
{
    counter *over = &m->course->over;
    int64_t start = now();
    m->nap = start - m->woke > AWAKE * m->nap ? SHORT_NAP : m->nap < LONG_NAP ? 2 * m->nap : LONG_NAP;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until); /* the only clock that every system waits by */
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
    while (!watch(left, (m->phase + 1) << 32, PATIENCE + m->worked)) nap(m);
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
            /* The last one is near its owner's core, which begins the next phase with it, and soon done by who is there. */
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

/* The child of a fork has the forking thread alone, and the other locks as they happened to be. */
static void begin_again(void)
{
    pthread_mutex_init(&team.in_use, NULL);
    pthread_mutex_init(&team.lock, NULL);
    pthread_cond_init(&team.woken, NULL);
    pthread_mutex_init(&rest.lock, NULL);
    pthread_cond_init(&rest.counted, NULL);
    unlock_memory();
    team.workers = team.asleep = 0;
    atomic_store(&team.seats, 0);
    atomic_store(&team.gone.sleepers, 0);
}

__attribute__((constructor)) static void prepare(void) { pthread_atfork(lock_memory, unlock_memory, begin_again); }

static void wait_for_call(void)
{
    if (watch(&team.seats, 1, IDLE))
        return;
    pthread_mutex_lock(&team.lock);
    team.asleep++;
    while (atomic_load_explicit(&team.seats, memory_order_relaxed) <= 0)
        pthread_cond_wait(&team.woken, &team.lock);
    team.asleep--;
    pthread_mutex_unlock(&team.lock);
}

static void work_if_seated(void)
{
    long seats = atomic_load_explicit(&team.seats, memory_order_relaxed);
    while (seats > 0 && !atomic_compare_exchange_weak_explicit(&team.seats, &seats, seats - 1, memory_order_acquire,
                                                               memory_order_relaxed))
        ;
    if (seats > 0) {
        team.work(team.argument, team.members - (int)seats);
        add(&team.gone, 1);
    }
}

static void *worker(void *unused)
{
    (void)unused;
    for (;;) {
        wait_for_call();
        work_if_seated();
    }
    return NULL;
}

static void lead(void)
{
    team.work(team.argument, 0);
    long empty = atomic_exchange_explicit(&team.seats, 0, memory_order_relaxed);
    wait_until(&team.gone, team.members - 1 - empty);
}

/* By every thread of a pool that was lent; the caller is one of them. */
static void work_as_lent(void *unused)
{
    (void)unused;
    if (pthread_equal(pthread_self(), team.caller))
        lead();
    else
        work_if_seated();
}

static void hire(int workers)
{
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (team.workers < workers && !pthread_create(&thread, &attributes, worker, NULL))
        team.workers++;
    pthread_attr_destroy(&attributes);
}

void multirnn_team(team_work *work, void *argument, int members, lent_pool *lent)
{
    if (members <= 1) {
        work(argument, 0);
        return;
    }
    pthread_mutex_lock(&team.in_use);
    if (!lent) {
        hire(members - 1 < WORKERS ? members - 1 : WORKERS);
        if (team.workers < members - 1)
            members = team.workers + 1;
    }
    team.caller = pthread_self();
    team.work = work;
    team.argument = argument;
    team.members = members;
    atomic_store_explicit(&team.gone.count, 0, memory_order_relaxed);
    pthread_mutex_lock(&team.lock);
    atomic_store_explicit(&team.seats, members - 1, memory_order_release);
    if (team.asleep && !lent)
        pthread_cond_broadcast(&team.woken);
    pthread_mutex_unlock(&team.lock);
    if (lent)
        lent(work_as_lent, NULL, 0, 0); /* on all of them: GOMP ends those that it is not asked for, and makes new ones later */
    else
        lead();
    pthread_mutex_unlock(&team.in_use);
}

struct head {
    size_t bytes;
    char padding[64 - sizeof(size_t)];
};

enum { KEPT = sizeof memory.kept / sizeof *memory.kept };

void *multirnn_borrow(size_t bytes)
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

/* Whether there was room for it, or for it in the place of smaller ones. */
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

void multirnn_give_back(void *given)
{
    struct head *head = (struct head *)given - 1;
    lock_memory();
    int kept = keep(head);
    unlock_memory();
    if (!kept)
        free(head);
}

void multirnn_release(void)
{
    lock_memory();
    for (int i = 0; i < KEPT; i++) {
        free(memory.kept[i].memory);
        memory.kept[i] = (struct piece){0, NULL};
    }
    unlock_memory();
}
