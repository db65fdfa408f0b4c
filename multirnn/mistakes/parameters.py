"""Mistakes with whole matrices and whole layers: transposed, reshaped, given to another pass, rounded."""

from collections.abc import Callable, Mapping

from multirnn.mistakes.change import Change, bidirectional, known
from multirnn.mistakes.edits import MATRICES, Edit, adjoint, each, edited, of_weights
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["PARAMETERS"]


def _transposed(array: Array) -> Array:
    return array.swapaxes(1, 2) if array.shape[1] == array.shape[2] else array


def _kernel_as_weight(array: Array) -> Array:
    """A kernel (source, gates * units) whose memory is read as (gates * units, source)."""
    gates, units, sources = array.shape
    return array.reshape(gates * units, sources).T.reshape(array.shape)


_KERNELS_AS_WEIGHTS = each(MATRICES, _kernel_as_weight)


def _square_input(spec: RecurrentSpec) -> bool:
    """Whether an input kernel is square, gate by gate, so that its transpose fits."""
    upper = spec.num_layers > 1 and not spec.bidirectional
    return spec.hidden_size > 1 and (spec.input_size == spec.hidden_size or upper)


def _has_matrices(spec: RecurrentSpec) -> bool:
    """Whether there is a matrix of more than one row and one column, all gates together."""
    return any(len(s) == 3 and s[0] * s[1] > 1 and s[2] > 1 for s in spec.shapes.values())


OTHER = {"forward": "backward", "backward": "forward"}


def _taken(source: Callable[[RecurrentSpec, int, str], tuple[int, str]]) -> Edit:
    """Every pass with the weights of another one."""

    def edit(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> dict[str, Array]:
        made = {}
        for name in arrays:
            _, own_layer, own_direction, kind = name.split(".")
            layer, direction = source(spec, int(own_layer), own_direction)
            made[name] = arrays[f"layers.{layer}.{direction}.{kind}"]
        return made

    return edit


def _first_alike(spec: RecurrentSpec) -> int:
    """The lowest layer from which on all layers have the same shapes."""
    return 0 if spec.input_size == spec.output_size else 1


def _mirrored(spec: RecurrentSpec, layer: int, direction: str) -> tuple[int, str]:
    first = _first_alike(spec)
    return layer if layer < first else spec.num_layers - 1 + first - layer, direction


def _layers_alike(spec: RecurrentSpec) -> bool:
    return spec.num_layers - _first_alike(spec) > 1


def _rounded(dtype: str) -> Callable[[Weights], Weights]:
    return edited(lambda spec, arrays: {n: array.astype(dtype).astype(array.dtype) for n, array in arrays.items()})


PARAMETERS = known(
    "parameters",
    {
        "input kernel transposed": (of_weights(each(("weight_ih",), _transposed), undo=True), _square_input),
        "recurrent kernel transposed": (
            of_weights(each(("weight_hh",), _transposed), undo=True),
            lambda spec: spec.hidden_size > 1,
        ),
        "kernels reshaped into weights": (of_weights(_KERNELS_AS_WEIGHTS, undo=True), _has_matrices),
        "weights reshaped into kernels": (of_weights(adjoint(_KERNELS_AS_WEIGHTS), undo=True), _has_matrices),
        "directions swapped": (
            of_weights(_taken(lambda spec, layer, way: (layer, OTHER[way])), undo=True),
            bidirectional,
        ),
        "forward weights in both directions": (
            of_weights(_taken(lambda spec, layer, way: (layer, "forward"))),
            bidirectional,
        ),
        "layers in reverse order": (of_weights(_taken(_mirrored), undo=True), _layers_alike),
        "one layer's weights in all": (
            of_weights(_taken(lambda spec, layer, way: (min(_first_alike(spec), layer), way))),
            _layers_alike,
        ),
        "weights rounded to float16": Change(weights=_rounded("float16")),
        "weights rounded to float32": (Change(weights=_rounded("float32")), lambda spec: spec.dtype == "float64"),
    },
)
