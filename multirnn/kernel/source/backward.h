/* The backward pass: from the last layer to the first, every slice from the last step to the first.

   The steps compute only what depends on each other: dz, the gradient of the gates before their activation, and dh. The
   gradients of the weights and of x are products over all steps afterwards. dz of a row at a step is a row of planes, one a
   gate, padded(hidden) long. Those of the reset-after GRU are dn dr dz dm, where x gave n r z and h gave r z m. */
#ifndef BACKWARD_H
#define BACKWARD_H

#include "forward.h"

/* Memory of one direction, reused by every layer. */
typedef struct {
    matrix to_x;          /* dz of the input product -> dx */
    matrix to_h[2];       /* dz of the recurrent product -> dh; for the reset-before GRU first the candidate's -> d(r * h) */
    real *dz;             /* rows of dz_size, in the order of slice.place */
    real *rh;             /* r * h of the reset-before GRU, in the same order */
    const real **x, **h, **rh_rows; /* the rows of x, of h before the step, and of rh, in the same order */
    real **dx;            /* the rows of the gradient of x, in the same order */
} back_pass;

/* Memory of a slice in one direction: rows of state_size. */
typedef struct {
    real *dh, *dc, *drh, *first_c;
} back_workspace;

/* Memory of a member. */
typedef struct {
    const real **from;         /* operands of a product */
    const real **y, **h, **dy; /* rows of the outputs of a step, of h before it, of the outputs' gradient */
    real *sums;                /* gradients of weights before their transposition */
} back_pointers;

typedef struct {
    stack stack;
    const parameters *gradients;
    back_pass passes[2]; /* of both directions */
    back_workspace *workspaces; /* of every slice and direction that run at once */
    back_pointers *pointers;    /* of every member */
    sequence *douts;     /* the gradient of the outputs of every layer */
    long dz_size;
    int recurrent_plane; /* the first of the recurrent product; the input product has the first planes */
    real *zeros;
    real one;
} backward_run;

/* The canonical numbers of the gates in the order of their planes. */
static const int PLANES[][4] = {[SIMPLE_RNN] = {0}, [LSTM] = {0, 1, 2, 3}, [GRU_AFTER] = {2, 0, 1, 2}, [GRU_BEFORE] = {0, 1, 2}};

static matrix back_matrix(const stack *k, arena *a, long planes, long units)
{
    matrix m = {{1, {0}, 0, 1}, planes * k->plane, units, NULL, NULL};
    m.panels = TAKE(a, real, packed_size(&m));
    return m;
}

/* Rows of dz that are multiplied with all weights at a time. */
static long rows_of_dx(const backward_run *run)
{
    return larger(ROWS_BYTES / (run->dz_size * (long)sizeof(real)), ROWS_OF_A_TILE);
}

static void lay_out_backward(void *argument, arena *a)
{
    backward_run *run = argument;
    stack *k = &run->stack;
    const call *c = k->call;
    long layers = k->spec->layers, features = k->directions * k->hidden;
    long most_features = larger(k->spec->input_size, layers > 1 ? features : 0);
    long planes = k->spec->cell == GRU_AFTER ? 4 : k->gates;
    run->dz_size = odd_vectors(planes * k->plane / LANES);
    run->recurrent_plane = k->spec->cell == GRU_AFTER;
    lay_out_stack(k, a);
    run->douts = TAKE(a, sequence, layers);
    arena stash = {c->stash, 0};
    if (a->base) {
        lay_out_stash(k, &stash);
        run->douts[layers - 1] = c->dy;
    }
    for (int i = 0; i < smaller(layers - 1, 2); i++) {
        real *douts = TAKE(a, real, c->batch * c->time * features);
        for (long layer = layers - 2 - i; a->base && layer >= 0; layer -= 2)
            run->douts[layer] = (sequence){douts, features, c->batch * features};
    }
    for (long d = 0; d < k->directions; d++) {
        back_pass *p = &run->passes[d];
        p->to_x = back_matrix(k, a, k->gates, most_features);
        if (k->spec->cell == GRU_BEFORE) {
            p->to_h[0] = back_matrix(k, a, 1, k->hidden);
            p->to_h[1] = back_matrix(k, a, 2, k->hidden);
            p->rh = TAKE(a, real, k->valid * k->state_size);
            p->rh_rows = TAKE(a, const real *, k->valid);
        } else
            p->to_h[0] = back_matrix(k, a, k->gates, k->hidden);
        p->dz = TAKE(a, real, k->valid * run->dz_size);
        p->x = TAKE(a, const real *, k->valid);
        p->h = TAKE(a, const real *, k->valid);
        p->dx = TAKE(a, real *, k->valid);
    }
    long rows = ceiling(c->batch, k->sharing.slices);
    long workspaces = k->sharing.split_units ? 1 : k->sharing.slices * k->directions;
    run->workspaces = TAKE(a, back_workspace, workspaces);
    for (long i = 0; i < workspaces; i++) {
        back_workspace *w = a->base ? &run->workspaces[i] : &(back_workspace){0};
        w->dh = TAKE(a, real, rows * k->state_size);
        w->dc = TAKE(a, real, rows * k->state_size);
        w->drh = TAKE(a, real, rows * k->state_size);
        w->first_c = TAKE(a, real, rows * k->state_size);
    }
    run->pointers = TAKE(a, back_pointers, k->sharing.members);
    for (int i = 0; i < k->sharing.members; i++) {
        back_pointers *p = a->base ? &run->pointers[i] : &(back_pointers){0};
        p->from = TAKE(a, const real *, larger(rows, rows_of_dx(run)));
        p->y = TAKE(a, const real *, rows);
        p->h = TAKE(a, const real *, rows);
        p->dy = TAKE(a, const real *, rows);
        p->sums = TAKE(a, real, (larger(most_features, k->hidden) + 1) * WIDTH * LANES);
    }
    run->zeros = TAKE(a, real, larger(k->plane, WIDTH * LANES));
    if (a->base)
        memset(run->zeros, 0, larger(k->plane, WIDTH * LANES) * sizeof(real));
    run->one = 1;
}

/* Stores dz, zero beyond the last unit: infinite inputs give NaN there, which zero weights would not remove. */
INLINE void store_padded(real *to, vector dz, long left)
{
    store(to, dz);
    for (long lane = left; lane < LANES; lane++)
        to[lane] = 0;
}

/* The operands of a backward step. */
typedef struct {
    long rows, first, last; /* units: vectors from first to last */
    const real *z, *c, *prev_c; /* the stash, and rows of state_size */
    real *dh, *dc, *drh, *rh, *dz;
    const real **y, **h, **dy; /* h is the one before the step */
} back_step;

static void simple_rnn_back(const backward_run *run, const back_step *s)
{
    const stack *k = &run->stack;
    for (long r = 0; r < s->rows; r++)
        for (long v = s->first; v < s->last; v++) {
            long unit = v * LANES, left = k->hidden - unit;
            real *dh = s->dh + r * k->state_size + unit;
            vector h = load_part(s->y[r] + unit, left);
            vector all = load(dh) + load_part(s->dy[r] + unit, left);
            store_padded(s->dz + r * run->dz_size + unit, all * slope(&k->spec->activation, h), left);
            store(dh, (vector){0});
        }
}

static void lstm_back(const backward_run *run, const back_step *s)
{
    const stack *k = &run->stack;
    const activation *a = &k->spec->activation, *sigma = &k->spec->recurrent_activation;
    for (long r = 0; r < s->rows; r++)
        for (long v = s->first; v < s->last; v++) {
            long unit = v * LANES, left = k->hidden - unit;
            const real *z = s->z + r * k->row_size + 4 * unit;
            real *dz = s->dz + r * run->dz_size + unit, *dh = s->dh + r * k->state_size + unit;
            real *dc = s->dc + r * k->state_size + unit;
            vector i = load(z), f = load(z + LANES), g = load(z + 2 * LANES), o = load(z + 3 * LANES);
            vector a_c = activate(a, load(s->c + r * k->state_size + unit));
            vector all_h = load(dh) + load_part(s->dy[r] + unit, left);
            vector all_c = load(dc) + all_h * o * slope(a, a_c);
            store_padded(dz, all_c * g * slope(sigma, i), left);
            store_padded(dz + k->plane, all_c * load(s->prev_c + r * k->state_size + unit) * slope(sigma, f), left);
            store_padded(dz + 2 * k->plane, all_c * i * slope(a, g), left);
            store_padded(dz + 3 * k->plane, all_h * a_c * slope(sigma, o), left);
            store(dc, all_c * f);
            store(dh, (vector){0});
        }
}

static void gru_after_back(const backward_run *run, const back_step *s)
{
    const stack *k = &run->stack;
    const activation *a = &k->spec->activation, *sigma = &k->spec->recurrent_activation;
    for (long row = 0; row < s->rows; row++)
        for (long v = s->first; v < s->last; v++) {
            long unit = v * LANES, left = k->hidden - unit;
            const real *gates = s->z + row * k->row_size + 4 * unit;
            real *dz = s->dz + row * run->dz_size + unit, *dh = s->dh + row * k->state_size + unit;
            vector n = load(gates), r = load(gates + LANES), z = load(gates + 2 * LANES), m = load(gates + 3 * LANES);
            vector all = load(dh) + load_part(s->dy[row] + unit, left);
            vector dn = all * ((real)1 - z) * slope(a, n);
            store_padded(dz, dn, left);
            store_padded(dz + k->plane, dn * m * slope(sigma, r), left);
            store_padded(dz + 2 * k->plane, all * (load_part(s->h[row] + unit, left) - n) * slope(sigma, z), left);
            store_padded(dz + 3 * k->plane, dn * r, left);
            store(dh, all * z);
        }
}

static void gru_before_back_candidate(const backward_run *run, const back_step *s)
{
    const stack *k = &run->stack;
    const activation *a = &k->spec->activation, *sigma = &k->spec->recurrent_activation;
    for (long row = 0; row < s->rows; row++)
        for (long v = s->first; v < s->last; v++) {
            long unit = v * LANES, left = k->hidden - unit;
            const real *gates = s->z + row * k->row_size;
            real *dz = s->dz + row * run->dz_size + unit, *dh = s->dh + row * k->state_size + unit;
            vector z = load(gates + 2 * unit + LANES), n = load(gates + 2 * k->plane + unit);
            vector all = load(dh) + load_part(s->dy[row] + unit, left);
            store_padded(dz + k->plane, all * (load_part(s->h[row] + unit, left) - n) * slope(sigma, z), left);
            store_padded(dz + 2 * k->plane, all * ((real)1 - z) * slope(a, n), left);
            store(dh, all * z);
            store(s->drh + row * k->state_size + unit, (vector){0});
        }
}

static void gru_before_back_reset(const backward_run *run, const back_step *s)
{
    const stack *k = &run->stack;
    const activation *sigma = &k->spec->recurrent_activation;
    for (long row = 0; row < s->rows; row++)
        for (long v = s->first; v < s->last; v++) {
            long unit = v * LANES, left = k->hidden - unit;
            vector r = load(s->z + row * k->row_size + 2 * unit), h = load_part(s->h[row] + unit, left);
            vector drh = load(s->drh + row * k->state_size + unit);
            real *dh = s->dh + row * k->state_size + unit;
            store_padded(s->dz + row * run->dz_size + unit, drh * h * slope(sigma, r), left);
            store(s->rh + row * k->state_size + unit, r * h);
            store(dh, load(dh) + drh * r);
        }
}

/* A slice in one layer and direction. */
typedef struct {
    backward_run *run;
    const slice *slice;
    const back_workspace *workspace;
    course *course; /* NULL for a single member */
    const back_pass *pass;
    const real *z_stash, *c_stash; /* or NULL */
    long layer, direction, steps;
    int parts; /* phases of a step */
} back_track;

static back_track back_track_of(backward_run *run, long layer, long task)
{
    const stack *k = &run->stack;
    long direction = task % k->directions, index = layer * k->directions + direction, n = task / k->directions;
    const slice *slice = &k->slices[n];
    return (back_track){
        .run = run,
        .slice = slice,
        .workspace = &run->workspaces[k->sharing.split_units ? 0 : task],
        .course = k->sharing.members > 1 ? &k->courses[index * k->sharing.slices + n] : NULL,
        .pass = &run->passes[direction],
        .z_stash = k->z_stash[index],
        .c_stash = k->c_stash[index],
        .layer = layer,
        .direction = direction,
        .steps = slice->rows ? slice->length[0] : 0,
        .parts = k->spec->cell == GRU_BEFORE ? 2 : 1,
    };
}

/* A phase is a part of a step; the last one is step -1, the gradient of the initial state. */
static stage back_stage_of(const back_track *t, long phase)
{
    return (stage){t->steps - 1 - (phase - 1) / t->parts, (int)((phase - 1) % t->parts)};
}

static back_step back_step_of(const back_track *t, long n, const back_pointers *to)
{
    const backward_run *run = t->run;
    const stack *k = &run->stack;
    const slice *s = t->slice;
    const back_workspace *w = t->workspace;
    sequence y = k->outputs[t->layer], dy = run->douts[t->layer];
    long place = s->place[n], offset = t->direction * k->hidden;
    back_step made = {.rows = s->active[n], .dh = w->dh, .dc = w->dc, .drh = w->drh, .y = to->y, .dy = to->dy, .h = to->h};
    made.dz = t->pass->dz + place * run->dz_size;
    if (t->z_stash)
        made.z = t->z_stash + place * k->row_size;
    if (t->pass->rh)
        made.rh = t->pass->rh + place * k->state_size;
    if (t->c_stash) {
        made.c = t->c_stash + place * k->state_size;
        made.prev_c = n ? t->c_stash + s->place[n - 1] * k->state_size : w->first_c;
    }
    for (long r = 0; r < made.rows; r++) {
        long b = s->row[r], time = time_of(s, t->direction, r, n);
        to->y[r] = at(&y, b, time) + offset;
        to->dy[r] = dy.at ? at(&dy, b, time) + offset : run->zeros;
        to->h[r] = n                  ? at(&y, b, t->direction ? time + 1 : time - 1) + offset
                   : k->call->first.h ? state_row(k, k->call->first.h, t->layer, t->direction, b)
                                      : run->zeros;
    }
    return made;
}

/* Notes where the products over all steps find the rows of this step. */
static void note_rows(const back_track *t, long n, const back_pointers *from)
{
    const stack *k = &t->run->stack;
    const slice *s = t->slice;
    const back_pass *p = t->pass;
    sequence x = input_of(k, t->layer), dx = t->layer ? t->run->douts[t->layer - 1] : k->call->dx;
    for (long r = 0, place = s->place[n]; r < s->active[n]; r++, place++) {
        long b = s->row[r], time = time_of(s, t->direction, r, n);
        p->x[place] = at(&x, b, time);
        p->dx[place] = dx.at ? at(&dx, b, time) : NULL;
        p->h[place] = from->h[r];
        if (p->rh)
            p->rh_rows[place] = p->rh + place * k->state_size;
    }
}

/* Adds dz times the recurrent weights to dh of a piece of the units: dz of the next step, or in the second part of a step its
   own candidate's. Returns these units. */
static panel receive(const back_track *t, stage now, piece piece, const back_step *s, const real **from)
{
    const stack *k = &t->run->stack;
    const matrix *m = &t->pass->to_h[now.part ? 0 : t->parts - 1];
    panel p = panel_of_step(m, piece.index, piece.first, piece.end, now.step);
    long step = now.part ? now.step : now.step + 1, plane = now.part ? 2 : t->run->recurrent_plane;
    if (step == t->steps)
        return p;
    const real *dz = t->pass->dz + t->slice->place[step] * t->run->dz_size + plane * k->plane;
    real *to = (now.part ? s->drh : t->workspace->dh) + p.slot * LANES;
    for (long r = 0; r < t->slice->active[step]; r++)
        from[r] = dz + r * t->run->dz_size;
    multiply(&p, m->depth, from, t->slice->active[step], to, k->state_size, to, k->state_size);
    return p;
}

typedef void back_cell_step(const backward_run *run, const back_step *s);

static back_cell_step *const BACK_CELLS[][2] = {
    [SIMPLE_RNN] = {simple_rnn_back},
    [LSTM] = {lstm_back},
    [GRU_AFTER] = {gru_after_back},
    [GRU_BEFORE] = {gru_before_back_candidate, gru_before_back_reset},
};

/* The cell's backward step of some vectors of units, from first to last. */
static void go_back(const back_track *t, stage now, back_step *s, long first, long last)
{
    s->first = first, s->last = last;
    BACK_CELLS[t->run->stack.spec->cell][now.part](t->run, s);
}

/* Writes the gradients of the initial states. */
static void write_dfirst(const back_track *t)
{
    const stack *k = &t->run->stack;
    const states *to = &k->call->dfirst;
    write_states(k, t->slice, t->layer, t->direction, t->workspace->dh, 0, t->slice->rows, to->h);
    write_states(k, t->slice, t->layer, t->direction, t->workspace->dc, 0, t->slice->rows, to->c);
}

/* All steps of a slice from the last, for the member that begins it and for those that join. */
static void run_slice_back(void *run, int rank, long layer, long task, int home, int begins)
{
    const back_track made = back_track_of(run, layer, task), *t = &made;
    const stack *k = &t->run->stack;
    const back_pointers *pointers = &t->run->pointers[rank];
    long phases = t->steps * t->parts + (t->steps && k->call->dfirst.h), phase;
    member m = multirnn_join(t->course, home, begins);
    if (begins) {
        read_states(k, t->slice, layer, t->direction, k->call->last.h, t->workspace->dh);
        read_states(k, t->slice, layer, t->direction, k->call->last.c, t->workspace->dc);
        read_states(k, t->slice, layer, t->direction, k->call->first.c, t->workspace->first_c);
        if (!phases)
            write_dfirst(t);
    }
    while (1) {
        phase = multirnn_reach(&m);
        multirnn_open(&m, phase > phases ? 0 : panel_count(&t->pass->to_h[0]));
        if (phase > phases)
            return;
        stage now = back_stage_of(t, phase);
        int has_units = now.step >= 0;
        back_step step = has_units ? back_step_of(t, now.step, pointers) : (back_step){0};
        while (multirnn_take_piece(&m)) {
            panel p = receive(t, now, m.piece, &step, pointers->from);
            if (has_units && !m.alone)
                go_back(t, now, &step, p.unit, p.unit + p.units);
            if (has_units && !m.piece.index && !now.part)
                note_rows(t, now.step, pointers);
        }
        if (has_units && m.alone) /* all units at once: 0.97 of the time, training an LSTM of 256 units */
            go_back(t, now, &step, 0, unit_vectors(k->hidden));
        if (multirnn_close(&m) && phase == phases)
            write_dfirst(t);
    }
}

static matrix to_x(const stack *k, const back_pass *p, long layer)
{
    matrix m = p->to_x;
    m.units = features_of(k, layer);
    return m;
}

/* Rows of dx per item of the queue, so that all members get about as many. */
static long rows_of_an_item(const backward_run *run)
{
    long rows = larger(ceiling(run->stack.valid, ITEMS_OF_A_MEMBER * run->stack.sharing.members), ROWS_OF_A_TILE);
    return smaller(chosen(run->stack.choices.dx_rows, rows), rows_of_dx(run));
}

/* Computes an item's rows of dx; the second direction adds to the first one's. */
static void find_dx(const backward_run *run, long layer, long direction, int rank, long item)
{
    const stack *k = &run->stack;
    const back_pass *p = &run->passes[direction];
    matrix m = to_x(k, p, layer);
    const real **from = run->pointers[rank].from;
    long first = item * rows_of_an_item(run), rows = smaller(rows_of_an_item(run), k->valid - first);
    real out[ROWS_OF_A_TILE * WIDTH * LANES] __attribute__((aligned(64)));
    for (long r = 0; r < rows; r++)
        from[r] = p->dz + (first + r) * run->dz_size;
    for (long n = 0; n < panel_count(&m); n++) {
        panel panel = panel_of(&m, n);
        long width = panel.vectors * LANES, unit = panel.unit * LANES;
        for (long r = 0, some; r < rows; r += some) {
            some = rows_of_next_tile(rows - r, panel.vectors);
            multiply(&panel, m.depth, from + r, some, run->zeros, 0, out, width);
            for (long q = 0; q < some; q++)
                for (long v = 0; v < panel.vectors; v++) {
                    real *to = p->dx[first + r + q] + unit + v * LANES;
                    long left = m.units - unit - v * LANES;
                    vector value = load(out + q * width + v * LANES);
                    store_part(to, direction ? value + load_part(to, left) : value, left);
                }
        }
    }
}

/* The sum over all rows of the outer product of dz and another array: the gradient of some gates' weights and biases. */
typedef struct {
    int first_plane;
    long vectors;        /* of the planes */
    const real **others;
    long features;
    const weight *dweight; /* NULL: not wanted */
    const bias *dbias;
    long bias_gates;
    long pieces;         /* of the features; an item is a panel of vectors and a piece */
} outer_product;

static long items_of(const outer_product *o) { return ceiling(o->vectors, WIDTH) * o->pieces; }

static void find_dweights(const backward_run *run, const back_pass *p, const outer_product *o, real *sums, long item)
{
    const stack *k = &run->stack;
    const int *gates = PLANES[k->spec->cell] + o->first_plane;
    const weight *dweight = o->dweight;
    const bias *dbias = o->dbias;
    const real *ones[DEPTH_BLOCK];
    for (int i = 0; i < DEPTH_BLOCK; i++)
        ones[i] = &run->one;
    long first_vector = item / o->pieces * WIDTH, width = smaller(o->vectors - first_vector, WIDTH), feature, last;
    share(o->features, (int)(item % o->pieces), (int)o->pieces, &feature, &last);
    long count = last - feature;
    real *bias_sum = sums + count * width * LANES;
    memset(sums, 0, (count + 1) * width * LANES * sizeof(real));
    for (long row = 0; row < k->valid; row += DEPTH_BLOCK) {
        long depth = smaller(DEPTH_BLOCK, k->valid - row);
        const real *dz = p->dz + row * run->dz_size + o->first_plane * k->plane + first_vector * LANES;
        if (dweight)
            for (long i = 0, n; i < count; i += n) {
                n = rows_of_next_tile(count - i, (int)width);
                OUTER_TILES[width][n](depth, o->others + row, feature + i, dz, run->dz_size, sums + i * width * LANES,
                                      width * LANES);
            }
        if (item % o->pieces == 0)
            OUTER_TILES[width][1](depth, ones, 0, dz, run->dz_size, bias_sum, width * LANES);
    }
    for (long v = 0; v < width; v++) {
        long column = (first_vector + v) * LANES, gate = gates[column / k->plane], unit = column % k->plane;
        long lanes = smaller(k->hidden - unit, LANES);
        if (dweight)
            move_out(sums + v * LANES, width * LANES, lanes, count,
                     dweight->at + gate * dweight->gate + unit * dweight->unit + feature * dweight->k, dweight->unit,
                     dweight->k);
        /* A single recurrent bias is the last gate's. */
        long bias_gate = gate - (k->gates - o->bias_gates);
        if (item % o->pieces == 0 && dbias->at && bias_gate >= 0)
            move_out(bias_sum + v * LANES, LANES, lanes, 1, dbias->at + bias_gate * dbias->gate + unit * dbias->unit,
                     dbias->unit, 1);
    }
}

/* The wanted products of a pass; returns their number, at most three. */
static int wanted_products(const backward_run *run, long layer, long direction, outer_product *products)
{
    const stack *k = &run->stack;
    const back_pass *p = &run->passes[direction];
    const parameters *into = &run->gradients[layer * k->directions + direction];
    int before = k->spec->cell == GRU_BEFORE, count = 0;
    long vectors = k->plane / LANES, recurrent_biases = k->spec->recurrent_biases;
    if (into->input.at || into->input_bias.at)
        products[count++] = (outer_product){0, k->gates * vectors, p->x, features_of(k, layer), &into->input,
                                            &into->input_bias, k->gates, 0};
    if (into->recurrent.at || into->recurrent_bias.at)
        products[count++] = (outer_product){run->recurrent_plane, (before ? 2 : k->gates) * vectors, p->h, k->hidden,
                                            &into->recurrent, &into->recurrent_bias, recurrent_biases, 0};
    if (before && (into->recurrent.at || into->recurrent_bias.at))
        products[count++] = (outer_product){2, vectors, p->rh_rows, k->hidden, &into->recurrent, &into->recurrent_bias,
                                            recurrent_biases, 0};
    for (outer_product *o = products; o < products + count; o++) {
        o->dweight = o->dweight->at ? o->dweight : NULL;
        long panels = ceiling(o->vectors, WIDTH), members = k->sharing.members;
        o->pieces = chosen(k->choices.pieces, panels >= ITEMS_OF_A_MEMBER * members ? 1 : members);
    }
    return count;
}

/* Packs a layer's weights: panel n of each matrix of each direction. */
static void pack_back(const backward_run *run, long layer, int has_dx, long n)
{
    const stack *k = &run->stack;
    const int *gates = PLANES[k->spec->cell];
    for (long d = 0; d < k->directions; d++) {
        const back_pass *p = &run->passes[d];
        const parameters *from = &k->table[layer * k->directions + d];
        matrix m = to_x(k, p, layer);
        if (has_dx && n < panel_count(&m))
            pack_panel_transposed(&m, &from->input, gates, k->hidden, n);
        if (n >= panel_count(&p->to_h[0]))
            continue;
        if (k->spec->cell == GRU_BEFORE) {
            pack_panel_transposed(&p->to_h[0], &from->recurrent, gates + 2, k->hidden, n);
            pack_panel_transposed(&p->to_h[1], &from->recurrent, gates, k->hidden, n);
        } else
            pack_panel_transposed(&p->to_h[0], &from->recurrent, gates + run->recurrent_plane, k->hidden, n);
    }
}

/* The products after all steps of a direction. */
static long find_gradients(backward_run *run, long layer, long direction, int has_dx, int rank, long start)
{
    stack *k = &run->stack;
    outer_product products[3];
    int count = wanted_products(run, layer, direction, products);
    long outer = 0, item;
    for (int i = 0; i < count; i++)
        outer += items_of(&products[i]);
    long end = start + outer + (has_dx ? ceiling(k->valid, rows_of_an_item(run)) : 0);
    while ((item = multirnn_take(&k->queue, end)) >= 0) {
        long n = item - start;
        const outer_product *o = products;
        if (n >= outer)
            find_dx(run, layer, direction, rank, n - outer);
        else {
            for (; n >= items_of(o); o++)
                n -= items_of(o);
            find_dweights(run, &run->passes[direction], o, run->pointers[rank].sums, n);
        }
        multirnn_done(&k->queue);
    }
    return end;
}

static void backward_work(void *argument, int rank)
{
    backward_run *run = argument;
    stack *k = &run->stack;
    long end = 0, item;
    for (long layer = k->spec->layers - 1; layer >= 0; layer--) {
        sequence dx = layer ? run->douts[layer - 1] : k->call->dx;
        matrix m = to_x(k, &run->passes[0], layer);
        multirnn_wait(&k->queue, end); /* until nothing reads the panels that are packed next */
        long start = end;
        end += larger(dx.at ? panel_count(&m) : 0, panel_count(&run->passes[0].to_h[0]));
        while ((item = multirnn_take(&k->queue, end)) >= 0) {
            pack_back(run, layer, dx.at != NULL, item - start);
            multirnn_done(&k->queue);
        }
        multirnn_wait(&k->queue, end);
        end = run_slices(k, run, run_slice_back, rank, layer, end);
        for (long d = 0; d < k->directions; d++) { /* one after the other: the second adds to dx of the first */
            multirnn_wait(&k->queue, end);
            end = find_gradients(run, layer, d, dx.at != NULL, rank, end);
        }
        if (!layer && dx.at && rank == 0)
            for (long q = 0; q < k->sharing.slices; q++)
                clear_padding(k, &dx, &k->slices[q], 0, k->spec->input_size);
    }
}

#endif
