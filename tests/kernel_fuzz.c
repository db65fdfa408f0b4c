/* Random problems for the compiled recurrence, each on a random path, against the plain loops of kernel_plain.h.

   usage: kernel_fuzz SEED COUNT TOLERANCE [CALLERS]

   Every array has memory of exactly its size, so that sanitizers see any element beyond; padding and results start as NaN.
   Allocations fail and threads lose their cores now and then, which otherwise rarely happens. CALLERS threads run problems
   concurrently, COUNT each. tests/test_kernel_fuzz.py builds and runs it. */
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static _Thread_local uint64_t luck = 1; /* of the problems */
static _Thread_local uint64_t delays;   /* of this thread */
static _Thread_local int memory_left = -1; /* allocations until one fails; -1: none does */
static _Thread_local int no_threads;
static _Atomic int crowded;         /* whether threads lose their cores */
static int with_others;             /* whether other callers run, whose memory a call may be given in place of new one */
static _Atomic int helped, skipped; /* pieces of others that were done, and phases that went by without a thread */
static double tolerance;

static uint64_t next_random(uint64_t *state) /* xorshift64 of Marsaglia */
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static long below(long count) { return (long)(next_random(&luck) >> 11) % count; }
static int one_in(long count) { return below(count) == 0; }
static double uniform(void) { return (double)(next_random(&luck) >> 11) * 0x1p-53 * 2 - 1; }

/* --- Replacements for system functions that the sources call --- */

static int read_clock(clockid_t clock, struct timespec *time)
{
    int failed = clock_gettime(clock, time);
    if (crowded) {
        if (!delays)
            delays = (uint64_t)(uintptr_t)&delays | 1;
        uint64_t drawn = next_random(&delays) % 256;
        if (drawn < 5)
            usleep(drawn ? 200 : 2000);
    }
    return failed;
}

static int out_of_memory(void) { return memory_left >= 0 && memory_left-- == 0; }

static int aligned_memory(void **memory, size_t alignment, size_t bytes)
{
    return out_of_memory() ? 12 : posix_memalign(memory, alignment, bytes);
}

static void *plain_memory(size_t bytes) { return out_of_memory() ? NULL : malloc(bytes); }

static int make_thread(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument)
{
    return no_threads ? 11 : pthread_create(thread, attributes, run, argument);
}

#define clock_gettime read_clock
#define posix_memalign aligned_memory
#define malloc plain_memory
#define pthread_create make_thread
#include "team.c"
#undef clock_gettime
#undef pthread_create

static long reach(member *member)
{
    long before = member->phase, phase = multirnn_reach(member);
    skipped += phase > before + 1;
    return phase;
}

static int take_piece(member *member)
{
    int taken = multirnn_take_piece(member);
    long first = 0, end = 0;
    if (taken && !member->alone) {
        if (member->home < member->course->count)
            share(member->pieces, member->home, member->course->count, &first, &end);
        helped += member->piece.index < first || member->piece.index >= end;
    }
    return taken;
}

/* Filled with NaN. */
static void *allocate(size_t bytes)
{
    void *memory = multirnn_allocate(bytes);
    UNPOISON(memory, bytes);
    return memory ? memset(memory, 0xff, bytes) : NULL;
}

#define multirnn_allocate allocate
#define multirnn_reach reach
#define multirnn_take_piece take_piece
#define NAME(x) multirnn_##x
#include "recurrence.c"
#include "entry.c"
#undef posix_memalign
#undef malloc

#include "kernel_fuzz_problem.h"
#include "kernel_fuzz_calls.h"

/* --- Running --- */

/* In a stack whose states grow without bounds, rounding does too: its numbers are not compared. */
#define GROWN 100

static int is_close(const problem *p) { return p->off <= tolerance * p->largest || !(p->largest < GROWN); }

static int failure(const problem *p, uint64_t seed, const char *what)
{
    const spec *s = &p->spec;
    const call *c = &p->call;
    const choices *o = &p->choices;
    printf("seed %llu: %s: off by %g of %g; cell %ld, sizes %ld %ld, layers %ld %ld, batch %ld, time %ld, threads %ld, "
           "activations %ld %ld, lengths %d, packed rows %d, prepacked %d, choices",
           (unsigned long long)seed, what, p->off, p->largest, (long)s->cell, (long)s->input_size, (long)s->hidden_size,
           (long)s->layers, (long)s->directions, (long)c->batch, (long)c->time, (long)c->threads, (long)s->activation.name,
           (long)s->recurrent_activation.name, p->lengths != NULL, p->is_packed, p->prepacked != NULL);
    for (size_t i = 0; i < sizeof *o / sizeof(int64_t); i++)
        printf(" %ld", (long)((const int64_t *)o)[i]);
    printf("\n");
    return 1;
}

#define MOST_FAILURES 5 /* after which a run ends */

static int run_problem(uint64_t seed)
{
    luck = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
    for (int i = 0; i < 8; i++)
        next_random(&luck);
    problem p = {0};
    draw_problem(&p);
    int wrong = 0, with_gradients = one_in(2);
    const char *said = call_wrongly(&p);
    if (said)
        wrong = failure(&p, seed, said);
    plain_forward(&p.plain);
    if (with_gradients)
        p.call.stash = bytes_of((size_t)multirnn_stash_size(&p.spec, &p.call));
    said = call_forward(&p);
    if (said || !is_close(&p))
        wrong = failure(&p, seed, said ? said : "forward");
    else if (with_gradients) {
        draw_cotangents(&p);
        plain_backward(&p.plain);
        said = one_in(20) ? call_backward_without_memory(&p) : NULL;
        if (said)
            wrong = failure(&p, seed, said);
        said = call_backward(&p);
        /* Where a slope jumps, rounding decides on which side an element is. */
        int smooth = p.plain.to_kink > 1e3 * tolerance;
        if (said || (smooth && !is_close(&p)))
            wrong = failure(&p, seed, said ? said : "backward");
    }
    discard(&p);
    return wrong;
}

/* The identification of the library, and unknown instructions. */
static int ask_library(void)
{
    static const char *const names[] = {"baseline", "avx2", "avx512", "none"};
    int runs[4];
    for (int i = 0; i < 4; i++)
        runs[i] = multirnn_runs(names[i]);
    return !runs[0] || runs[3] || runs[2] > runs[1] || strcmp(multirnn_fingerprint(), FINGERPRINT) != 0;
}

/* Memory kept between calls: the larger pieces, never more than KEPT_BYTES. */
static int fill_memory(void)
{
    void *pieces[2 * KEPT];
    size_t all = 0;
    multirnn_free_kept();
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 2 * KEPT; i++)
            pieces[i] = multirnn_allocate(KEPT_BYTES / 8 * (size_t)(i % 3 + 1));
        for (int i = 0; i < 2 * KEPT; i++)
            multirnn_free(pieces[i]);
    }
    for (int i = 0; i < KEPT; i++)
        all += memory.kept[i].bytes;
    return all > KEPT_BYTES || all < KEPT_BYTES / 2;
}

/* Naps double up to the longest, and after a while awake the next is short again. `woke` is set because a busy machine would
   make the time awake any length. */
static int take_naps(void)
{
    static const int64_t expected[] = {SHORT_NAP, 2 * SHORT_NAP, 4 * SHORT_NAP, 8 * SHORT_NAP, LONG_NAP, LONG_NAP, SHORT_NAP};
    enum { COUNT = sizeof expected / sizeof *expected };
    course c = {0};
    member m = multirnn_join(&c, 0, 0);
    int wrong = 0;
    for (int i = 0; i < COUNT; i++) {
        m.woke = i > 0 && i + 1 < COUNT ? now() + LONG_NAP * 100 : 0;
        nap(&m);
        wrong += m.nap != expected[i];
    }
    return wrong;
}

typedef struct {
    uint64_t first;
    long count;
} errand;

static void *caller(void *argument)
{
    const errand *e = argument;
    intptr_t wrong = 0;
    for (long i = 0; i < e->count && wrong < MOST_FAILURES; i++)
        wrong += run_problem(e->first + (uint64_t)i);
    return (void *)wrong;
}

/* In a forked child, whose team is reset. */
static int run_child(uint64_t seed)
{
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        int wrong = 0;
        for (uint64_t i = 0; i < 20; i++)
            wrong += run_problem(seed + i);
        exit(wrong != 0);
    }
    int status = 1;
    return child < 0 || waitpid(child, &status, 0) != child || status != 0;
}

int main(int count, char **arguments)
{
    if (count < 4)
        return 2;
    uint64_t seed = strtoull(arguments[1], NULL, 10);
    long problems = atol(arguments[2]), callers = count > 4 ? atol(arguments[4]) : 0;
    tolerance = atof(arguments[3]);
    long wrong = 0;
    for (long i = 0; i < problems && wrong < MOST_FAILURES; i++) {
        crowded = i % 16 == 0;
        no_threads = i < 2; /* before there are any */
        wrong += run_problem(seed + (uint64_t)i);
    }
    crowded = 0;
    pthread_t threads[64];
    errand errands[64];
    with_others = callers > 1;
    for (long i = 0; i < callers; i++) {
        errands[i] = (errand){seed + (uint64_t)(1000000 * (i + 1)), problems};
        if (pthread_create(&threads[i], NULL, caller, &errands[i]))
            return 2;
    }
    for (long i = 0; i < callers; i++) {
        void *found;
        pthread_join(threads[i], &found);
        wrong += (long)(intptr_t)found;
    }
    if (!callers)
        wrong += run_child(seed + 500000);
    wrong += ask_library() + fill_memory() + take_naps();
    multirnn_free_kept();
    printf("%ld problems, %ld wrong; %d pieces were done for others, and %d phases missed\n", problems * (callers + 1), wrong,
           helped, skipped);
    return wrong != 0;
}
