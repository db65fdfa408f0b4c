/* What is handed over from Python, word for word as multirnn/kernel/stack.py packs it. Strides are in elements. */
#ifndef PROBLEM_H
#define PROBLEM_H

#include "activation.h"
#include "team.h"

enum cell_name { SIMPLE_RNN, LSTM, GRU_AFTER, GRU_BEFORE };

typedef struct {
    int64_t cell, input_size, hidden_size, layers, directions;
    int64_t recurrent_biases; /* how many gates have one; a single one is the candidate's, and that gate is the last */
    activation activation, recurrent_activation;
} spec;

typedef struct {
    real *at; /* (gates, hidden_size, n) */
    int64_t gate, unit, k;
} weight;

typedef struct {
    real *at; /* (gates, hidden_size) */
    int64_t gate, unit;
} bias;

typedef struct {
    weight input, recurrent;
    bias input_bias, recurrent_bias;
} parameters; /* of one layer and direction */

typedef struct {
    real *at; /* (batch, time, features), features dense */
    int64_t batch, time;
    const int64_t *starts; /* NULL; or, of packed rows, how many strides of time from `at` every step begins */
} sequence;

typedef struct {
    real *h, *c; /* (layers * directions, batch, hidden_size); c of an LSTM alone */
} states;

/* What a test chooses in place of the thresholds; -1 leaves a choice to them. */
typedef struct {
    int64_t members, slices, split_units, block; /* of `sharing` */
    int64_t unpacked;   /* the weights are used as they lie, unless they were packed before */
    int64_t along;      /* unpacked weights whose units are dense are read along their units, or across */
    int64_t grain;      /* panels of a piece of weights that are read along their units */
    int64_t in_passing; /* the input's weights are packed where they are multiplied, unless all lie as they are */
    int64_t crowded;    /* no thread goes on alone, as if another were always about to come */
    int64_t dx_rows;    /* rows of an item of the gradient of x */
    int64_t pieces;     /* pieces of the features in the gradient of some weights */
} choices;

/* What an entry returns. */
enum outcome { DONE, NO_MEMORY, WRONG_LENGTHS, FOREIGN_STASH };

typedef struct {
    int64_t batch, time;
    sequence x, y;
    states first, last; /* backward: last is the gradient of the final states */
    const int64_t *lengths; /* NULL: all rows are full; backward takes those in the stash */
    char *stash;
    int64_t threads;
    char *packed;    /* of forward: the weights as `pack` left them; NULL: they are where the table says */
    lent_pool *lent; /* whose threads do the work; NULL: the team's own */
    const choices *choices; /* of a test; NULL otherwise */
    sequence dy, dx; /* from here on of backward alone */
    states dfirst;
} call;

#endif
