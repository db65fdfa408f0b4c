/* How a call is shared out among threads. */
#ifndef SHARING_H
#define SHARING_H

#include "stack.h"

#define SMALL 6e6           /* multiplications that take one core 0.1 ms: less than that is slower with another thread */
/* Steps of all rows up to which the weights are not worth packing, one for so many weights between two bounds. One thread, time
   with packing over time without: 131 thousand weights, 8 rows 0.9, 13 rows 0.8; 393, 20 rows 1.1; 524, 32 rows 1.0-1.4; 1000 and
   more, 32 rows 1.0-1.7. */
#define UNPACKED_LEAST 8
#define UNPACKED_MOST 32
#define WEIGHTS_OF_A_ROW 16384
#define OWN_CACHE (1 << 20) /* bytes of weights that one core keeps near */
#define WAITING_ROWS 8      /* with fewer rows a step, weights from farther away are waited for */

static sharing shared_out(const stack *k)
{
    const call *c = k->call;
    double multiplications = 0, weights = 0;
    for (long layer = 0; layer < k->spec->layers; layer++) {
        double size = (double)k->directions * k->gates * k->hidden * (features_of(k, layer) + k->hidden);
        multiplications += size * (double)k->valid;
        weights = size > weights ? size : weights;
    }
    long unpacked = larger(smaller((long)(weights / WEIGHTS_OF_A_ROW), UNPACKED_MOST), UNPACKED_LEAST);
    sharing alone = {1, 1, 0, k->valid <= unpacked}, all = alone;
    if (weights * sizeof(real) > OWN_CACHE && c->batch < WAITING_ROWS)
        multiplications *= (double)WAITING_ROWS / (double)larger(c->batch, 1);
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
