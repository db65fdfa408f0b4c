"""Causes of slow recurrent layers on this machine, each measured on the spot.

A check returns a `Finding`: the measurement, its meaning, and what to do. Installed frameworks are loaded in processes
of their own, never in this one.
"""

import os
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

from multirnn_bench.alone import GaugeError, measure_alone
from multirnn_bench.ceilings import best_kernels
from multirnn_bench.machine import VARIABLES, allowed_cores, cpu_features, quota, thread_variables
from multirnn_bench.quantities import factor, operations, seconds

__all__ = ["CHECKS", "Finding", "examine"]

CLEARLY = 1.15
"""A ratio above this counts as slow; two identical measurements on a shared machine differ by less."""

SIZE = 1024  # of square matrices: 2 GFLOP, some 20 ms
PERIOD = 0.3


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check.

    The status is "slow": there is something to fix; "note": slow on any machine, in a case that may never happen; "fine";
    or "unknown": it could not be measured.
    """

    check: str  # its name
    status: str
    says: str  # with its figures
    remedy: str = ""  # empty where there is nothing to do
    ratio: float | None = None  # present time over achievable time; None where nothing was compared
    measured: Mapping[str, Any] = field(default_factory=dict)  # the figures, by name

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON values."""
        return asdict(self)


def examine(say: Callable[[str], None] = lambda text: None) -> tuple[Finding, ...]:
    """Run every check, which takes half a minute; nothing else should run meanwhile. `say` is told of each."""
    findings = []
    for name, check in CHECKS.items():
        say(f"looking at {name}")
        try:
            findings.append(check(name))
        except GaugeError as error:
            findings.append(Finding(name, "unknown", f"it could not be measured: {error}"))
    return tuple(findings)


def _judged(
    check: str, ratio: float, fine: str, slow: str, remedy: str, measured: Mapping[str, Any], status: str = "slow"
) -> Finding:
    """The finding for a ratio of times."""
    if ratio <= CLEARLY:
        return Finding(check, "fine", fine, ratio=ratio, measured=measured)
    return Finding(check, status, slow, remedy, ratio, measured)


# --- The machine -----------------------------------------------------------------------------------------------------


def _other_work(check: str) -> Finding:
    """Whether a busy process gets each allowed core to itself."""
    ratios = {core: measure_alone("waiting", PERIOD, cores=[core]) for core in allowed_cores()}
    worst = max(ratios.values())
    lost = 100 * (1 - 1 / worst)
    return _judged(
        check,
        worst,
        "a process that always has work gets its core to itself",
        f"a process that always has work waits for {lost:.0f} % of the time: other processes, or other guests of the host, "
        f"use the same core, so all times are up to {factor(worst)} times too long",
        "end what else runs (top shows it; 'st' there is what the host gives to others), or measure later.",
        {"clock over computing, by core": ratios},
    )


def _threads_and_cores(check: str) -> Finding:
    """Whether thread pools are larger than the cores that this process may use."""
    cores = len(allowed_cores())
    usable = max(1, min(cores, int(quota() or cores)))
    asked = {name: int(os.environ[name]) for name in VARIABLES if os.environ.get(name, "").isdigit()}
    too_many = {name: count for name, count in asked.items() if count > usable}
    if not too_many and usable == cores:
        return Finding(check, "fine", f"this process may use {cores} cores, and nothing asks for more threads")
    given = {"as it is": measure_alone("product", "float32", SIZE, PERIOD)}
    given[f"{usable} threads"] = measure_alone("product", "float32", SIZE, PERIOD, environment=thread_variables(usable))
    rates = ", ".join(f"{operations(rate, per='/s')} with {name}" for name, rate in given.items())
    why = ", ".join(f"{name}={count}" for name, count in too_many.items())
    why = why or f"the control group allows {quota():g} cores"
    return _judged(
        check,
        given[f"{usable} threads"] / given["as it is"],
        f"{why}, and it costs nothing: matrix products make {rates}",
        f"{why}, but {usable} can run at once: matrix products make {rates}",
        f"set {', '.join(too_many) or 'OMP_NUM_THREADS and OPENBLAS_NUM_THREADS'} to {usable}.",
        {**given, **too_many},
    )


def _denormal_numbers(check: str) -> Finding:
    """The cost of denormal numbers, between 0 and 1.2e-38."""
    found = measure_alone("denormals", PERIOD)
    ratio = found["denormal"] / found["normal"]
    slow = f"a product with a number below 1.2e-38 takes {factor(ratio)} times as long as another"
    remedy = (
        "nothing, unless states or gradients fade to zero: then scale the weights up, or in PyTorch call "
        "torch.set_flush_denormal(True)."
    )
    return _judged(check, ratio, "they are as fast as all others", slow, remedy, found, status="note")


# --- Python and multirnn ---------------------------------------------------------------------------------------------


def _python_build(check: str) -> Finding:
    """Whether Python is an optimised build, and runs without debugging variables."""
    now = measure_alone("python_loop", 200_000)
    plain = measure_alone("python_loop", 200_000, environment=dict.fromkeys(SLOWING, ""))
    measured = {"seconds a step": now, "seconds a step without the variables": plain}
    step = f"a step of a plain loop takes {seconds(now)}"
    level = [flag for flag in str(sysconfig.get_config_var("PY_CFLAGS") or "-O2").split() if flag.startswith("-O")]
    if hasattr(sys, "gettotalrefcount"):
        says = f"this is a debug build of Python: {step}"
        return Finding(check, "slow", says, "use a release build.", None, measured)
    if level and level[-1] in ("-O0", "-Og"):
        says = f"this Python was compiled with {level[-1]}: {step}"
        return Finding(check, "slow", says, "use an optimised build.", None, measured)
    given = ", ".join(f"{name}={os.environ[name]}" for name in SLOWING if os.environ.get(name))
    return _judged(
        check,
        now / plain if given else 1.0,
        f"an optimised build; {step}",
        f"{given}: {step}, and {seconds(plain)} without it",
        f"unset {given.replace('=', ' (now ')}) where time matters." if given else "",
        measured,
    )


SLOWING = ("PYTHONDEVMODE", "PYTHONMALLOC", "PYTHONTRACEMALLOC", "PYTHONFAULTHANDLER", "PYTHONPROFILEIMPORTTIME")
"""Variables that slow an interpreter from its start."""


def _compiled_loop(check: str) -> Finding:
    """Whether the compiled recurrence is built, and what it saves."""
    from multirnn.kernel import refuses

    native = measure_alone("numpy_layer", "native", PERIOD)
    if reason := refuses():
        return Finding(
            check,
            "slow",
            f"it is not there, and a GRU over 50 steps takes {seconds(native)} in NumPy: {reason}",
            "install multirnn where there is a C compiler.",
            None,
            {"native": native},
        )
    fast = measure_alone("numpy_layer", "fast", PERIOD)
    says = f'a GRU over 50 steps takes {seconds(fast)} with implementation="fast" and {seconds(native)} without'
    return Finding(check, "fine", says, measured={"native": native, "fast": fast})


# --- Matrix products -------------------------------------------------------------------------------------------------


def _blas_kernels(check: str) -> Finding:
    """Whether NumPy's OpenBLAS uses the kernels of the processor's best instruction set."""
    if (best := best_kernels()) is None:
        return Finding(check, "unknown", "the processor tells of no instruction set that OpenBLAS could miss")
    feature, kernels = best
    rates: dict[str, float] = {"now": 0.0, kernels: 0.0}
    for _ in range(2):  # in turns, so that a slow spell of the machine hits both
        for name in rates:
            variables = {} if name == "now" else {"OPENBLAS_CORETYPE": kernels}
            rate = measure_alone("product", "float32", SIZE, PERIOD, cores=allowed_cores()[:1], environment=variables)
            rates[name] = max(rates[name], rate)
    now, then = (operations(rate, per="/s") for rate in rates.values())
    return _judged(
        check,
        rates[kernels] / rates["now"],
        f"NumPy makes {now} in one thread; told to use {kernels} kernels, {then}",
        f"NumPy makes {now} in one thread, and {then} when its OpenBLAS is told to use {kernels} kernels: it has not "
        f"noticed that this processor has {feature.upper().replace('AVX512F', 'AVX-512')}",
        f"set OPENBLAS_CORETYPE={kernels} before Python starts: export OPENBLAS_CORETYPE={kernels}",
        rates,
    )


def _frameworks(check: str) -> Finding:
    """Whether the matrix products of an installed framework are much slower than the best."""
    cores = allowed_cores()
    rates = {"numpy": measure_alone("product", "float32", SIZE, PERIOD, cores=cores)}
    broken = {}
    for package in ("torch", "jax", "tensorflow"):
        if find_spec(package):
            try:
                rates[package] = measure_alone("framework_product", package, SIZE, PERIOD, cores=cores)
            except GaugeError as error:
                broken[package] = str(error)
    best, worst = max(rates, key=rates.__getitem__), min(rates, key=rates.__getitem__)
    said = ", ".join(f"{name} {operations(rate, per='/s')}" for name, rate in rates.items())
    said += "".join(f"; {name} could not be measured: {why}" for name, why in broken.items())
    if rates[best] / rates[worst] <= MUCH:
        return Finding(check, "fine", f"matrix products are alike: {said}", measured=rates)
    says = f"{worst} makes matrix products {factor(rates[best] / rates[worst])} times as slowly as {best}: {said}"
    remedy = f"look at how {worst} was built: it or its BLAS may not use the instruction sets of this processor."
    return Finding(check, "slow", says, remedy, rates[best] / rates[worst], rates)


MUCH = 1.8
"""Libraries that both use every instruction set differ by up to 1.5 on matrices of this size."""


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def _torch_instructions(check: str) -> Finding:
    """Whether PyTorch's elementwise kernels use the best instruction set."""
    if not find_spec("torch"):
        return Finding(check, "unknown", "PyTorch is not installed")
    best = next((name for feature, name in TORCH_NAMES.items() if feature in cpu_features()), None)
    if best is None:
        return Finding(check, "unknown", "the processor tells of no instruction set that PyTorch could miss")
    now = measure_alone("torch_tanh", PERIOD)
    then = measure_alone("torch_tanh", PERIOD, environment={"ATEN_CPU_CAPABILITY": best})
    measured = {"now": now, best: then}
    if now["instructions"] == then["instructions"]:
        says = f"it uses {now['instructions']}, the best that it has for this processor"
        return Finding(check, "fine", says, measured=measured)
    return _judged(
        check,
        then["rate"] / now["rate"],
        f"it uses {now['instructions']}; {then['instructions']} would be as fast",
        f"it uses {now['instructions']}, and makes {factor(then['rate'] / now['rate'])} times as many tanh a second with "
        f"{then['instructions']}",
        f"set ATEN_CPU_CAPABILITY={best} before Python starts, or unset what it is set to.",
        measured,
    )


TORCH_NAMES = {"avx512f": "avx512", "avx2": "avx2"}


def _fighting_pools(check: str) -> Finding:
    """The cost of alternating between NumPy's BLAS and PyTorch, whose threads spin while they wait."""
    if not find_spec("torch"):
        return Finding(check, "unknown", "PyTorch is not installed, the one whose pool would stand beside NumPy's")
    if len(allowed_cores()) == 1:
        return Finding(check, "fine", "this process may use one core, so no pool has a second thread")
    now = measure_alone("two_pools", 256, 60)
    passive = measure_alone("two_pools", 256, 60, environment={"OMP_WAIT_POLICY": "PASSIVE"})
    by_itself = now["numpy"] + now["torch"]
    small = f"a small product in NumPy and one in PyTorch take {seconds(by_itself)} by themselves"
    what = f"export OMP_WAIT_POLICY=PASSIVE, which lets PyTorch's threads sleep: then they take {seconds(passive['in turn'])}"
    if passive["in turn"] * CLEARLY > now["in turn"]:
        what = "give one of the two a single thread: OPENBLAS_NUM_THREADS=1, or torch.set_num_threads(1)"
    return _judged(
        check,
        now["in turn"] / by_itself,
        f"{small}, and {seconds(now['in turn'])} in turn",
        f"{small}, but {seconds(now['in turn'])} in turn: the threads of one spin on the cores that the other needs",
        f"nothing, unless one process alternates between the two: then {what}.",
        {"now": now, "OMP_WAIT_POLICY=PASSIVE": passive},
        status="note",  # true wherever both have two threads; only programs that mix them are slower
    )


CHECKS: Mapping[str, Callable[[str], Finding]] = {
    "other work on this machine": _other_work,
    "threads and cores": _threads_and_cores,
    "the build of Python": _python_build,
    "the compiled loop": _compiled_loop,
    "NumPy's matrix products": _blas_kernels,
    "matrix products of the frameworks": _frameworks,
    "PyTorch's instruction set": _torch_instructions,
    "thread pools side by side": _fighting_pools,
    "denormal numbers": _denormal_numbers,
}
"""The checks by name; each is called with its name."""
