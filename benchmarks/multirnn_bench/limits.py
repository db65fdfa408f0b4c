"""The ceilings of a machine, and the least time that a problem therefore takes.

The work of a problem is counted by formulas; the ceilings are measured: the rate of a matrix product and the bandwidth
of each level of memory. Work over ceiling is the limit, and every time is reported as a share of it.

The model is the roofline of Williams, Waterman & Patterson (2009), applied to the two parts of a recurrent layer. With
D directions, G gates, N = sum(lengths) steps of the batch, T steps of time, s bytes a number and P the rate of
products, each layer takes at least

    input projection    max(2 D N G H I / P,  s D G H I / BW)             one product, all steps at once
    recurrence          max(max(2 D N G H² / P,  T s D G H² / BW) + activations,  T LATENCY)
    activations         D N H a / P                                        a: `ACTIVATION` for each tanh and sigmoid

and the whole call takes at least as long as moving its sequences. The backward pass has the recurrence once more, with
transposed weights, and one product each for the gradients of both weights and of the input.

BW is the bandwidth of memory, each byte read from the nearest level that can keep it. Data read once a call competes
for a level with all parameters; the recurrent weights of a direction, read at every step, compete with themselves
alone, and with several threads each core keeps its part. Weights slightly larger than a level still find a part of
themselves in it: a GRU of 1536 units, 28 MB beside an L3 of 32, took 0.7 of the time from memory alone, and 0.6 on two
cores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from multirnn.errors import InvalidCall, InvalidData
from multirnn.spec import RecurrentSpec
from multirnn_bench.ceilings import OWN, Means, bandwidths, first_cores, joint_products, matrix_products, with_its_part
from multirnn_bench.machine import cache_sizes
from multirnn_bench.problems import Problem

__all__ = ["Ceilings", "Limits", "bytes_moved", "flops", "measure", "measure_again", "minimum_memory"]

ACTIVATION = 48
"""The cost of a tanh or sigmoid, in floating-point operations at the rate of products.

A clamped rational approximation takes 24 vector operations, 0.75 cycles a number with AVX-512, where products do 64
operations a cycle. The width of vectors changes both alike.
"""

LATENCY = 30e-9
"""The least seconds of a step: a chain of multiply-adds, its reduction, a tanh, and a store that is read again."""

USABLE = 0.8
"""The share of a cache for weights; the rest holds inputs and states."""

BYTES = {"float32": 4, "float64": 8}

SMOOTH = ("sigmoid", "tanh", "softsign", "elu")  # the others are a maximum or the identity


# --- The work in a problem -------------------------------------------------------------------------------------------


def flops(problem: Problem, mode: str) -> int:
    """Multiplications and additions in the matrix products of one call.

    Forward, each layer and direction has 2 N G H (I + H), where N is the number of steps in all rows of the batch:
    batch * time, or the mean of the range of lengths. A backward pass has twice that: the gradients of the weights and
    of what they multiply. Training needs no gradient of `x`, and updates each parameter by a product and a sum.
    Streaming is one step. Sources: the products of the cells' equations; backpropagation through time.
    """
    products, steps = _products(problem.spec), _steps(problem, mode)
    forward = sum(map(sum, products))
    if mode in ("inference", "streaming"):
        return round(steps * forward)
    if mode == "gradients":
        return round(3 * steps * forward)
    return round(steps * (3 * forward - products[0][0])) + 2 * problem.spec.parameter_count


def bytes_moved(problem: Problem, mode: str) -> int:
    """The bytes that one call must read or write, each array once, from whatever memory holds it.

    Forward: parameters, input, and the output of each layer, which the next one reads; not the projected input, which
    can be computed in blocks that stay in a cache. Gradients add the arrays that the backward pass needs besides the
    output, written and read (`STASH`), the outputs and the input read again, the cotangents, and the gradients.
    """
    spec = problem.spec
    steps, size = _steps(problem, mode), BYTES[spec.dtype]
    inner = (spec.num_layers - 1) * spec.output_size
    forward = spec.parameter_count + steps * (spec.input_size + 2 * inner + spec.output_size)
    if mode in ("inference", "streaming"):
        return round(size * forward)
    stash = 2 * STASH[spec.cell] * spec.num_layers * spec.output_size
    cotangents = spec.output_size + 2 * inner  # the last output's are read; those between layers are written and read
    backward = 2 * spec.parameter_count + steps * (stash + spec.input_size + inner + spec.output_size + cotangents)
    if mode == "gradients":
        return round(size * (forward + backward + steps * spec.input_size))
    return round(size * (forward + backward + spec.parameter_count + steps * spec.output_size))  # update, and target


STASH = {"simple_rnn": 0, "gru": 4, "lstm": 5}
"""Numbers per unit and step for the backward pass besides the output: r, z, n, U_n h + d_n; i, f, g, o, c."""


def minimum_memory(problem: Problem) -> int:
    """The bytes that inference holds at once: parameters, input and output, and one more sequence between two layers.

    Full rows, whatever the lengths: the arrays hold padding too.
    """
    spec = problem.spec
    between = spec.output_size if spec.num_layers > 1 else 0
    numbers = problem.batch * problem.time * (spec.input_size + spec.output_size + between)
    return BYTES[spec.dtype] * (numbers + spec.parameter_count)


def _products(spec: RecurrentSpec) -> list[tuple[int, int]]:
    """For each layer: the operations a step of its input projection and of its recurrence."""
    rows = 2 * len(spec.form.gates) * len(spec.directions) * spec.hidden_size
    features = [spec.input_size, *[spec.output_size] * (spec.num_layers - 1)]
    return [(rows * width, rows * spec.hidden_size) for width in features]


def _steps(problem: Problem, mode: str) -> float:
    """The steps in all rows of the batch; lengths are uniform over their range, so the mean is its middle."""
    if mode == "streaming":
        return problem.batch
    mean = problem.time if problem.lengths is None else sum(problem.lengths) / 2
    return problem.batch * mean


def _activations(spec: RecurrentSpec) -> int:
    """How many costly activations a unit and step has: 1 of the simple RNN, 3 of the GRU, 5 of the LSTM."""
    given = spec.recurrent_activation, spec.activation
    gates, others = (getattr(one, "name", one) in SMOOTH for one in given)
    return (len(spec.form.gates) - 1) * gates + (2 if spec.cell == "lstm" else 1) * others


# --- The ceilings of a machine ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ceilings:
    """The ceilings of a number of threads together."""

    product_means: Means  # by dtype, floating-point operations a second of a matrix product
    bandwidth_means: Means  # by level, "L1", "L2", "L3" and "memory", bytes a second that are read from it

    @classmethod
    def of(cls, products: Mapping[str, float], bandwidths: Mapping[str, float]) -> Self:
        """Rates of an unnamed method."""
        return cls(*({name: {"": rate} for name, rate in rates.items()} for rates in (products, bandwidths)))

    @property
    def products(self) -> dict[str, float]:
        """The best rate of each dtype."""
        return _best(self.product_means)

    @property
    def bandwidths(self) -> dict[str, float]:
        """The best rate of each level."""
        return _best(self.bandwidth_means)


def _best(means: Means) -> dict[str, float]:
    return {name: max(rates.values()) for name, rates in means.items()}


def _higher(means: Means, others: Means) -> Means:
    """The higher rate of each method, for the names in `means`."""
    made = {name: dict(rates) for name, rates in means.items()}
    for name, rates in made.items():
        for by, rate in others.get(name, {}).items():
            rates[by] = max(rate, rates.get(by, 0.0))
    return made


@dataclass(frozen=True)
class Limits:
    """The ceilings of this machine."""

    caches: Mapping[str, int]  # bytes of each level; L1 and L2 are a core's own, L3 is shared
    ceilings: Mapping[int, Ceilings]  # by number of threads

    def seconds(self, problem: Problem, mode: str, threads: int) -> float:
        """The least time of one call by the model of this module; `InvalidCall` if so many threads were not measured."""
        if threads not in self.ceilings:
            measured = ", ".join(map(str, self.ceilings)) or "none"
            raise InvalidCall(f"the limits were measured with {measured} threads, not with {threads}; measure them so")
        spec, ceilings = problem.spec, self.ceilings[threads]
        rate, size = ceilings.products[spec.dtype], BYTES[spec.dtype]
        steps = _steps(problem, mode)
        time = 1 if mode == "streaming" else problem.time
        once = again = self._seconds_a_byte(size * spec.parameter_count, threads)
        if time > 1:
            again = self._seconds_a_byte(size * len(spec.form.gates) * spec.hidden_size**2, threads)
        activations = steps * spec.output_size * _activations(spec) * ACTIVATION / rate
        total = 0.0
        for layer, (inputs, recurrence) in enumerate(_products(spec)):
            # An operation in a product is a multiplication or an addition: two for each weight.
            project = max(steps * inputs / rate, size * inputs / 2 * once)
            walk = max(steps * recurrence / rate, time * size * recurrence / 2 * again)
            recur = max(walk + activations, time * LATENCY)
            total += project + recur
            if mode in ("gradients", "training"):
                backwards = max(walk, time * LATENCY)
                into_input = project if layer or mode == "gradients" else 0
                total += backwards + into_input + steps * (inputs + recurrence) / rate
        moved = bytes_moved(problem, mode)
        return max(total, moved * self._seconds_a_byte(min(moved, minimum_memory(problem)), threads))

    def highest(self, other: "Limits") -> "Limits":
        """The higher of both ceilings, measured at two times, for every number of threads of this one."""
        made = dict(self.ceilings)
        for threads in made.keys() & other.ceilings.keys():
            pairs = zip(vars(made[threads]).values(), vars(other.ceilings[threads]).values(), strict=True)
            made[threads] = Ceilings(*(_higher(*pair) for pair in pairs))
        return Limits(self.caches, made)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        ceilings = {
            str(threads): {"products": found.products, "bandwidths": found.bandwidths, **asdict(found)}
            for threads, found in self.ceilings.items()
        }
        return {"caches": dict(self.caches), "ceilings": ceilings}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The limits that `to_dict` wrote; `InvalidData` for anything else."""
        try:
            ceilings = {}
            for threads, found in values["ceilings"].items():
                best = Ceilings.of(found["products"], found["bandwidths"])  # older files may have no methods
                products = {**best.product_means, **found["product_means"]}
                ceilings[int(threads)] = Ceilings(products, {**best.bandwidth_means, **found["bandwidth_means"]})
            caches = {str(level): int(size) for level, size in values["caches"].items()}
            rates = [
                rate for found in ceilings.values() for rate in (*found.products.values(), *found.bandwidths.values())
            ]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidData(f"its limits are none that were measured: {type(error).__name__}: {error}") from None
        if not all(isinstance(rate, int | float) and rate > 0 for rate in rates):
            raise InvalidData("its limits are none that were measured: a rate is no positive number")
        return cls(caches, ceilings)

    def _seconds_a_byte(self, total: int, threads: int) -> float:
        """The mean over `total` bytes, each from the nearest level that can keep it; each core has its own L1 and L2."""
        bandwidths = self.ceilings[threads].bandwidths
        seconds, kept = 0.0, 0.0
        for level, size in self.caches.items():
            here = max(min(USABLE * size * (threads if level in OWN else 1), total) - kept, 0.0)
            seconds += here / bandwidths[level]
            kept += here
        return (seconds + (total - kept) / bandwidths["memory"]) / total


def measure(*threads: int, dtypes: Sequence[str] = tuple(BYTES)) -> Limits:
    """Measure the ceilings of this machine, some seconds for each number of threads.

    Nothing else should run meanwhile. Each measurement runs in processes of its own, bound to cores, by several
    methods; the best counts, since a ceiling that is too low makes everything look good. Products are measured in these
    dtypes; others then have no limit. `InvalidCall` if this process may not run on so many cores.
    """
    for count in threads:
        first_cores(count)  # refuse before anything is measured
    products, levels = matrix_products(dtypes), bandwidths(1)
    ceilings = {}
    for count in sorted(threads, reverse=True):
        if count == 1:
            ceilings[1] = Ceilings(products, levels)
            continue
        together = bandwidths(count, levels)
        levels = with_its_part(count, levels, together)
        ceilings[count] = Ceilings(joint_products(count, products), together)
    return Limits(cache_sizes(), {count: ceilings[count] for count in threads})


def measure_again(limits: Limits) -> Limits:
    """The limits with products measured again, a second or two for each number of threads; the higher rate counts."""
    products = matrix_products(
        sorted({dtype for found in limits.ceilings.values() for dtype in found.product_means}), 1
    )
    made = {
        threads: Ceilings(products if threads == 1 else joint_products(threads, products), found.bandwidth_means)
        for threads, found in limits.ceilings.items()
    }
    return limits.highest(Limits(limits.caches, made))
