"""Mistakes in the matrices and the biases: transposed, merged, dropped, doubled, given to another gate or layer."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from multirnn.activations import Activation
from multirnn.catalogue.gates import in_blocks
from multirnn.mistakes import Change, Edit, Mistake, edited
from multirnn.spec import DIRECTIONS, RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["PARAMETERS"]

Applies = Callable[[RecurrentSpec], bool]


def _mistake(
    name: str, family: str, says: str, fix: str, applies: Applies, edit: Edit, adjoint: Edit, undo: Edit | None = None
) -> Mistake:
    return Mistake(
        name,
        family,
        says,
        fix,
        applies,
        realise=Change.of_weights(edit, adjoint),
        undo=None if undo is None else edited(undo),
    )


def _own_inverse(name: str, family: str, says: str, fix: str, applies: Applies, edit: Edit) -> Mistake:
    """An edit that rearranges or turns signs, and once more is undone: also its adjoint."""
    return _mistake(name, family, says, fix, applies, edit, edit, edit)


def _own_adjoint(name: str, family: str, says: str, fix: str, applies: Applies, edit: Edit) -> Mistake:
    """An edit that loses something for good, and takes it from the gradient too."""
    return _mistake(name, family, says, fix, applies, edit, edit)


def _each(kinds: tuple[str, ...], change: Callable[[Array], Array]) -> Edit:
    """Every array of these kinds changed."""
    return lambda spec, arrays: {
        name: change(array) if name.endswith(kinds) else array for name, array in arrays.items()
    }


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
    _own_inverse(
        "input kernel transposed",
        "input kernel",
        "multiplies the input with the transpose of every square gate block of weight_ih",
        "transpose each gate's block of weight_ih: rows are units, columns are features",
        _square_input,
        _each(("weight_ih",), _transposed),
    ),
    _own_inverse(
        "recurrent kernel transposed",
        "recurrent kernel",
        "multiplies the state with the transpose of every gate block of weight_hh",
        "transpose each gate's block of weight_hh: a Keras recurrent_kernel is h @ U, a PyTorch weight_hh is U @ h",
        lambda spec: spec.hidden_size > 1,
        _each(("weight_hh",), _transposed),
    ),
    _mistake(
        "kernels reshaped into weights",
        "input kernel",
        "reads kernels (source, gates * units) as weights (gates * units, source) by a reshape, which keeps the memory "
        "and moves the numbers",
        "transpose the kernels, do not reshape them",
        _has_matrices,
        _each(MATRICES, _kernel_as_weight),
        _each(MATRICES, _weight_as_kernel),
        _each(MATRICES, _weight_as_kernel),
    ),
    _mistake(
        "weights reshaped into kernels",
        "input kernel",
        "reads weights (gates * units, source) as kernels (source, gates * units) by a reshape, which keeps the memory "
        "and moves the numbers",
        "transpose the weights, do not reshape them",
        _has_matrices,
        _each(MATRICES, _weight_as_kernel),
        _each(MATRICES, _kernel_as_weight),
        _each(MATRICES, _kernel_as_weight),
    ),
)

# --- Biases ----------------------------------------------------------------------------------------------------------


def _both_biases(arrays: Mapping[str, Array]) -> Iterator[tuple[str, str]]:
    """The names of every bias_ih and its bias_hh, where there is one."""
    for name in arrays:
        if name.endswith("bias_hh"):
            yield name.replace("bias_hh", "bias_ih"), name


def _pairwise(change: Callable[[Array, Array], tuple[Array, Array]]) -> Edit:
    """Every bias_ih and bias_hh of one pass changed together."""

    def edit(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> dict[str, Array]:
        made = dict(arrays)
        for input_bias, recurrent_bias in _both_biases(arrays):
            made[input_bias], made[recurrent_bias] = change(arrays[input_bias], arrays[recurrent_bias])
        return made

    return edit


def _candidate(change: Callable[[Array, Array], tuple[Array, Array]]) -> Edit:
    """The candidate's two biases changed together; the candidate is the last gate."""

    def both(input_bias: Array, recurrent_bias: Array) -> tuple[Array, Array]:
        ih, hh = input_bias.copy(), recurrent_bias.copy()
        ih[-1], hh[-1] = change(ih[-1].copy(), hh[-1].copy())
        return ih, hh

    return _pairwise(both)


def _zero(array: Array) -> Array:
    return np.zeros_like(array)


def _has_biases(spec: RecurrentSpec) -> bool:
    return spec.bias != "none"


def _double(spec: RecurrentSpec) -> bool:
    return spec.bias == "double"


def _candidate_apart(spec: RecurrentSpec) -> bool:
    return spec.form.recurrent_candidate_bias and spec.bias != "none"


BIAS_KINDS = ("bias_ih", "bias_hh")
_BIAS_MISTAKES = (
    _own_inverse(
        "biases swapped",
        "biases",
        "takes the recurrent bias for the input bias and the input bias for the recurrent one, which the reset gate "
        "multiplies in the candidate",
        "swap bias_ih and bias_hh; in Keras row 0 of a GRU's bias is the input's, row 1 the recurrent one",
        lambda spec: spec.form.recurrent_candidate_bias and spec.bias == "double",
        _pairwise(lambda ih, hh: (hh, ih)),
    ),
    _mistake(
        "recurrent candidate bias merged into the input bias",
        "biases",
        "adds the candidate's recurrent bias outside the reset gate: b_n + d_n where r * (U_n h + d_n) has to stay",
        "keep the candidate's recurrent bias (PyTorch's b_hn) apart; fold those of r and z alone",
        _candidate_apart,
        _candidate(lambda ih, hh: (ih + hh, _zero(hh))),
        _candidate(lambda ih, hh: (ih, ih)),
    ),
    _mistake(
        "input candidate bias merged into the recurrent bias",
        "biases",
        "multiplies the candidate's input bias with the reset gate: r * (U_n h + d_n + b_n) where b_n has to stay outside",
        "keep the candidate's input bias in bias_ih, outside the reset gate",
        _candidate_apart,
        _candidate(lambda ih, hh: (_zero(ih), ih + hh)),
        _candidate(lambda ih, hh: (hh, hh)),
    ),
    _own_adjoint(
        "recurrent candidate bias dropped",
        "biases",
        "has no recurrent bias for the candidate, as the GRUCell of Flax NNX has none",
        "give the candidate its recurrent bias (b_hn) inside the reset gate",
        _candidate_apart,
        _candidate(lambda ih, hh: (ih, _zero(hh))),
    ),
    _own_adjoint(
        "input bias dropped",
        "biases",
        "leaves out the input bias",
        "add bias_ih to the input's product",
        _has_biases,
        _each(("bias_ih",), _zero),
    ),
    _own_adjoint(
        "recurrent bias dropped",
        "biases",
        "leaves out the recurrent bias",
        "add bias_hh to the state's product, or fold it into bias_ih first",
        _double,
        _each(("bias_hh",), _zero),
    ),
    _own_adjoint(
        "both biases dropped",
        "biases",
        "leaves out both biases, as if built with bias=False",
        "build it with its biases and copy bias_ih and bias_hh",
        lambda spec: _double(spec) or _candidate_apart(spec),
        _each(BIAS_KINDS, _zero),
    ),
    _mistake(
        "biases doubled",
        "biases",
        "adds the biases twice, as when their sum is copied into both bias_ih and bias_hh",
        "copy the sum of the biases into bias_ih and zero into bias_hh",
        _has_biases,
        _each(BIAS_KINDS, lambda array: 2 * array),
        _each(BIAS_KINDS, lambda array: 2 * array),
        _each(BIAS_KINDS, lambda array: array / 2),
    ),
    _mistake(
        "biases halved",
        "biases",
        "has half of the biases, as when one of two equal halves is lost",
        "copy the whole bias where there is one array for it",
        _has_biases,
        _each(BIAS_KINDS, lambda array: array / 2),
        _each(BIAS_KINDS, lambda array: array / 2),
        _each(BIAS_KINDS, lambda array: 2 * array),
    ),
    _mistake(
        "input bias in place of the recurrent",
        "biases",
        "uses bias_ih for both biases",
        "copy bias_hh into the recurrent bias",
        _double,
        _pairwise(lambda ih, hh: (ih, ih)),
        _pairwise(lambda ih, hh: (ih + hh, _zero(hh))),
    ),
    _mistake(
        "recurrent bias in place of the input",
        "biases",
        "uses bias_hh for both biases",
        "copy bias_ih into the input bias",
        _double,
        _pairwise(lambda ih, hh: (hh, hh)),
        _pairwise(lambda ih, hh: (_zero(ih), ih + hh)),
    ),
)

# --- Single gates ----------------------------------------------------------------------------------------------------


def _gate(spec: RecurrentSpec, name: str) -> int:
    return spec.form.gates.index(name)


def _plus(amount: float) -> Edit:
    """A constant added to the forget gate's input bias."""

    def edit(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> dict[str, Array]:
        made = dict(arrays)
        for name in (name for name in arrays if name.endswith("bias_ih")):
            made[name] = arrays[name].copy()
            made[name][_gate(spec, "f")] += amount
        return made

    return edit


def _forget(name: str, amount: float, says: str, fix: str) -> Mistake:
    return _mistake(
        name,
        "forget bias",
        says,
        fix,
        lambda spec: spec.cell == "lstm" and _has_biases(spec),
        _plus(amount),
        lambda spec, arrays: dict(arrays),
        _plus(-amount),
    )


def _negated(gate: str) -> Edit:
    def take(spec: RecurrentSpec, array: Array) -> Array:
        made = array.copy()
        made[_gate(spec, gate)] *= -1
        return made

    return in_blocks(take)


def _tied(spec: RecurrentSpec, array: Array) -> Array:
    made = array.copy()
    made[_gate(spec, "i")] = -array[_gate(spec, "f")]
    return made


def _tied_back(spec: RecurrentSpec, array: Array) -> Array:
    made = array.copy()
    made[_gate(spec, "f")] -= array[_gate(spec, "i")]
    made[_gate(spec, "i")] = 0
    return made


def _odd_about_half(spec: RecurrentSpec) -> bool:
    """Whether s(-v) = 1 - s(v), so that a sign turns a gate into its complement."""
    gate = Activation.of(spec.recurrent_activation)
    return gate.name == "sigmoid" or (gate.name == "hard_sigmoid" and gate.beta == 0.5)


_GATE_MISTAKES = (
    _own_inverse(
        "update gate inverted",
        "update gate",
        "lets z weigh the new candidate, h' = (1 - z) * h + z * n, as Haiku does; here z weighs the old state",
        "negate the z block of weight_ih, weight_hh and the biases",
        lambda spec: spec.cell == "gru" and _odd_about_half(spec),
        _negated("z"),
    ),
    _own_inverse(
        "forget gate inverted",
        "forget gate",
        "forgets where f is one: c' = (1 - f) * c + i * g",
        "negate the f block of weight_ih, weight_hh and the biases, or use f where 1 - f is used",
        lambda spec: spec.cell == "lstm" and _odd_about_half(spec),
        _negated("f"),
    ),
    _mistake(
        "input gate tied to the forget gate",
        "forget gate",
        "couples the gates, i = 1 - f, as input_forget=1 of ONNX does, and ignores the i block",
        "compute i from its own block; in ONNX leave input_forget at 0",
        lambda spec: spec.cell == "lstm" and _odd_about_half(spec),
        in_blocks(_tied),
        in_blocks(_tied_back),
    ),
    _forget(
        "forget bias added",
        1,
        "adds one to the forget gate at run time, as TensorFlow 1 and Haiku do, to biases that have it already",
        "subtract 1 from the f block of bias_ih, or build it with forget_bias=0",
    ),
    _forget(
        "forget bias added twice",
        2,
        "adds one to the forget gate twice: by unit_forget_bias or a forget_bias at run time, and once more in the weights",
        "subtract 2 from the f block of bias_ih, or copy the biases after building it and add nothing to them",
    ),
    _forget(
        "forget bias lost",
        -1,
        "lacks one in the forget gate's bias, as when weights of a layer that adds forget_bias=1 at run time run in one "
        "that does not, or when it is subtracted for a layer that does not add it",
        "add 1 to the f block of bias_ih",
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
        made[name] = array + other if name.split(".")[2] == "forward" else _zero(array)
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
        made[name] = array if layer < first else _zero(array) if layer > first else np.sum(above, axis=0)
    return made


def _layers_alike(spec: RecurrentSpec) -> bool:
    return spec.num_layers - _first_alike(spec) > 1


_PASS_MISTAKES = (
    _own_inverse(
        "directions swapped",
        "directions",
        "runs forward with the weights of the backward direction and backward with those of the forward one",
        "swap the weights of forward and backward (PyTorch's suffix _reverse, the second half of a Keras Bidirectional)",
        lambda spec: spec.bidirectional,
        _directions_swapped,
    ),
    _mistake(
        "forward weights in both directions",
        "directions",
        "runs both directions with the weights of the forward one",
        "give the backward direction its own weights (PyTorch's suffix _reverse, the second half of a Keras Bidirectional)",
        lambda spec: spec.bidirectional,
        _forward_in_both,
        _into_forward,
    ),
    _own_inverse(
        "layers in reverse order",
        "layers",
        "gives the weights of the upper layers to the lower ones and the other way round, where the shapes allow it",
        "sort the layers by their number, not by their name: layer 10 comes after layer 9",
        _layers_alike,
        _layers_reversed,
    ),
    _mistake(
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
    *_BIAS_MISTAKES,
    *_GATE_MISTAKES,
    *_PASS_MISTAKES,
    *_ROUNDED,
)
