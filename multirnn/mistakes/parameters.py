"""Mistakes with whole matrices and whole layers: transposed, reshaped, given to another pass, rounded."""

from collections.abc import Callable, Mapping

from multirnn.mistakes.change import MATRICES, Change, Edit, Mistake, each, edited, in_family, of_weights
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["PARAMETERS"]

# --- Matrices --------------------------------------------------------------------------------------------------------


def _transposed(array: Array) -> Array:
    return array.swapaxes(1, 2) if array.shape[1] == array.shape[2] else array


def _kernel_as_weight(array: Array) -> Array:
    """A kernel (source, gates * units) whose memory is read as (gates * units, source)."""
    gates, units, sources = array.shape
    return array.reshape(gates * units, sources).T.reshape(array.shape)


def _weight_as_kernel(array: Array) -> Array:
    """The inverse: a weight (gates * units, source) whose memory is read as a kernel (source, gates * units)."""
    gates, units, sources = array.shape
    return array.reshape(sources, gates * units).T.reshape(array.shape)


def _reshaped(source: str, source_shape: str, read: str, read_shape: str, change: Callable[[Array], Array]) -> Mistake:
    return Mistake(
        f"{source} reshaped into {read}",
        f"reads {source} ({source_shape}) as {read} ({read_shape}) by a reshape, which keeps the memory and moves the "
        "numbers",
        f"transpose the {source}, do not reshape them",
        of_weights(each(MATRICES, change), undo=True),
        # Some matrix has more than one row and one column, all gates together.
        lambda spec: any(len(s) == 3 and s[0] * s[1] > 1 and s[2] > 1 for s in spec.shapes.values()),
    )


_KERNEL, _WEIGHT = ("kernels", "source, gates * units"), ("weights", "gates * units, source")

# --- Given to another pass -------------------------------------------------------------------------------------------


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


# --- Rounded ---------------------------------------------------------------------------------------------------------


def _rounded(dtype: str) -> Callable[[Weights], Weights]:
    return edited(lambda spec, arrays: {n: array.astype(dtype).astype(array.dtype) for n, array in arrays.items()})


PARAMETERS: tuple[Mistake, ...] = (
    *in_family(
        "input kernel",
        Mistake(
            "input kernel transposed",
            "multiplies the input with the transpose of every square gate block of weight_ih",
            "transpose each gate's block of weight_ih: rows are units, columns are features",
            of_weights(each(("weight_ih",), _transposed), undo=True),
            lambda spec: (
                spec.hidden_size > 1
                and (spec.input_size == spec.hidden_size or (spec.num_layers > 1 and not spec.bidirectional))
            ),
        ),
    ),
    *in_family(
        "recurrent kernel",
        Mistake(
            "recurrent kernel transposed",
            "multiplies the state with the transpose of every gate block of weight_hh",
            "transpose each gate's block of weight_hh: a Keras recurrent_kernel is h @ U, a PyTorch weight_hh is U @ h",
            of_weights(each(("weight_hh",), _transposed), undo=True),
            lambda spec: spec.hidden_size > 1,
        ),
    ),
    *in_family(
        "input kernel",
        _reshaped(*_KERNEL, *_WEIGHT, _kernel_as_weight),
        _reshaped(*_WEIGHT, *_KERNEL, _weight_as_kernel),
    ),
    *in_family(
        "directions",
        Mistake(
            "directions swapped",
            "runs forward with the weights of the backward direction and backward with those of the forward one",
            "swap the weights of forward and backward (PyTorch's suffix _reverse, the second half of a Keras Bidirectional)",
            of_weights(
                _taken(lambda spec, layer, way: (layer, "backward" if way == "forward" else "forward")), undo=True
            ),
            lambda spec: spec.bidirectional,
        ),
        Mistake(
            "forward weights in both directions",
            "runs both directions with the weights of the forward one",
            "give the backward direction its own weights (PyTorch's suffix _reverse, the second half of a Keras Bidirectional)",
            of_weights(_taken(lambda spec, layer, way: (layer, "forward"))),
            lambda spec: spec.bidirectional,
        ),
    ),
    *in_family(
        "layers",
        Mistake(
            "layers in reverse order",
            "gives the weights of the upper layers to the lower ones and the other way round, where the shapes allow it",
            "sort the layers by their number, not by their name: layer 10 comes after layer 9",
            of_weights(_taken(_mirrored), undo=True),
            _layers_alike,
        ),
        Mistake(
            "one layer's weights in all",
            "uses the weights of one layer in all layers above it of the same shapes",
            "make a new layer for each level, not the same one again",
            of_weights(_taken(lambda spec, layer, way: (min(_first_alike(spec), layer), way))),
            _layers_alike,
        ),
    ),
    *in_family(
        "precision",
        Mistake(
            "weights rounded to float16",
            "holds weights that went through float16",
            "keep the weights in the spec's dtype from the file to the layer",
            Change(weights=_rounded("float16")),
        ),
        Mistake(
            "weights rounded to float32",
            "holds float64 weights that went through float32",
            "convert the weights to float64 before they are drawn or loaded, not after",
            Change(weights=_rounded("float32")),
            lambda spec: spec.dtype == "float64",
            shows="float64",
        ),
    ),
)
