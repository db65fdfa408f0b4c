/* Chooses how threads share a call. */
#ifndef SHARING_H
#define SHARING_H

#include "stack.h"
#include "thresholds.h"

/* The steps of a block: blocks of about equal size, at most 1.5 times the target; a single one if the weights are at least
   twice as large as its rows. */
static long block_of(const stack *k, long slices)
{
    long time = k->call->time, rows = larger(ceiling(k->call->batch, slices), 1);
    long step_bytes = rows * k->row_size * (long)sizeof(real);
    long weights = k->gates * k->hidden * smaller(features_of(k, 0), features_of(k, k->spec->layers - 1));
    if (2 * time * step_bytes <= weights * (long)sizeof(real))
        return time;
    long steps = larger(larger(BLOCK_BYTES / step_bytes, ceiling(BLOCK_ROWS, rows)), 1);
    return ceiling(time, larger((time + steps / 2) / steps, 1));
}

static sharing sharing_of(const stack *k)
{
    const call *c = k->call;
    double multiplications = 0, weights = 0;
    for (long layer = 0; layer < k->spec->layers; layer++) {
        double size = (double)k->directions * k->gates * k->hidden * (features_of(k, layer) + k->hidden);
        multiplications += size * (double)k->valid;
        weights = size > weights ? size : weights;
    }
    double bytes = weights * sizeof(real);
    long unpacked = larger(smaller((long)(weights / WEIGHTS_OF_A_ROW), UNPACKED_MOST), UNPACKED_LEAST);
    sharing alone = {1, 1, 0, !c->packed && k->valid <= unpacked, 0}, all = alone;
    if (bytes > OWN_CACHE && c->batch < WAITING_ROWS)
        multiplications *= (double)WAITING_ROWS / (double)larger(c->batch, 1);
    long threads = c->threads;
    if (threads <= 1 || multiplications < SMALL)
        return alone;
    long slices = larger(smaller(ceiling(threads, k->directions), c->batch), 1), tasks = slices * k->directions;
    all.members = (int)threads;
    if ((tasks < threads && bytes > OWN_CACHE) || (k->directions < threads && bytes > FAR_WEIGHTS && c->batch <= FEW_ROWS))
        all.split_units = 1;
    else {
        all.members = (int)smaller(threads, tasks);
        all.slices = (int)slices;
    }
    return all;
}

static sharing shared_out(const stack *k)
{
    const choices *c = &k->choices;
    sharing found = sharing_of(k);
    found.members = (int)chosen(c->members, found.members);
    found.slices = (int)chosen(c->slices, found.slices);
    found.split_units = (int)chosen(c->split_units, found.split_units);
    found.unpacked = !k->call->packed && chosen(c->unpacked, found.unpacked);
    found.block = chosen(c->block, block_of(k, found.slices));
    return found;
}

#endif
