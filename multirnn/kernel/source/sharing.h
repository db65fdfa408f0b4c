/* How a call is shared out among threads. */
#ifndef SHARING_H
#define SHARING_H

#include "stack.h"

#define SMALL 6e6           /* multiplications that take one core 0.1 ms: less than that is slower with another thread */
#define UNPACKED_ROWS 12    /* steps of all rows: packing pays from 8 (hidden 64) to 17 (hidden 256) on */
#define OWN_CACHE (1 << 20) /* bytes of weights that one core keeps near */

static sharing shared_out(const stack *k)
{
    const call *c = k->call;
    double multiplications = 0, weights = 0;
    for (long layer = 0; layer < k->spec->layers; layer++) {
        double size = (double)k->directions * k->gates * k->hidden * (features_of(k, layer) + k->hidden);
        multiplications += size * (double)k->valid;
        weights = size > weights ? size : weights;
    }
    sharing alone = {1, 1, 0, k->valid <= UNPACKED_ROWS}, all = alone;
    long threads = c->threads;
    if (threads <= 1 || multiplications < SMALL)
        return alone;
    long slices = larger(smaller(ceiling(threads, k->directions), c->batch), 1), tasks = slices * k->directions;
    all.members = (int)threads;
    if (tasks < threads && weights * sizeof(real) > OWN_CACHE)
        all.split_units = 1;
    else {
        all.members = (int)smaller(threads, tasks);
        all.slices = (int)slices;
    }
    return all;
}

#endif
