/* Random problems for the compiled recurrence, each on a random path, against the plain loops of kernel_plain.h.

   usage: kernel_fuzz SEED COUNT TOLERANCE [CALLERS]

   Every array has exactly its own memory, so that a sanitizer sees one element too many; what must not be read is NaN, and
   what must be written is NaN before. Memory runs out and threads lose their cores now and then, which would otherwise take
   luck. CALLERS threads run problems at once, COUNT each. tests/test_kernel_fuzz.py builds and runs it. */
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

/* --- What the sources call in place of the system --- */

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

/* What it holds is no number until it is written. */
static void *borrow(size_t bytes)
{
    void *memory = multirnn_allocate(bytes);
    UNPOISON(memory, bytes);
    return memory ? memset(memory, 0xff, bytes) : NULL;
}

#define multirnn_allocate borrow
#define multirnn_reach reach
#define multirnn_take_piece take_piece
#define NAME(x) multirnn_##x
#include "recurrence.c"
#include "entry.c"
#undef posix_memalign
#undef malloc

#include "kernel_plain.h"

/* --- A problem --- */

typedef struct {
    real *memory, *at;
    long count;
} room;

enum { MOST_ROOMS = 16 + 12 * MOST_PASSES };

typedef struct {
    spec spec;
    plain plain;
    call call;
    choices choices;
    parameters weights[MOST_PASSES], gradients[MOST_PASSES];
    int64_t *lengths, *true_lengths, *starts;
    int is_packed, biased, straight; /* straight: all lies as a custom call of XLA has it */
    room rooms[MOST_ROOMS];
    int rooms_used;
    char *prepacked;
    double off, largest; /* of the results */
} problem;

/* Memory of exactly so many elements, now and then at an address that nothing divides but their size. */
static real *room_of(problem *p, long count)
{
    long shift = one_in(2);
    room *made = &p->rooms[p->rooms_used++];
    made->memory = malloc((size_t)(count + shift) * sizeof(real) + (count + shift == 0));
    if (!made->memory || p->rooms_used > MOST_ROOMS)
        exit(2);
    made->count = count;
    made->at = made->memory + shift;
    for (long i = 0; i < count; i++)
        made->at[i] = (real)NAN;
    return made->at;
}

static void draw_spec(problem *p)
{
    static const int64_t biases[][3] = {[SIMPLE_RNN] = {0, 0, 1}, [LSTM] = {0, 0, 4}, [GRU_AFTER] = {0, 1, 3}, [GRU_BEFORE] = {0, 0, 3}};
    spec *s = &p->spec;
    int large = one_in(30), bias = (int)below(3);
    s->cell = below(4);
    s->input_size = 1 + below(large ? 200 : one_in(3) ? 5 : 40);
    s->hidden_size = 1 + below(large ? 150 : one_in(3) ? 5 : 40);
    s->layers = 1 + below(one_in(2) ? 3 : 1);
    s->directions = 1 + below(2);
    s->recurrent_biases = biases[s->cell][bias];
    p->biased = bias > 0;
    activation *all[] = {&s->activation, &s->recurrent_activation};
    for (int i = 0; i < 2; i++) {
        *all[i] = (activation){i ? SIGMOID : TANH, 0, 0};
        if (one_in(3))
            *all[i] = (activation){below(TANH + 1), 0.3, 0.4};
    }
}

static void draw_choices(problem *p)
{
    choices *c = &p->choices;
    *c = NO_CHOICES;
    if (one_in(4))
        return;
    int64_t *all[] = {&c->members, &c->slices, &c->split_units, &c->block, &c->unpacked, &c->along, &c->grain, &c->in_passing,
                      &c->crowded, &c->dx_rows, &c->pieces};
    long first[] = {1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 1}, count[] = {16, 5, 2, 20, 2, 2, 4, 2, 2, 40, 5};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (one_in(2))
            *all[i] = first[i] + below(count[i]);
    if (c->block > p->call.time)
        c->block = p->call.time;
    p->call.choices = c;
}

static void draw_lengths(problem *p)
{
    call *c = &p->call;
    p->is_packed = !p->straight && one_in(5);
    if (!p->is_packed && one_in(2))
        return;
    p->lengths = malloc((size_t)c->batch * sizeof *p->lengths + 1);
    for (long row = 0; row < c->batch; row++) {
        p->lengths[row] = one_in(5) ? 0 : one_in(5) ? c->time : below(c->time + 1);
        for (long i = row; p->is_packed && i && p->lengths[i - 1] < p->lengths[i]; i--) { /* sorted */
            int64_t shorter = p->lengths[i - 1];
            p->lengths[i - 1] = p->lengths[i], p->lengths[i] = shorter;
        }
    }
    c->lengths = p->lengths;
    p->true_lengths = malloc((size_t)c->batch * sizeof *p->lengths + 1);
    memcpy(p->true_lengths, p->lengths, (size_t)c->batch * sizeof *p->lengths);
    if (!p->is_packed)
        return;
    p->starts = malloc((size_t)c->time * sizeof *p->starts + 1);
    for (long step = 0, start = 0; step < c->time; step++) {
        p->starts[step] = start;
        for (long row = 0; row < c->batch; row++)
            start += p->lengths[row] > step;
    }
}

/* --- Arrays of the kernel, filled from those of the reference or compared with them --- */

typedef enum { FILL, COMPARE } way;

static void meet(problem *p, way way, real *element, double *plain_element, double scale)
{
    if (way == FILL)
        *plain_element = *element = (real)(uniform() * scale);
    else if (!isfinite(*plain_element)) {
        if (isnan(*plain_element) ? !isnan(*element) : *element != *plain_element)
            p->off = INFINITY;
    } else {
        double off = fabs((double)*element - *plain_element);
        p->off = isnan(off) ? INFINITY : fmax(p->off, off);
        p->largest = fmax(p->largest, fabs(*plain_element));
    }
}

/* A sequence; at padding what is given is NaN, and what is written 0. */
static void meet_sequence(problem *p, way way, const sequence *s, double *reference, long features)
{
    for (long row = 0; row < p->call.batch; row++)
        for (long time = 0; time < p->call.time; time++) {
            int padding = time >= plain_length(&p->plain, row);
            for (long i = 0; i < features; i++) {
                if (padding && (way == FILL || p->is_packed))
                    continue;
                double *element = reference + (row * p->call.time + time) * features + i;
                meet(p, way, at(s, row, time) + i, element, 1);
                if (padding && *(at(s, row, time) + i) != 0)
                    p->off = INFINITY;
            }
        }
}

static void meet_array(problem *p, way way, real *given, double *reference, long count, double scale)
{
    for (long i = 0; i < count; i++)
        meet(p, way, given + i, reference + i, scale);
}

static sequence draw_sequence(problem *p, long features)
{
    long batch = p->call.batch, time = p->call.time, gap = p->straight ? 0 : below(3), rows = batch * time;
    if (p->is_packed) {
        rows = 0;
        for (long row = 0; row < batch; row++)
            rows += p->lengths[row];
        return (sequence){room_of(p, rows * features), features, features, p->starts};
    }
    long width = features + gap;
    real *made = room_of(p, rows ? rows * width - gap : 0);
    return p->straight || one_in(2) ? (sequence){made, time * width, width, NULL}
                                    : (sequence){made, width, batch * width, NULL};
}

static weight draw_weight(problem *p, long features, int order)
{
    long gates = p->plain.gates, hidden = p->spec.hidden_size, count = gates * hidden * features;
    if (order == 1) /* dense units, as Keras has them */
        return (weight){room_of(p, count), hidden, 1, gates * hidden};
    if (order == 2)
        return (weight){room_of(p, 2 * count), hidden * features * 2, features * 2, 2};
    return (weight){room_of(p, count), hidden * features, features, 1};
}

static void meet_weight(problem *p, way way, const weight *w, double *reference, long features, double scale)
{
    for (long gate = 0; w->at && gate < p->plain.gates; gate++)
        for (long unit = 0; unit < p->spec.hidden_size; unit++)
            for (long k = 0; k < features; k++)
                meet(p, way, w->at + gate * w->gate + unit * w->unit + k * w->k,
                     reference + (gate * p->spec.hidden_size + unit) * features + k, scale);
}

static int is_bounded(const problem *p)
{
    int recurrent = p->spec.recurrent_activation.name, own = p->spec.activation.name;
    return (recurrent == SIGMOID || p->spec.cell == SIMPLE_RNN) && (own == TANH || own == SIGMOID);
}

static void meet_parameters(problem *p, way way, parameters *table, plain_parameters *reference)
{
    long hidden = p->spec.hidden_size;
    double scale = (is_bounded(p) ? 1.5 : 0.5) / sqrt((double)hidden);
    for (long pass = 0; pass < p->plain.passes; pass++) {
        long features = plain_features(&p->plain, pass / p->spec.directions), gates = p->plain.gates;
        parameters *to = &table[pass];
        plain_parameters *from = &reference[pass];
        meet_weight(p, way, &to->input, from->W, features, 1.5 / sqrt((double)features));
        meet_weight(p, way, &to->recurrent, from->U, hidden, scale);
        if (from->b && to->input_bias.at)
            meet_array(p, way, to->input_bias.at, from->b, gates * hidden, 0.5);
        if (from->c && to->recurrent_bias.at)
            meet_array(p, way, to->recurrent_bias.at, from->c, p->spec.recurrent_biases * hidden, 0.5);
    }
}

static void draw_parameters(problem *p, parameters *table, plain_parameters *reference, int wanted)
{
    long hidden = p->spec.hidden_size, gates = p->plain.gates;
    int order = p->straight ? 0 : (int)below(3);
    for (long pass = 0; pass < p->plain.passes; pass++) {
        long features = plain_features(&p->plain, pass / p->spec.directions), biases = p->spec.recurrent_biases;
        reference[pass] = (plain_parameters){zeros(gates * hidden * features), zeros(gates * hidden * hidden),
                                             p->biased ? zeros(gates * hidden) : NULL, biases ? zeros(biases * hidden) : NULL};
        table[pass] = (parameters){0};
        if (wanted || !one_in(6))
            table[pass].input = draw_weight(p, features, order);
        if (wanted || !one_in(6))
            table[pass].recurrent = draw_weight(p, hidden, order);
        if (p->biased && (wanted || !one_in(6)))
            table[pass].input_bias = (bias){room_of(p, gates * hidden), hidden, 1};
        if (biases && (wanted || !one_in(6)))
            table[pass].recurrent_bias = (bias){room_of(p, biases * hidden), hidden, 1};
    }
}

static long state_count(const problem *p) { return p->plain.passes * p->call.batch * p->spec.hidden_size; }

static states draw_states(problem *p)
{
    return (states){room_of(p, state_count(p)), p->spec.cell == LSTM ? room_of(p, state_count(p)) : NULL};
}

static void meet_states(problem *p, way way, states *given, double *h, double *c)
{
    if (given->h)
        meet_array(p, way, given->h, h, state_count(p), 1);
    if (given->c)
        meet_array(p, way, given->c, c, state_count(p), 1);
}

/* One number of x is not finite, as far as there is one. */
static void draw_infinity(problem *p)
{
    static const double strange[] = {INFINITY, -INFINITY, NAN};
    const call *c = &p->call;
    long row = c->batch ? below(c->batch) : 0, feature = below(p->spec.input_size);
    if (!c->batch || !c->time || !plain_length(&p->plain, row))
        return;
    long time = below(plain_length(&p->plain, row));
    double *element = p->plain.x + (row * c->time + time) * p->spec.input_size + feature;
    *element = strange[below(3)];
    at(&c->x, row, time)[feature] = (real)*element;
}

static void draw_problem(problem *p)
{
    draw_spec(p);
    call *c = &p->call;
    plain *q = &p->plain;
    c->batch = one_in(20) ? 0 : 1 + below(one_in(4) ? 30 : 6);
    c->time = one_in(20) ? 0 : 1 + below(one_in(4) ? 24 : 6);
    c->threads = one_in(3) ? 1 : 1 + below(16);
    p->straight = one_in(3);
    draw_choices(p);
    draw_lengths(p);
    *q = (plain){.spec = p->spec, .batch = c->batch, .time = c->time, .gates = gate_count(&p->spec),
                 .hidden = p->spec.hidden_size, .directions = p->spec.directions,
                 .passes = p->spec.layers * p->spec.directions, .lengths = p->true_lengths};
    long width = q->directions * q->hidden;
    double **states[] = {&q->h0, &q->c0, &q->h1, &q->c1, &q->dh0, &q->dc0, &q->dh1, &q->dc1};
    for (size_t i = 0; i < sizeof states / sizeof *states; i++)
        *states[i] = zeros(state_count(p));
    q->x = zeros(c->batch * c->time * p->spec.input_size);
    q->dx = zeros(c->batch * c->time * p->spec.input_size);
    q->dy = zeros(c->batch * c->time * width);
    c->x = draw_sequence(p, p->spec.input_size);
    c->y = draw_sequence(p, width);
    meet_sequence(p, FILL, &c->x, q->x, p->spec.input_size);
    if (is_bounded(p) && one_in(10))
        draw_infinity(p);
    if (one_in(2)) {
        c->first = draw_states(p);
        meet_states(p, FILL, &c->first, q->h0, q->c0);
    }
    draw_parameters(p, p->weights, q->parameters, 1);
    meet_parameters(p, FILL, p->weights, q->parameters);
}

static void discard(problem *p)
{
    plain *q = &p->plain;
    double *all[] = {q->x, q->dx, q->dy, q->h0, q->c0, q->h1, q->c1, q->dh0, q->dc0, q->dh1, q->dc1};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    for (long pass = 0; pass < q->passes; pass++) {
        double *of_pass[] = {q->parameters[pass].W, q->parameters[pass].U, q->parameters[pass].b, q->parameters[pass].c,
                             q->gradients[pass].W, q->gradients[pass].U, q->gradients[pass].b, q->gradients[pass].c,
                             q->gates_of[pass], q->layers[pass]};
        for (size_t i = 0; i < sizeof of_pass / sizeof *of_pass; i++)
            free(of_pass[i]);
    }
    for (int i = 0; i < p->rooms_used; i++)
        free(p->rooms[i].memory);
    free(p->lengths), free(p->true_lengths), free(p->starts), free(p->call.stash);
    if (p->prepacked)
        multirnn_free(p->prepacked);
}

#include "kernel_fuzz_calls.h"

/* --- Running --- */

/* Rounding of a stack that grows without bounds grows with it, so that its numbers say nothing. */
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

/* What the library says of itself, and what it does not run. */
static int ask_library(void)
{
    static const char *const names[] = {"baseline", "avx2", "avx512", "none"};
    int runs[4];
    for (int i = 0; i < 4; i++)
        runs[i] = multirnn_runs(names[i]);
    return !runs[0] || runs[3] || runs[2] > runs[1] || strcmp(multirnn_fingerprint(), FINGERPRINT) != 0;
}

/* What is kept between calls: the larger pieces, and never more than KEPT_BYTES. */
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

/* In a child of a fork, whose team begins again. */
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
    wrong += ask_library() + fill_memory();
    multirnn_free_kept();
    printf("%ld problems, %ld wrong; %d pieces were done for others, and %d phases missed\n", problems * (callers + 1), wrong,
           helped, skipped);
    return wrong != 0;
}
