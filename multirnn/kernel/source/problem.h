/* What Python passes, field by field as multirnn/kernel/compiled.py packs it. Strides are in elements. */
#ifndef PROBLEM_H
#define PROBLEM_H

#include "activation.h"
#include "team.h"

enum cell_name { SIMPLE_RNN, LSTM, GRU_AFTER, GRU_BEFORE };

typedef struct {
    int64_t cell, input_size, hidden_size, layers, directions;
    int64_t recurrent_biases; /* the number of gates with one; 1: the candidate, the last gate */
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
    const int64_t *starts; /* of packed rows: where each step begins, in strides of time; else NULL */
} sequence;

typedef struct {
    real *h, *c; /* (layers * directions, batch, hidden_size); c for the LSTM only */
} states;

/* Overrides of the thresholds, for tests; -1: none. */
typedef struct {
    int64_t members, slices, split_units, block; /* of `sharing` */
    int64_t unpacked;   /* the weights are used in place, unless packed before the call */
    int64_t along;      /* unpacked weights with dense units are read along the units, or across */
    int64_t grain;      /* panels of a piece, for weights read along the units */
    int64_t in_passing; /* input weights are packed panel by panel during their product, unless used in place */
    int64_t crowded;    /* no thread goes on alone, as if another were about to join */
    int64_t dx_rows;    /* rows of an item of the gradient of x */
    int64_t pieces;     /* pieces of the features in the gradient of some weights */
} choices;

/* Results of the entries. */
enum outcome { DONE, NO_MEMORY, WRONG_LENGTHS, FOREIGN_STASH };

typedef struct {
    int64_t batch, time;
    sequence x, y;
    states first, last; /* backward: last is the gradient of the final states */
    const int64_t *lengths; /* NULL: all rows are full; backward reads those in the stash */
    char *stash;
    int64_t threads;
    char *packed;    /* forward: the weights from `pack`; NULL: those of the table */
    lent_pool *lent; /* threads to work on; NULL: the team's workers */
    const choices *choices; /* for tests, or NULL */
    sequence dy, dx; /* from here on for backward only */
    states dfirst;
} call;

#endif
