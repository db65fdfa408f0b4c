/* A random problem of kernel_fuzz.c: drawn sizes, weights and inputs, and the arrays of the kernel filled from them. */
#ifndef KERNEL_FUZZ_PROBLEM_H
#define KERNEL_FUZZ_PROBLEM_H

#include "kernel_plain.h"

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

#endif
