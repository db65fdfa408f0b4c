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
    multirnn_team(forward_work, &run, run.stack.sharing.members);
    multirnn_give_back(memory.base);
    return 0;
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
    multirnn_team(backward_work, &run, run.stack.sharing.members);
    multirnn_give_back(memory.base);
    return 0;
}

#include "xla.h"
