/* Every measured number that chooses between two ways of computing, or how much is done at once.

   None changes a result beyond rounding. A test builds the sources with tests/kernel_lowered.h in place of this file. */
#ifndef THRESHOLDS_H
#define THRESHOLDS_H

/* Threads */
#define SMALL 6e6 /* multiplications that take one core 0.1 ms: less is slower with another thread */
#define OWN_CACHE (1 << 20) /* bytes of weights that one core keeps near */
#define WAITING_ROWS 8      /* with fewer rows a step, a core waits for weights from farther away */
/* Weights that two cores keep near only if each has its own half of them. Units shared over rows shared, two threads: LSTM of
   512 units, 4 rows 1.4, 16 rows 1.1, 64 rows 0.9; simple RNN of 1024 units, 8 rows 1.1, 32 rows 0.95. */
#define FAR_WEIGHTS (4 << 20)
#define FEW_ROWS 16
#define PIECES_OF_A_MEMBER 2 /* of weights that are read along all of their units */
#define ITEMS_OF_A_MEMBER 4  /* at least, of the work after the steps: with fewer, the first thread to finish waits long */

/* Steps of all rows up to which the weights are not worth packing, one for so many weights between two bounds. One thread, time
   with packing over time without: LSTM of 128 units, 8 steps 0.7, 12 steps 1.0; of 256, 16 steps 0.9, 24 steps 0.8; of 512, 16
   steps 1.3, 25 steps 1.0, 8 rows of 3 steps 0.9. */
#define UNPACKED_LEAST 6
#define UNPACKED_MOST 24
#define WEIGHTS_OF_A_ROW 36000

/* Blocks */
#define BLOCK_BYTES (256 << 10) /* of the rows that wait for their steps with the part of x in them */
#define BLOCK_ROWS 96           /* but at least so many: the weights are read once a block */
#define PANEL_BYTES (32 << 10)  /* of a panel, which stay in the nearest cache while the rows pass */
#define ROWS_BYTES (256 << 10)  /* of dz, which stay in the cache while they are multiplied with all of the weights */
#define DEPTH_BLOCK 96          /* steps whose gates and inputs lie in the nearest cache during a sum of outer products */

/* Memory */
#define KEPT_BYTES ((size_t)128 << 20) /* between calls, in all: fresh pages cost more than the work in them */
#define HUGE_PAGE ((size_t)2 << 20)    /* from here on: weights beyond a cache are beyond the nearest page tables, too */

/* Nothing between two arrays of an arena; a test has a gap there that a sanitizer watches. */
#define GUARD(ARENA, PIECE, BYTES) ((void)0)

#endif
