/* A stack at work: how the rows of a batch are dealt, where everything lies, which thread does what.

   Steps are counted in the order in which they run: step s of a row of length n is at time s forward and n - 1 - s backward.
   The rows are sorted by falling length, so that those that still run at step s are the first ones: padding costs nothing.
   They are dealt to slices in turn, there and back again, so that no slice always has the longer one. A slice runs through all
   steps without a look at the others; who has none to do helps with those that are not through. */
#ifndef STACK_H
#define STACK_H

#include "matrix.h"
#include "team.h"

typedef struct {
    long rows;
    const int64_t *row;    /* of the batch */
    const int64_t *length; /* of each */
    const int64_t *active; /* (time + 1): how many rows run at a step */
    const int64_t *place;  /* (time + 1): of the first row of a step among all steps of all rows that are not padding */
} slice;

/* One layer in one direction. */
typedef struct {
    int parts; /* how many groups its gates go in */
    matrix input[2], recurrent[2];
    int in_passing; /* the input's weights are packed panel by panel, where and when they are multiplied */
    real *candidate_bias; /* of the recurrent product in the reset-after GRU */
} pass;

/* How a call is shared out. */
typedef struct {
    int members, slices;
    int split_units; /* all do one slice together from the start, each its units */
    int unpacked;    /* the weights are used as they lie: so few rows and steps are not worth packing them */
    long block;      /* steps whose input is multiplied at once */
} sharing;

/* Memory is laid out twice: first from NULL to know its size. */
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
    long directions, hidden, plane; /* plane: hidden in whole vectors */
    long gates;
    long row_size;   /* elements of the gates of one row and step, as forward stores them */
    long state_size; /* elements of a row of states */
    long valid;      /* steps of all rows that are not padding */
    sequence *outputs; /* of each layer */
    agenda agenda;
    course *courses; /* of each layer, direction and slice, where there are several members */
} stack;

/* Rows that are a power of two apart would compete for the same lines of a cache. */
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

/* Of the sorted rows, the place of the n-th one of a slice; and how many of the first `all` are of that slice. */
INLINE long dealt(long n, long slice, long slices) { return n * slices + (n % 2 ? slices - 1 - slice : slice); }
INLINE long count_of_dealt(long all, long slice, long slices)
{
    return all / slices + (dealt(all / slices, slice, slices) < all);
}

/* Sorts the rows by counting, and deals them. */
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
    for (long n = 0; n < courses; n++) /* where no thread may go on alone, one more than there are is present */
        k->courses[n] = (course){.homes = home + n * homes, .count = (int)homes, .present = crowded};
    if (c->lengths) {
        memset(active, 0, (time + 2) * sizeof *active);
        for (long b = 0; b < batch; b++)
            active[c->lengths[b]]++;
        for (long s = time, longer = 0; s >= 0; s--) { /* how many rows are longer than s */
            long equal = active[s];
            active[s] = longer;
            longer += equal;
        }
        for (long b = 0; b < batch; b++)
            sorted[active[c->lengths[b]]++] = b; /* now active[s] counts those of length s too, so it is active[s - 1] */
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

#endif
