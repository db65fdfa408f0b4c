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
    real *h, *c; /* (layers * directions, batch, hidden_size) */
} states;

typedef struct {
    int64_t batch, time;
    sequence x, y;
    states first, last; /* backward: last is the gradient of the final states */
    const int64_t *lengths;
    char *stash;
    int64_t threads;
    char *packed;    /* of forward: the weights as `pack` left them; NULL: they are where the table says */
    lent_pool *lent; /* whose threads do the work; NULL: the team's own */
    sequence dy, dx; /* from here on of backward alone */
    states dfirst;
} call;

#endif
