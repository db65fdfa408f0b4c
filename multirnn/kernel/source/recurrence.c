/* The entries of one instruction set and dtype: compiled once for each, with NAME(x) adding its suffix. */
#include <stdlib.h>

#include "forward.h"
#include "backward.h"
#include "sharing.h"

/* Copies the lengths before checking them, because another thread may write to the caller's; NULL if there are none. */
static enum outcome copy_lengths(const call *call, int64_t **copied)
{
    *copied = NULL;
    if (!call->lengths || !call->batch)
        return DONE;
    if (!(*copied = malloc((size_t)call->batch * sizeof **copied)))
        return NO_MEMORY;
    memcpy(*copied, call->lengths, (size_t)call->batch * sizeof **copied);
    for (long row = 0; row < call->batch; row++)
        if ((*copied)[row] < 0 || (*copied)[row] > call->time) {
            free(*copied);
            return WRONG_LENGTHS;
        }
    return DONE;
}

static void write_head(const stack *k)
{
    const call *c = k->call;
    stash_head *head = (stash_head *)c->stash;
    *head = (stash_head){STASH_MARK, *k->spec, c->batch, c->time, c->lengths != NULL, k->sharing};
    arena stash = {c->stash, 0};
    if (c->lengths)
        memcpy(stashed_lengths(&stash, c->batch), c->lengths, (size_t)c->batch * sizeof *c->lengths);
}

/* Lays out a run, and does its work in a team. */
static enum outcome run_in_team(void *run, const stack *k, void (*lay_out)(void *run, arena *a), team_work *work)
{
    arena size = {NULL, 0};
    lay_out(run, &size);
    arena memory = {multirnn_allocate(size.used), 0};
    if (!memory.base)
        return NO_MEMORY;
    lay_out(run, &memory);
    multirnn_team(work, run, k->sharing.members, k->call->lent);
    multirnn_free(memory.base);
    return DONE;
}

EXPORT int NAME(forward)(const spec *spec, const parameters *table, const call *given)
{
    call call = *given;
    int64_t *lengths;
    enum outcome outcome = copy_lengths(given, &lengths);
    if (outcome != DONE)
        return outcome;
    call.lengths = lengths;
    forward_run run = {0};
    describe(&run.stack, spec, table, &call);
    run.stack.sharing = shared_out(&run.stack);
    outcome = run_in_team(&run, &run.stack, lay_out_forward, forward_work);
    if (outcome == DONE && call.stash)
        write_head(&run.stack);
    free(lengths);
    return outcome;
}

EXPORT int NAME(backward)(const spec *spec, const parameters *table, const call *given, const parameters *gradients)
{
    call call = *given;
    const stash_head *head = (const stash_head *)call.stash;
    if (head->mark != STASH_MARK || memcmp(&head->spec, spec, sizeof *spec) || head->batch != call.batch ||
        head->time != call.time)
        return FOREIGN_STASH;
    arena stash = {call.stash, 0};
    call.lengths = head->has_lengths ? stashed_lengths(&stash, call.batch) : NULL;
    backward_run run = {.gradients = gradients};
    describe(&run.stack, spec, table, &call);
    run.stack.sharing = head->sharing;
    run.stack.sharing.members = (int)larger(smaller(head->sharing.members, call.threads), 1);
    return run_in_team(&run, &run.stack, lay_out_backward, backward_work);
}

/* Packs the weights for later calls, until multirnn_free; NULL if out of memory. */
EXPORT char *NAME(pack)(const spec *spec, const parameters *table)
{
    stack k;
    call none = {0};
    describe(&k, spec, table, &none);
    arena size = {NULL, 0};
    lay_out_passes(&k, &size, NULL);
    arena memory = {multirnn_allocate(size.used), 0};
    for (long p = 0; memory.base && p < spec->layers * k.directions; p++) {
        pass pass;
        lay_out_pass(&k, &memory, &pass, p);
        for (long n = 0; n < panel_count(&pass.input[0]); n++)
            pack_parts(&k, &pass, &table[p], n);
    }
    return memory.base;
}

EXPORT int64_t NAME(stash_size)(const spec *spec, const call *call)
{
    stack stack;
    describe(&stack, spec, NULL, call);
    stack.valid = call->batch * call->time; /* an upper bound: with lengths it is less */
    arena size = {NULL, 0};
    lay_out_stash(&stack, &size);
    return (int64_t)size.used;
}

#include "xla.h"
