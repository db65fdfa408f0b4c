/* The product tile: R rows times NV vectors of a packed matrix, all in registers.

   Each row is read element by element through its own pointer, so rows may be anywhere; the packed matrix has NV vectors for
   every k. Few rows leave too few sums to hide the latency of a multiply-add (4 cycles, two a cycle): then there are S sums,
   each over its own range of k, because several streams from distant memory are faster than one (1 row of a GRU of 1536 units:
   1.0 to 1.2 times the speed of sums over every S-th k).

   `ahead` is the part of the matrix needed next, prefetched one cache line per k; not for few rows, which finish a panel too
   soon (one row of an LSTM of 256 units: 0.93 of the speed). */
#ifndef TILE_H
#define TILE_H

#include "vector.h"

/* out[r] = start[r] + sum over k of rows[r][first + k] * packed[k]; strides in elements; start may be out */
typedef void tile(long first, long depth, const real *const *rows, const real *packed, const real *ahead, const real *start,
                  long start_stride, real *out, long out_stride);

/* out[r] += sum over k of columns[k][first + r] * matrix[k]: a gradient of weights, summed over time and batch */
typedef void outer_tile(long depth, const real *const *columns, long first, const real *matrix, long matrix_stride,
                        real *out, long out_stride);

#if defined(__AVX512F__) || defined(__aarch64__)
#define WIDTH 4                                   /* the most vectors of a panel; 32 registers */
static const long MOST_ROWS[5] = {0, 12, 12, 8, 6}; /* R * NV + NV + 1 registers */
#else
#define WIDTH 2                                   /* except 4 for the LSTM; 16 registers */
static const long MOST_ROWS[5] = {0, 6, 6, 4, 3};
#endif
#define ROWS_OF_A_TILE 12
#define ROWS_TO_FETCH 4

#define TILE(R, NV, S)                                                                                                    \
    static void tile_##R##_##NV(long first, long depth, const real *const *rows, const real *packed, const real *ahead,               \
                                const real *start, long start_stride, real *out, long out_stride)                         \
    {                                                                                                                     \
        vector sum[S][R][NV];                                                                                             \
        const real *row[R];                                                                                               \
        UNROLL for (int r = 0; r < R; r++)                                                                                \
        {                                                                                                                 \
            row[r] = rows[r] + first;                                                                                       \
            UNROLL for (int v = 0; v < NV; v++)                                                                           \
            {                                                                                                             \
                sum[0][r][v] = load(start + r * start_stride + v * LANES);                                                \
                UNROLL for (int s = 1; s < S; s++) sum[s][r][v] = (vector){0};                                            \
            }                                                                                                             \
        }                                                                                                                 \
        long part = depth / S, k = 0;                                                                                     \
        for (; k < part; k++) {                                                                                           \
            UNROLL for (int s = 0; s < S; s++)                                                                            \
            {                                                                                                             \
                vector weight[NV];                                                                                        \
                if (R >= ROWS_TO_FETCH) __builtin_prefetch((const char *)ahead + (k * S + s) * 64, 0, 2);                 \
                UNROLL for (int v = 0; v < NV; v++) weight[v] = *(const vector *)(packed + ((k + s * part) * NV + v) * LANES);\
                UNROLL for (int r = 0; r < R; r++)                                                                        \
                {                                                                                                         \
                    vector x = splat(row[r][k + s * part]);                                                               \
                    UNROLL for (int v = 0; v < NV; v++) sum[s][r][v] += x * weight[v];                                    \
                }                                                                                                         \
            }                                                                                                             \
        }                                                                                                                 \
        if (S > 1)                                                                                                        \
            for (k = part * S; k < depth; k++) {                                                                          \
                UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < NV; v++)                                    \
                    sum[0][r][v] += row[r][k] * *(const vector *)(packed + (k * NV + v) * LANES);                         \
            }                                                                                                             \
        UNROLL for (int s = 1; s < S; s++) UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < NV; v++)         \
            sum[0][r][v] += sum[s][r][v];                                                                                 \
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < NV; v++)                                            \
            store(out + r * out_stride + v * LANES, sum[0][r][v]);                                                        \
    }

#define OUTER_TILE(R, NV)                                                                                                 \
    static void outer_tile_##R##_##NV(long depth, const real *const *columns, long first, const real *matrix,             \
                                      long matrix_stride, real *out, long out_stride)                                     \
    {                                                                                                                     \
        vector sum[R][NV];                                                                                                \
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < NV; v++)                                            \
            sum[r][v] = load(out + r * out_stride + v * LANES);                                                           \
        for (long k = 0; k < depth; k++) {                                                                                \
            const real *column = columns[k] + first;                                                                      \
            vector factor[NV];                                                                                            \
            UNROLL for (int v = 0; v < NV; v++) factor[v] = load(matrix + k * matrix_stride + v * LANES);                 \
            UNROLL for (int r = 0; r < R; r++)                                                                            \
            {                                                                                                             \
                vector x = splat(column[r]);                                                                              \
                UNROLL for (int v = 0; v < NV; v++) sum[r][v] += x * factor[v];                                           \
            }                                                                                                             \
        }                                                                                                                 \
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < NV; v++)                                            \
            store(out + r * out_stride + v * LANES, sum[r][v]);                                                           \
    }

#define BOTH(R, NV, S) TILE(R, NV, S) OUTER_TILE(R, NV)

/* clang-format off */
BOTH(1, 1, 8) BOTH(2, 1, 4) BOTH(3, 1, 3) BOTH(4, 1, 2) BOTH(5, 1, 2) BOTH(6, 1, 2)
BOTH(1, 2, 4) BOTH(2, 2, 2) BOTH(3, 2, 1) BOTH(4, 2, 1) BOTH(5, 2, 1) BOTH(6, 2, 1)
BOTH(1, 3, 3) BOTH(2, 3, 1) BOTH(3, 3, 1) BOTH(4, 3, 1)
BOTH(3, 4, 1)
#if WIDTH == 4
BOTH(1, 4, 4) BOTH(2, 4, 2)
BOTH(7, 1, 1) BOTH(8, 1, 1) BOTH(9, 1, 1) BOTH(10, 1, 1) BOTH(11, 1, 1) BOTH(12, 1, 1)
BOTH(7, 2, 1) BOTH(8, 2, 1) BOTH(9, 2, 1) BOTH(10, 2, 1) BOTH(11, 2, 1) BOTH(12, 2, 1)
BOTH(5, 3, 1) BOTH(6, 3, 1) BOTH(7, 3, 1) BOTH(8, 3, 1)
BOTH(4, 4, 1) BOTH(5, 4, 1) BOTH(6, 4, 1)
#define FROM_7(NAME, NV) , NAME##_7_##NV, NAME##_8_##NV, NAME##_9_##NV, NAME##_10_##NV, NAME##_11_##NV, NAME##_12_##NV
#define FROM_5(NAME, NV) , NAME##_5_##NV, NAME##_6_##NV, NAME##_7_##NV, NAME##_8_##NV
#define FROM_4(NAME, NV) , NAME##_4_##NV, NAME##_5_##NV, NAME##_6_##NV
#else
BOTH(1, 4, 2) BOTH(2, 4, 1)
#define FROM_7(NAME, NV)
#define FROM_5(NAME, NV)
#define FROM_4(NAME, NV)
#endif

#define TABLE(NAME) { {0}, \
    {0, NAME##_1_1, NAME##_2_1, NAME##_3_1, NAME##_4_1, NAME##_5_1, NAME##_6_1 FROM_7(NAME, 1)}, \
    {0, NAME##_1_2, NAME##_2_2, NAME##_3_2, NAME##_4_2, NAME##_5_2, NAME##_6_2 FROM_7(NAME, 2)}, \
    {0, NAME##_1_3, NAME##_2_3, NAME##_3_3, NAME##_4_3 FROM_5(NAME, 3)}, \
    {0, NAME##_1_4, NAME##_2_4, NAME##_3_4 FROM_4(NAME, 4)} }
/* clang-format on */

static tile *const TILES[5][ROWS_OF_A_TILE + 1] = TABLE(tile);
static outer_tile *const OUTER_TILES[5][ROWS_OF_A_TILE + 1] = TABLE(outer_tile);

/* Rows of the next tile, of those left: tiles of about equal size, 4 + 4 rather than 6 + 2. */
INLINE long rows_of_next_tile(long rows, int vectors)
{
    return ceiling(rows, ceiling(rows, MOST_ROWS[vectors]));
}

#endif
