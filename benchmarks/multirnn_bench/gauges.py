"""Gauges: functions that each measure one thing, in a process of its own that `multirnn_bench.alone` starts.

A function imports what it needs itself, so that the environment of the process decides how it loads.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multirnn.layer import Implementation
    from multirnn.spec import DType

__all__: list[str] = []


def product(dtype: str, size: int, seconds: float) -> float:
    """Floating-point operations a second of the product of two square matrices."""
    import numpy as np

    a, b = (np.random.default_rng(seed).standard_normal((size, size)).astype(dtype) for seed in (0, 1))
    out = np.empty_like(a)
    return 2 * size**3 * _rate(lambda: np.matmul(a, b, out=out), seconds)


def tile(dtype: "DType", seconds: float) -> float | None:
    """The rate of the compiled recurrence in a call that is nearly all product; None if it is not built.

    An LSTM without activations whose weights are packed and whose input is five times as wide as its state. On Sapphire
    Rapids 187 GFLOP/s, where OpenBLAS has 162 to 173 by size; other shapes have 183 to 187.
    """
    import numpy as np

    import multirnn as mr
    from multirnn.kernel import CompiledRecurrence, address, call_record, refuses, sequence

    if refuses():
        return None
    batch, time, features, hidden = 12, 16, 512, 96
    spec = mr.RecurrentSpec(
        "lstm", features, hidden, activation="linear", recurrent_activation="linear", bias="none", dtype=dtype
    )
    compiled = CompiledRecurrence(spec)
    weights = {name: np.full(shape, 1e-3, dtype) for name, shape in spec.shapes.items()}
    table = compiled.bind({name: address(array) for name, array in weights.items()})
    packed = compiled.pack(table)
    x, y = np.full((batch, time, features), 1e-3, dtype), np.empty((batch, time, hidden), dtype)
    call = call_record(batch=batch, time=time, x=sequence(x), y=sequence(y), packed=packed.address)
    operations: int = 2 * batch * time * len(spec.form.gates) * hidden * (features + hidden)
    return operations * _rate(lambda: compiled.forward(table, call), seconds)


def reading(size: int, seconds: float) -> dict[str, float]:
    """Bytes a second at which so many bytes are read again and again, by method.

    NumPy's C loops over one array that is broadcast, so that small arrays cost no calls.
    """
    import numpy as np

    numbers = np.ones(size // 4, "float32")
    repetitions = max(1, 2**24 // size)
    one, other = (np.broadcast_to(half, (repetitions, half.size)) for half in np.split(numbers[: size // 8 * 2], 2))
    whole = np.broadcast_to(numbers, (repetitions, numbers.size))
    out = np.empty(repetitions, "float32")
    means = {
        "product of two vectors": lambda: np.vecdot(one, other, out=out),
        "largest of a vector": lambda: np.maximum.reduce(whole, axis=1, out=out),
    }
    return {name: size * repetitions * _rate(call, seconds) for name, call in means.items()}


def recurrence(size: int, seconds: float) -> float | None:
    """Bytes a second of weights that the compiled recurrence reads with a batch of one; None if it is not built.

    The weights are packed before: packed in the call, they are read at 0.6 to 0.9 of the rate.
    """
    import numpy as np

    import multirnn as mr
    from multirnn.kernel import refuses

    if refuses():
        return None
    hidden = max(16, round((size / 4) ** 0.5))
    spec = mr.RecurrentSpec("simple_rnn", 1, hidden, activation="linear", bias="none")
    weights = mr.Weights(spec, {name: np.zeros(shape, "float32") for name, shape in spec.shapes.items()})
    layer = mr.build(weights, "numpy", implementation="frozen")
    steps = max(4, 2**26 // size)
    x = np.zeros((1, steps, 1), "float32")
    bytes_read: int = steps * 4 * hidden**2
    return bytes_read * _rate(lambda: layer(x), seconds)


def framework_product(package: str, size: int, seconds: float) -> float:
    """The rate of `product` in a framework, on its own tensors; its warnings about a missing GPU are discarded."""
    import numpy as np

    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    framework = import_module(package)
    a = np.random.default_rng(0).standard_normal((size, size)).astype("float32")
    if package == "jax":
        x = framework.device_put(a)
        multiply = framework.jit(lambda x: x @ x)
        return 2 * size**3 * _rate(lambda: multiply(x).block_until_ready(), seconds)
    x = framework.from_numpy(a) if package == "torch" else framework.constant(a)
    return 2 * size**3 * _rate(lambda: framework.matmul(x, x).numpy(), seconds)


def torch_tanh(seconds: float) -> dict[str, Any]:
    """PyTorch's instruction set, and its tanh a second in one thread."""
    torch = import_module("torch")
    torch.set_num_threads(1)
    x = torch.linspace(-4, 4, 2**14)
    out = torch.empty_like(x)
    rate = x.numel() * _rate(lambda: torch.tanh(x, out=out), seconds)
    return {"instructions": torch.backends.cpu.get_cpu_capability(), "rate": rate}


def two_pools(size: int, repetitions: int) -> dict[str, float]:
    """Median seconds of a product in NumPy, of one in PyTorch, and of both in turn."""
    import numpy as np

    torch = import_module("torch")
    a = np.random.default_rng(0).standard_normal((size, size)).astype("float32")
    out, x = np.empty_like(a), torch.from_numpy(a)

    def median(*calls: Callable[[], Any]) -> float:
        time.sleep(0.3)  # until spinning threads sleep
        spent = []
        for _ in range(repetitions):
            start = time.perf_counter()
            for call in calls:
                call()
            spent.append(time.perf_counter() - start)
        return float(np.median(spent))

    multiply = lambda: np.matmul(a, a, out=out)  # noqa: E731
    others = lambda: torch.matmul(x, x)  # noqa: E731
    return {"numpy": median(multiply), "torch": median(others), "in turn": median(multiply, others)}


def python_loop(steps: int) -> float:
    """Seconds of a step of a loop that adds and allocates, in Python alone; the best of five."""
    best = float("inf")
    for _ in range(5):
        start, total = time.perf_counter(), 0.0
        for step in range(steps):
            total += (step, total)[0] * 0.5
        best = min(best, (time.perf_counter() - start) / steps)
    return best


def waiting(seconds: float) -> float:
    """Wall seconds per second of computing, of a process that always has work: 1 without interference."""
    start, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        pass
    return (time.perf_counter() - start) / (time.process_time() - used)


def denormals(seconds: float) -> dict[str, float]:
    """Seconds of a product of each number of an array by itself, normal ones and denormal ones."""
    import numpy as np

    factor = np.full(4096, 0.5, "float32")
    out = np.empty_like(factor)
    arrays = {"normal": np.full(4096, 1e-3, "float32"), "denormal": np.full(4096, 1e-39, "float32")}
    return {
        name: 1 / _rate(lambda array=array: np.multiply(array, factor, out=out), seconds)  # type: ignore[misc]
        for name, array in arrays.items()
    }


def numpy_layer(implementation: "Implementation", seconds: float) -> float:
    """Seconds of one call of a GRU of the NumPy backend, a batch of one over 50 steps."""
    import numpy as np

    import multirnn as mr

    layer = mr.build(mr.RecurrentSpec("gru", 32, 64), "numpy", implementation=implementation)
    x = np.random.default_rng(0).standard_normal((1, 50, 32)).astype("float32")
    return 1 / _rate(lambda: layer(x), seconds)


def _rate(call: Callable[[], Any], seconds: float) -> float:
    """Calls a second after one that does not count: the best block of a period, since interference only slows."""
    call()
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or not best:
        calls, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < BLOCK or not calls:
            call()
            calls += 1
        best = max(best, calls / spent)
    return best


BLOCK = 0.01  # seconds: longer than a turn of the scheduler, so that processes that run together do so in each


def main(text: str) -> None:
    """Load NumPy, say so, wait for a line, measure, and print what was found."""
    gauge, arguments, cores = json.loads(text)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    import numpy as np  # noqa: F401

    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    print(json.dumps(globals()[gauge](*arguments)))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
