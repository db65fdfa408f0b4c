#include "team.h"

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
#define MISTRUST 10000000 /* nanoseconds without a crew after one kept its caller waiting: a few turns of a busy core */
#define WORKERS 63

static struct {
    pthread_mutex_t in_use; /* held by the caller whose work is being done */
    pthread_mutex_t lock;   /* of what follows, for the workers that sleep */
    pthread_cond_t woken;
    int workers, asleep;
    team_work *work;
    void *argument;
    int members;
    _Atomic long seats; /* how many workers may still come in */
    counter gone;       /* how many have come and gone */
    int64_t let_down;   /* when a crew kept its caller waiting the last time */
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
static void wait_until(counter *counter, long least, int64_t patience)
{
    if (watch(&counter->count, least, patience))
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

void multirnn_wait(agenda *agenda, long end) { wait_until(&agenda->done, end, PATIENCE); }

/* How many of the team have come; who was woken for this call has a moment to do so. */
static long present(int members)
{
    int64_t start = now();
    long seats;
    while ((seats = atomic_load_explicit(&team.seats, memory_order_relaxed)) > 0 && now() - start < PATIENCE) PAUSE();
    return members - seats;
}

/* What a caller puts up with from its crew: so many nanoseconds, and an eighth of the time since they began. */
#define LOSS 1000000

static _Thread_local struct {
    int64_t began, met; /* the pass, and the work since the last meeting */
    int64_t lost;       /* waiting for longer than that work took */
} spent;

#define THROUGH (WORKERS + 2) /* more members than there are */

static void begin(void)
{
    spent.began = spent.met = now();
    spent.lost = 0;
}

int multirnn_crew(crew *crew, int rank, int members, long *from)
{
    *from = 0;
    if (members == 1)
        return 1;
    if (rank == 0) {
        add(&crew->members, now() - team.let_down < MISTRUST ? 1 : present(members));
        begin();
        return (int)atomic_load_explicit(&crew->members.count, memory_order_relaxed);
    }
    atomic_fetch_or(&crew->waiting, UINT64_C(1) << rank);
    wait_until(&crew->members, rank + 1, PATIENCE);
    atomic_fetch_and(&crew->waiting, ~(UINT64_C(1) << rank));
    begin();
    *from = crew->from;
    long together = atomic_load_explicit(&crew->members.count, memory_order_acquire);
    return together >= THROUGH ? 0 : (int)together;
}

int multirnn_let_in(crew *crew, long step)
{
    int members = 1 + __builtin_ctzll(~(atomic_load_explicit(&crew->waiting, memory_order_acquire) >> 1));
    if (members == 1 || members < crew->dismissed || now() - team.let_down < MISTRUST)
        return 1;
    atomic_store_explicit(&crew->until, 0, memory_order_relaxed);
    crew->from = step;
    begin();
    add(&crew->members, members - 1);
    return members;
}

void multirnn_through(crew *crew) { add(&crew->members, THROUGH); }

int multirnn_meet(crew *crew, int rank, int members, long step)
{
    if (members == 1)
        return 1;
    long meeting = atomic_load_explicit(&crew->meetings.count, memory_order_relaxed) + 1;
    int64_t arrived = now(), worked = arrived - spent.met; /* the others have as much to do */
    if (atomic_fetch_add_explicit(&crew->arrived, 1, memory_order_acq_rel) == members - 1) {
        atomic_store_explicit(&crew->arrived, 0, memory_order_relaxed);
        add(&crew->meetings, 1);
    } else
        wait_until(&crew->meetings, meeting, worked + PATIENCE);
    spent.met = now();
    if (spent.met - arrived > worked)
        spent.lost += spent.met - arrived - worked;
    /* Not from the next step on: only at its end everybody has heard of it. */
    if (rank == 0 && step >= 0 && spent.lost > LOSS + (spent.met - spent.began) / 8 &&
        !atomic_load_explicit(&crew->until, memory_order_relaxed)) {
        atomic_store_explicit(&crew->until, step + 2, memory_order_relaxed);
        atomic_store_explicit(&crew->members.count, 1, memory_order_relaxed);
        crew->dismissed = members;
        team.let_down = spent.met;
    }
    long until = atomic_load_explicit(&crew->until, memory_order_relaxed);
    return until && step + 1 >= until ? 1 : members;
}

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
    pthread_mutex_init(&rest.lock, NULL);
    pthread_cond_init(&rest.counted, NULL);
    pthread_mutex_init(&memory.lock, NULL);
    team.workers = team.asleep = 0;
    atomic_store(&team.seats, 0);
    atomic_store(&team.gone.sleepers, 0);
}

__attribute__((constructor)) static void prepare(void) { pthread_atfork(NULL, NULL, begin_again); }

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

static void *worker(void *unused)
{
    (void)unused;
    for (;;) {
        wait_for_call();
        long seats = atomic_load_explicit(&team.seats, memory_order_relaxed);
        while (seats > 0 && !atomic_compare_exchange_weak_explicit(&team.seats, &seats, seats - 1, memory_order_acquire,
                                                                   memory_order_relaxed))
            ;
        if (seats > 0) {
            team.work(team.argument, team.members - (int)seats, team.members);
            add(&team.gone, 1);
        }
    }
    return NULL;
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
    atomic_store_explicit(&team.gone.count, 0, memory_order_relaxed);
    pthread_mutex_lock(&team.lock);
    atomic_store_explicit(&team.seats, members - 1, memory_order_release);
    if (team.asleep)
        pthread_cond_broadcast(&team.woken);
    pthread_mutex_unlock(&team.lock);
    work(argument, 0, members);
    long empty = atomic_exchange_explicit(&team.seats, 0, memory_order_relaxed);
    wait_until(&team.gone, members - 1 - empty, PATIENCE);
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
