/* Identification of the library, independent of instruction set and dtype. */
#include <string.h>

#include "team.h"

/* Of the sources; see multirnn/kernel/build.py. */
EXPORT const char *multirnn_fingerprint(void) { return FINGERPRINT; }

/* Whether this machine runs an instruction set, by its name in build.py. */
EXPORT int multirnn_runs(const char *instructions)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!strcmp(instructions, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
    if (!strcmp(instructions, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return !strcmp(instructions, "baseline");
}
