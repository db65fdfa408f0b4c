/* Packed matrices, and products of rows with them.

   The columns of a packed matrix are vectors of units, grouped by gate: i f g o of units 0-15, i f g o of units 16-31, and so
   on, so that a tile has all gates of its units. WIDTH vectors (or all gates of one vector of units) are a panel; a panel holds
   its vectors for k = 0, for k = 1, and so on. */
#ifndef MATRIX_H
#define MATRIX_H

#include "problem.h"
#include "thresholds.h"
#include "tile.h"

/* Gates that are multiplied together, and the places of their vectors in a row of results. */
typedef struct {
    int count;   /* of gates */
    int gate[4]; /* canonical indices */
    int slot;    /* the first vector in a row */
    int pitch;   /* vectors from one vector of units to the next */
} group;

typedef struct {
    group group;
    long depth, units;
    real *panels;
    real *bias; /* packed like one k */
} matrix;

#define MOST_VECTORS 4 /* of a panel */

INLINE long unit_vectors(long units) { return ceiling(units, LANES); }
INLINE long padded(long units) { return unit_vectors(units) * LANES; }
INLINE long units_of_a_panel(const matrix *m) { return larger(WIDTH / m->group.count, 1); } /* vectors of units */
INLINE long panel_count(const matrix *m) { return ceiling(unit_vectors(m->units), units_of_a_panel(m)); }
INLINE long packed_size(const matrix *m) { return m->depth * unit_vectors(m->units) * m->group.count * LANES; }

typedef struct {
    long unit, units; /* vectors of units: the first, and their number */
    int vectors;
    long slot; /* the first vector in a row of results */
    real *packed;
    real *bias;
    const real *next; /* the panel to prefetch */
} panel;

INLINE panel panel_of(const matrix *m, long index)
{
    long most = units_of_a_panel(m), first = index * most, units = smaller(unit_vectors(m->units) - first, most);
    long vector = first * m->group.count;
    return (panel){first, units, (int)(units * m->group.count), m->group.slot + first * m->group.pitch,
                   m->panels + vector * m->depth * LANES, m->bias + vector * LANES,
                   m->panels + (vector + units * m->group.count) * m->depth * LANES};
}

/* The n-th of the panels from `first` to `end`, counted from the end in every other step: a step then begins with the weights
   that the previous one used last, which are still in the cache. */
INLINE panel panel_of_step(const matrix *m, long n, long first, long end, long step)
{
    long back = step % 2;
    panel p = panel_of(m, back ? first + end - 1 - n : n);
    p.next = n + 1 == end ? p.packed : back ? panel_of(m, first + end - 2 - n).packed : p.next;
    return p;
}

/* out[r] = start[r] + rows[r] times the panel */
INLINE void multiply(const panel *p, long depth, const real *const *rows, long count, const real *start, long start_stride,
                     real *out, long out_stride)
{
    long width = p->vectors * LANES, block = count > MOST_ROWS[p->vectors] ? PANEL_BYTES / (width * (long)sizeof(real)) : depth;
    for (long k = 0; k < depth; k += block) {
        long some = smaller(block, depth - k);
        const real *from = k ? out : start, *packed = p->packed + k * width;
        const char *ahead = (const char *)(k + some < depth ? packed + some * width : p->next);
        long from_stride = k ? out_stride : start_stride;
        for (long r = 0, n; r < count; r += n, ahead += some * 64) {
            n = rows_of_next_tile(count - r, p->vectors);
            TILES[p->vectors][n](k, some, rows + r, packed, (const real *)ahead, from + r * from_stride, from_stride,
                                 out + r * out_stride, out_stride);
        }
    }
}

#define STEPS_AHEAD 32 /* prefetched for writing while packing; without it 4 MB take 2 to 3 times as long */

/* to[step][lane] = from[lane][step]; missing lanes become zero. Blocks are transposed in registers, four times as fast as
   single elements. */
static void move_in(const real *from, long lane_stride, long step_stride, long lanes, long steps, real *to, long to_stride)
{
    long step = 0;
    lanes = smaller(lanes, LANES);
    if (lane_stride == 1)
        for (; step < steps; step++) {
            __builtin_prefetch(to + (step + STEPS_AHEAD) * to_stride, 1, 3);
            store(to + step * to_stride, load_part(from + step * step_stride, lanes));
        }
    else if (step_stride == 1)
        for (; step + LANES <= steps; step += LANES) {
            vector block[LANES];
            const real *row = from + step;
            UNROLL for (long lane = 0; lane < LANES; lane++)
            {
                block[lane] = load(row);
                row += lane + 1 < lanes ? lane_stride : 0; /* missing lanes repeat the last one */
            }
            transpose(block);
            if (lanes < LANES)
                for (long i = 0; i < LANES; i++)
                    store(to + (step + i) * to_stride, load_part((real *)&block[i], lanes));
            else
                UNROLL for (long i = 0; i < LANES; i++) {
                    __builtin_prefetch(to + (step + i + STEPS_AHEAD) * to_stride, 1, 3);
                    store(to + (step + i) * to_stride, block[i]);
                }
        }
    for (; step < steps; step++)
        for (long lane = 0; lane < LANES; lane++)
            to[step * to_stride + lane] = lane < lanes ? from[lane * lane_stride + step * step_stride] : 0;
}

/* to[lane][step] = from[step][lane] */
static void move_out(const real *from, long from_stride, long lanes, long steps, real *to, long lane_stride, long step_stride)
{
    long step = 0;
    lanes = smaller(lanes, LANES);
    if (lane_stride == 1)
        for (; step < steps; step++)
            store_part(to + step * step_stride, load(from + step * from_stride), lanes);
    else if (step_stride == 1)
        for (; step + LANES <= steps; step += LANES) {
            vector block[LANES];
            UNROLL for (long i = 0; i < LANES; i++) block[i] = load(from + (step + i) * from_stride);
            transpose(block);
            UNROLL for (long lane = 0; lane < LANES; lane++)
                if (lane < lanes)
                    store(to + lane * lane_stride + step, block[lane]);
        }
    for (; step < steps; step++)
        for (long lane = 0; lane < lanes; lane++)
            to[lane * lane_stride + step * step_stride] = from[step * from_stride + lane];
}

#define K_AT_ONCE 8

/* Packs k from `first` to `end` of all panels of a weight with dense units, so that its pages are read in order. Panel by
   panel, each would read every page: an LSTM of 512 units over one row of 25 steps then takes 1.25 times as long. */
static void pack_k(const matrix *m, const weight *w, long first, long end)
{
    for (long k = first; k < end; k += K_AT_ONCE)
        for (long n = 0, some = smaller(K_AT_ONCE, end - k); n < panel_count(m); n++) {
            panel p = panel_of(m, n);
            real *to = p.packed + k * p.vectors * LANES;
            for (long i = 0; i < some; i++)
                for (long v = 0; v < p.vectors; v++, to += LANES) {
                    long unit = (p.unit + v / m->group.count) * LANES;
                    const real *from = w->at + m->group.gate[v % m->group.count] * w->gate + (k + i) * w->k;
                    store(to, load_part(from + unit, m->units - unit));
                }
        }
}

/* Packs element (gate, unit, k) into the lane of its unit. */
static void pack_panel(const matrix *m, const weight *w, const panel *p)
{
    for (long v = 0; v < p->vectors; v++) {
        long unit = (p->unit + v / m->group.count) * LANES;
        move_in(w->at + m->group.gate[v % m->group.count] * w->gate + unit * w->unit, w->unit, w->k, m->units - unit, m->depth,
                p->packed + v * LANES, p->vectors * LANES);
    }
}

/* One of as many parts as there are panels. */
static void pack_part(const matrix *m, const weight *w, long index)
{
    long parts = panel_count(m);
    panel p = panel_of(m, index);
    if (w->unit == 1)
        pack_k(m, w, m->depth * index / parts, m->depth * (index + 1) / parts);
    else
        pack_panel(m, w, &p);
}

/* The input bias, plus the recurrent one for the first `folded` gates, where they are just added. */
static void pack_bias(const matrix *m, const bias *input, const bias *recurrent, int folded, long index)
{
    panel p = panel_of(m, index);
    for (long v = 0; v < p.vectors; v++) {
        int gate = m->group.gate[v % m->group.count];
        for (long lane = 0; lane < LANES; lane++) {
            long unit = (p.unit + v / m->group.count) * LANES + lane;
            real value = 0;
            if (unit < m->units && input->at)
                value = input->at[gate * input->gate + unit * input->unit];
            if (unit < m->units && recurrent->at && gate < folded)
                value += recurrent->at[gate * recurrent->gate + unit * recurrent->unit];
            p.bias[v * LANES + lane] = value;
        }
    }
}

/* Packs the transpose, for products with rows of gate planes of padded(hidden): element (gate, unit, k) goes to row (gate,
   unit) and column k. Rows of padding units are zero. */
static void pack_panel_transposed(const matrix *m, const weight *w, const int *gates, long hidden, long index)
{
    panel p = panel_of(m, index);
    long plane = padded(hidden), row_size = p.vectors * LANES;
    for (long first = 0; first < m->depth; first += plane) {
        real *to = p.packed + first * row_size;
        for (long v = 0; v < p.vectors; v++) {
            long column = (p.unit + v) * LANES;
            move_in(w->at + gates[first / plane] * w->gate + column * w->k, w->k, w->unit, m->units - column, hidden,
                    to + v * LANES, row_size);
        }
        memset(to + hidden * row_size, 0, (plane - hidden) * row_size * sizeof(real));
    }
}

/* Dot products of a row with the weights of a vector of units, dense in k. */
INLINE vector dots(long depth, const real *row, const real *from, long unit_stride, long lanes)
{
    vector sum[LANES];
    long k = 0;
    UNROLL for (long lane = 0; lane < LANES; lane++) sum[lane] = (vector){0};
    if (lanes == LANES)
        for (; k + LANES <= depth; k += LANES) {
            vector x = load(row + k);
            UNROLL for (long lane = 0; lane < LANES; lane++) sum[lane] += x * load(from + lane * unit_stride + k);
        }
    for (; k < depth; k += LANES) {
        vector x = load_part(row + k, depth - k);
        for (long lane = 0; lane < lanes; lane++)
            sum[lane] += x * load_part(from + lane * unit_stride + k, depth - k);
    }
    return sums_of(sum);
}

/* out[r] += rows[r] times a panel of an unpacked weight, unit by unit. */
static void multiply_across(const matrix *m, const panel *p, const weight *w, const real *const *rows, long count, real *out,
                            long out_stride)
{
    for (long v = 0; v < p->vectors; v++) {
        long unit = (p->unit + v / m->group.count) * LANES, lanes = smaller(m->units - unit, LANES);
        const real *from = w->at + m->group.gate[v % m->group.count] * w->gate + unit * w->unit;
        for (long r = 0; r < count; r++) {
            real *to = out + r * out_stride + v * LANES;
            vector sum = load(to);
            if (w->k == 1)
                sum += dots(m->depth, rows[r], from, w->unit, lanes);
            else
                for (long k = 0; k < m->depth; k++)
                    for (long lane = 0; lane < lanes; lane++)
                        sum[lane] += rows[r][k] * from[lane * w->unit + k * w->k];
            store(to, sum);
        }
    }
}

#define ALONG 8 /* k at once: 8 times fewer loads and stores of the results, 8 streams of weights */

/* out += row times the weights of count_of_k k from `k` on, for the vectors of units from `first` to `end`; units are dense. */
INLINE void multiply_along(const matrix *m, const weight *w, long first, long end, long k, long count_of_k, const real *row,
                           real *out)
{
    vector x[ALONG];
    UNROLL for (long i = 0; i < count_of_k; i++) x[i] = splat(row[k + i]);
    for (int g = 0; g < m->group.count; g++) {
        const real *from = w->at + m->group.gate[g] * w->gate + k * w->k;
        for (long u = first; u < end; u++) {
            real *to = out + (m->group.slot + u * m->group.pitch + g) * LANES;
            vector sum = load(to);
            UNROLL for (long i = 0; i < count_of_k; i++)
                sum += x[i] * load_part(from + i * w->k + u * LANES, m->units - u * LANES);
            store(to, sum);
        }
    }
}

/* out[r] += rows[r] times the panels from `first` to `end` of an unpacked weight with dense units, read in memory order. */
static void multiply_along_units(const matrix *m, long first, long end, const weight *w, const real *const *rows, long count,
                                 real *out, long out_stride)
{
    long k = 0, of_a_panel = units_of_a_panel(m);
    first *= of_a_panel, end = smaller(end * of_a_panel, unit_vectors(m->units));
    for (; k + ALONG <= m->depth; k += ALONG)
        for (long r = 0; r < count; r++)
            multiply_along(m, w, first, end, k, ALONG, rows[r], out + r * out_stride);
    for (; k < m->depth; k++)
        for (long r = 0; r < count; r++)
            multiply_along(m, w, first, end, k, 1, rows[r], out + r * out_stride);
}

#endif
