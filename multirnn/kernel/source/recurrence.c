/* The entries of one instruction set and one dtype. This file is compiled for each of them, with NAME(x) naming its own. */
#include "export.h"
#include "forward.h"
#include "backward.h"
#include "sharing.h"

/* Returns 0, or 1 where memory ran out. */
EXPORT int NAME(forward)(const spec *spec, const parameters *table, const call *call)
{
    forward_run run = {0};
    describe(&run.stack, spec, table, call);
    run.stack.sharing = shared_out(&run.stack);
    arena size = {NULL, 0};
    lay_out_forward(&run, &size);
    arena memory = {multirnn_borrow(size.used), 0};
    if (!memory.base)
        return 1;
    lay_out_forward(&run, &memory);
    if (call->stash)
        ((stash_head *)call->stash)->sharing = run.stack.sharing;
    multirnn_team(forward_work, &run, run.stack.sharing.members, call->lent);
    multirnn_give_back(memory.base);
    return 0;
}

/* The weights, packed once for all calls that are given what this returns; NULL where memory ran out. It is to be given back. */
EXPORT char *NAME(pack)(const spec *spec, const parameters *table)
{
    stack k;
    call none = {0};
    describe(&k, spec, table, &none);
    long count = k.spec->layers * k.directions;
    arena size = {NULL, 0};
    lay_out_passes(&k, &size, NULL);
    arena memory = {multirnn_borrow(size.used), 0};
    pass *passes = multirnn_borrow(count * sizeof *passes);
    if (memory.base && passes) {
        lay_out_passes(&k, &memory, passes);
        for (long p = 0; p < count; p++)
            for (long n = 0; n < panel_count(&passes[p].input[0]); n++)
                pack_parts(&k, &passes[p], &table[p], n);
    } else if (memory.base) {
        multirnn_give_back(memory.base);
        memory.base = NULL;
    }
    if (passes)
        multirnn_give_back(passes);
    return memory.base;
}

EXPORT int64_t NAME(size_of_packed)(const spec *spec)
{
    stack k;
    call none = {0};
    describe(&k, spec, NULL, &none);
    arena size = {NULL, 0};
    lay_out_passes(&k, &size, NULL);
    return (int64_t)size.used;
}

EXPORT int64_t NAME(stash_size)(const spec *spec, const call *call)
{
    stack stack;
    describe(&stack, spec, NULL, call);
    stack.valid = call->batch * call->time; /* with lengths it is less */
    arena size = {NULL, 0};
    lay_out_stash(&stack, &size, NULL, NULL);
    return (int64_t)size.used;
}

EXPORT int NAME(backward)(const spec *spec, const parameters *table, const call *call, const parameters *gradients)
{
    backward_run run = {.gradients = gradients};
    describe(&run.stack, spec, table, call);
    run.stack.sharing = ((const stash_head *)call->stash)->sharing;
    run.stack.sharing.members = (int)smaller(run.stack.sharing.members, call->threads);
    arena size = {NULL, 0};
    lay_out_backward(&run, &size);
    arena memory = {multirnn_borrow(size.used), 0};
    if (!memory.base)
        return 1;
    lay_out_backward(&run, &memory);
    multirnn_team(backward_work, &run, run.stack.sharing.members, call->lent);
    multirnn_give_back(memory.base);
    return 0;
}

#include "xla.h"
