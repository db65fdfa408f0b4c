/* Vectors of the instruction set this file is compiled for, in the vector extensions of GCC and Clang. */
#ifndef VECTOR_H
#define VECTOR_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

#ifdef DOUBLE
typedef double real;
typedef int64_t integer;
typedef uint64_t natural;
#define LANES (VECTOR_BYTES / 8L)
#else
typedef float real;
typedef int32_t integer;
typedef uint32_t natural;
#define LANES (VECTOR_BYTES / 4L)
#endif

typedef real vector __attribute__((vector_size(VECTOR_BYTES)));
typedef integer mask __attribute__((vector_size(VECTOR_BYTES)));
typedef natural bits __attribute__((vector_size(VECTOR_BYTES))); /* unsigned arithmetic wraps around */
typedef real loose __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias)); /* at any address */

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE vector load(const real *from) { return *(const loose *)from; }
INLINE void store(real *to, vector value) { *(loose *)to = value; }
INLINE vector splat(real value) { return value - (vector){0}; } /* x - 0 is x, of -0 too */

#if defined(__AVX512F__) && defined(DOUBLE)
#define X86(NAME) _mm512_##NAME##_pd
#elif defined(__AVX512F__)
#define X86(NAME) _mm512_##NAME##_ps
#elif defined(__AVX__) && defined(DOUBLE)
#define X86(NAME) _mm256_##NAME##_pd
#elif defined(__AVX__)
#define X86(NAME) _mm256_##NAME##_ps
#endif

/* The first `count` lanes, the others zero; all if `count` is larger. */
INLINE vector load_part(const real *from, long count)
{
    if (count >= LANES)
        return load(from);
#ifdef __AVX512F__
    return X86(maskz_loadu)((1u << count) - 1, from);
#else
    vector value = {0};
    for (long i = 0; i < count; i++)
        value[i] = from[i];
    return value;
#endif
}

INLINE void store_part(real *to, vector value, long count)
{
    if (count >= LANES)
        store(to, value);
    else {
#ifdef __AVX512F__
        X86(mask_storeu)(to, (1u << count) - 1, value);
#else
        for (long i = 0; i < count; i++)
            to[i] = value[i];
#endif
    }
}

INLINE vector choose(mask where, vector yes, vector no) { return (vector)(((mask)yes & where) | ((mask)no & ~where)); }

/* Both pass a NaN on: the x86 instructions return their second operand, x. */
#ifdef X86
INLINE vector at_most(vector x, real limit) { return X86(min)(splat(limit), x); }
INLINE vector at_least(vector x, real limit) { return X86(max)(splat(limit), x); }
#else
INLINE vector at_most(vector x, real limit) { return choose(x > splat(limit), splat(limit), x); }
INLINE vector at_least(vector x, real limit) { return choose(x < splat(limit), splat(limit), x); }
#endif

/* a0 b0 a1 b1 ..., from the first or the second halves of a and b. */
#ifdef __clang__
#define SHUFFLE(A, B, ...) __builtin_shufflevector(A, B, __VA_ARGS__)
#else
#define SHUFFLE(A, B, ...) __builtin_shuffle(A, B, (mask){__VA_ARGS__})
#endif
#if LANES == 16
INLINE vector zip_low(vector a, vector b) { return SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23); }
INLINE vector zip_high(vector a, vector b) { return SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31); }
#elif LANES == 8
INLINE vector zip_low(vector a, vector b) { return SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
INLINE vector zip_high(vector a, vector b) { return SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#elif LANES == 4
INLINE vector zip_low(vector a, vector b) { return SHUFFLE(a, b, 0, 4, 1, 5); }
INLINE vector zip_high(vector a, vector b) { return SHUFFLE(a, b, 2, 6, 3, 7); }
#else
INLINE vector zip_low(vector a, vector b) { return SHUFFLE(a, b, 0, 2); }
INLINE vector zip_high(vector a, vector b) { return SHUFFLE(a, b, 1, 3); }
#endif

/* Transposes LANES vectors: row i is zipped with row i + LANES / 2, log2(LANES) times. */
INLINE void transpose(vector *block)
{
    UNROLL for (long zips = 1; zips < LANES; zips *= 2)
    {
        vector zipped[LANES];
        UNROLL for (long i = 0; i < LANES / 2; i++)
        {
            zipped[2 * i] = zip_low(block[i], block[i + LANES / 2]);
            zipped[2 * i + 1] = zip_high(block[i], block[i + LANES / 2]);
        }
        UNROLL for (long i = 0; i < LANES; i++) block[i] = zipped[i];
    }
}

/* The sums of LANES vectors, each in its own lane: the rounds of a transposition, with additions. */
INLINE vector sums_of(vector *block)
{
    for (long half = LANES / 2; half; half /= 2)
        for (long i = 0; i < half; i++)
            block[i] = zip_low(block[i], block[i + half]) + zip_high(block[i], block[i + half]);
    return block[0];
}

/* An approximate quotient, within 2 ulp, of a finite denominator other than zero. */
#if defined(__AVX512F__) && !defined(DOUBLE)
INLINE vector quotient(vector numerator, vector denominator)
{
    vector guess = (vector)_mm512_rcp14_ps((__m512)denominator); /* then a Newton step; a division takes 16 cycles */
    return numerator * (guess + guess * ((real)1 - denominator * guess));
}
#else
INLINE vector quotient(vector numerator, vector denominator) { return numerator / denominator; }
#endif

INLINE long smaller(long a, long b) { return a < b ? a : b; }
INLINE long larger(long a, long b) { return a > b ? a : b; }
INLINE long ceiling(long a, long b) { return (a + b - 1) / b; }

#endif
