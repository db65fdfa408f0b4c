/* The threads of the compiled recurrence, for ThreadSanitizer; tests/test_kernel_threads.py builds and runs it.

   Every problem is run by one thread and by several, and what they write has to be the same. Threads that lose their
   core, which takes a busy machine and luck, are played: whoever reads the clock may sleep then. */
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static _Atomic int crowded; /* whether threads lose their cores */
static _Atomic int helped, skipped; /* pieces of others that were done, and phases that went by without somebody */

static _Thread_local uint64_t luck;

static uint64_t draw(uint64_t *state) /* xorshift64 of Marsaglia */
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static int read_clock(clockid_t clock, struct timespec *time)
{
    int failed = clock_gettime(clock, time);
    if (crowded) {
        if (!luck)
            luck = (uint64_t)(uintptr_t)&luck | 1;
        uint64_t drawn = draw(&luck) % 256;
        if (drawn < 5)
            usleep(drawn ? 200 : 2000);
    }
    return failed;
}

#define clock_gettime read_clock
#include "team.c"
#undef clock_gettime

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

#define multirnn_reach reach
#define multirnn_take_piece take_piece
#include "sharing.h"

static _Thread_local int splits_units;

/* In both of its ways however small the work is; under ThreadSanitizer that which pays would take minutes. */
static sharing share_small_work(const stack *k)
{
    const call *c = k->call;
    long slices = splits_units ? 1 : smaller(ceiling(c->threads, k->directions), c->batch);
    long members = splits_units ? c->threads : smaller(c->threads, slices * k->directions);
    return (sharing){(int)members, (int)slices, splits_units && members > 1, 0, block_of(k, slices)};
}

#define shared_out share_small_work
#define NAME(x) multirnn_##x
#include "recurrence.c"

enum { THREADS = 4, CALLERS = 3, ROWS = 8, PASSES = 4 };

typedef struct {
    const char *name;
    spec spec;
    int64_t batch, time;
    int ragged, splits_units;
} problem;

#define LAYER(CELL, INPUTS, UNITS, LAYERS, DIRECTIONS, BIASES) \
    {CELL, INPUTS, UNITS, LAYERS, DIRECTIONS, BIASES, {TANH, 0, 0}, {SIGMOID, 0, 0}}

static const problem PROBLEMS[] = {
    {"rows dealt, simple RNN", LAYER(SIMPLE_RNN, 31, 67, 1, 1, 1), 7, 19, 0, 0},
    {"rows dealt, LSTM", LAYER(LSTM, 31, 37, 2, 1, 4), 7, 19, 1, 0},
    {"directions dealt, GRU, reset after", LAYER(GRU_AFTER, 31, 37, 2, 2, 3), 3, 19, 1, 0},
    {"directions dealt, GRU, reset before", LAYER(GRU_BEFORE, 31, 67, 1, 2, 3), 5, 19, 0, 0},
    {"units split, simple RNN", LAYER(SIMPLE_RNN, 31, 131, 1, 2, 0), 1, 31, 0, 1},
    {"units split, LSTM", LAYER(LSTM, 31, 37, 2, 1, 4), 3, 31, 1, 1},
    {"units split, GRU, reset after", LAYER(GRU_AFTER, 31, 37, 2, 2, 1), 1, 31, 0, 1},
    {"units split, GRU, reset before", LAYER(GRU_BEFORE, 31, 131, 1, 1, 0), 3, 31, 1, 1},
};
enum { PROBLEM_COUNT = sizeof PROBLEMS / sizeof *PROBLEMS };

static const problem LONG[] = {
    {"late, simple RNN", LAYER(SIMPLE_RNN, 5, 67, 1, 1, 0), 1, 251, 0, 1},
    {"late, LSTM", LAYER(LSTM, 5, 19, 1, 1, 4), 1, 251, 0, 1},
    {"late, GRU, reset after", LAYER(GRU_AFTER, 5, 19, 1, 1, 3), 1, 251, 0, 1},
    {"late, GRU, reset before", LAYER(GRU_BEFORE, 5, 67, 1, 1, 3), 1, 251, 0, 1},
    {"late, rows dealt, LSTM", LAYER(LSTM, 5, 67, 2, 2, 4), 4, 61, 1, 0},
};

typedef enum { FORWARD, PACKED, BACKWARD } way;
static const char *const WAYS[] = {"forward", "forward with packed weights", "backward"};

typedef struct {
    const problem *problem;
    real *x, *dy;
    states first, dlast;
    parameters weights[PASSES];
    int64_t lengths[ROWS];
    char *packed;
} operands;

/* All that a call writes. */
typedef struct {
    real *y, *dx;
    states last, dfirst;
    parameters gradients[PASSES];
} results;

/* The arrays of either, one after another; begins as zeros and is laid out twice, first to know its size. */
typedef struct {
    arena memory;
    int count;
    struct array {
        real *at;
        long count;
    } arrays[6 + 4 * PASSES];
} room;

static real *array_in(room *r, long count)
{
    struct array *array = &r->arrays[r->count++];
    *array = (struct array){TAKE(&r->memory, real, count), count};
    return array->at;
}

static void *allocate(size_t bytes)
{
    void *memory;
    if (posix_memalign(&memory, 64, bytes))
        exit(2);
    return memory;
}

static room allocated(room size)
{
    return (room){.memory.base = allocate(size.memory.used)};
}

static void lay_out_parameters(const spec *s, room *r, parameters *table)
{
    long hidden = s->hidden_size, gates = gate_count(s), biases = s->recurrent_biases;
    for (long p = 0; p < s->layers * s->directions; p++) {
        long features = p < s->directions ? s->input_size : s->directions * hidden;
        table[p] = (parameters){
            .input = {array_in(r, gates * hidden * features), hidden * features, features, 1},
            .recurrent = {array_in(r, gates * hidden * hidden), hidden * hidden, hidden, 1},
            .input_bias = {array_in(r, gates * hidden), hidden, 1},
            .recurrent_bias = {biases ? array_in(r, biases * hidden) : NULL, hidden, 1},
        };
    }
}

static states lay_out_states(const problem *p, room *r)
{
    long count = p->spec.layers * p->spec.directions * p->batch * p->spec.hidden_size;
    return (states){array_in(r, count), p->spec.cell == LSTM ? array_in(r, count) : NULL};
}

static real *lay_out_inputs(const problem *p, room *r)
{
    return array_in(r, p->batch * p->time * p->spec.input_size);
}

static real *lay_out_outputs(const problem *p, room *r)
{
    return array_in(r, p->batch * p->time * p->spec.directions * p->spec.hidden_size);
}

static void lay_out_operands(operands *o, room *r)
{
    o->x = lay_out_inputs(o->problem, r);
    o->dy = lay_out_outputs(o->problem, r);
    o->first = lay_out_states(o->problem, r);
    o->dlast = lay_out_states(o->problem, r);
    lay_out_parameters(&o->problem->spec, r, o->weights);
}

static void lay_out_results(const problem *p, results *found, room *r)
{
    found->y = lay_out_outputs(p, r);
    found->dx = lay_out_inputs(p, r);
    found->last = lay_out_states(p, r);
    found->dfirst = lay_out_states(p, r);
    lay_out_parameters(&p->spec, r, found->gradients);
}

static operands draw_operands(const problem *p)
{
    operands o = {.problem = p};
    room size = {0};
    lay_out_operands(&o, &size);
    room r = allocated(size);
    lay_out_operands(&o, &r);
    uint64_t state = (uint64_t)(p->spec.hidden_size * p->time);
    for (int i = 0; i < r.count; i++)
        for (long k = 0; k < r.arrays[i].count; k++)
            r.arrays[i].at[k] = (real)((double)(draw(&state) >> 11) * 0x1p-53 - 0.5) / 4;
    for (long row = 0; row < p->batch; row++) /* the first is whole, and the second empty */
        o.lengths[row] = row == 0 ? p->time : row == 1 ? 0 : (int64_t)(draw(&state) % (uint64_t)p->time);
    if (!(o.packed = multirnn_pack(&p->spec, o.weights)))
        exit(2);
    return o;
}

static void discard_operands(operands *o)
{
    free(o->x);
    multirnn_give_back(o->packed);
}

static _Thread_local lent_pool *lent; /* for the calls of this thread */

typedef struct {
    void (*run)(void *);
    void *argument;
} errand;

static void *go(void *argument)
{
    const errand *e = argument;
    e->run(e->argument);
    return NULL;
}

/* More threads than there are seats, mostly. */
static void lend(void (*run)(void *), void *argument, unsigned threads, unsigned flags)
{
    pthread_t others[THREADS];
    errand e = {run, argument};
    if (threads || flags)
        exit(2);
    for (int i = 1; i < THREADS; i++)
        if (pthread_create(&others[i], NULL, go, &e))
            exit(2);
    run(argument);
    for (int i = 1; i < THREADS; i++)
        pthread_join(others[i], NULL);
}

/* Returns what was written; its arrays are to be freed. */
static room run(const operands *o, way way, int threads)
{
    const problem *p = o->problem;
    const spec *s = &p->spec;
    int64_t outputs = s->directions * s->hidden_size;
    results found;
    room size = {0};
    lay_out_results(p, &found, &size);
    room r = allocated(size);
    lay_out_results(p, &found, &r);
    memset(r.memory.base, 0xff, r.memory.used); /* not a number, until it is written */
    call c = {
        .batch = p->batch,
        .time = p->time,
        .x = {o->x, p->time * s->input_size, s->input_size},
        .y = {found.y, p->time * outputs, outputs},
        .first = o->first,
        .last = found.last,
        .lengths = p->ragged ? o->lengths : NULL,
        .threads = threads,
        .packed = way == PACKED ? o->packed : NULL,
        .lent = lent,
    };
    splits_units = p->splits_units;
    if (way == BACKWARD)
        c.stash = allocate((size_t)multirnn_stash_size(s, &c));
    int failed = multirnn_forward(s, o->weights, &c);
    if (way == BACKWARD) {
        c.last = o->dlast;
        c.dfirst = found.dfirst;
        c.dy = (sequence){o->dy, p->time * outputs, outputs};
        c.dx = (sequence){found.dx, p->time * s->input_size, s->input_size};
        failed |= multirnn_backward(s, o->weights, &c, found.gradients);
        free(c.stash);
    }
    if (failed)
        exit(2);
    return r;
}

static double tolerance; /* of the largest difference of an array from what it should be, over its largest number */

static int close_to(const room *found, const room *expected)
{
    for (int i = 0; i < expected->count; i++) {
        const struct array *a = &found->arrays[i], *b = &expected->arrays[i];
        double off = 0, largest = 0;
        for (long k = 0; k < b->count; k++) {
            if (isnan(a->at[k]) != isnan(b->at[k]))
                return 0;
            off = fmax(off, fabs((double)a->at[k] - b->at[k])); /* where neither was written, it stays */
            largest = fmax(largest, fabs((double)b->at[k]));
        }
        if (off > tolerance * largest)
            return 0;
    }
    return 1;
}

/* By several threads as often as `times` says; returns how many results are not those of one thread. */
static int check(const operands *o, way way, int threads, int times)
{
    room expected = run(o, way == PACKED ? FORWARD : way, 1);
    int wrong = 0;
    for (int i = 0; i < times; i++) {
        room found = run(o, way, threads);
        wrong += !close_to(&found, &expected);
        free(found.memory.base);
    }
    if (wrong)
        printf("%s, %s, %d threads: %d of %d are wrong\n", o->problem->name, WAYS[way], threads, wrong, times);
    free(expected.memory.base);
    return wrong;
}

static int check_thread_counts(const operands *all)
{
    int wrong = 0;
    for (int i = 0; i < PROBLEM_COUNT; i++)
        for (way way = FORWARD; way <= BACKWARD; way++)
            for (int threads = 2; threads <= THREADS; threads++)
                for (int own = 0; own <= 1; own++) {
                    lent = own ? NULL : lend;
                    wrong += check(&all[i], way, threads, 1);
                }
    return wrong;
}

static void *caller(void *argument)
{
    const operands *all = argument;
    intptr_t wrong = 0;
    for (int i = 0; i < PROBLEM_COUNT; i++) {
        lent = i % 2 ? lend : NULL;
        wrong += check(&all[i], PACKED, 2, 1);
        wrong += check(&all[i], BACKWARD, 2, 1);
    }
    return (void *)wrong;
}

/* All of them read the same weights. */
static int check_callers(const operands *all)
{
    pthread_t callers[CALLERS];
    int wrong = 0;
    for (int i = 0; i < CALLERS; i++)
        if (pthread_create(&callers[i], NULL, caller, (void *)all))
            exit(2);
    for (int i = 0; i < CALLERS; i++) {
        void *found;
        pthread_join(callers[i], &found);
        wrong += (int)(intptr_t)found;
    }
    return wrong;
}

/* Threads miss phases, and others do their pieces; where that happened to nobody, nothing was checked. */
static int check_late_threads(void)
{
    int wrong = 0;
    crowded = 1;
    for (size_t i = 0; i < sizeof LONG / sizeof *LONG; i++)
        for (way way = FORWARD; way <= BACKWARD; way += BACKWARD - FORWARD) {
            operands o = draw_operands(&LONG[i]);
            int helped_before = helped, skipped_before = skipped;
            wrong += check(&o, way, THREADS, 3);
            if (helped == helped_before || skipped == skipped_before) {
                printf("%s, %s: nobody was late\n", LONG[i].name, WAYS[way]);
                wrong++;
            }
            discard_operands(&o);
        }
    crowded = 0;
    printf("%d pieces were done for others, and %d phases missed\n", helped, skipped);
    return wrong;
}

/* The tolerance is given. */
int main(int count, char **arguments)
{
    if (count != 2)
        return 2;
    tolerance = atof(arguments[1]);
    static operands all[PROBLEM_COUNT];
    for (int i = 0; i < PROBLEM_COUNT; i++)
        all[i] = draw_operands(&PROBLEMS[i]);
    int wrong = check_thread_counts(all) + check_callers(all) + check_late_threads();
    for (int i = 0; i < PROBLEM_COUNT; i++)
        discard_operands(&all[i]);
    return wrong != 0;
}
