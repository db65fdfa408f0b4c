/* Measured thresholds between two ways of computing, and block sizes.

   They affect results by rounding only. Tests build the sources with tests/kernel_lowered.h in place of this file. */
#ifndef THRESHOLDS_H
#define THRESHOLDS_H

/* Threads */
#define SMALL 6e6 /* multiplications, 0.1 ms of one core: below, a second thread does not pay */
#define OWN_CACHE (1 << 20) /* bytes of weights that fit the cache of one core */
#define WAITING_ROWS 8      /* with fewer rows a step, a core waits for weights beyond its cache */
/* Bytes of weights from which two cores should each cache half of the units. Speed of splitting units over splitting rows, two
   threads: LSTM of 512 units, 4 rows 1.4, 16 rows 1.1, 64 rows 0.9; simple RNN of 1024 units, 8 rows 1.1, 32 rows 0.95. */
#define FAR_WEIGHTS (4 << 20)
#define FEW_ROWS 16
#define PIECES_OF_A_MEMBER 2 /* of weights that are read along their units */
#define ITEMS_OF_A_MEMBER 4  /* at least, after the steps: with fewer, the first thread to finish waits long */

/* Weights are not packed for up to one step of a row per WEIGHTS_OF_A_ROW of them, within two bounds. One thread, time with
   packing over time without: LSTM of 128 units, 8 steps 0.7, 12 steps 1.0; of 256, 16 steps 0.9, 24 steps 0.8; of 512, 16 steps
   1.3, 25 steps 1.0, 8 rows of 3 steps 0.9. */
#define UNPACKED_LEAST 6
#define UNPACKED_MOST 24
#define WEIGHTS_OF_A_ROW 36000

/* Blocks */
#define BLOCK_BYTES (256 << 10) /* of rows whose input product waits for their steps */
#define BLOCK_ROWS 96           /* at least: the weights are read once a block */
#define PANEL_BYTES (32 << 10)  /* of a panel, which stay in the L1 cache for all rows */
#define ROWS_BYTES (256 << 10)  /* of dz, which stay in the cache for all weights */
#define DEPTH_BLOCK 96          /* rows whose gates and inputs stay in the L1 cache for a sum of outer products */

/* Memory */
#define KEPT_BYTES ((size_t)128 << 20) /* between calls: fresh pages cost more than the work in them */
#define HUGE_PAGE ((size_t)2 << 20)    /* allocations from this size on use huge pages: weights beyond a cache miss the TLB, too */

/* Tests put a gap here, between two arrays of an arena, for a sanitizer to watch. */
#define GUARD(ARENA, PIECE, BYTES) ((void)0)

#endif
