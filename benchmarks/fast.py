"""What is promised of every implementation beside its speed: the cost of the wrapper, of a step, and of memory.

    python benchmarks/fast.py            measure, print, and write results/fast.json
    python benchmarks/fast.py --quick    a tenth of the rounds, nothing written

Each backend runs in a process of its own. Steps are measured as in `foundation.py`, interleaved.

"wrapper" is the layer called with NumPy arrays, which it checks, and giving NumPy arrays, against the raw call: what the
layer runs, on what the framework has already. Both make new outputs in every call, but where it says otherwise. x begins
where a line of the cache does, as XLA wants memory that it shares; of any other it makes a copy. The two take turns, a few
milliseconds each, for the speed of a machine changes within a tenth of a second; a figure is the median over the turns.

    numpy         `Stack.forward` on arrays with time first; "fast" in compiled code is the compiled recurrence with
                  addresses that are bound
    torch         the module on a tensor, in inference mode
    keras         a `tf.function` of the stack on a tensor; "fast" in compiled code is the stack on a tensor, without one
    jax           the jitted `apply` on an array of JAX's, waited for
    onnxruntime   the session on arrays with time first that are bound to it, into outputs that are there

A framework takes its own time to read NumPy's arrays and to hand them out, or to turn what has the batch first. So the layer is
also measured against the same written by hand, from NumPy to NumPy: what is more than that is the wrapper's.

Memory is the growth of a process, of its own for each cell, by the input and one call, after a short call.
"""

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import numpy as np
from foundation import Pair, Result, machine, measured, show
from multirnn_bench.inputs import draw
from multirnn_bench.limits import minimum_memory
from multirnn_bench.ours import Ours
from multirnn_bench.problems import Problem

import multirnn as mr
from multirnn.errors import Unsupported
from multirnn.protocol import Prepared, Work

RESULTS = Path(__file__).parent / "results" / "fast.json"
BACKENDS = ("numpy", "torch", "keras", "jax", "onnxruntime")
THREADS = 2
CELLS = ("simple_rnn", "lstm", "gru")
FAST = ("numpy", "torch", "keras", "jax")
MEMORY = 1.3  # times the minimum
TURN = 0.004  # seconds
ROUND = 0.3


def prepared(contender: Ours, cell: str, shape: tuple[int, ...], mode: str = "inference") -> Prepared:
    work = drawn(contender, cell, shape, mode)
    if reason := contender.refuses(work):
        raise Unsupported(reason)
    return contender.prepare(work, THREADS)


def drawn(contender: Ours, cell: str, shape: tuple[int, ...], mode: str) -> Work:
    batch, time, features, hidden = shape
    bias = "double" if contender.backend.name == "torch" else ""  # what every torch layer holds
    work = draw(Problem("one", cell, batch, time, features, hidden, bias=bias), mode)
    return replace(work, x=aligned(work.x))


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins where a line of the cache does."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def numpy_by_hand(native: Any, x: np.ndarray) -> Callable[[], Any]:
    zero = [np.zeros((1, len(x), native.spec.hidden_size), x.dtype)]

    def call() -> Any:
        y, last, _ = native.forward(x.swapaxes(0, 1), zero)
        return y.swapaxes(0, 1), last[0]

    return call


def torch_by_hand(native: Any, x: np.ndarray) -> Callable[[], Any]:
    import torch

    def call() -> Any:
        with torch.inference_mode():
            y, h = native(torch.from_numpy(x))
        return y.numpy(), h.numpy()

    return call


def jax_by_hand(native: Any, x: np.ndarray) -> Callable[[], Any]:
    import jax

    run, params = jax.jit(native.apply), native.params

    def call() -> Any:
        y, state = run(params, x)
        return np.asarray(y), np.asarray(state.h)

    return call


def onnxruntime_by_hand(native: Any, x: np.ndarray) -> Callable[[], Any]:
    lengths, h = np.full(len(x), x.shape[1], np.int32), np.zeros((1, len(x), x.shape[2]), x.dtype)

    def call() -> Any:
        y, last = native.session.run(None, {"x": x.swapaxes(0, 1), "lengths": lengths, "h_0": h})
        return y.swapaxes(0, 1), last

    return call


BY_HAND = {
    "numpy": numpy_by_hand,
    "torch": torch_by_hand,
    "torch fast": torch_by_hand,
    "jax": jax_by_hand,
    "jax fast": jax_by_hand,
    "onnxruntime": onnxruntime_by_hand,
}
"""A simple RNN of one layer called with an array of NumPy's `(batch, time, features)`, as those do who have no wrapper."""


def thin_wrapper(time: int) -> tuple[str, Callable[[float, float, float], bool]]:
    """From NumPy to NumPy through the layer, against the same call on what the framework has already."""
    if time == 1:
        return "at most 10 µs more", lambda ours, theirs, measured: ours - theirs <= 10
    return "at most 1 % more", lambda ours, theirs, measured: 1 / measured <= 1.01


def flat() -> tuple[str, Callable[[float, float, float], bool]]:
    return "a step costs the same within 15 %", lambda ours, theirs, measured: 1 / measured <= 1.15


def wrapper_pairs(contender: Ours) -> list[Pair]:
    pairs = []
    what = f"{contender.name}: the layer, from NumPy to NumPy, against the"
    for shape in ((1, 1, 256, 256), (1, 100, 256, 256), (32, 100, 256, 256)):
        one = prepared(contender, "simple_rnn", shape)
        if one.boundary is not None:
            pairs.append(Pair(f"{what} raw call", shape, *thin_wrapper(shape[1]), one.boundary, one.call))
        if contender.name in BY_HAND:
            pairs.append(Pair(f"{what} same by hand", shape, *thin_wrapper(shape[1]), *by_hand(contender, shape)))
    return pairs


def by_hand(contender: Ours, shape: tuple[int, ...]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The layer, and what one writes who has no wrapper."""
    work = drawn(contender, "simple_rnn", shape, "inference")
    layer = mr.build(work.weights, contender.backend.name, implementation=contender.implementation)
    return lambda: layer(work.x), BY_HAND[contender.name](layer.native, work.x)


def flat_pairs(contender: Ours) -> list[Pair]:
    """One call of many steps against as many calls of 100 steps."""
    pairs = []
    for cell in CELLS:
        short = prepared(contender, cell, (8, 100, 64, 64)).call
        for time in (1000, 10_000):
            long = prepared(contender, cell, (8, time, 64, 64)).call

            def repeated(call: Callable[[], Any] = short, times: int = time // 100) -> None:
                for _ in range(times):
                    call()

            what = f"{contender.name}, {cell}: one call against calls of 100 steps each"
            pairs.append(Pair(what, (8, time, 64, 64), *flat(), long, repeated))
    return pairs


def peak_memory(contender: Ours, cell: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """The growth of the process by the input and one call, beside the minimum of the formula."""
    batch, time, features, hidden = shape
    short = prepared(contender, cell, (batch, 2, features, hidden)).call
    short()  # what is made once: threads, plans
    before = _status("VmRSS")
    call = prepared(contender, cell, shape).call
    short()
    gc.collect()  # not before both does JAX let go of the array that it was given
    _reset_peak()
    call()
    used = _status("VmHWM") - before
    problem = Problem("one", cell, batch, time, features, hidden)
    return {
        "what": contender.name,
        "cell": cell,
        "shape": shape,
        "bytes": used,
        "minimum": minimum_memory(problem),
        "held": used <= MEMORY * minimum_memory(problem),
    }


def _reset_peak() -> None:
    """The peak is counted from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    """Bytes: "VmRSS" in use now, "VmHWM" at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def alternated(pairs: list[Pair], rounds: int) -> list[Result]:
    """Each pair in turns, for `ROUND` seconds a round: medians of the differences and of the ratios of neighbours."""
    return [_alternated(pair, rounds * ROUND) for pair in pairs]


def _alternated(pair: Pair, seconds: float) -> Result:
    calls = pair.ours, pair.theirs
    for call in calls * 3:
        call()
    repetitions = max(1, round(TURN / turn(pair.theirs, 3)))
    times: tuple[list[float], list[float]] = [], []
    gc.collect()
    gc.disable()
    end = perf_counter() + seconds
    while perf_counter() < end or len(times[0]) < 8:
        first = len(times[0]) % 2
        for side in (first, 1 - first):
            calls[side]()  # not timed: it finds what the other side has left
            times[side].append(1e6 * turn(calls[side], repetitions))
    gc.enable()
    theirs, more = median(times[1]), median(a - b for a, b in zip(*times, strict=True))
    low, ratio, high = quantiles((b / a for a, b in zip(*times, strict=True)), n=4)
    ours = theirs + more
    held = pair.holds(ours, theirs, ratio)
    return Result(pair.what, pair.shape, ours, theirs, ratio, low, high, pair.goal, held)


def turn(call: Callable[[], Any], repetitions: int) -> float:
    """Seconds a call."""
    start = perf_counter()
    for _ in range(repetitions):
        call()
    return (perf_counter() - start) / repetitions


GROUPS = {"wrapper": (wrapper_pairs, alternated), "flat": (flat_pairs, measured)}


def one_process(group: str, backend: str, implementation: str, what: str) -> list[dict[str, Any]]:
    """What a process measures: pairs of a group in so many rounds, or the memory of a cell."""
    name = backend if implementation == "native" else f"{backend} {implementation}"
    contender = Ours(backend, implementation, name)
    if group == "memory":
        return [peak_memory(contender, what, (32, 2000, 256, 256))]
    pairs, measure = GROUPS[group]
    return [asdict(result) for result in measure(pairs(contender), int(what))]


def ask(*arguments: Any) -> list[dict[str, Any]]:
    print("measuring", *arguments[:3], file=sys.stderr)
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    rows: list[dict[str, Any]] = json.loads(out.splitlines()[-1])
    return rows


def main(arguments: list[str]) -> int:
    """Measure; 0 when every goal is held, else 1."""
    if arguments[:1] == ["--one"]:
        print(json.dumps(one_process(*arguments[1:])))
        return 0
    quick = arguments == ["--quick"]
    rows, memory = [], []
    for backend in BACKENDS:
        there = ("native",) if backend == "onnxruntime" else ("native", "fast")
        for implementation in there:
            rows += ask("wrapper", backend, implementation, 3 if quick else 11)
    for backend in FAST:
        rows += ask("flat", backend, "fast", 3 if quick else 7)
        for cell in CELLS:
            memory += ask("memory", backend, "fast", cell)
    results = [Result(**{**row, "shape": tuple(row["shape"])}) for row in rows]
    show(results)
    for row in memory:
        ratio = row["bytes"] / row["minimum"]
        print(f"{row['what']}, {row['cell']}: {ratio:.2f} times the minimum memory, goal {MEMORY}: {row['held']}")
    if not quick:
        found = {"machine": machine(), "results": [asdict(r) for r in results], "memory": memory}
        RESULTS.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return 0 if all(r.held for r in results) and all(row["held"] for row in memory) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
