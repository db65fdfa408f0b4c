"""Hypothesis strategies: specs, weights, and calls that can show a mistake and shrink to a layer one can read.

    from hypothesis import given, settings
    from multirnn.testing import strategies as rnn

    @settings(deadline=None)  # frameworks load and compile at the first call
    @given(rnn.problems(rnn.specs(cell="gru", backend="torch")))
    def test_mine(problem):
        weights, (x, state, lengths) = problem
        ...

Hypothesis draws and shrinks the structure: to one simple RNN of one layer, one direction, one unit and one feature, run
over one row of one step, from zero and without lengths. NumPy draws the values from a seed, so that no example shrinks to
zeros, which hide every mistake.

Gates stay unsaturated. With `random_weights` and `inputs` the pre-activation of a gate is a sum of terms whose variances
are 1/3 for the input, at most 1/3 for a state within ±1, and 1/6 for two biases. 99 % of them lie within ±2 (the most seen
in 150000 is 3.5), where a sigmoid has 0.42 of its slope at zero. Half of them are beyond ±0.2.

A layer of one unit has states of one number: there a normwise error is a relative one, and large where terms cancel. For
tight bounds, draw `hidden_size=range(2, 14)`.

Importing `multirnn.testing` does not load this module, which needs Hypothesis.
"""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from collections.abc import Iterable, Mapping
from itertools import product
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from multirnn.activations import Activation
from multirnn.cells import CELLS
from multirnn.errors import InvalidSpec, MissingFramework, Unsupported
from multirnn.layer import Lengths, Output, State
from multirnn.numerics import draw_cotangent, draw_state
from multirnn.protocol import Backend
from multirnn.registry import backend as load_backend
from multirnn.spec import BIASES, DTYPES, RecurrentSpec
from multirnn.weights import Array, Weights

try:
    from hypothesis import strategies as st
    from hypothesis.strategies import SearchStrategy
except ModuleNotFoundError as error:
    if error.name != "hypothesis":
        raise  # Hypothesis is there, but not a module that it needs
    raise MissingFramework(
        "the strategies need 'hypothesis', which is not installed: pip install \"multirnn[testing]\""
    ) from error

__all__ = ["Call", "calls", "cotangents", "inputs", "lengths", "problems", "random_weights", "specs", "states"]
__all__ += ["weights"]

Tree = dict[Any, "Tree"]  # the possible values of a field -> those of the next field

# The usual ones are drawn most often; an example shrinks to the first.
ACTIVATIONS = (
    *("tanh",) * 6,
    *("relu", "sigmoid", "linear", "softsign", Activation("elu", 0.8), Activation("hard_sigmoid", 1 / 6, 0.5)),
)
RECURRENT_ACTIVATIONS = (*("sigmoid",) * 6, "tanh", Activation("hard_sigmoid", 0.2, 0.5))


class Call(NamedTuple):
    """The arguments of a call, `layer(x, state, lengths=lengths)`."""

    x: Array  # `(batch, time, input_size)` of the spec's dtype
    state: State | None  # the initial state, or None: from zero
    lengths: Lengths | None  # `(batch,)` integers, or None: every row is full


def specs(
    *,
    cell: str | Iterable[str] = tuple(CELLS),
    input_size: int | Iterable[int] = range(1, 7),
    hidden_size: int | Iterable[int] = range(1, 14),
    num_layers: int | Iterable[int] = (1, 1, 1, 2, 3),
    bidirectional: bool | Iterable[bool] = (False, False, True),
    bias: str | Iterable[str] = BIASES,
    reset_after: bool | Iterable[bool] = (True, False),
    activation: str | Activation | Iterable[str | Activation] = ACTIVATIONS,
    recurrent_activation: str | Activation | Iterable[str | Activation] = RECURRENT_ACTIVATIONS,
    dtype: str | Iterable[str] = DTYPES,
    backend: str | Backend | None = None,
) -> SearchStrategy[RecurrentSpec]:
    """Specs of recurrent stacks.

    Every field of `RecurrentSpec` is a keyword: one value, or several to draw from. A value given twice is drawn twice as
    often, and an example shrinks to the first. Combinations that describe no layer are left out: `reset_after=False`
    gives GRUs, a `recurrent_activation` other than "sigmoid" gives no simple RNN.

    Args:
        cell, input_size, hidden_size, num_layers, bidirectional, bias, reset_after, activation, recurrent_activation,
            dtype: see `RecurrentSpec`.
        backend: draw only specs that this backend accepts; a name or a Backend object, loaded at the first draw.

    Raises:
        InvalidSpec: on drawing, if no combination describes a layer.
        Unsupported: on drawing, if the backend refuses all of them.
        UnknownBackend, MissingFramework: on drawing; see `multirnn.backend`.
    """
    choices: dict[str, Any] = {  # in the order in which an example gets simpler
        "cell": cell,
        "reset_after": reset_after,
        "num_layers": num_layers,
        "bidirectional": bidirectional,
        "bias": bias,
        "activation": activation,
        "recurrent_activation": recurrent_activation,
        "dtype": dtype,
    }
    fields = {name: _several(values) for name, values in choices.items()}
    sizes = {"input_size": _several(input_size), "hidden_size": _several(hidden_size)}
    return st.deferred(lambda: _specs(fields, sizes, None if backend is None else load_backend(backend)))


def _specs(
    fields: Mapping[str, tuple[Any, ...]], sizes: Mapping[str, tuple[int, ...]], backend: Backend | None
) -> SearchStrategy[RecurrentSpec]:
    smallest: dict[str, Any] = {name: values[0] for name, values in sizes.items()}
    possible: Tree = {}
    reason = ""
    for values in product(*map(dict.fromkeys, fields.values())):
        try:
            spec = RecurrentSpec(**smallest, **dict(zip(fields, values, strict=True)))
        except InvalidSpec as error:
            reason = reason or str(error)
            continue
        if backend is not None and (refusal := backend.refuses(spec)):
            reason = f"backend {backend.name!r} refuses all of these specs, {spec!r} because: {refusal}"
            continue
        node = possible
        for value in values:
            node = node.setdefault(value, {})
    if not possible:
        raise (InvalidSpec if backend is None else Unsupported)(reason)
    return _one_of(fields, sizes, possible)


@st.composite
def _one_of(
    draw: st.DrawFn, fields: Mapping[str, tuple[Any, ...]], sizes: Mapping[str, tuple[int, ...]], possible: Tree
) -> RecurrentSpec:
    """One possible combination, drawn field by field, so that each field shrinks by itself and no draw is rejected."""
    drawn: dict[str, Any] = {}
    for name, values in fields.items():
        drawn[name] = draw(st.sampled_from([value for value in values if value in possible]))
        possible = possible[drawn[name]]
    for name, values in sizes.items():
        drawn[name] = draw(st.sampled_from(values))
    return RecurrentSpec(**drawn)


def random_weights(spec: RecurrentSpec, seed: int = 0) -> Weights:
    """Weights that differ in every gate, layer and bias, and leave the gates unsaturated.

    Matrices are uniform within ±1/sqrt(number of columns), so that a pre-activation does not grow with the size of the
    layer; biases are uniform within ±1/2.
    """
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> Array:
        bound = 1 / sqrt(shape[2]) if len(shape) == 3 else 1 / 2
        return rng.uniform(-bound, bound, shape).astype(spec.dtype)

    return Weights(spec, {name: draw(shape) for name, shape in spec.shapes.items()})


def weights(spec: RecurrentSpec | SearchStrategy[RecurrentSpec] | None = None) -> SearchStrategy[Weights]:
    """`random_weights` of any seed, for a spec, drawn specs, or any spec."""
    drawn = _ANY_SPEC if spec is None else st.just(spec) if isinstance(spec, RecurrentSpec) else spec
    return st.builds(random_weights, drawn, seed=_SEEDS)


def inputs(
    spec: RecurrentSpec, *, batch: int | Iterable[int] = range(1, 5), time: int | Iterable[int] = range(1, 10)
) -> SearchStrategy[Array]:
    """Inputs `(batch, time, input_size)` of the spec's dtype, standard normal; sizes as in `specs`, also 0."""
    shape = st.tuples(st.sampled_from(_several(batch)), st.sampled_from(_several(time)), st.just(spec.input_size))
    return st.builds(_normal, shape, st.just(spec.dtype), _SEEDS)


def states(spec: RecurrentSpec, batch: int) -> SearchStrategy[State]:
    """Initial states for a batch, uniform within ±1, as the outputs of tanh layers are; with c for an LSTM."""
    return _SEEDS.map(lambda seed: draw_state(spec, batch, np.random.default_rng(seed)))


def lengths(batch: int, time: int) -> SearchStrategy[Lengths]:
    """Lengths `(batch,)` from 0 to `time`; an example shrinks to full rows, then to empty ones."""
    padding = st.sampled_from([0, time, *range(1, time)])
    paddings = st.lists(padding, min_size=batch, max_size=batch)
    return paddings.map(lambda padding: time - np.array(padding, np.int64))


@st.composite
def calls(
    draw: st.DrawFn,
    spec: RecurrentSpec,
    *,
    batch: int | Iterable[int] = range(1, 5),
    time: int | Iterable[int] = range(1, 10),
) -> Call:
    """Calls of a layer of this spec: full or ragged, from zero or from a state. Sizes as in `specs`, also 0."""
    x = draw(inputs(spec, batch=batch, time=time))
    rows, steps, _ = x.shape
    ragged = draw(st.sampled_from([False, True, True]))
    return Call(x, draw(st.none() | states(spec, rows)), draw(lengths(rows, steps)) if ragged else None)


@st.composite
def problems(
    draw: st.DrawFn,
    spec: RecurrentSpec | SearchStrategy[RecurrentSpec] | None = None,
    *,
    batch: int | Iterable[int] = range(1, 5),
    time: int | Iterable[int] = range(1, 10),
) -> tuple[Weights, Call]:
    """Weights, for a spec, drawn specs, or any spec, and a call of their layer."""
    drawn = draw(weights(spec))
    return drawn, draw(calls(drawn.spec, batch=batch, time=time))


def cotangents(spec: RecurrentSpec, *, batch: int, time: int) -> SearchStrategy[Output]:
    """Cotangents for `Layer.vjp`: shaped as an output, standard normal on the sequence, uniform on the states."""
    return _SEEDS.map(lambda seed: draw_cotangent(spec, batch, time, np.random.default_rng(seed)))


_SEEDS = st.integers(0, 2**16)


def _normal(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def _several(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else (values,)


_ANY_SPEC = specs()  # shared: its first draw takes 50 ms to find the combinations
