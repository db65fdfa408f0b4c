/* Custom calls for XLA: forward and backward on the buffers of a compiled program, without the interpreter.

   The structures are the parts used here of XLA's foreign function interface, version 0.3. XLA asks for that version and
   refuses a handler of another. tests/test_kernel_xla.py compares them with the header that comes with JAX. */
#ifndef XLA_H
#define XLA_H

#include <stdlib.h>

#include "problem.h"

enum { XLA_MAJOR = 0, XLA_MINOR = 3, XLA_METADATA = 1, XLA_INVALID_ARGUMENT = 3, XLA_RESOURCE_EXHAUSTED = 8 };

typedef struct xla_extension {
    size_t size;
    int type;
    struct xla_extension *next;
} xla_extension;

typedef struct {
    size_t size;
    xla_extension *extensions;
    int major, minor;
} xla_version;

typedef struct {
    size_t size;
    xla_version version;
    uint32_t traits;
} xla_metadata;

typedef struct {
    xla_extension base;
    xla_metadata *metadata;
} xla_metadata_extension;

typedef struct {
    size_t size;
    xla_extension *extensions;
    const char *message;
    int code;
} xla_error_description;

typedef struct {
    size_t size;
    xla_extension *extensions;
    xla_version version;
    const void *internal;
    void *(*create_error)(xla_error_description *);
} xla_api;

typedef struct {
    size_t size;
    xla_extension *extensions;
    int dtype;
    void *data;
    int64_t rank, *dims;
} xla_buffer;

typedef struct {
    size_t size;
    xla_extension *extensions;
    int64_t count;
    int *types;
    xla_buffer **buffers;
} xla_buffers;

typedef struct {
    int dtype;
    size_t count;
    const void *data;
} xla_array;

typedef struct {
    size_t size;
    xla_extension *extensions;
    int64_t count;
    int *types;
    void **names;
    xla_array **arrays;
} xla_attributes;

typedef struct {
    size_t size;
    xla_extension *extensions;
    const xla_api *api;
    void *context;
    int stage;
    xla_buffers arguments, results;
    xla_attributes attributes;
} xla_frame;

/* The attribute of the call, field by field as multirnn/kernel/xla.py packs it. */
typedef struct {
    int64_t has_state, has_lengths, has_bias, has_stash, has_dx, threads;
    spec spec;
} custom_call;

typedef xla_buffer **reader; /* of buffers in order */

INLINE void *next_array(reader *from) { return (*(*from)++)->data; }

INLINE states next_states(reader *from, const custom_call *custom)
{
    states found = {.h = next_array(from)};
    if (custom->spec.cell == LSTM)
        found.c = next_array(from);
    return found;
}

INLINE sequence dense(void *at, int64_t time, int64_t features) { return (sequence){at, time * features, features}; }

/* The parameters of every layer and direction, C-contiguous each. */
static void next_parameters(reader *from, const custom_call *custom, parameters *table)
{
    const spec *spec = &custom->spec;
    for (int64_t layer = 0; layer < spec->layers; layer++) {
        int64_t hidden = spec->hidden_size, features = layer ? spec->directions * hidden : spec->input_size;
        for (int64_t direction = 0; direction < spec->directions; direction++, table++) {
            *table = (parameters){
                .input = {next_array(from), hidden * features, features, 1},
                .recurrent = {next_array(from), hidden * hidden, hidden, 1},
            };
            if (custom->has_bias)
                table->input_bias = (bias){next_array(from), hidden, 1};
            if (spec->recurrent_biases)
                table->recurrent_bias = (bias){next_array(from), hidden, 1};
        }
    }
}

/* The XLA error of an outcome; NULL for DONE. */
static void *reported(const xla_frame *frame, int outcome)
{
    static const struct {
        int code;
        const char *message;
    } errors[] = {
        [NO_MEMORY] = {XLA_RESOURCE_EXHAUSTED, "the compiled recurrence found no memory to work in"},
        [WRONG_LENGTHS] = {XLA_INVALID_ARGUMENT, "lengths must be from 0 to the time steps of x"},
        [FOREIGN_STASH] = {XLA_INVALID_ARGUMENT, "the stash is not the one that forward filled for this call"},
    };
    if (outcome == DONE)
        return NULL;
    xla_error_description description = {sizeof description, NULL, errors[outcome].message, errors[outcome].code};
    return frame->api->create_error(&description);
}

/* Arguments and results in the order of multirnn/kernel/xla.py. */
static void *custom_call_of(const xla_frame *frame, int back)
{
    if (frame->extensions && frame->extensions->type == XLA_METADATA) { /* it asks for the version of the interface */
        xla_version *version = &((xla_metadata_extension *)frame->extensions)->metadata->version;
        version->major = XLA_MAJOR, version->minor = XLA_MINOR;
        return NULL;
    }
    const custom_call *custom = frame->attributes.arrays[0]->data;
    const spec *spec = &custom->spec;
    const int64_t *dims = frame->arguments.buffers[0]->dims, outputs = spec->directions * spec->hidden_size;
    int64_t passes = spec->layers * spec->directions;
    call call = {.batch = dims[0], .time = dims[1], .threads = custom->threads};
    reader arguments = frame->arguments.buffers, results = frame->results.buffers;

    parameters *tables = malloc((size_t)(2 * passes) * sizeof *tables + (size_t)call.batch * sizeof(int64_t));
    if (!tables)
        return reported(frame, NO_MEMORY);
    int64_t *lengths = (int64_t *)(tables + 2 * passes);

    call.x = dense(next_array(&arguments), call.time, spec->input_size);
    if (custom->has_state)
        call.first = next_states(&arguments, custom);
    if (custom->has_lengths) {
        const int32_t *given = next_array(&arguments); /* JAX without its 64-bit mode has no wider integers */
        for (int64_t row = 0; row < call.batch; row++)
            lengths[row] = given[row];
        call.lengths = lengths; /* backward reads those in the stash */
    }
    next_parameters(&arguments, custom, tables);
    int outcome;
    if (back) {
        call.y = dense(next_array(&arguments), call.time, outputs);
        call.stash = next_array(&arguments);
        call.dy = dense(next_array(&arguments), call.time, outputs);
        call.last = next_states(&arguments, custom);
        if (custom->has_dx)
            call.dx = dense(next_array(&results), call.time, spec->input_size);
        if (custom->has_state)
            call.dfirst = next_states(&results, custom);
        next_parameters(&results, custom, tables + passes);
        outcome = NAME(backward)(spec, tables, &call, tables + passes);
    } else {
        call.y = dense(next_array(&results), call.time, outputs);
        call.last = next_states(&results, custom);
        if (custom->has_stash)
            call.stash = next_array(&results);
        outcome = NAME(forward)(spec, tables, &call);
    }
    free(tables);
    return reported(frame, outcome);
}

EXPORT void *NAME(xla_forward)(const xla_frame *frame) { return custom_call_of(frame, 0); }

EXPORT void *NAME(xla_backward)(const xla_frame *frame) { return custom_call_of(frame, 1); }

#endif
