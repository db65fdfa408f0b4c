/* The recurrence and its gradients as plain loops in double, by the equations of a textbook: what every path is held against.

   Arrays of the reference are dense: sequences (batch, time, features), states (layers * directions, batch, hidden_size),
   and the parameters of every layer and direction (gates, hidden_size, n). Gates are i f g o, or r z n. */
#ifndef KERNEL_PLAIN_H
#define KERNEL_PLAIN_H

#include <math.h>
#include <stdlib.h>

enum { MOST_PASSES = 6 };

typedef struct {
    double *W, *U, *b, *c; /* input and recurrent weights and biases; a bias that there is not is NULL */
} plain_parameters;

typedef struct {
    spec spec;
    long batch, time, gates, hidden, directions, passes;
    const int64_t *lengths; /* NULL: full */
    double *x, *y, *h0, *c0, *h1, *c1;
    plain_parameters parameters[MOST_PASSES];
    double *dy, *dh1, *dc1; /* given */
    double *dx, *dh0, *dc0;
    plain_parameters gradients[MOST_PASSES];
    double *layers[MOST_PASSES]; /* the outputs of every layer */
    double *gates_of[MOST_PASSES]; /* (batch, step, gates + 3, hidden): the gates, then h before, c before, and m or c */
    double to_kink; /* how near an activation came to where its slope jumps */
} plain;

static double *zeros(long count)
{
    double *made = calloc((size_t)count + 1, sizeof *made);
    if (!made)
        exit(2);
    return made;
}

static double plain_activation(plain *p, const activation *f, double x)
{
    switch (f->name) {
    case ELU:
        p->to_kink = fmin(p->to_kink, f->alpha == 1 ? INFINITY : fabs(x));
        return x > 0 ? x : expm1(x) * f->alpha;
    case HARD_SIGMOID: {
        double y = x * f->alpha + f->beta;
        p->to_kink = fmin(p->to_kink, fmin(fabs(y), fabs(y - 1)));
        return fmin(fmax(y, 0), 1);
    }
    case RELU:
        p->to_kink = fmin(p->to_kink, fabs(x));
        return fmax(x, 0);
    case SIGMOID:
        return 1 / (1 + exp(-x));
    case SOFTSIGN:
        return x / (1 + fabs(x));
    case TANH:
        return tanh(x);
    default:
        return x;
    }
}

static double plain_slope(const activation *f, double y)
{
    switch (f->name) {
    case ELU:
        return y > 0 ? 1 : y + f->alpha;
    case HARD_SIGMOID:
        return y > 0 && y < 1 ? f->alpha : 0;
    case RELU:
        return y > 0;
    case SIGMOID:
        return y * (1 - y);
    case SOFTSIGN:
        return (1 - fabs(y)) * (1 - fabs(y));
    case TANH:
        return 1 - y * y;
    default:
        return 1;
    }
}

static long plain_features(const plain *p, long layer)
{
    return layer ? p->directions * p->hidden : p->spec.input_size;
}

static long plain_length(const plain *p, long row) { return p->lengths ? p->lengths[row] : p->time; }

static double *plain_state(const plain *p, double *states, long pass, long row)
{
    return states + (pass * p->batch + row) * p->hidden;
}

/* The bias that the recurrent product of a gate gets; a single one is the last gate's. */
static double *recurrent_bias(const plain *p, const plain_parameters *of, long gate, long unit)
{
    long first = p->gates - p->spec.recurrent_biases;
    return of->c && gate >= first ? of->c + (gate - first) * p->hidden + unit : NULL;
}

/* What x and h bring to a gate of a unit. */
static void plain_sums(const plain *p, const plain_parameters *w, long features, const double *x, const double *h, long gate,
                       long unit, double *from_x, double *from_h)
{
    long row = gate * p->hidden + unit;
    const double *c = recurrent_bias(p, w, gate, unit);
    *from_x = w->b ? w->b[row] : 0;
    *from_h = c ? *c : 0;
    for (long k = 0; k < features; k++)
        *from_x += w->W[row * features + k] * x[k];
    for (long k = 0; k < p->hidden; k++)
        *from_h += w->U[row * p->hidden + k] * h[k];
}

static void plain_step(plain *p, long pass, const double *x, double *h, double *c, double *kept)
{
    const activation *a = &p->spec.activation, *s = &p->spec.recurrent_activation;
    long H = p->hidden, G = p->gates, features = plain_features(p, pass / p->directions);
    const plain_parameters *w = &p->parameters[pass];
    double *before = kept + G * H, *c_before = before + H, *rest = c_before + H, *rh = zeros(H);
    memcpy(before, h, (size_t)H * sizeof *h);
    memcpy(c_before, c, (size_t)H * sizeof *c);
    for (long gate = 0; gate < G; gate++) {
        int candidate = p->spec.cell == SIMPLE_RNN || gate == 2; /* n, and the LSTM's g */
        const double *of_h = p->spec.cell == GRU_BEFORE && candidate ? rh : before;
        for (long u = 0; u < H; u++) {
            double from_x, from_h;
            plain_sums(p, w, features, x, of_h, gate, u, &from_x, &from_h);
            if (p->spec.cell == GRU_AFTER && candidate) {
                rest[u] = from_h;
                from_h *= kept[u];
            }
            kept[gate * H + u] = plain_activation(p, candidate ? a : s, from_x + from_h);
        }
        if (gate == 0 && p->spec.cell == GRU_BEFORE)
            for (long u = 0; u < H; u++)
                rh[u] = kept[u] * before[u];
    }
    for (long u = 0; u < H; u++)
        if (p->spec.cell == SIMPLE_RNN)
            h[u] = kept[u];
        else if (p->spec.cell == LSTM) {
            rest[u] = c[u] = kept[H + u] * c_before[u] + kept[u] * kept[2 * H + u];
            h[u] = kept[3 * H + u] * plain_activation(p, a, c[u]);
        } else
            h[u] = kept[2 * H + u] + kept[H + u] * (before[u] - kept[2 * H + u]); /* with infinities not (1 - z) n + z h */
    free(rh);
}

static double *plain_kept(const plain *p, long pass, long row, long step)
{
    return p->gates_of[pass] + (row * p->time + step) * (p->gates + 3) * p->hidden;
}

static double *plain_at(const plain *p, double *sequence, long features, long pass, long row, long step)
{
    long time = pass % p->directions ? plain_length(p, row) - 1 - step : step;
    return sequence + (row * p->time + time) * features;
}

static double *plain_input(const plain *p, long layer) { return layer ? p->layers[layer - 1] : p->x; }

static void plain_forward(plain *p)
{
    long H = p->hidden, width = p->directions * H;
    p->to_kink = INFINITY;
    for (long pass = 0; pass < p->passes; pass++) {
        long layer = pass / p->directions, features = plain_features(p, layer);
        if (pass % p->directions == 0)
            p->layers[layer] = zeros(p->batch * p->time * width);
        p->gates_of[pass] = zeros(p->batch * p->time * (p->gates + 3) * H);
        for (long row = 0; row < p->batch; row++) {
            double *h = plain_state(p, p->h1, pass, row), *c = plain_state(p, p->c1, pass, row);
            memcpy(h, plain_state(p, p->h0, pass, row), (size_t)H * sizeof *h);
            memcpy(c, plain_state(p, p->c0, pass, row), (size_t)H * sizeof *c);
            for (long step = 0; step < plain_length(p, row); step++) {
                plain_step(p, pass, plain_at(p, plain_input(p, layer), features, pass, row, step), h, c,
                           plain_kept(p, pass, row, step));
                memcpy(plain_at(p, p->layers[layer], width, pass, row, step) + pass % p->directions * H, h,
                       (size_t)H * sizeof *h);
            }
        }
    }
    p->y = p->layers[p->spec.layers - 1];
}

/* dz of a gate of a unit, through its products to the weights, x and h; `dz_h` is what reaches the recurrent product. */
static void plain_pull(const plain *p, long pass, long gate, long unit, double dz_x, double dz_h, const double *x,
                       const double *h, double *dx, double *dh)
{
    long features = plain_features(p, pass / p->directions), H = p->hidden, row = gate * H + unit;
    const plain_parameters *w = &p->parameters[pass], *d = &p->gradients[pass];
    double *c = recurrent_bias(p, d, gate, unit);
    if (d->b)
        d->b[row] += dz_x;
    if (c)
        *c += dz_h;
    for (long k = 0; k < features; k++) {
        d->W[row * features + k] += dz_x * x[k];
        dx[k] += dz_x * w->W[row * features + k];
    }
    for (long k = 0; k < H; k++) {
        d->U[row * H + k] += dz_h * h[k];
        dh[k] += dz_h * w->U[row * H + k];
    }
}

/* dh and dc of after the step become those of before it. */
static void plain_step_back(const plain *p, long pass, const double *x, const double *kept, double *dh, double *dc, double *dx)
{
    const activation *a = &p->spec.activation, *s = &p->spec.recurrent_activation;
    long H = p->hidden;
    const double *before = kept + p->gates * H, *c_before = before + H, *rest = c_before + H;
    double *to_h = zeros(H), *drh = zeros(H), *rh = zeros(H);
#define PULL(GATE, DZ_X, DZ_H, OF_H, TO_H) plain_pull(p, pass, GATE, u, DZ_X, DZ_H, x, OF_H, dx, TO_H)
    for (long u = 0; u < H; u++)
        if (p->spec.cell == SIMPLE_RNN) {
            double dz = dh[u] * plain_slope(a, kept[u]);
            PULL(0, dz, dz, before, to_h);
        } else if (p->spec.cell == LSTM) {
            plain unused = {0};
            double i = kept[u], f = kept[H + u], g = kept[2 * H + u], o = kept[3 * H + u];
            double a_c = plain_activation(&unused, a, rest[u]), all = dc[u] + dh[u] * o * plain_slope(a, a_c);
            double dz[] = {all * g * plain_slope(s, i), all * c_before[u] * plain_slope(s, f), all * i * plain_slope(a, g),
                           dh[u] * a_c * plain_slope(s, o)};
            for (long gate = 0; gate < 4; gate++)
                PULL(gate, dz[gate], dz[gate], before, to_h);
            dc[u] = all * f;
        } else {
            double r = kept[u], z = kept[H + u], n = kept[2 * H + u], dn = dh[u] * (1 - z) * plain_slope(a, n);
            double dz = dh[u] * (before[u] - n) * plain_slope(s, z), dr = dn * rest[u] * plain_slope(s, r);
            to_h[u] += dh[u] * z;
            PULL(1, dz, dz, before, to_h);
            if (p->spec.cell == GRU_AFTER) {
                PULL(0, dr, dr, before, to_h);
                PULL(2, dn, dn * r, before, to_h);
            } else {
                for (long k = 0; k < H; k++)
                    rh[k] = kept[k] * before[k];
                PULL(2, dn, dn, rh, drh);
            }
        }
    if (p->spec.cell == GRU_BEFORE)
        for (long u = 0; u < H; u++) {
            double dr = drh[u] * before[u] * plain_slope(s, kept[u]);
            to_h[u] += drh[u] * kept[u];
            PULL(0, dr, dr, before, to_h);
        }
#undef PULL
    memcpy(dh, to_h, (size_t)H * sizeof *dh);
    free(to_h), free(drh), free(rh);
}

static void plain_backward(plain *p)
{
    long H = p->hidden, width = p->directions * H;
    double *douts = p->dy;
    for (long layer = p->spec.layers - 1; layer >= 0; layer--) {
        long features = plain_features(p, layer);
        double *into = layer ? zeros(p->batch * p->time * features) : p->dx;
        for (long pass = layer * p->directions; pass < (layer + 1) * p->directions; pass++)
            for (long row = 0; row < p->batch; row++) {
                double *dh = plain_state(p, p->dh0, pass, row), *dc = plain_state(p, p->dc0, pass, row);
                memcpy(dh, plain_state(p, p->dh1, pass, row), (size_t)H * sizeof *dh);
                memcpy(dc, plain_state(p, p->dc1, pass, row), (size_t)H * sizeof *dc);
                for (long step = plain_length(p, row) - 1; step >= 0; step--) {
                    const double *dy = plain_at(p, douts, width, pass, row, step) + pass % p->directions * H;
                    for (long u = 0; u < H; u++)
                        dh[u] += dy[u];
                    plain_step_back(p, pass, plain_at(p, plain_input(p, layer), features, pass, row, step),
                                    plain_kept(p, pass, row, step), dh, dc, plain_at(p, into, features, pass, row, step));
                }
            }
        if (douts != p->dy)
            free(douts);
        douts = into;
    }
}

#endif
