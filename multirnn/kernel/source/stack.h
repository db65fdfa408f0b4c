/* The state of a call: the slices of its batch, the layout of its memory, and the sharing of its work.

   Steps are numbered in the order in which they run: step s of a row of length n is at time s in the forward direction, and at
   n - 1 - s in the backward one. Rows are sorted by falling length: the first `active` rows run at a step, and padding costs
   nothing. Rows are dealt to slices in turn, alternately from the first slice and from the last, so that no slice always gets
   the longer one. Slices run through all steps independently; members that have finished theirs join the others. */
#ifndef STACK_H
#define STACK_H

#include "matrix.h"
#include "team.h"

typedef struct {
    long rows;
    const int64_t *row;    /* its index in the batch */
    const int64_t *length;
    const int64_t *active; /* (time + 1): the rows that run at a step */
    const int64_t *place;  /* (time + 1): the index of a step's first row among the valid steps of all rows */
} slice;

/* One layer in one direction. */
typedef struct {
    int parts; /* groups of gates */
    matrix input[2], recurrent[2];
    int in_passing; /* input weights are packed panel by panel during their product */
    real *candidate_bias; /* of the recurrent product in the reset-after GRU */
} pass;

/* How threads share a call. */
typedef struct {
    int members, slices;
    int split_units; /* all members run one slice together, each some units */
    int unpacked;    /* the weights are used in place: too few rows and steps to pack them */
    long block;      /* steps whose input product is computed at once */
} sharing;

/* Memory is laid out twice: first from NULL, for its size. */
typedef struct {
    char *base;
    size_t used;
} arena;

static void *take(arena *a, size_t bytes)
{
    void *piece = a->base ? a->base + a->used : NULL;
    a->used += (bytes + 63) / 64 * 64;
    GUARD(a, piece, bytes);
    return piece;
}
#define TAKE(ARENA, TYPE, COUNT) ((TYPE *)take(ARENA, (size_t)(COUNT) * sizeof(TYPE)))

typedef struct {
    const spec *spec;
    const parameters *table;
    const call *call;
    choices choices;
    sharing sharing;
    slice *slices;
    long directions, hidden, plane; /* plane: hidden, padded to whole vectors */
    long gates;
    long row_size;   /* elements of the gates of a row at a step, as forward stores them */
    long state_size; /* elements of a row of states */
    long valid;      /* steps of all rows without padding */
    sequence *outputs; /* of each layer */
    real **z_stash, **c_stash; /* of each layer and direction; NULL without a stash */
    queue queue;
    course *courses; /* of each layer, direction and slice, if there are several members */
} stack;

/* Rows a power of two apart would compete for the same cache lines. */
INLINE long odd_vectors(long vectors) { return (vectors | 1) * LANES; }

INLINE long time_of(const slice *s, long direction, long row, long step)
{
    return direction ? s->length[row] - 1 - step : step;
}

INLINE sequence input_of(const stack *k, long layer) { return layer ? k->outputs[layer - 1] : k->call->x; }
INLINE long features_of(const stack *k, long layer) { return layer ? k->directions * k->hidden : k->spec->input_size; }
INLINE real *at(const sequence *s, long batch, long time)
{
    return s->at + batch * s->batch + (s->starts ? s->starts[time] : time) * s->time;
}

/* A row of states (layers * directions, batch, hidden_size). */
INLINE real *state_row(const stack *k, real *states, long layer, long direction, long batch)
{
    return states + ((layer * k->directions + direction) * k->call->batch + batch) * k->hidden;
}

/* Copies the states of a slice into rows of state_size; zero where there are none. */
static void read_states(const stack *k, const slice *s, long layer, long direction, real *states, real *rows)
{
    memset(rows, 0, s->rows * k->state_size * sizeof(real));
    for (long r = 0; states && r < s->rows; r++)
        memcpy(rows + r * k->state_size, state_row(k, states, layer, direction, s->row[r]), k->hidden * sizeof(real));
}

/* Copies rows of state_size, from `first` to `end`, into the states of a slice, if these are wanted. */
static void write_states(const stack *k, const slice *s, long layer, long direction, const real *rows, long first, long end,
                         real *states)
{
    for (long r = first; states && r < end; r++)
        memcpy(state_row(k, states, layer, direction, s->row[r]), rows + r * k->state_size, k->hidden * sizeof(real));
}

INLINE int gate_count(const spec *s) { return s->cell == SIMPLE_RNN ? 1 : s->cell == LSTM ? 4 : 3; }

INLINE long chosen(int64_t choice, long otherwise) { return choice < 0 ? otherwise : choice; }

static const choices NO_CHOICES = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};

static void describe(stack *k, const spec *spec, const parameters *table, const call *call)
{
    long vectors = unit_vectors(spec->hidden_size);
    *k = (stack){.spec = spec, .table = table, .call = call, .choices = call->choices ? *call->choices : NO_CHOICES};
    k->directions = spec->directions;
    k->hidden = spec->hidden_size;
    k->plane = vectors * LANES;
    k->gates = gate_count(spec);
    k->row_size = odd_vectors(vectors * (spec->cell == GRU_AFTER ? 4 : k->gates));
    k->state_size = odd_vectors(vectors);
    k->valid = call->batch * call->time;
    if (call->lengths) {
        k->valid = 0;
        for (long b = 0; b < call->batch; b++)
            k->valid += call->lengths[b];
    }
}

/* The index among all sorted rows of the n-th row of a slice; and how many of the first `all` rows are in a slice. */
INLINE long dealt(long n, long slice, long slices) { return n * slices + (n % 2 ? slices - 1 - slice : slice); }
INLINE long count_of_dealt(long all, long slice, long slices)
{
    return all / slices + (dealt(all / slices, slice, slices) < all);
}

/* Sorts the rows by falling length (counting sort), and deals them to slices. */
static void deal(stack *k, arena *a)
{
    const call *c = k->call;
    long passes = k->spec->layers * k->directions;
    long courses = k->sharing.members > 1 ? passes * k->sharing.slices : 0;
    long homes = k->sharing.split_units ? k->sharing.members : 1;
    k->courses = TAKE(a, course, courses);
    home *home = TAKE(a, struct home, courses * homes);
    long batch = c->batch, time = c->time, count = k->sharing.slices, place = 0;
    int64_t *sorted = TAKE(a, int64_t, batch), *active = TAKE(a, int64_t, time + 2);
    k->slices = TAKE(a, slice, count);
    int64_t *rows = TAKE(a, int64_t, batch), *lengths = TAKE(a, int64_t, batch);
    int64_t *actives = TAKE(a, int64_t, count * (time + 1)), *places = TAKE(a, int64_t, count * (time + 1));
    if (!a->base)
        return;
    memset(home, 0, courses * homes * sizeof *home);
    int crowded = (int)chosen(k->choices.crowded, k->sharing.split_units);
    for (long n = 0; n < courses; n++) /* where no thread may go on alone, one more counts as present */
        k->courses[n] = (course){.homes = home + n * homes, .count = (int)homes, .present = crowded};
    if (c->lengths) {
        memset(active, 0, (time + 2) * sizeof *active);
        for (long b = 0; b < batch; b++)
            active[c->lengths[b]]++;
        for (long s = time, longer = 0; s >= 0; s--) { /* active[s] = number of rows longer than s */
            long equal = active[s];
            active[s] = longer;
            longer += equal;
        }
        for (long b = 0; b < batch; b++)
            sorted[active[c->lengths[b]]++] = b; /* active[s] then includes length s: it has become active[s - 1] */
        memmove(active, active + 1, (time + 1) * sizeof *active);
    } else
        for (long b = 0; b < batch; b++)
            sorted[b] = b;
    for (long q = 0; q < count; q++) {
        long n = 0;
        k->slices[q] = (slice){0, rows, lengths, actives, places};
        for (long b; (b = dealt(n, q, count)) < batch; n++) {
            rows[n] = sorted[b];
            lengths[n] = c->lengths ? c->lengths[sorted[b]] : time;
        }
        for (long s = 0; s <= time; s++) {
            long all = s == time ? 0 : c->lengths ? active[s] : batch;
            actives[s] = count_of_dealt(all, q, count);
            places[s] = place;
            place += actives[s];
        }
        k->slices[q].rows = n;
        rows += n, lengths += n, actives += time + 1, places += time + 1;
    }
}

typedef void slice_runner(void *run, int rank, long layer, long task, int home, int begins);

/* One member's part of all slices of a layer. Split units: all members run each slice in turn. Split rows: each member runs
   slices of its own, then joins the others'. The slices are the items of the queue from `end` on; returns the end of these. */
static long run_slices(stack *k, void *run, slice_runner *run_slice, int rank, long layer, long end)
{
    long tasks = k->directions * k->sharing.slices;
    int split = k->sharing.split_units;
    for (long task = 0; task < tasks; task++) {
        int begins = multirnn_take(&k->queue, end + task + 1) >= 0;
        if (begins || split)
            run_slice(run, rank, layer, task, split ? rank : 0, begins);
        if (begins)
            multirnn_done(&k->queue);
    }
    for (long task = 0; task < tasks && !split && k->sharing.members > 1; task++)
        run_slice(run, rank, layer, task, 1, 0);
    return end + tasks;
}

#endif
