"""What the foundation promises about speed, measured: pairs of contenders, interleaved, as ratios.

    python benchmarks/foundation.py            measure, print, and write results/foundation.json
    python benchmarks/foundation.py --quick    a tenth of the rounds, nothing written

Each group of pairs runs in a process of its own, so that one framework's threads do not spin under another's feet; in
it, all contenders are alive and take turns in a shuffled order, so that drift hits both sides of a ratio alike. One
value is the mean over a block of calls that lasts at least `BLOCK` seconds; a ratio is the median over rounds of the
paired values. Before it is timed, each contender's output is held against the float64 reference.
"""

import gc
import json
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

import multirnn as mr

SHAPES = ((1, 100, 32, 64), (32, 100, 32, 64), (32, 100, 256, 256))  # batch, time, input_size, hidden_size
BLOCK = 0.04
SETTLING = 0.03
RESULTS = Path(__file__).parent / "results" / "foundation.json"

Call = Callable[[], Any]


@dataclass
class Pair:
    """Ours against theirs, and what is promised of the two times in microseconds."""

    what: str
    shape: tuple[int, ...]
    goal: str
    holds: Callable[[float, float, float], bool]  # ours, theirs, theirs / ours
    ours: Call
    theirs: Call


@dataclass
class Result:
    """A measured pair; times in microseconds, medians over rounds."""

    what: str
    shape: tuple[int, ...]
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    goal: str
    held: bool


def at_least(ratio: float) -> tuple[str, Callable[[float, float, float], bool]]:
    """Ours at least so many times as fast."""
    return f"at least {ratio:g} times as fast", lambda ours, theirs, measured: measured >= ratio


def thin_wrapper() -> tuple[str, Callable[[float, float, float], bool]]:
    """Ours within 10 % plus 50 microseconds, by the ratio of neighbours, which drift hits alike."""
    return "within 10 % plus 50 µs", lambda ours, theirs, measured: 1 / measured <= 1.1 + 50 / theirs


def weights_and_input(shape: tuple[int, ...], bias: str = "single") -> tuple[mr.Weights, np.ndarray]:
    """A simple RNN of the shape, float32, and an input."""
    batch, steps, features, hidden = shape
    weights = mr.initialise(mr.RecurrentSpec("simple_rnn", features, hidden, bias=bias))
    x = np.random.default_rng(0).standard_normal((batch, steps, features)).astype("float32")
    return weights, x


def verified(weights: mr.Weights, x: np.ndarray, sequence: np.ndarray) -> None:
    """Nothing is timed that is not the same function."""
    expected = mr.build(weights.astype("float64"), "numpy")(x.astype("float64")).sequence
    found = mr.difference(np.ascontiguousarray(sequence), expected)
    if found.normwise > mr.tolerance("float32"):
        raise SystemExit(f"not the same function: {found.eps:.3g} eps off at {found.where}")


# --- The groups ------------------------------------------------------------------------------------------------------


def textbook_loop(weights: mr.Weights) -> Callable[[np.ndarray], np.ndarray]:
    """The loop that everybody writes first: two products, an addition, a tanh and an append a step."""
    arrays = weights.at(0, "forward")
    w, u, b = arrays["weight_ih"][0].T, arrays["weight_hh"][0].T, arrays["bias_ih"][0]

    def run(x: np.ndarray) -> np.ndarray:
        h = np.zeros((x.shape[0], u.shape[0]), x.dtype)
        outputs = []
        for t in range(x.shape[1]):
            h = np.tanh(np.dot(x[:, t], w) + np.dot(h, u) + b)
            outputs.append(h)
        return np.stack(outputs, axis=1)

    return run


def numpy_against_the_textbook() -> list[Pair]:
    pairs = []
    for place, shape in enumerate(SHAPES):
        weights, x = weights_and_input(shape)
        layer, loop = mr.build(weights, "numpy"), textbook_loop(weights)
        verified(weights, x, layer(x).sequence)
        verified(weights, x, loop(x))
        goal = at_least(1.0 if place else 1.8)
        pairs.append(
            Pair(
                "NumPy inference against the textbook loop",
                shape,
                *goal,
                lambda f=layer, x=x: f(x),
                lambda f=loop, x=x: f(x),
            )
        )
    return pairs


def numpy_training_against_torch() -> list[Pair]:
    import torch

    pairs = []
    for shape in SHAPES:
        weights, x = weights_and_input(shape, bias="double")
        layer, module = mr.build(weights, "numpy"), mr.build(weights, "torch").native
        output = layer(x)
        cotangent = mr.Output(np.ones_like(output.sequence), mr.State(np.ones_like(output.state.h)))
        tensor = torch.from_numpy(x).requires_grad_()
        parameters = list(module.parameters())
        ones = torch.ones(output.sequence.shape), torch.ones(output.state.h.shape)

        def ours(layer: Any = layer, x: Any = x, cotangent: Any = cotangent) -> Any:
            return layer.vjp(x, cotangent=cotangent)

        def theirs(module: Any = module, tensor: Any = tensor, parameters: Any = parameters, ones: Any = ones) -> Any:
            return torch.autograd.grad(module(tensor), [*parameters, tensor], grad_outputs=ones)

        expected = theirs()[0].numpy()
        found = mr.difference(ours().weights["layers.0.forward.weight_ih"][0], expected.astype("float64"))
        if found.normwise > mr.tolerance("float32"):
            raise SystemExit(f"not the same gradient: {found.eps:.3g} eps")
        pairs.append(Pair("NumPy training step against torch.nn.RNN", shape, *at_least(1.2), ours, theirs))
    return pairs


def torch_layer_against_raw() -> list[Pair]:
    import torch

    pairs = []
    for shape in SHAPES:
        weights, x = weights_and_input(shape)
        layer = mr.build(weights, "torch")
        module, tensor = layer.native, torch.from_numpy(x)

        def theirs(module: Any = module, tensor: Any = tensor) -> Any:
            with torch.inference_mode():
                return module(tensor)

        verified(weights, x, layer(x).sequence)
        pairs.append(
            Pair("torch layer against the raw module", shape, *thin_wrapper(), lambda f=layer, x=x: f(x), theirs)
        )
    return pairs


def keras_layer_against_raw() -> list[Pair]:
    backend = mr.backend("keras")
    import tensorflow as tf

    pairs = []
    for shape in SHAPES:
        weights, x = weights_and_input(shape)
        layer = backend.build(weights)
        compiled, tensor = tf.function(layer.native), tf.constant(x)
        verified(weights, x, layer(x).sequence)
        pairs.append(
            Pair(
                "Keras layer against the raw model in a tf.function",
                shape,
                *thin_wrapper(),
                lambda f=layer, x=x: f(x),
                lambda f=compiled, x=tensor: f(x).numpy(),
            )
        )
    return pairs


def jax_layer_against_raw() -> list[Pair]:
    """On the same NumPy array; and, to show what JAX's copy of it costs, on one that JAX has already."""
    backend = mr.backend("jax")
    import jax

    pairs = []
    for shape in SHAPES:
        weights, x = weights_and_input(shape)
        layer = backend.build(weights)
        compiled, params = jax.jit(layer.native.apply), layer.native.params
        verified(weights, x, layer(x).sequence)
        for what, given in (("the same NumPy array", x), ("a JAX array", jax.device_put(x))):
            pairs.append(
                Pair(
                    f"JAX layer against the raw jitted apply on {what}",
                    shape,
                    *thin_wrapper(),
                    lambda f=layer, x=x: f(x),
                    lambda f=compiled, params=params, x=given: jax.block_until_ready(f(params, x)),
                )
            )
    return pairs


def python(code: str) -> Call:
    """A fresh interpreter that runs the code."""
    return lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def start_up() -> list[Pair]:
    command = Path(sys.executable).parent / "multirnn"
    return [
        Pair(
            "import multirnn, and its first use, against import numpy",
            (),
            "at most 100 ms more",
            lambda ours, theirs, ratio: ours - theirs <= 100_000,
            python("import multirnn; multirnn.build"),
            python("import numpy"),
        ),
        Pair(
            "multirnn --help against python -c pass",
            (),
            "under 300 ms",
            lambda ours, theirs, ratio: ours < 300_000,
            lambda: subprocess.run([command, "--help"], check=True, capture_output=True),
            python("pass"),
        ),
    ]


GROUPS: dict[str, Callable[[], list[Pair]]] = {
    "numpy": numpy_against_the_textbook,
    "training": numpy_training_against_torch,
    "torch": torch_layer_against_raw,
    "keras": keras_layer_against_raw,
    "jax": jax_layer_against_raw,
    "start": start_up,
}


# --- Measuring -------------------------------------------------------------------------------------------------------


def block(call: Call, repetitions: int) -> float:
    """Microseconds a call, the mean over a block; as in `timeit`, no garbage is collected in it.

    The calls before it are not timed: until `SETTLING` seconds are over the other side's threads still spin on a core,
    waiting for work. GNU OpenMP's do for 300 000 pauses, 17 ms on this processor, OpenBLAS' for 2**26 cycles.
    """
    gc.collect()
    start = time.perf_counter()
    while time.perf_counter() - start < SETTLING:
        call()
    gc.disable()
    start = time.perf_counter_ns()
    for _ in range(repetitions):
        call()
    spent = time.perf_counter_ns() - start
    gc.enable()
    return spent / repetitions / 1000


def calibrated(call: Call) -> int:
    """How many calls last `BLOCK` seconds, after a warm-up."""
    call()
    repetitions = 1
    while (spent := block(call, repetitions) * repetitions / 1e6) < BLOCK:
        repetitions = max(2 * repetitions, int(repetitions * BLOCK / max(spent, 1e-9)))
    return repetitions


def measured(pairs: list[Pair], rounds: int) -> list[Result]:
    turns = [(place, side) for place in range(len(pairs)) for side in ("ours", "theirs")]
    repetitions = {turn: calibrated(getattr(pairs[turn[0]], turn[1])) for turn in turns}
    times: dict[tuple[int, str], list[float]] = {turn: [] for turn in turns}
    for _ in range(rounds):
        random.shuffle(turns)
        for turn in turns:
            times[turn].append(block(getattr(pairs[turn[0]], turn[1]), repetitions[turn]))
    results = []
    for place, pair in enumerate(pairs):
        ours, theirs = times[place, "ours"], times[place, "theirs"]
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        low, ratio, high = quantiles(ratios, n=4)
        held = pair.holds(median(ours), median(theirs), ratio)
        results.append(Result(pair.what, pair.shape, median(ours), median(theirs), ratio, low, high, pair.goal, held))
    return results


def in_a_process_of_its_own(group: str, rounds: int) -> list[Result]:
    command = [sys.executable, __file__, "--group", group, str(rounds)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [Result(**{**row, "shape": tuple(row["shape"])}) for row in json.loads(out.splitlines()[-1])]


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    versions = {name: dict(mr.backend(name).versions()) for name in mr.backends()}
    flat = {package: version for packages in versions.values() for package, version in packages.items()}
    return {"processor": model, "python": platform.python_version(), **flat}


def show(results: list[Result]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "B, T, I, H", "ours µs", "theirs µs", "ratio", "quartiles", "goal", "held")
    for r in results:
        shape = ", ".join(map(str, r.shape)) or "–"
        cells = (f"{r.ours:.0f}", f"{r.theirs:.0f}", f"{r.ratio:.2f}", f"{r.low:.2f}–{r.high:.2f}")
        table.add_row(r.what, shape, *cells, r.goal, "yes" if r.held else "NO")
    Console(width=170).print(table)


def main(arguments: list[str]) -> int:
    """Measure every group; 0 when every goal is held, else 1."""
    if arguments[:1] == ["--group"]:
        print(json.dumps([asdict(r) for r in measured(GROUPS[arguments[1]](), int(arguments[2]))]))
        return 0
    quick = arguments == ["--quick"]
    results = []
    for group in GROUPS:
        print(f"measuring {group} …", file=sys.stderr)
        results += in_a_process_of_its_own(group, 5 if quick else 21)
    show(results)
    if not quick:
        rows = [asdict(r) for r in results]
        RESULTS.write_text(json.dumps({"machine": machine(), "results": rows}, indent=2, ensure_ascii=False) + "\n")
    return 0 if all(r.held for r in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
