/* The way there: pack the weights, then layer by layer the slices of every direction, step by step.

   What x brings is multiplied for a block of steps at once, into rows that stay in the cache (or in the stash); at every
   step the tile starts from there, adds what h brings, and the cell makes gates and the next state of it. */
#ifndef FORWARD_H
#define FORWARD_H

#include "stack.h"

#define BLOCK_BYTES (256 << 10) /* of the rows that what x brings waits in */
#define BLOCK_ROWS 96           /* but so many at least: the weights are read once a block */

/* What a member needs for a slice; where several do one together, only the pointers are its own. */
typedef struct {
    real *h[2]; /* the states before and after a step, in turn */
    real *c;    /* of an LSTM */
    real *rh;   /* r * h of the reset-before GRU */
    real *z;    /* what x brings */
    const real **from; /* rows of x, or of states */
    real **to;         /* rows of y */
} workspace;

typedef struct {
    stack stack;
    pass *passes;
    workspace *workspaces;
    long block;  /* steps */
    real **z_stash, **c_stash; /* of every pass; NULL where nothing is stashed */
} forward_run;

/* The stash: how the work was shared, the outputs of all layers but the last, and of every pass the gates and c. */
typedef struct {
    sharing sharing;
} stash_head;

static void lay_out_stash(stack *k, arena *a, real **z_stash, real **c_stash)
{
    take(a, sizeof(stash_head));
    long batch = k->call->batch, features = k->directions * k->hidden;
    for (long layer = 0; layer < k->spec->layers - 1; layer++) {
        real *outputs = TAKE(a, real, batch * k->call->time * features);
        if (k->outputs)
            k->outputs[layer] = (sequence){outputs, features, batch * features};
    }
    for (long p = 0; p < k->spec->layers * k->directions; p++) {
        real *z = k->spec->cell == SIMPLE_RNN ? NULL : TAKE(a, real, k->valid * k->row_size);
        real *c = k->spec->cell == LSTM ? TAKE(a, real, k->valid * k->state_size) : NULL;
        if (z_stash)
            z_stash[p] = z, c_stash[p] = c;
    }
}

static void lay_out_pass(const stack *k, arena *a, pass *p, long features)
{
    static const struct {
        int parts;
        group input[2], recurrent[2];
    } forms[] = {
        [SIMPLE_RNN] = {1, {{1, {0}, 0, 1}}, {{1, {0}, 0, 1}}},
        [LSTM] = {1, {{4, {0, 1, 2, 3}, 0, 4}}, {{4, {0, 1, 2, 3}, 0, 4}}},
        /* n r z m, where m is what h brings to the candidate: x brings n r z, and h brings r z m */
        [GRU_AFTER] = {1, {{3, {2, 0, 1}, 0, 4}}, {{3, {0, 1, 2}, 1, 4}}},
        /* r z of all units, then n of all units, which needs r of all units */
        [GRU_BEFORE] = {2, {{2, {0, 1}, 0, 2}, {1, {2}, 0, 1}}, {{2, {0, 1}, 0, 2}, {1, {2}, 0, 1}}},
    };
    pass made = {.parts = forms[k->spec->cell].parts};
    for (int part = 0; part < made.parts; part++) {
        matrix *input = &made.input[part], *recurrent = &made.recurrent[part];
        *input = (matrix){forms[k->spec->cell].input[part], features, k->hidden, NULL, NULL};
        *recurrent = (matrix){forms[k->spec->cell].recurrent[part], k->hidden, k->hidden, NULL, NULL};
        if (part)
            input->group.slot = recurrent->group.slot = (int)(2 * unit_vectors(k->hidden));
        input->panels = TAKE(a, real, k->sharing.unpacked ? 0 : packed_size(input));
        input->bias = TAKE(a, real, k->plane * input->group.count);
        recurrent->panels = TAKE(a, real, k->sharing.unpacked ? 0 : packed_size(recurrent));
    }
    made.candidate_bias = TAKE(a, real, k->plane);
    if (p)
        *p = made;
}

static void lay_out_passes(const stack *k, arena *a, pass *passes)
{
    for (long p = 0; p < k->spec->layers * k->directions; p++)
        lay_out_pass(k, a, passes ? passes + p : NULL, features_of(k, p / k->directions));
}

static void lay_out_forward(forward_run *run, arena *a)
{
    stack *k = &run->stack;
    const call *c = k->call;
    long layers = k->spec->layers, count = layers * k->directions, features = k->directions * k->hidden;
    deal(k, a);
    k->outputs = TAKE(a, sequence, layers);
    run->passes = TAKE(a, pass, count);
    run->z_stash = TAKE(a, real *, count);
    run->c_stash = TAKE(a, real *, count);
    arena packed = {c->packed, 0};
    lay_out_passes(k, c->packed ? &packed : a, run->passes);
    if (c->stash) {
        arena stash = {c->stash, 0};
        if (k->outputs)
            lay_out_stash(k, &stash, run->z_stash, run->c_stash);
    } else {
        real *outputs[2] = {NULL, NULL}; /* of one layer and of the next */
        for (int i = 0; i < smaller(layers - 1, 2); i++)
            outputs[i] = TAKE(a, real, c->batch * c->time * features);
        for (long layer = 0; k->outputs && layer < layers - 1; layer++)
            k->outputs[layer] = (sequence){outputs[layer % 2], features, c->batch * features};
        if (run->z_stash)
            memset(run->z_stash, 0, count * sizeof(real *));
    }
    if (k->outputs)
        k->outputs[layers - 1] = c->y;
    long rows = larger(ceiling(c->batch, k->sharing.slices), 1);
    long row_bytes = rows * k->row_size * (long)sizeof(real);
    run->block = smaller(larger(larger(BLOCK_BYTES / row_bytes, ceiling(BLOCK_ROWS, rows)), 1), c->time);
    run->workspaces = TAKE(a, workspace, k->sharing.members);
    workspace w = {0};
    for (int i = 0; i < k->sharing.members; i++) {
        if (i == 0 || !k->sharing.split_units) {
            for (int j = 0; j < 2; j++)
                w.h[j] = TAKE(a, real, rows * k->state_size);
            w.c = TAKE(a, real, rows * k->state_size);
            w.rh = TAKE(a, real, rows * k->state_size);
            w.z = TAKE(a, real, run->block * rows * k->row_size);
        }
        w.from = TAKE(a, const real *, run->block * rows);
        w.to = TAKE(a, real *, rows);
        if (run->workspaces)
            run->workspaces[i] = w;
    }
}

/* The n-th part of each of its matrices. */
static void pack_parts(const stack *k, const pass *p, const parameters *from, long n)
{
    int recurrent_biases = (int)k->spec->recurrent_biases;
    int folded = k->spec->cell != GRU_AFTER ? recurrent_biases : recurrent_biases == 3 ? 2 : 0;
    for (int part = 0; part < p->parts; part++) {
        const matrix *packed[] = {&p->input[part], &p->recurrent[part]};
        const weight *weights[] = {&from->input, &from->recurrent};
        for (int i = 0; i < 2; i++)
            if (n < panel_count(packed[i])) {
                if (!k->sharing.unpacked)
                    pack_part(packed[i], weights[i], n);
                if (i == 0)
                    pack_bias(packed[i], &from->input_bias, &from->recurrent_bias, folded, n);
            }
    }
    if (n == 0 && k->spec->cell == GRU_AFTER)
        for (long unit = 0; unit < k->plane; unit++)
            p->candidate_bias[unit] =
                unit < k->hidden && recurrent_biases
                    ? from->recurrent_bias.at[(recurrent_biases - 1) * from->recurrent_bias.gate +
                                              unit * from->recurrent_bias.unit]
                    : 0;
}

/* The rows of one step, and what the cells need of them. */
typedef struct {
    long rows;
    real *z;
    const real *h, *c;  /* before the step; rows of state_size */
    real *next_h, *next_c, *rh;
    real **y;
    const real *candidate_bias;
} step;

static void simple_rnn_cell(const stack *k, const step *s, const panel *p)
{
    const activation *a = &k->spec->activation;
    for (long r = 0; r < s->rows; r++)
        for (long v = p->unit; v < p->unit + p->units; v++) {
            vector h = activate(a, load(s->z + r * k->row_size + v * LANES));
            store(s->next_h + r * k->state_size + v * LANES, h);
            store_part(s->y[r] + v * LANES, h, k->hidden - v * LANES);
        }
}

static void lstm_cell(const stack *k, const step *s, const panel *p)
{
    const activation *a = &k->spec->activation, *sigma = &k->spec->recurrent_activation;
    long unit = p->unit * LANES;
    for (long r = 0; r < s->rows; r++) {
        real *z = s->z + r * k->row_size + p->slot * LANES;
        vector i = activate(sigma, load(z)), f = activate(sigma, load(z + LANES));
        vector g = activate(a, load(z + 2 * LANES)), o = activate(sigma, load(z + 3 * LANES));
        vector c = f * load(s->c + r * k->state_size + unit) + i * g;
        vector h = o * activate(a, c);
        if (k->call->stash) {
            store(z, i);
            store(z + LANES, f);
            store(z + 2 * LANES, g);
            store(z + 3 * LANES, o);
        }
        store(s->next_c + r * k->state_size + unit, c);
        store(s->next_h + r * k->state_size + unit, h);
        store_part(s->y[r] + unit, h, k->hidden - unit);
    }
}

static void gru_after_cell(const stack *k, const step *s, const panel *p)
{
    const activation *a = &k->spec->activation, *sigma = &k->spec->recurrent_activation;
    long unit = p->unit * LANES;
    for (long row = 0; row < s->rows; row++) {
        real *gates = s->z + row * k->row_size + p->unit * 4 * LANES;
        vector r = activate(sigma, load(gates + LANES)), z = activate(sigma, load(gates + 2 * LANES));
        vector n = activate(a, load(gates) + r * load(gates + 3 * LANES));
        vector h = n + z * (load(s->h + row * k->state_size + unit) - n);
        if (k->call->stash) {
            store(gates, n);
            store(gates + LANES, r);
            store(gates + 2 * LANES, z);
        }
        store(s->next_h + row * k->state_size + unit, h);
        store_part(s->y[row] + unit, h, k->hidden - unit);
    }
}

static void gru_before_gates(const stack *k, const step *s, const panel *p)
{
    const activation *sigma = &k->spec->recurrent_activation;
    for (long row = 0; row < s->rows; row++)
        for (long v = p->unit; v < p->unit + p->units; v++) {
            real *gates = s->z + row * k->row_size + 2 * v * LANES;
            vector r = activate(sigma, load(gates)), z = activate(sigma, load(gates + LANES));
            store(gates, r);
            store(gates + LANES, z);
            store(s->rh + row * k->state_size + v * LANES, r * load(s->h + row * k->state_size + v * LANES));
        }
}

static void gru_before_state(const stack *k, const step *s, const panel *p)
{
    const activation *a = &k->spec->activation;
    for (long row = 0; row < s->rows; row++)
        for (long v = p->unit; v < p->unit + p->units; v++) {
            real *gates = s->z + row * k->row_size;
            real *candidate = gates + 2 * k->plane + v * LANES;
            vector n = activate(a, load(candidate)), z = load(gates + (2 * v + 1) * LANES);
            vector h = n + z * (load(s->h + row * k->state_size + v * LANES) - n);
            store(candidate, n);
            store(s->next_h + row * k->state_size + v * LANES, h);
            store_part(s->y[row] + v * LANES, h, k->hidden - v * LANES);
        }
}

/* Of a long sequence, y is far away: what a cell writes there is fetched while the product before it is computed. */
INLINE void fetch_outputs(const step *s, const panel *p)
{
    for (long r = 0; r < s->rows; r++)
        for (long v = p->unit; v < p->unit + p->units; v++)
            __builtin_prefetch(s->y[r] + v * LANES, 1, 3);
}

typedef void cell_step(const stack *k, const step *s, const panel *p);

static cell_step *const CELLS[][2] = {
    [SIMPLE_RNN] = {simple_rnn_cell},
    [LSTM] = {lstm_cell},
    [GRU_AFTER] = {gru_after_cell},
    [GRU_BEFORE] = {gru_before_gates, gru_before_state},
};

/* What x brings to the gates of some steps; `from` has room for their rows. */
static void project(const stack *k, const pass *p, const weight *w, const sequence *x, long direction, const slice *s, long first, long last,
                    real *z, const real **from, int rank, int members)
{
    long count = 0;
    for (long step = first; step < last; step++)
        for (long r = 0; r < s->active[step]; r++)
            from[count++] = at(x, s->row[r], time_of(s, direction, r, step));
    for (int part = 0; part < p->parts; part++) {
        const matrix *m = &p->input[part];
        long first_panel, end;
        share(panel_count(m), rank, members, &first_panel, &end);
        for (long n = first_panel; n < end; n++) {
            panel panel = panel_of(m, n);
            real *to = z + panel.slot * LANES;
            if (k->sharing.unpacked)
                for (long r = 0; r < count; r++)
                    memcpy(to + r * k->row_size, panel.bias, panel.vectors * LANES * sizeof(real));
            else
                multiply(&panel, m->depth, from, count, panel.bias, 0, to, k->row_size);
            if (k->spec->cell == GRU_AFTER)
                for (long r = 0; r < count; r++)
                    store(to + r * k->row_size + 3 * LANES, load(p->candidate_bias + panel.unit * LANES));
        }
        if (k->sharing.unpacked)
            multiply_unpacked(m, first_panel, end, 0, w, from, count, z, k->row_size);
    }
}

static void clear_padding(const stack *k, const sequence *y, const slice *s, long from, long features)
{
    if (y->starts) /* packed: there is none */
        return;
    for (long r = 0; r < s->rows; r++)
        for (long t = s->length[r]; t < k->call->time; t++)
            memset(at(y, s->row[r], t) + from, 0, features * sizeof(real));
}

/* All steps of one slice in one layer and direction, or those from `from` on, for who comes later. Returns whether they are
   through, or it was dismissed before. */
static int run_slice(forward_run *run, long layer, long direction, const slice *s, workspace *w, int rank, int members,
                      long from)
{
    stack *k = &run->stack;
    const call *c = k->call;
    long index = layer * k->directions + direction;
    const pass *p = &run->passes[index];
    sequence x = input_of(k, layer), y = k->outputs[layer];
    size_t row_bytes = k->hidden * sizeof(real);
    int stashes_z = c->stash && k->spec->cell != SIMPLE_RNN, has_c = k->spec->cell == LSTM;
    if (rank == 0) {
        memset(w->h[0], 0, s->rows * k->state_size * sizeof(real));
        memset(w->c, 0, s->rows * k->state_size * sizeof(real));
        for (long r = 0; r < s->rows; r++) {
            if (c->first.h)
                memcpy(w->h[0] + r * k->state_size, state_row(k, c->first.h, layer, direction, s->row[r]), row_bytes);
            if (c->first.c && has_c)
                memcpy(w->c + r * k->state_size, state_row(k, c->first.c, layer, direction, s->row[r]), row_bytes);
        }
        clear_padding(k, &y, s, direction * k->hidden, k->hidden);
    }
    crew *crew = k->sharing.split_units ? &k->crews[index] : NULL;
    if (!from)
        multirnn_meet(crew, rank, members, -1);
    for (long step_index = from; step_index <= c->time; step_index++) {
        long rows = step_index < c->time ? s->active[step_index] : 0, before = step_index ? s->active[step_index - 1] : s->rows;
        const real *h = w->h[step_index % 2], *now_c = w->c;
        if (has_c && c->stash && step_index)
            now_c = run->c_stash[index] + s->place[step_index - 1] * k->state_size;
        if (rank == 0) /* the rows that are at their end */
            for (long r = rows; r < before; r++) {
                if (c->last.h)
                    memcpy(state_row(k, c->last.h, layer, direction, s->row[r]), h + r * k->state_size, row_bytes);
                if (c->last.c && has_c)
                    memcpy(state_row(k, c->last.c, layer, direction, s->row[r]), now_c + r * k->state_size, row_bytes);
            }
        if (!rows)
            return 1;
        long block = step_index / run->block * run->block;
        if (step_index == block) {
            real *z = stashes_z ? run->z_stash[index] + s->place[block] * k->row_size : w->z;
            project(k, p, &k->table[index].input, &x, direction, s, block, smaller(block + run->block, c->time), z, w->from, rank, members);
        }
        step now = {.rows = rows, .h = h, .next_h = w->h[1 - step_index % 2], .c = now_c, .next_c = w->c, .rh = w->rh, .y = w->to};
        now.z = stashes_z ? run->z_stash[index] + s->place[step_index] * k->row_size
                          : w->z + (s->place[step_index] - s->place[block]) * k->row_size;
        if (has_c && c->stash)
            now.next_c = run->c_stash[index] + s->place[step_index] * k->state_size;
        for (long r = 0; r < rows; r++) {
            w->to[r] = at(&y, s->row[r], time_of(s, direction, r, step_index)) + direction * k->hidden;
            w->from[r] = h + r * k->state_size;
        }
        for (int part = 0; part < p->parts; part++) {
            const matrix *m = &p->recurrent[part];
            long first, end;
            if (part) {
                multirnn_meet(crew, rank, members, step_index);
                for (long r = 0; r < rows; r++)
                    w->from[r] = w->rh + r * k->state_size;
            }
            share(panel_count(m), rank, members, &first, &end);
            if (k->sharing.unpacked)
                multiply_unpacked(m, first, end, step_index, &k->table[index].recurrent, w->from, rows, now.z, k->row_size);
            for (long n = first; n < end; n++) {
                panel panel = panel_of_step(m, n, first, end, step_index);
                real *z = now.z + panel.slot * LANES;
                fetch_outputs(&now, &panel);
                if (!k->sharing.unpacked)
                    multiply(&panel, m->depth, w->from, rows, z, k->row_size, z, k->row_size);
                CELLS[k->spec->cell][part](k, &now, &panel);
            }
        }
        members = multirnn_meet(crew, rank, members, step_index);
        if (rank >= members)
            return 0;
        if (crew && members == 1)
            members = multirnn_let_in(crew, step_index + 1);
    }
    return 1;
}

static void forward_work(void *argument, int rank, int members)
{
    forward_run *run = argument;
    stack *k = &run->stack;
    /* Of a pass: its matrices have as many, or fewer. */
    long panels = panel_count(&run->passes->input[0]), item;
    long end = k->call->packed ? 0 : k->spec->layers * k->directions * panels;
    while ((item = multirnn_take(&k->agenda, end)) >= 0) {
        long p = item / panels;
        pack_parts(k, &run->passes[p], &k->table[p], item % panels);
        multirnn_done(&k->agenda);
    }
    for (long layer = 0; layer < k->spec->layers; layer++) {
        multirnn_wait(&k->agenda, end);
        long start = end;
        if (k->sharing.split_units) {
            end++;
            for (long direction = 0; direction < k->directions; direction++) {
                crew *crew = &k->crews[layer * k->directions + direction];
                long from;
                int together, through = 0;
                while (!through && (together = multirnn_crew(crew, rank, members, &from))) /* again, who was dismissed */
                    through = run_slice(run, layer, direction, k->slices, &run->workspaces[rank], rank, together, from);
                if (rank == 0)
                    multirnn_through(crew);
            }
            if (rank == 0) { /* the others wait for it */
                multirnn_take(&k->agenda, end);
                multirnn_done(&k->agenda);
            }
        } else {
            end += k->directions * k->sharing.slices;
            while ((item = multirnn_take(&k->agenda, end)) >= 0) {
                long task = item - start;
                run_slice(run, layer, task % k->directions, &k->slices[task / k->directions], &run->workspaces[rank], 0, 1, 0);
                multirnn_done(&k->agenda);
            }
        }
    }
}

#endif
