/* The calls of kernel_fuzz.c: directly, and as a custom call of XLA. */
#ifndef KERNEL_FUZZ_CALLS_H
#define KERNEL_FUZZ_CALLS_H

typedef struct {
    void (*run)(void *);
    void *argument;
} lent_work;

static void *work_for(void *argument)
{
    const lent_work *work = argument;
    work->run(work->argument);
    return NULL;
}

/* As GOMP_parallel, and mostly of more threads than there is work for. */
static void lend(void (*run)(void *), void *argument, unsigned threads, unsigned flags)
{
    pthread_t others[5];
    lent_work work = {run, argument};
    if (threads || flags)
        exit(2);
    for (int i = 0; i < 5; i++)
        if (pthread_create(&others[i], NULL, work_for, &work))
            exit(2);
    run(argument);
    for (int i = 0; i < 5; i++)
        pthread_join(others[i], NULL);
}

static void *bytes_of(size_t count)
{
    void *memory;
    if (posix_memalign(&memory, 64, count + 1))
        exit(2);
    UNPOISON(memory, count);
    return memset(memory, 0xff, count);
}

/* --- As XLA calls it --- */

typedef struct {
    xla_buffer buffers[64], *pointers[64];
    int64_t dims[2];
    int count;
} xla_operands;

static void hand_over(xla_operands *to, void *data)
{
    xla_buffer *buffer = &to->buffers[to->count];
    *buffer = (xla_buffer){sizeof *buffer, NULL, 0, data, 2, to->dims};
    to->pointers[to->count++] = buffer;
}

static void hand_over_states(xla_operands *to, const states *given)
{
    hand_over(to, given->h);
    if (given->c)
        hand_over(to, given->c);
}

static void hand_over_parameters(const problem *p, xla_operands *to, const parameters *table)
{
    for (long pass = 0; pass < p->plain.passes; pass++) {
        hand_over(to, table[pass].input.at);
        hand_over(to, table[pass].recurrent.at);
        if (p->biased)
            hand_over(to, table[pass].input_bias.at);
        if (p->spec.recurrent_biases)
            hand_over(to, table[pass].recurrent_bias.at);
    }
}

static void *xla_error_made(xla_error_description *description) { return (void *)(intptr_t)description->code; }

/* Returns the code of the error, or 0. */
static int call_as_xla(problem *p, int back, int asks)
{
    const call *c = &p->call;
    struct {
        int64_t has_state, has_lengths, has_bias, has_stash, has_dx, threads;
        spec spec;
    } custom = {c->first.h != NULL, p->lengths != NULL, p->biased, c->stash != NULL, c->dx.at != NULL, c->threads, p->spec};
    xla_operands arguments = {.dims = {c->batch, c->time}}, results = {.dims = {c->batch, c->time}};
    int32_t *narrow = malloc((size_t)c->batch * sizeof *narrow + 1);
    for (long row = 0; p->lengths && row < c->batch; row++)
        narrow[row] = (int32_t)p->lengths[row];
    hand_over(&arguments, c->x.at);
    if (c->first.h)
        hand_over_states(&arguments, &c->first);
    if (p->lengths)
        hand_over(&arguments, narrow);
    hand_over_parameters(p, &arguments, p->weights);
    if (back) {
        hand_over(&arguments, c->y.at);
        hand_over(&arguments, c->stash);
        hand_over(&arguments, c->dy.at);
        hand_over_states(&arguments, &c->last);
        if (c->dx.at)
            hand_over(&results, c->dx.at);
        if (c->first.h)
            hand_over_states(&results, &c->dfirst);
        hand_over_parameters(p, &results, p->gradients);
    } else {
        hand_over(&results, c->y.at);
        hand_over_states(&results, &c->last);
        if (c->stash)
            hand_over(&results, c->stash);
    }
    xla_metadata metadata = {.size = sizeof metadata};
    xla_metadata_extension question = {{sizeof question, XLA_METADATA, NULL}, &metadata}, other = {{sizeof other, 0, NULL}, NULL};
    xla_api api = {.size = sizeof api, .create_error = xla_error_made};
    xla_array attribute = {0, sizeof custom / 8, &custom}, *attributes[] = {&attribute};
    xla_frame frame = {
        .size = sizeof frame,
        .extensions = asks ? &question.base : one_in(2) ? &other.base : NULL,
        .api = &api,
        .arguments = {sizeof(xla_buffers), NULL, arguments.count, NULL, arguments.pointers},
        .results = {sizeof(xla_buffers), NULL, results.count, NULL, results.pointers},
        .attributes = {sizeof(xla_attributes), NULL, 1, NULL, NULL, attributes},
    };
    int error = (int)(intptr_t)(back ? multirnn_xla_backward(&frame) : multirnn_xla_forward(&frame));
    if (asks && (metadata.version.major != XLA_MAJOR || metadata.version.minor != XLA_MINOR))
        error = -1;
    free(narrow);
    return error;
}

/* --- Calls that are right --- */

static void compare_forward(problem *p)
{
    call *c = &p->call;
    meet_sequence(p, COMPARE, &c->y, p->plain.y, p->plain.directions * p->plain.hidden);
    meet_states(p, COMPARE, &c->last, p->plain.h1, p->plain.c1);
}

static int through_xla(const problem *p) { return p->straight && !p->call.choices && !p->prepacked && one_in(2); }

static void compare_backward(problem *p)
{
    call *c = &p->call;
    p->off = p->largest = 0;
    if (c->dx.at)
        meet_sequence(p, COMPARE, &c->dx, p->plain.dx, p->spec.input_size);
    meet_states(p, COMPARE, &c->dfirst, p->plain.dh0, p->plain.dc0);
    meet_parameters(p, COMPARE, p->gradients, p->plain.gradients);
}

/* Each returns NULL, or what went wrong besides the numbers. */
static const char *call_forward(problem *p)
{
    call *c = &p->call;
    if (!c->stash && one_in(3)) {
        if (!(p->prepacked = multirnn_pack(&p->spec, p->weights)))
            return "packing failed";
        c->packed = p->prepacked;
    }
    if (p->straight || one_in(2))
        c->last = draw_states(p);
    if (one_in(4))
        c->lent = lend;
    if (through_xla(p) ? call_as_xla(p, 0, 0) : multirnn_forward(&p->spec, p->weights, c))
        return "forward failed";
    compare_forward(p);
    return NULL;
}

/* The gradients of what, and where they go; some are not wanted. */
static void draw_cotangents(problem *p)
{
    call *c = &p->call;
    plain *q = &p->plain;
    c->last = (states){0};
    if (p->straight || !one_in(4)) {
        c->dy = draw_sequence(p, q->directions * q->hidden);
        meet_sequence(p, FILL, &c->dy, q->dy, q->directions * q->hidden);
        c->last = draw_states(p);
        meet_states(p, FILL, &c->last, q->dh1, q->dc1);
    }
    if (!one_in(4))
        c->dx = draw_sequence(p, p->spec.input_size);
    if (c->first.h || (!p->straight && one_in(2)))
        c->dfirst = draw_states(p);
    draw_parameters(p, p->gradients, q->gradients, p->straight);
}

static const char *call_backward(problem *p)
{
    for (long row = 0; p->lengths && row < p->call.batch; row++) /* the caller's array holds other numbers by now */
        p->lengths[row] = 1000000;
    if (one_in(8))
        p->call.threads = 1 + below(16);
    if (through_xla(p) ? call_as_xla(p, 1, 0) : multirnn_backward(&p->spec, p->weights, &p->call, p->gradients))
        return "backward failed";
    compare_backward(p);
    return NULL;
}

/* --- Calls that are wrong --- */

static const char *call_with_wrong_lengths(problem *p)
{
    static const int64_t wrong[] = {-1, INT32_MIN, INT32_MAX};
    call *c = &p->call;
    if (!p->lengths || !c->batch)
        return NULL;
    long row = below(c->batch);
    int64_t right = p->lengths[row];
    p->lengths[row] = one_in(4) ? c->time + 1 : wrong[below(3)];
    int outcome = multirnn_forward(&p->spec, p->weights, c);
    int code = p->straight ? call_as_xla(p, 0, 0) : XLA_INVALID_ARGUMENT;
    p->lengths[row] = right;
    return outcome == WRONG_LENGTHS && code == XLA_INVALID_ARGUMENT ? NULL : "wrong lengths were taken";
}

/* A stash of another call: nothing that a framework may have done to its bytes leads out of the arrays. */
static const char *call_with_foreign_stash(problem *p)
{
    call c = p->call;
    size_t size = (size_t)multirnn_stash_size(&p->spec, &c);
    char *own = c.stash = bytes_of(size);
    if (multirnn_forward(&p->spec, p->weights, &c))
        exit(2);
    call longer = c;
    longer.time++;
    call more = c;
    more.batch++;
    spec other = p->spec;
    other.hidden_size++;
    int refused = multirnn_backward(&p->spec, p->weights, &longer, p->gradients) == FOREIGN_STASH &&
                  multirnn_backward(&p->spec, p->weights, &more, p->gradients) == FOREIGN_STASH &&
                  multirnn_backward(&other, p->weights, &c, p->gradients) == FOREIGN_STASH;
    UNPOISON(own, size);
    memset(own, 0, size);
    refused = refused && multirnn_backward(&p->spec, p->weights, &c, p->gradients) == FOREIGN_STASH;
    free(own);
    return refused ? NULL : "a foreign stash was taken";
}

/* Whichever allocation fails, the call says so, and the next one is right. */
static const char *call_without_memory(problem *p)
{
    multirnn_free_kept();
    for (int left = 0; left < 4; left++) {
        call c = p->call;
        memory_left = left;
        int outcome = multirnn_forward(&p->spec, p->weights, &c);
        int code = 0;
        if (p->straight) {
            multirnn_free_kept();
            memory_left = left;
            code = call_as_xla(p, 0, 0);
        }
        multirnn_free_kept();
        memory_left = left;
        char *packed = multirnn_pack(&p->spec, p->weights);
        memory_left = -1;
        if (packed)
            multirnn_free(packed);
        multirnn_free_kept();
        if ((outcome != DONE && outcome != NO_MEMORY) || (code && code != XLA_RESOURCE_EXHAUSTED) || 
            (packed && left < 1 && !with_others))
            return "a failed allocation went unnoticed";
    }
    return NULL;
}

static const char *call_backward_without_memory(problem *p)
{
    multirnn_free_kept();
    memory_left = 0;
    int outcome = multirnn_backward(&p->spec, p->weights, &p->call, p->gradients);
    memory_left = -1;
    return outcome == NO_MEMORY || (with_others && outcome == DONE) ? NULL : "a failed allocation of backward went unnoticed";
}

/* The question of XLA which version of its interface this is. */
static const char *ask_for_version(problem *p)
{
    return call_as_xla(p, 0, 1) ? "the version of XLA's interface" : NULL;
}

/* Before what is right; returns NULL where each was refused. */
static const char *call_wrongly(problem *p)
{
    static const char *(*const wrong[])(problem *) = {call_with_wrong_lengths, call_with_foreign_stash, call_without_memory,
                                                      ask_for_version};
    if (!one_in(10))
        return NULL;
    states last = p->call.last;
    p->call.last = draw_states(p); /* a custom call always has some */
    const char *said = wrong[below(4)](p);
    p->call.last = last;
    return said;
}

#endif
