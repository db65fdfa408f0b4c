/* The forward pass: packs the weights, then runs the slices of each layer in both directions.

   The input product of a block of steps is computed at once, into rows that stay in the cache (or go to the stash). At every
   step the tile starts from these, adds the recurrent product, and the cell computes gates and the next state. */
#ifndef FORWARD_H
#define FORWARD_H

#include "stack.h"

/* Memory of a slice in one direction. */
typedef struct {
    real *h[2]; /* before and after a step, alternating */
    real *c;    /* LSTM */
    real *rh;   /* r * h of the reset-before GRU */
    real *z;    /* input products, then gates */
} workspace;

/* Memory of a member. */
typedef struct {
    const real **from; /* rows of x, or of states */
    real **to;         /* rows of y */
    real *panel;       /* for packing in passing */
} row_pointers;

typedef struct {
    stack stack;
    pass *passes;
    workspace *workspaces; /* of every slice and direction that run at once */
    row_pointers *pointers; /* of every member */
} forward_run;

/* The stash: this head, the lengths, the outputs of all layers but the last, and gates and c of every pass. Backward reads the
   lengths here, because the caller may have changed its own. */
typedef struct {
    uint64_t mark;
    spec spec;
    int64_t batch, time, has_lengths;
    sharing sharing;
} stash_head;

#define STASH_MARK UINT64_C(0x6d756c7469726e6e)

/* Skips the head; returns the lengths. */
static int64_t *stashed_lengths(arena *a, long batch)
{
    take(a, sizeof(stash_head));
    return TAKE(a, int64_t, batch);
}

static void lay_out_stack(stack *k, arena *a)
{
    long layers = k->spec->layers, count = layers * k->directions;
    deal(k, a);
    k->outputs = TAKE(a, sequence, layers);
    k->z_stash = TAKE(a, real *, count);
    k->c_stash = TAKE(a, real *, count);
    if (k->outputs)
        k->outputs[layers - 1] = k->call->y;
}

static void lay_out_stash(stack *k, arena *a)
{
    stashed_lengths(a, k->call->batch);
    long batch = k->call->batch, features = k->directions * k->hidden;
    for (long layer = 0; layer < k->spec->layers - 1; layer++) {
        real *outputs = TAKE(a, real, batch * k->call->time * features);
        if (k->outputs)
            k->outputs[layer] = (sequence){outputs, features, batch * features};
    }
    for (long p = 0; p < k->spec->layers * k->directions; p++) {
        real *z = k->spec->cell == SIMPLE_RNN ? NULL : TAKE(a, real, k->valid * k->row_size);
        real *c = k->spec->cell == LSTM ? TAKE(a, real, k->valid * k->state_size) : NULL;
        if (k->z_stash)
            k->z_stash[p] = z, k->c_stash[p] = c;
    }
}

/* A panel of input weights that is used once is best packed right before, and stays in the cache. Not with dense units, whose
   pages many panels share. */
INLINE int packed_in_passing(const stack *k, long pass)
{
    const sharing *s = &k->sharing;
    if (s->unpacked || !s->block || k->call->packed)
        return 0;
    return (int)chosen(k->choices.in_passing,
                       s->block == k->call->time && s->slices == 1 && k->table[pass].input.unit != 1);
}

static void lay_out_pass(const stack *k, arena *a, pass *p, long index)
{
    static const struct {
        int parts;
        group input[2], recurrent[2];
    } forms[] = {
        [SIMPLE_RNN] = {1, {{1, {0}, 0, 1}}, {{1, {0}, 0, 1}}},
        [LSTM] = {1, {{4, {0, 1, 2, 3}, 0, 4}}, {{4, {0, 1, 2, 3}, 0, 4}}},
        /* n r z m, where m is the recurrent product of the candidate: x gives n r z, h gives r z m */
        [GRU_AFTER] = {1, {{3, {2, 0, 1}, 0, 4}}, {{3, {0, 1, 2}, 1, 4}}},
        /* r z of all units, then n, which needs r of all units */
        [GRU_BEFORE] = {2, {{2, {0, 1}, 0, 2}, {1, {2}, 0, 1}}, {{2, {0, 1}, 0, 2}, {1, {2}, 0, 1}}},
    };
    pass made = {.parts = forms[k->spec->cell].parts, .in_passing = packed_in_passing(k, index)};
    long features = features_of(k, index / k->directions);
    for (int part = 0; part < made.parts; part++) {
        matrix *input = &made.input[part], *recurrent = &made.recurrent[part];
        *input = (matrix){forms[k->spec->cell].input[part], features, k->hidden, NULL, NULL};
        *recurrent = (matrix){forms[k->spec->cell].recurrent[part], k->hidden, k->hidden, NULL, NULL};
        if (part)
            input->group.slot = recurrent->group.slot = (int)(2 * unit_vectors(k->hidden));
        input->panels = TAKE(a, real, k->sharing.unpacked || made.in_passing ? 0 : packed_size(input));
        input->bias = TAKE(a, real, k->plane * input->group.count);
        recurrent->panels = TAKE(a, real, k->sharing.unpacked ? 0 : packed_size(recurrent));
    }
    made.candidate_bias = TAKE(a, real, k->spec->cell == GRU_AFTER ? k->plane : 0);
    if (p)
        *p = made;
}

static void lay_out_passes(const stack *k, arena *a, pass *passes)
{
    for (long p = 0; p < k->spec->layers * k->directions; p++)
        lay_out_pass(k, a, passes ? passes + p : NULL, p);
}

static void lay_out_forward(void *argument, arena *a)
{
    forward_run *run = argument;
    stack *k = &run->stack;
    const call *c = k->call;
    long layers = k->spec->layers, count = layers * k->directions, features = k->directions * k->hidden;
    lay_out_stack(k, a);
    run->passes = TAKE(a, pass, count);
    arena packed = {c->packed, 0};
    lay_out_passes(k, c->packed ? &packed : a, run->passes);
    if (c->stash) {
        arena stash = {c->stash, 0};
        if (k->outputs)
            lay_out_stash(k, &stash);
    } else {
        real *outputs[2] = {NULL, NULL}; /* of one layer and of the next */
        for (int i = 0; i < smaller(layers - 1, 2); i++)
            outputs[i] = TAKE(a, real, c->batch * c->time * features);
        for (long layer = 0; k->outputs && layer < layers - 1; layer++)
            k->outputs[layer] = (sequence){outputs[layer % 2], features, c->batch * features};
        for (long p = 0; k->z_stash && p < count; p++)
            k->z_stash[p] = k->c_stash[p] = NULL;
    }
    long rows = larger(ceiling(c->batch, k->sharing.slices), 1);
    long block = k->sharing.block, deepest = 0;
    for (long p = 0; p < count; p++)
        if (packed_in_passing(k, p))
            deepest = larger(deepest, features_of(k, p / k->directions));
    long workspaces = k->sharing.split_units ? 1 : k->sharing.slices * k->directions;
    run->workspaces = TAKE(a, workspace, workspaces);
    for (long i = 0; i < workspaces; i++) {
        workspace *w = run->workspaces ? &run->workspaces[i] : &(workspace){0};
        for (int j = 0; j < 2; j++)
            w->h[j] = TAKE(a, real, rows * k->state_size);
        w->c = TAKE(a, real, rows * k->state_size);
        w->rh = TAKE(a, real, rows * k->state_size);
        w->z = TAKE(a, real, block * rows * k->row_size);
    }
    run->pointers = TAKE(a, row_pointers, k->sharing.members);
    for (int i = 0; i < k->sharing.members; i++) {
        row_pointers r = {TAKE(a, const real *, block * rows), TAKE(a, real *, rows), TAKE(a, real, deepest * MOST_VECTORS * LANES)};
        if (run->pointers)
            run->pointers[i] = r;
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
                if (!k->sharing.unpacked && (i || !p->in_passing))
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

/* The operands of a step; states are rows of state_size. */
typedef struct {
    long rows;
    real *z;
    const real *h, *c; /* before the step */
    real *next_h, *next_c, *rh;
    real **y;
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

/* The y of a long sequence is not in the cache: fetched during the product before the cell writes it. */
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

/* A slice in one layer and direction. */
typedef struct {
    forward_run *run;
    const slice *slice;
    workspace *workspace;
    course *course; /* NULL for a single member */
    const pass *pass;
    const parameters *from;
    real *z_stash, *c_stash; /* or NULL */
    long layer, direction, block;
    long input_grain[2], recurrent_grain[2]; /* panels of a piece */
} track;

/* Whether a weight is used in place, along its dense units. */
INLINE int along_units(const stack *k, const weight *w)
{
    return k->sharing.unpacked && w->unit == 1 && chosen(k->choices.along, 1);
}

static long grain(const stack *k, const matrix *m, const weight *w)
{
    if (!along_units(k, w))
        return 1;
    long members = k->sharing.members, panels = panel_count(m);
    return chosen(k->choices.grain, members > 1 ? ceiling(panels, PIECES_OF_A_MEMBER * members) : panels);
}

static track track_of(forward_run *run, long layer, long task)
{
    const stack *k = &run->stack;
    long direction = task % k->directions, index = layer * k->directions + direction, slice = task / k->directions;
    track made = {
        .run = run,
        .slice = &k->slices[slice],
        .workspace = &run->workspaces[k->sharing.split_units ? 0 : task],
        .course = k->sharing.members > 1 ? &k->courses[index * k->sharing.slices + slice] : NULL,
        .pass = &run->passes[index],
        .from = &k->table[index],
        .z_stash = k->z_stash[index],
        .c_stash = k->c_stash[index],
        .layer = layer,
        .direction = direction,
        .block = k->sharing.block,
    };
    for (int part = 0; part < made.pass->parts; part++) {
        made.input_grain[part] = grain(k, &made.pass->input[part], &made.from->input);
        made.recurrent_grain[part] = grain(k, &made.pass->recurrent[part], &made.from->recurrent);
    }
    return made;
}

/* The work of a phase: part 0 or 1 of a step; or part -1, the input product of the block of steps that begins here. */
typedef struct {
    long step;
    int part;
} stage;

static stage stage_of(const track *t, long phase)
{
    long of_a_block = 1 + t->block * t->pass->parts, n = (phase - 1) % of_a_block - 1;
    long first = (phase - 1) / of_a_block * t->block;
    return n < 0 ? (stage){first, -1} : (stage){first + n / t->pass->parts, (int)(n % t->pass->parts)};
}

static long count_of_phases(const track *t)
{
    long steps = t->slice->rows ? t->slice->length[0] : 0;
    return steps ? ceiling(steps, t->block) + steps * t->pass->parts : 0;
}

static long pieces_of(const track *t, stage now)
{
    if (now.part >= 0)
        return ceiling(panel_count(&t->pass->recurrent[now.part]), t->recurrent_grain[now.part]);
    long pieces = 0;
    for (int part = 0; part < t->pass->parts; part++)
        pieces += ceiling(panel_count(&t->pass->input[part]), t->input_grain[part]);
    return pieces;
}

/* The gates of a step, followed by those of the next steps. */
static real *gates_of(const track *t, long step)
{
    const stack *k = &t->run->stack;
    if (t->z_stash)
        return t->z_stash + t->slice->place[step] * k->row_size;
    return t->workspace->z + (t->slice->place[step] - t->slice->place[step / t->block * t->block]) * k->row_size;
}

/* Points `from` to the rows of x of a block of steps; returns their number. */
static long point_to_block(const track *t, long first, const real **from)
{
    const stack *k = &t->run->stack;
    const slice *s = t->slice;
    sequence x = input_of(k, t->layer);
    long count = 0, end = smaller(first + t->block, k->call->time);
    for (long step = first; step < end; step++)
        for (long r = 0; r < s->active[step]; r++)
            from[count++] = at(&x, s->row[r], time_of(s, t->direction, r, step));
    return count;
}

/* A piece of the input product. */
static void project(const track *t, long piece, const row_pointers *rows, long count, real *z)
{
    const real *const *from = rows->from;
    const stack *k = &t->run->stack;
    int part = 0, along = along_units(k, &t->from->input);
    for (long pieces; piece >= (pieces = ceiling(panel_count(&t->pass->input[part]), t->input_grain[part])); part++)
        piece -= pieces;
    const matrix *m = &t->pass->input[part];
    long first = piece * t->input_grain[part], end = smaller(first + t->input_grain[part], panel_count(m));
    for (long n = first; n < end; n++) {
        panel panel = panel_of(m, n);
        real *to = z + panel.slot * LANES;
        if (t->pass->in_passing) {
            panel.packed = rows->panel, panel.next = rows->panel;
            pack_panel(m, &t->from->input, &panel);
        }
        if (k->sharing.unpacked)
            for (long r = 0; r < count; r++)
                memcpy(to + r * k->row_size, panel.bias, panel.vectors * LANES * sizeof(real));
        else
            multiply(&panel, m->depth, from, count, panel.bias, 0, to, k->row_size);
        if (k->spec->cell == GRU_AFTER)
            for (long r = 0; r < count; r++)
                store(to + r * k->row_size + 3 * LANES, load(t->pass->candidate_bias + panel.unit * LANES));
        if (k->sharing.unpacked && !along)
            multiply_across(m, &panel, &t->from->input, from, count, to, k->row_size);
    }
    if (along)
        multiply_along_units(m, first, end, &t->from->input, from, count, z, k->row_size);
}

static step step_of(const track *t, stage now, const row_pointers *p)
{
    const stack *k = &t->run->stack;
    const slice *s = t->slice;
    const workspace *w = t->workspace;
    long n = now.step;
    sequence y = k->outputs[t->layer];
    step made = {.rows = s->active[n], .z = gates_of(t, n), .h = w->h[n % 2], .c = w->c, .next_h = w->h[1 - n % 2],
                 .next_c = w->c, .rh = w->rh, .y = p->to};
    if (t->c_stash) {
        made.next_c = t->c_stash + s->place[n] * k->state_size;
        made.c = n ? t->c_stash + s->place[n - 1] * k->state_size : w->c;
    }
    for (long r = 0; r < made.rows; r++) {
        p->to[r] = at(&y, s->row[r], time_of(s, t->direction, r, n)) + t->direction * k->hidden;
        p->from[r] = (now.part ? w->rh : made.h) + r * k->state_size;
    }
    return made;
}

/* A piece of a step: the recurrent product, then the cell. */
static void advance(const track *t, stage now, piece piece, const step *s, const real *const *from)
{
    const stack *k = &t->run->stack;
    const matrix *m = &t->pass->recurrent[now.part];
    const weight *w = &t->from->recurrent;
    long panels = t->recurrent_grain[now.part], first = piece.index * panels, end = smaller(first + panels, panel_count(m));
    int along = along_units(k, w);
    if (along)
        multiply_along_units(m, first, end, w, from, s->rows, s->z, k->row_size);
    for (long n = first; n < end; n++) {
        /* Along the units the product covered `first` to `end` in every step. */
        panel panel = along ? panel_of(m, n) : panel_of_step(m, n, piece.first, piece.end, now.step);
        real *z = s->z + panel.slot * LANES;
        fetch_outputs(s, &panel);
        if (!k->sharing.unpacked)
            multiply(&panel, m->depth, from, s->rows, z, k->row_size, z, k->row_size);
        else if (!along)
            multiply_across(m, &panel, w, from, s->rows, z, k->row_size);
        CELLS[k->spec->cell][now.part](k, s, &panel);
    }
}

static void clear_padding(const stack *k, const sequence *y, const slice *s, long from, long features)
{
    if (y->starts) /* packed: no padding */
        return;
    for (long r = 0; r < s->rows; r++)
        for (long t = s->length[r]; t < k->call->time; t++)
            memset(at(y, s->row[r], t) + from, 0, features * sizeof(real));
}

/* Writes the final states of the rows that end before this step. */
static void write_last(const track *t, long step)
{
    const stack *k = &t->run->stack;
    const slice *s = t->slice;
    const workspace *w = t->workspace;
    const real *c = t->c_stash && step ? t->c_stash + s->place[step - 1] * k->state_size : w->c;
    long first = s->active[step], end = step ? s->active[step - 1] : s->rows;
    write_states(k, s, t->layer, t->direction, w->h[step % 2], first, end, k->call->last.h);
    write_states(k, s, t->layer, t->direction, c, first, end, k->call->last.c);
}

static void begin_slice(const track *t)
{
    const stack *k = &t->run->stack;
    read_states(k, t->slice, t->layer, t->direction, k->call->first.h, t->workspace->h[0]);
    read_states(k, t->slice, t->layer, t->direction, k->call->first.c, t->workspace->c);
    clear_padding(k, &k->outputs[t->layer], t->slice, t->direction * k->hidden, k->hidden);
    write_last(t, 0);
}

/* All steps of a slice, for the member that begins it and for those that join. */
static void run_slice(void *run, int rank, long layer, long task, int home, int begins)
{
    const track made = track_of(run, layer, task), *t = &made;
    const row_pointers *pointers = &t->run->pointers[rank];
    long phases = count_of_phases(t), phase;
    member m = multirnn_join(t->course, home, begins);
    if (begins)
        begin_slice(t);
    while (1) {
        phase = multirnn_reach(&m);
        stage now = stage_of(t, phase);
        multirnn_open(&m, phase > phases ? 0 : pieces_of(t, now));
        if (phase > phases)
            return;
        if (now.part < 0) {
            long count = point_to_block(t, now.step, pointers->from);
            while (multirnn_take_piece(&m)) project(t, m.piece.index, pointers, count, gates_of(t, now.step));
        } else {
            step step = step_of(t, now, pointers);
            while (multirnn_take_piece(&m)) advance(t, now, m.piece, &step, pointers->from);
        }
        if (multirnn_close(&m) && now.part == t->pass->parts - 1)
            write_last(t, now.step + 1);
    }
}

static void forward_work(void *argument, int rank)
{
    forward_run *run = argument;
    stack *k = &run->stack;
    /* No matrix of a pass has more panels. */
    long panels = panel_count(&run->passes->input[0]), item;
    long end = k->call->packed ? 0 : k->spec->layers * k->directions * panels;
    while ((item = multirnn_take(&k->queue, end)) >= 0) {
        long p = item / panels;
        pack_parts(k, &run->passes[p], &k->table[p], item % panels);
        multirnn_done(&k->queue);
    }
    for (long layer = 0; layer < k->spec->layers; layer++) {
        multirnn_wait(&k->queue, end);
        end = run_slices(k, run, run_slice, rank, layer, end);
    }
}

#endif
