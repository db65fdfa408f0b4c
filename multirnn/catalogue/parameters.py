"""Mistakes with whole matrices and whole layers: transposed, reshaped, given to another pass, rounded."""

from collections.abc import Callable, Mapping

import numpy as np

from multirnn.catalogue.edits import each, mistake, own_inverse, zero
from multirnn.mistakes import Change, Mistake, edited
from multirnn.spec import DIRECTIONS, RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["PARAMETERS"]

# --- Matrices --------------------------------------------------------------------------------------------------------


def _transposed(array: Array) -> Array:
    return array.swapaxes(1, 2) if array.shape[1] == array.shape[2] else array


def _square_input(spec: RecurrentSpec) -> bool:
    """Whether an input kernel is square, gate by gate, so that its transpose fits."""
    upper = spec.num_layers > 1 and not spec.bidirectional
    return spec.hidden_size > 1 and (spec.input_size == spec.hidden_size or upper)


def _kernel_as_weight(array: Array) -> Array:
    """A kernel (source, gates * units) whose memory is read as (gates * units, source)."""
    gates, units, sources = array.shape
    return array.reshape(gates * units, sources).T.reshape(array.shape)


def _weight_as_kernel(array: Array) -> Array:
    """The inverse: a weight (gates * units, source) whose memory is read as a kernel (source, gates * units)."""
    gates, units, sources = array.shape
    return array.reshape(sources, gates * units).T.reshape(array.shape)


def _has_matrices(spec: RecurrentSpec) -> bool:
    """Whether there is a matrix of more than one row and one column, all gates together."""
    return any(len(s) == 3 and s[0] * s[1] > 1 and s[2] > 1 for s in spec.shapes.values())


MATRICES = ("weight_ih", "weight_hh")
_MATRIX_MISTAKES = (
    own_inverse(
        "input kernel transposed",
        "input kernel",
        "multiplies the input with the transpose of every square gate block of weight_ih",
        "transpose each gate's block of weight_ih: rows are units, columns are features",
        _square_input,
        each(("weight_ih",), _transposed),
    ),
    own_inverse(
        "recurrent kernel transposed",
        "recurrent kernel",
        "multiplies the state with the transpose of every gate block of weight_hh",
        "transpose each gate's block of weight_hh: a Keras recurrent_kernel is h @ U, a PyTorch weight_hh is U @ h",
        lambda spec: spec.hidden_size > 1,
        each(("weight_hh",), _transposed),
    ),
    mistake(
        "kernels reshaped into weights",
        "input kernel",
        "reads kernels (source, gates * units) as weights (gates * units, source) by a reshape, which keeps the memory "
        "and moves the numbers",
        "transpose the kernels, do not reshape them",
        _has_matrices,
        each(MATRICES, _kernel_as_weight),
        each(MATRICES, _weight_as_kernel),
        each(MATRICES, _weight_as_kernel),
    ),
    mistake(
        "weights reshaped into kernels",
        "input kernel",
        "reads weights (gates * units, source) as kernels (source, gates * units) by a reshape, which keeps the memory "
        "and moves the numbers",
        "transpose the weights, do not reshape them",
        _has_matrices,
        each(MATRICES, _weight_as_kernel),
        each(MATRICES, _kernel_as_weight),
        each(MATRICES, _kernel_as_weight),
    ),
)

# --- Given to another pass -------------------------------------------------------------------------------------------

_OTHER: Mapping[str, str] = dict(zip(DIRECTIONS, reversed(DIRECTIONS), strict=True))


def _renamed(name: str, *, layer: int | None = None, direction: str | None = None) -> str:
    stem, own_layer, own_direction, kind = name.split(".")
    return f"{stem}.{own_layer if layer is None else layer}.{direction or own_direction}.{kind}"


def _directions_swapped(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: arrays[_renamed(name, direction=_OTHER[name.split(".")[2]])] for name in arrays}


def _forward_in_both(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: arrays[_renamed(name, direction="forward")] for name in arrays}


def _into_forward(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The adjoint of `_forward_in_both`."""
    made = {}
    for name, array in arrays.items():
        other = arrays[_renamed(name, direction="backward")]
        made[name] = array + other if name.split(".")[2] == "forward" else zero(array)
    return made


def _first_alike(spec: RecurrentSpec) -> int:
    """The lowest layer from which on all layers have the same shapes."""
    return 0 if spec.input_size == spec.output_size else 1


def _layers_reversed(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> dict[str, Array]:
    first, top = _first_alike(spec), spec.num_layers - 1
    made = {}
    for name in arrays:
        layer = int(name.split(".")[1])
        made[name] = arrays[_renamed(name, layer=layer if layer < first else top + first - layer)]
    return made


def _lowest_in_all(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> dict[str, Array]:
    first = _first_alike(spec)
    return {name: arrays[_renamed(name, layer=min(first, int(name.split(".")[1])))] for name in arrays}


def _into_lowest(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The adjoint of `_lowest_in_all`."""
    first = _first_alike(spec)
    made = {}
    for name, array in arrays.items():
        layer = int(name.split(".")[1])
        above = [arrays[_renamed(name, layer=k)] for k in range(first, spec.num_layers)]
        made[name] = array if layer < first else zero(array) if layer > first else np.sum(above, axis=0)
    return made


def _layers_alike(spec: RecurrentSpec) -> bool:
    return spec.num_layers - _first_alike(spec) > 1


_PASS_MISTAKES = (
    own_inverse(
        "directions swapped",
        "directions",
        "runs forward with the weights of the backward direction and backward with those of the forward one",
        "swap the weights of forward and backward (PyTorch's suffix _reverse, the second half of a Keras Bidirectional)",
        lambda spec: spec.bidirectional,
        _directions_swapped,
    ),
    mistake(
        "forward weights in both directions",
        "directions",
        "runs both directions with the weights of the forward one",
        "give the backward direction its own weights (PyTorch's suffix _reverse, the second half of a Keras Bidirectional)",
        lambda spec: spec.bidirectional,
        _forward_in_both,
        _into_forward,
    ),
    own_inverse(
        "layers in reverse order",
        "layers",
        "gives the weights of the upper layers to the lower ones and the other way round, where the shapes allow it",
        "sort the layers by their number, not by their name: layer 10 comes after layer 9",
        _layers_alike,
        _layers_reversed,
    ),
    mistake(
        "one layer's weights in all",
        "layers",
        "uses the weights of one layer in all layers above it of the same shapes",
        "make a new layer for each level, not the same one again",
        _layers_alike,
        _lowest_in_all,
        _into_lowest,
    ),
)

# --- Rounded ---------------------------------------------------------------------------------------------------------


def _rounded(dtype: str) -> Callable[[Weights], Weights]:
    return edited(
        lambda spec, arrays: {name: array.astype(dtype).astype(array.dtype) for name, array in arrays.items()}
    )


_ROUNDED = (
    Mistake(
        "weights rounded to float16",
        "precision",
        "holds weights that went through float16",
        "keep the weights in the spec's dtype from the file to the layer",
        lambda spec: True,
        realise=Change(weights=_rounded("float16")),
    ),
    Mistake(
        "weights rounded to float32",
        "precision",
        "holds float64 weights that went through float32",
        "convert the weights to float64 before they are drawn or loaded, not after",
        lambda spec: spec.dtype == "float64",
        realise=Change(weights=_rounded("float32")),
        shows="float64",
    ),
)

PARAMETERS: tuple[Mistake, ...] = (
    *_MATRIX_MISTAKES,
    *_PASS_MISTAKES,
    *_ROUNDED,
)
