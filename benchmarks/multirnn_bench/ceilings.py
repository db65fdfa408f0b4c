"""The ceilings of this machine by measurement: the rate of a matrix product, the bandwidth of each level of memory.

A ceiling that is too low makes every share too high, so each is measured by several methods and the best counts: the
tile of the compiled recurrence, the BLAS as installed, and the BLAS with the kernels of a better instruction set that it
may not have noticed. Several cores make one product, or one each, so that none waits for another. A host is faster at one
time than at another, so products are measured several times in a run. Caches that no two cores share count once a core;
of the others, one core by itself reads no less than its part of what several read together. Memory is read by NumPy
and, if it is built, by the compiled recurrence.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from multirnn.errors import InvalidCall
from multirnn_bench.alone import measure_alone, measure_together
from multirnn_bench.machine import allowed_cores, cache_sizes, cpu_features, thread_variables

__all__ = ["OWN", "bandwidths", "best_kernels", "first_cores", "joint_products", "matrix_products", "with_its_part"]

Means = Mapping[str, Mapping[str, float]]
"""By name, the rate of each method; the best counts."""

SIZE = 1536  # of the matrices: 3 x 9 MB in float32; larger ones are at most 4 % faster
PERIOD = 0.2
PASSES = 4  # a neighbour's burst of work is as long as a pass; two passes were once 6 % low, both
READING = 0.15
BEYOND = 256 * 2**20  # bytes that are in no cache
LARGEST_SHARED = 24 * 2**20  # bytes that neighbours leave of a shared cache: a guest gets little more of 105 MB

CORE_TYPES: Mapping[str, str] = {"avx512f": "SkylakeX", "avx2": "Haswell"}
"""Instruction sets, best first, and the name of the OpenBLAS kernels that need them."""

OWN = ("L1", "L2")
"""The levels that no two cores share."""

TILE = "tile of the compiled recurrence"


def best_kernels() -> tuple[str, str] | None:
    """The best instruction set of the processor and its OpenBLAS kernels; None without one of `CORE_TYPES`."""
    return next((pair for pair in CORE_TYPES.items() if pair[0] in cpu_features()), None)


def matrix_products(dtypes: Sequence[str], passes: int = PASSES) -> dict[str, dict[str, float]]:
    """Floating-point operations a second of one core, by dtype and method; the best of several passes."""
    core = allowed_cores()[:1]
    environments = {"NumPy as installed": thread_variables(1)}
    if best := best_kernels():
        environments[f"NumPy with OPENBLAS_CORETYPE={best[1]}"] = {**thread_variables(1), "OPENBLAS_CORETYPE": best[1]}
    rates: dict[str, dict[str, float]] = {dtype: defaultdict(float) for dtype in dtypes}
    for _ in range(passes):
        for dtype, found in rates.items():
            for label, environment in environments.items():
                rate = measure_alone("product", dtype, SIZE, PERIOD, cores=core, environment=environment)
                found[label] = max(rate, found[label])
            if rate := _tiles(dtype, core):
                found[TILE] = max(rate, found[TILE])
    return {dtype: dict(found) for dtype, found in rates.items()}


def joint_products(threads: int, alone: Means) -> dict[str, dict[str, float]]:
    """The same of several cores: in one product, each in its own, and as many times the rate of one by itself."""
    cores = first_cores(threads)
    rates: dict[str, dict[str, float]] = {}
    for dtype in alone:
        given = "product", dtype, SIZE, PERIOD
        each = measure_together(*given, cores=[[core] for core in cores], environment=thread_variables(1))
        rates[dtype] = {
            "one product": measure_alone(*given, cores=cores, environment=thread_variables(threads)),
            "a product a core": sum(each),
            f"{threads} times one core by itself": threads * max(alone[dtype].values()),
        }
        if rate := _tiles(dtype, cores):
            rates[dtype][f"{TILE}, one a core"] = rate
    return rates


def _tiles(dtype: str, cores: Sequence[int]) -> float:
    """The rate of the compiled recurrence, each core by itself; 0 if it is not built."""
    found = measure_together("tile", dtype, PERIOD, cores=[[core] for core in cores], environment=thread_variables(1))
    return 0.0 if None in found else sum(found)


def bandwidths(threads: int, alone: Means | None = None) -> dict[str, dict[str, float]]:
    """Bytes a second read by level and method, so many cores together, each from its own part.

    A level is at least as fast as the one behind it: where the methods are too coarse to show it, it gets that rate.
    Given the result for one core, caches that no two cores share are not measured again.
    """
    cores = [[core] for core in first_cores(threads)]
    rates: dict[str, dict[str, float]] = {}
    for level, size in _working_sets(threads).items():
        if alone is not None and level in OWN:
            rates[level] = {f"{threads} times one core by itself": threads * max(alone[level].values())}
            continue
        rates[level] = {}
        for _ in range(1 if level in OWN else PASSES):
            found = measure_together("reading", size, READING, cores=cores, environment=thread_variables(1))
            for means in found[0]:
                rates[level][means] = max(sum(each[means] for each in found), rates[level].get(means, 0.0))
        if level != "memory":  # a matrix of that size would take longer to pack than all else takes
            walked = measure_together("recurrence", size, READING, cores=cores, environment=thread_variables(1))
            if None not in walked:
                rates[level]["weights of the compiled recurrence"] = sum(walked)
    behind = 0.0
    for level in reversed(rates):
        if max(rates[level].values()) < behind:
            rates[level]["that of the level behind"] = behind
        behind = max(rates[level].values())
    return rates


def with_its_part(threads: int, alone: Means, together: Means) -> dict[str, dict[str, float]]:
    """The bandwidths of one core, not below its part of what several read together."""
    part = f"1/{threads} of what {threads} cores read together"
    return {
        level: {**means, part: max(together[level].values()) / threads} if level not in OWN else dict(means)
        for level, means in alone.items()
    }


def _working_sets(threads: int) -> dict[str, int]:
    """Bytes a core that stay in each level, and are more than the level before holds.

    A quarter of L2: beyond that, a guest's scattered pages begin to collide, and reading is a fifth slower.
    """
    sizes = cache_sizes()
    found = {"L1": sizes["L1"] * 2 // 3, "L2": max(sizes["L2"] // 4, 2 * sizes["L1"])}
    if "L3" in sizes:
        found["L3"] = max(min(sizes["L3"] // 2, LARGEST_SHARED) // threads, 2 * sizes["L2"])
    return {**found, "memory": max(BEYOND, 2 * sizes.get("L3", 0)) // threads}


def first_cores(threads: int) -> tuple[int, ...]:
    """So many of the cores that this process may run on; `InvalidCall` if they are fewer."""
    allowed = allowed_cores()
    if not 1 <= threads <= len(allowed):
        raise InvalidCall(
            f"this process may run on {len(allowed)} cores; the limits of {threads} threads cannot be measured"
        )
    return allowed[:threads]
