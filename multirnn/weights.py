"""The parameters of a stack as canonical NumPy arrays, named and shaped as in `RecurrentSpec.shapes`.

`initialise` draws them once, in NumPy, so that all backends start equal; `fold_biases` and `split_biases` change the
form of the biases and preserve the function.
"""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random: 30 ms of every import

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from math import prod, sqrt
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multirnn.arrays import as_array
from multirnn.errors import InvalidSpec, InvalidWeights, Unrepresentable, kind_of
from multirnn.spec import DType, RecurrentSpec

__all__ = ["SCHEMES", "Array", "Owned", "Weights", "fold_biases", "initialise", "split_biases", "weights_of"]

Array = NDArray[np.floating[Any]]


class Owned(dict[str, Array]):
    """Arrays in C order that nobody else changes: `Weights` takes them over, and does not copy them."""


class Weights:
    """A spec with an array for every parameter.

    Args:
        spec: of the stack.
        arrays: by name, shaped as in `spec.shapes`, of `spec.dtype`; copied, then read-only.

    Raises:
        InvalidWeights: a name is missing or unknown, or a shape or dtype is not the spec's.
    """

    __slots__ = ("arrays", "spec")

    spec: RecurrentSpec
    arrays: Mapping[str, Array]

    def __init__(self, spec: RecurrentSpec, arrays: Mapping[str, Array]) -> None:
        shapes = spec.shapes
        if not isinstance(arrays, Mapping):
            raise InvalidWeights(f"arrays must be a mapping from names to arrays, not {kind_of(arrays)}")
        if missing := [name for name in shapes if name not in arrays]:
            raise InvalidWeights(f"no array for {_list(missing)}, which {spec!r} has")
        if unknown := [name for name in arrays if name not in shapes]:
            raise InvalidWeights(f"{spec!r} has no parameter {_list(unknown)}; it has {_list(list(shapes))}")
        copies: dict[str, Array] = {}
        for name, shape in shapes.items():
            array = as_array(name, arrays[name], error=InvalidWeights)
            if array.shape != shape:
                raise InvalidWeights(f"{name} must have the shape {shape}, not {array.shape}")
            if array.dtype != spec.dtype:
                raise InvalidWeights(
                    f"{name} must be {spec.dtype}, as the spec says, not {array.dtype}; convert it first"
                )
            taken = array if isinstance(arrays, Owned) else np.array(array, dtype=spec.dtype, order="C")
            taken.flags.writeable = False
            copies[name] = taken
        self.spec = spec
        self.arrays = MappingProxyType(copies)

    def at(self, layer: int, direction: str) -> dict[str, Array]:
        """The arrays of one layer and direction by their last name: weight_ih, weight_hh, and any biases."""
        prefix = f"layers.{layer}.{direction}."
        return {name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)}

    def part(self, layer: int, direction: str) -> Weights:
        """One layer in one direction as a stack of its own, which runs forward."""
        first = self.spec.shapes[f"layers.{layer}.{direction}.weight_ih"]
        spec = replace(self.spec, input_size=first[2], num_layers=1, bidirectional=False)
        own = self.at(layer, direction)
        return Weights(spec, Owned((f"layers.0.forward.{name}", array) for name, array in own.items()))

    @np.errstate(all="ignore")
    def astype(self, dtype: DType) -> Weights:
        """The same weights in "float32" or "float64"; widening is exact, narrowing rounds to nearest."""
        spec = replace(self.spec, dtype=dtype)
        return Weights(spec, Owned({name: array.astype(spec.dtype) for name, array in self.arrays.items()}))

    def save(self, path: str | Path) -> None:
        """Write them to a file, as `multirnn.save` does; the suffix tells the format."""
        import_module("multirnn.formats").save(self, path)  # by name: formats are built on weights

    @classmethod
    def load(cls, path: str | Path, name: str | None = None) -> Weights:
        """Those of the recurrent stack in a file, as `multirnn.load` reads them."""
        loaded: Weights = import_module("multirnn.formats").load(path, name)
        return loaded

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Weights):
            return NotImplemented
        return self.spec == other.spec and all(np.array_equal(a, other.arrays[name]) for name, a in self.arrays.items())

    __hash__ = None  # type: ignore[assignment]  # equal by value over arrays, which have no hash

    def __reduce__(self) -> tuple[type[Weights], tuple[RecurrentSpec, dict[str, Array]]]:
        return Weights, (self.spec, dict(self.arrays))  # a mapping proxy can be neither pickled nor deep-copied

    def __repr__(self) -> str:
        return f"<Weights of {self.spec!r}: {self.spec.parameter_count} parameters>"


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown


# --- Drawing ---------------------------------------------------------------------------------------------------------

Draw = Callable[["np.random.Generator", str, tuple[int, ...], RecurrentSpec], Array]


@np.errstate(all="ignore")
def initialise(spec: RecurrentSpec, seed: int | np.random.Generator = 0, scheme: str = "torch") -> Weights:
    """Draw the weights of a stack, the same for every backend.

    Args:
        spec: the stack.
        seed: of `numpy.random.default_rng`, or a generator to draw from. The stream is drawn in float64 and rounded, so
            a float32 and a float64 stack of one seed differ by rounding only.
        scheme: whose default distribution: "torch", all U(±1/sqrt(hidden_size)), biases too; "keras", Glorot-uniform
            over the fused gates, recurrent matrix orthonormal over the fused gates, biases zero and the LSTM's
            forget bias one; "flax", Flax Linen's: LeCun-normal and an orthogonal matrix a gate, biases zero.

    Raises:
        InvalidSpec: no such scheme.
    """
    if scheme not in SCHEMES:
        raise InvalidSpec(f"no initialisation scheme {scheme!r}; there are {', '.join(SCHEMES)}")
    rng = np.random.default_rng(seed)
    draw = SCHEMES[scheme]
    arrays = {name: draw(rng, name.rpartition(".")[2], shape, spec) for name, shape in spec.shapes.items()}
    return Weights(spec, {name: array.astype(spec.dtype) for name, array in arrays.items()})


def _draw_torch(rng: np.random.Generator, kind: str, shape: tuple[int, ...], spec: RecurrentSpec) -> Array:
    # torch.nn.RNNBase.reset_parameters: the bound is of the hidden size for every array, of upper layers too.
    bound = 1 / sqrt(spec.hidden_size)
    return rng.uniform(-bound, bound, shape)


def _draw_keras(rng: np.random.Generator, kind: str, shape: tuple[int, ...], spec: RecurrentSpec) -> Array:
    if kind == "weight_ih":
        # keras.initializers.GlorotUniform on the kernel (features, gates * hidden_size).
        bound = sqrt(6 / (shape[2] + shape[0] * shape[1]))
        return rng.uniform(-bound, bound, shape)
    if kind == "weight_hh":
        # keras.initializers.Orthogonal on (hidden_size, gates * hidden_size): its orthonormal rows are the columns of
        # the stacked gates.
        gates, hidden, _ = shape
        return _orthonormal_columns(rng, gates * hidden, hidden).reshape(shape)
    biases = np.zeros(shape)
    if kind == "bias_ih" and spec.cell == "lstm":
        biases[spec.form.gates.index("f")] = 1  # unit_forget_bias
    return biases


def _draw_flax(rng: np.random.Generator, kind: str, shape: tuple[int, ...], spec: RecurrentSpec) -> Array:
    if kind == "weight_ih":
        # jax.nn.initializers.lecun_normal: variance 1/fan_in after truncation at two standard deviations, which
        # leaves 0.8796 of the deviation.
        return _truncated_normal(rng, shape) * (sqrt(1 / shape[2]) / 0.87962566103423978)
    if kind == "weight_hh":
        return np.stack([_orthonormal_columns(rng, shape[1], shape[2]) for _ in range(shape[0])])
    return np.zeros(shape)


SCHEMES: Mapping[str, Draw] = MappingProxyType({"torch": _draw_torch, "keras": _draw_keras, "flax": _draw_flax})


def _orthonormal_columns(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """A matrix (rows, columns) with orthonormal columns, uniform over all such (Mezzadri 2007: QR with fixed signs)."""
    q, r = np.linalg.qr(rng.standard_normal((rows, columns)))
    return np.asarray(q * np.sign(np.diagonal(r)))


def _truncated_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Standard normal numbers, those beyond two deviations drawn again."""
    values = rng.standard_normal(prod(shape))
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.standard_normal(int(outside.sum()))
    return values.reshape(shape)


def weights_of(spec_or_weights: RecurrentSpec | Weights, seed: int, taker: str) -> Weights:
    """Weights as they are; of a spec, `initialise(spec, seed)`. `TypeError` names the `taker` of anything else."""
    if isinstance(spec_or_weights, RecurrentSpec):
        return initialise(spec_or_weights, seed)
    if not isinstance(spec_or_weights, Weights):
        raise TypeError(f"{taker} takes a RecurrentSpec or Weights, not {kind_of(spec_or_weights)}")
    return spec_or_weights


# --- The form of the biases ------------------------------------------------------------------------------------------


@np.errstate(all="ignore")
def fold_biases(weights: Weights, *, candidate: bool = False) -> Weights:
    """The same function with `bias="single"`: each recurrent bias added to the input bias of its gate.

    The reset-after GRU keeps the recurrent bias of its candidate, which the reset gate multiplies. Adding rounds, once
    an element. Weights that are single already are returned as they are.

    Args:
        weights: with biases.
        candidate: require the candidate's recurrent bias to be zero, for a layer without one (`flax.nnx.GRUCell`).

    Raises:
        Unrepresentable: there are no biases, or `candidate` and the candidate's recurrent bias is not zero: the reset gate
            multiplies it, so no single bias gives the same function.
    """
    spec = weights.spec
    if spec.bias == "none":
        raise Unrepresentable('bias="none" leaves no biases to fold; split_biases adds zero biases')
    folded = replace(spec, bias="single")
    arrays = Owned(weights.arrays)
    for layer, direction in spec.passes if spec.bias == "double" else ():
        bias_ih, bias_hh = (f"layers.{layer}.{direction}.{name}" for name in ("bias_ih", "bias_hh"))
        both = arrays[bias_ih] + arrays[bias_hh]
        if spec.form.recurrent_candidate_bias:
            n = spec.form.gates.index(spec.form.candidate)
            both[n] = arrays[bias_ih][n]
            arrays[bias_hh] = arrays[bias_hh][n : n + 1].copy()
        else:
            del arrays[bias_hh]
        arrays[bias_ih] = both
    if candidate and any(arrays[name].any() for name in folded.shapes if name.endswith("bias_hh")):
        raise Unrepresentable(
            "the recurrent candidate bias d_n of a reset-after GRU cannot be folded: the reset gate multiplies it, "
            "n = a(W_n x + b_n + r * (U_n h + d_n)), and it does not multiply b_n"
        )
    return Weights(folded, arrays)


def split_biases(weights: Weights) -> Weights:
    """The same function with `bias="double"`: a recurrent bias that is missing is added as zero.

    Exact. Weights that are double already are returned as they are.
    """
    spec = replace(weights.spec, bias="double")
    zero = np.zeros(spec.shapes["layers.0.forward.bias_ih"], spec.dtype)
    arrays = Owned({name: weights.arrays.get(name, zero) for name in spec.shapes})
    if weights.spec.bias == "single" and spec.form.recurrent_candidate_bias:
        for name in (name for name in spec.shapes if name.endswith("bias_hh")):
            arrays[name] = zero.copy()
            arrays[name][spec.form.gates.index(spec.form.candidate)] = weights.arrays[name][0]
    return Weights(spec, arrays)
