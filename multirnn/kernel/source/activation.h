/* The activation functions of multirnn/activations.py, and their slopes in terms of their own output.

   exp x - 1 = 2^n (exp r - 1) + (2^n - 1) with n = round(x / log 2), r = x - n log 2 and exp r - 1 = r + r^2 q(r); q is the
   polynomial through the Chebyshev nodes of |r| <= log(2) / 2, whose relative error of exp r - 1 is 2.4e-8 in float32 and
   5.5e-19 in float64. tanh |x| = -e / (2 + e) with e = exp(-2 |x|) - 1 keeps the relative accuracy of a small x. */
#ifndef ACTIVATION_H
#define ACTIVATION_H

#include "vector.h"

enum activation_name { ELU, HARD_SIGMOID, LINEAR, RELU, SIGMOID, SOFTSIGN, TANH }; /* in the order of activations.py */

typedef struct {
    int64_t name;
    double alpha, beta;
} activation;

#ifdef DOUBLE
#define MANTISSA 52
#define EXPONENT_OF_1 (UINT64_C(1023) << MANTISSA)
#define ROUNDER 0x1.8p52 /* x + ROUNDER has round(x) in its last bits */
#define LOG2_HIGH 0x1.62e42fee00000p-1 /* 32 bits, so that n times it is exact */
#define LOG2_LOW 0x1.a39ef35793c76p-33
#define LEAST_EXP -708. /* 2^n and exp are still normal */
#define LEAST_EXPM1 -44. /* exp(x) - 1 is -1 */
static const real Q[] = {0.5, 0.16666666666666670991, 0.041666666666666669755, 0.0083333333333261351258, 0.0013888888888883748305,
                         0.00019841269874820625271, 0.000024801587325547741216, 2.755725540020642443e-6,
                         2.7557273643110295328e-7, 2.5105217004720745164e-8, 2.0914686968086877233e-9};
#else
#define MANTISSA 23
#define EXPONENT_OF_1 (UINT32_C(127) << MANTISSA)
#define ROUNDER 0x1.8p23f
#define LOG2_HIGH 0x1.62e4p-1f /* 15 bits */
#define LOG2_LOW 0x1.7f7d1cp-20f
#define LEAST_EXP -87.f
#define LEAST_EXPM1 -20.f
static const real Q[] = {0.5f, 0.166665769897f, 0.0416665546172f, 0.00836317905272f, 0.00139261835877f};
#endif

/* exp x = scale * (1 + minus_1); for LEAST_EXP <= x <= -LEAST_EXP, and NaN */
INLINE void exponential(vector x, vector *scale, vector *minus_1)
{
    vector shifted = x * (real)1.442695040888963407359924681 + splat((real)ROUNDER);
    vector n = shifted - splat((real)ROUNDER);
    vector r = x - n * (real)LOG2_HIGH;
    r = r - n * (real)LOG2_LOW;
    vector q = splat(Q[sizeof Q / sizeof *Q - 1]);
    UNROLL for (int i = (int)(sizeof Q / sizeof *Q) - 2; i >= 0; i--) q = q * r + splat(Q[i]);
    *scale = (vector)(((bits)shifted << MANTISSA) + EXPONENT_OF_1);
    *minus_1 = r * r * q + r;
}

INLINE vector expm1_below_0(vector x)
{
    vector scale, minus_1;
    exponential(at_least(x, (real)LEAST_EXPM1), &scale, &minus_1);
    return scale * minus_1 + (scale - (real)1);
}

INLINE vector magnitude(vector x) { return (vector)((mask)x & ~(mask)splat((real)-0.0)); }

INLINE vector tanh_of(vector x)
{
    mask sign = (mask)x & (mask)splat((real)-0.0);
    vector e = expm1_below_0(magnitude(x) * (real)-2);
    return (vector)((mask)magnitude(quotient(e, (real)-2 - e)) | sign); /* the quotient of 0 is -0 */
}

/* 0 below LEAST_EXP, where it would be subnormal. */
INLINE vector sigmoid_of(vector x)
{
    vector scale, minus_1;
    exponential(at_least(at_most(-x, (real)-LEAST_EXP), (real)LEAST_EXP), &scale, &minus_1);
    mask tiny = x < splat((real)LEAST_EXP);
    return (vector)((mask)quotient(splat(1), scale * minus_1 + scale + (real)1) & ~tiny);
}

static __attribute__((noinline)) vector rarer(const activation *f, vector x)
{
    real alpha = (real)f->alpha, beta = (real)f->beta;
    switch (f->name) {
    case ELU:
        return choose(x > (vector){0}, x, expm1_below_0(at_most(x, 0)) * alpha);
    case HARD_SIGMOID:
        return at_most(at_least(x * alpha + splat(beta), 0), 1);
    case RELU:
        return at_least(x, 0);
    case SOFTSIGN:
        return x / (magnitude(x) + (real)1);
    default:
        return x;
    }
}

/* The function is the same throughout a call, so these branches are predicted. */
INLINE vector activate(const activation *f, vector x)
{
    if (f->name == TANH)
        return tanh_of(x);
    if (f->name == SIGMOID)
        return sigmoid_of(x);
    return rarer(f, x);
}

static __attribute__((noinline)) vector rarer_slope(const activation *f, vector y)
{
    vector alpha = splat((real)f->alpha), one = splat(1), zero = {0};
    switch (f->name) {
    case ELU:
        return choose(y > zero, one, y + alpha);
    case HARD_SIGMOID:
        return choose((y > zero) & (y < one), alpha, zero);
    case RELU:
        return choose(y > zero, one, zero);
    case SOFTSIGN:
        return (one - magnitude(y)) * (one - magnitude(y));
    default:
        return one;
    }
}

INLINE vector slope(const activation *f, vector y)
{
    if (f->name == TANH)
        return (real)1 - y * y;
    if (f->name == SIGMOID)
        return ((real)1 - y) * y;
    return rarer_slope(f, y);
}

#endif
