"""The machine of a measurement: `describe` its facts, which two runs can compare; `activity` its present load."""

import math
import os
import platform
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = [
    "VARIABLES", "activity", "allowed_cores", "blas_libraries", "cache_sizes", "cpu_features", "describe",
    "free_memory", "quota", "steal", "thread_variables",
]  # fmt: skip

TELLING = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_bf16"),
    *("avx512_fp16", "avx_vnni", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "sve", "sve2", "hypervisor"),
)
"""The processor features that matter to a recurrent layer, on x86 and ARM."""

VARIABLES = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
    *("NUMEXPR_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
)
"""The variables that size the thread pools of BLAS libraries, OpenMP and TensorFlow."""

ASSUMED_CACHES = {"L1": 32 * 2**10, "L2": 2**20, "L3": 32 * 2**20}  # where the system does not report them

PACKAGES = ("multirnn", "numpy", "torch", "tensorflow", "keras", "jax", "jaxlib", "flax", "onnxruntime", "onnx")

SETTINGS = (*VARIABLES, "OPENBLAS_CORETYPE", "MKL_ENABLE_INSTRUCTIONS", "XLA_FLAGS", "OMP_PROC_BIND", "KMP_BLOCKTIME")


def describe() -> dict[str, Any]:
    """The machine, as JSON values; the same in every process with the same environment.

    `variables` are those that set threads and kernels; `blas`, the libraries of this process, is None without
    threadpoolctl (the extra `bench`).
    """
    found = re.search(r"^model name\s*:\s*(.*)$", _text("/proc/cpuinfo"), re.MULTILINE)
    pages: Mapping[str, int] = getattr(os, "sysconf_names", {})
    versions = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "processor": found[1].strip() if found else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "allowed_cores": list(allowed_cores()),
        "quota": quota(),
        "features": [name for name in TELLING if name in cpu_features()],
        "caches": cache_sizes(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in pages else None,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": versions,
        "variables": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "blas": blas_libraries(),
    }


def thread_variables(threads: int) -> dict[str, str]:
    """The environment that gives every pool this number of threads."""
    return dict.fromkeys(VARIABLES, str(threads))


def allowed_cores() -> tuple[int, ...]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def activity() -> dict[str, float | None]:
    """Load averages over 1 and 5 minutes, and the seconds stolen since boot."""
    one, five, _ = os.getloadavg() if hasattr(os, "getloadavg") else (None, None, None)
    return {"load_1": one, "load_5": five, "steal_s": steal()}


def steal() -> float | None:
    """Seconds stolen by the hypervisor since boot, over all cores; None if not reported. Source: proc_stat(5)."""
    fields = _text("/proc/stat").partition("\n")[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK") if len(fields) > 8 and fields[0] == "cpu" else None


def quota() -> float | None:
    """The cores' worth of time that the control group allows; None without a limit. Source: cgroups(7), cpu.max."""
    limit, _, period = _text("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    if limit.isdigit() and period.isdigit():
        return int(limit) / int(period)
    first = _text("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").strip()
    period = _text("/sys/fs/cgroup/cpu/cpu.cfs_period_us").strip()
    return int(first) / int(period) if first.isdigit() and period.isdigit() else None


@cache
def cpu_features() -> frozenset[str]:
    """The instruction sets of the processor, as named in /proc/cpuinfo; empty without that file."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


@cache
def cache_sizes() -> dict[str, int]:
    """Bytes of L1 (data), L2 and L3 of the first core; usual sizes where the system reports none."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = (_text(index / name).strip() for name in ("type", "level", "size"))
        if kind != "Instruction" and size.endswith("K"):
            found[f"L{level}"] = int(size.removesuffix("K")) * 2**10
    return found if {"L1", "L2"} <= set(found) else dict(ASSUMED_CACHES)


def blas_libraries() -> list[dict[str, Any]] | None:
    """The BLAS and OpenMP libraries in this process, NumPy's among them: name, version, kernels, threads.

    None without threadpoolctl.
    """
    import numpy as np  # noqa: F401  # loads its BLAS

    try:
        from threadpoolctl import threadpool_info
    except ModuleNotFoundError as error:
        if error.name != "threadpoolctl":
            raise
        return None
    kept = {"internal_api": "name", "version": "version", "architecture": "kernels", "num_threads": "threads"}
    return [{name: one.get(key) for key, name in kept.items()} for one in threadpool_info()]


def free_memory() -> float:
    """Bytes of available memory; infinite where the system does not report it."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024.0 if found else math.inf


def _text(path: Path | str) -> str:
    """The text of a file; empty if it is missing or unreadable."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
