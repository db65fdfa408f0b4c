"""The tests are tested: deliberately wrong backends, each of which the conformance suite has to catch.

A wrong backend is the NumPy backend with one mistake: in the weights that it builds from, in what it is called with, or
in what it hands back. It goes on counting its parameters right and handing its weights back unchanged, as a real one
with such a mistake would.
"""

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.testing import cases, check_backend

RIGHT = mr.backend("numpy")


class WrongLayer:
    """A NumPy layer with a mistake in it."""

    def __init__(self, weights: mr.Weights, mistake: "Mistake") -> None:
        self._weights = weights
        self._layer = RIGHT.build(mistake.weights(weights))
        self._mistake = mistake
        self.spec = weights.spec
        self.native = weights

    parameter_count = property(lambda self: self._mistake.count(self.spec))

    def weights(self) -> mr.Weights:
        return self._weights

    def __call__(self, x, state=None, *, lengths=None):
        return self._mistake.call(self._layer, x, state, lengths)

    def vjp(self, x, state=None, *, lengths=None, cotangent):
        return self._mistake.vjp(self._layer, x, state, lengths, cotangent)

    def stream(self) -> mr.Stream:
        return mr.Stream(self)


@dataclasses.dataclass
class Mistake:
    """Right in everything that a mistake does not replace."""

    weights: Callable[[mr.Weights], mr.Weights] = lambda weights: weights
    call: Callable[..., mr.Output] = lambda layer, x, state, lengths: layer(x, state, lengths=lengths)
    vjp: Callable[..., mr.Gradients] = lambda layer, x, state, lengths, cotangent: layer.vjp(
        x, state, lengths=lengths, cotangent=cotangent
    )
    count: Callable[[mr.RecurrentSpec], int] = lambda spec: spec.parameter_count
    refuses: Callable[[mr.RecurrentSpec], str | None] = lambda spec: None


class WrongBackend:
    differentiable = True

    def __init__(self, name: str, mistake: Mistake) -> None:
        self.name, self.mistake = name, mistake

    def refuses(self, spec: mr.RecurrentSpec) -> str | None:
        return self.mistake.refuses(spec)

    def build(self, weights: mr.Weights, *, device: str | None = None) -> WrongLayer:
        return WrongLayer(weights, self.mistake)

    def read(self, native: Any) -> mr.Weights:
        return native

    def versions(self) -> dict[str, str]:
        return {}


# --- Mistakes in the weights -----------------------------------------------------------------------------------------


def in_arrays(kind: str, change: Callable[[mr.RecurrentSpec, np.ndarray], np.ndarray]) -> Mistake:
    """Every array of this kind changed."""

    def changed(weights: mr.Weights) -> mr.Weights:
        arrays = {n: change(weights.spec, a) if n.endswith(kind) else a for n, a in weights.arrays.items()}
        return mr.Weights(weights.spec, arrays)

    return Mistake(weights=changed)


def in_gates(cell: str, change: Callable[[np.ndarray], np.ndarray]) -> Mistake:
    """Every array of this cell that has all gates changed along its gate axis."""

    def changed(weights: mr.Weights) -> mr.Weights:
        spec = weights.spec
        gates = len(spec.form.gates)
        arrays = {n: change(a) if spec.cell == cell and len(a) == gates else a for n, a in weights.arrays.items()}
        return mr.Weights(spec, arrays)

    return Mistake(weights=changed)


def in_spec(**fields: Any) -> Mistake:
    """The same arrays under a spec with other fields, where they fit."""

    def changed(weights: mr.Weights) -> mr.Weights:
        try:
            other = dataclasses.replace(weights.spec, **fields)
        except mr.InvalidSpec:
            return weights
        return mr.Weights(other, dict(weights.arrays)) if other.shapes == weights.spec.shapes else weights

    return Mistake(weights=changed)


def plus_at(gate: str, cell: str) -> Callable[[mr.RecurrentSpec, np.ndarray], np.ndarray]:
    def change(spec: mr.RecurrentSpec, array: np.ndarray) -> np.ndarray:
        if spec.cell != cell:
            return array
        changed = array.copy()
        changed[spec.form.gates.index(gate)] += 1
        return changed

    return change


def directions_swapped(weights: mr.Weights) -> mr.Weights:
    if not weights.spec.bidirectional:
        return weights
    other = {"forward": "backward", "backward": "forward"}
    parts = {name: name.split(".") for name in weights.arrays}
    names = {name: ".".join((a, b, other[c], d)) for name, (a, b, c, d) in parts.items()}
    return mr.Weights(weights.spec, {name: weights.arrays[names[name]] for name in weights.arrays})


def candidate_bias_merged(weights: mr.Weights) -> mr.Weights:
    arrays = {name: array.copy() for name, array in weights.arrays.items()}
    for name in [name for name in arrays if name.endswith("bias_hh")]:
        arrays[name.replace("bias_hh", "bias_ih")][-1] += arrays[name][-1]
        arrays[name][-1] = 0
    return mr.Weights(weights.spec, arrays)


def rounded(weights: mr.Weights) -> mr.Weights:
    return weights.astype("float32").astype(weights.spec.dtype)


# --- Mistakes in the call --------------------------------------------------------------------------------------------


def mapped(change: Callable[[mr.RecurrentSpec, mr.Output, Any], mr.Output]) -> Mistake:
    """A mistake in what a call hands back; `change` sees the spec, the output and the lengths."""

    def call(layer, x, state, lengths):
        return change(layer.spec, layer(x, state, lengths=lengths), lengths)

    return Mistake(call=call)


def reverse_half_flipped(spec: mr.RecurrentSpec, output: mr.Output, lengths: Any) -> mr.Output:
    sequence = output.sequence.copy()
    if spec.bidirectional:
        half = sequence[..., spec.hidden_size :]
        half[...] = np.flip(half, axis=-2).copy()
    return mr.Output(sequence, output.state)


def state_order_swapped(spec: mr.RecurrentSpec, output: mr.Output, lengths: Any) -> mr.Output:
    """The states of all layers forward, then of all layers backward."""
    if not spec.bidirectional or spec.num_layers == 1:
        return output
    order = np.arange(2 * spec.num_layers).reshape(2, -1).T.ravel()
    h, c = output.state
    return mr.Output(output.sequence, mr.State(h[order], None if c is None else c[order]))


def backward_state_at_the_end(spec: mr.RecurrentSpec, output: mr.Output, lengths: Any) -> mr.Output:
    if not spec.bidirectional or lengths is not None or not output.sequence.shape[-2]:
        return output
    h = output.state.h.copy()
    h[-1] = output.sequence[..., -1, spec.hidden_size :]
    return mr.Output(output.sequence, mr.State(h, output.state.c))


def h_and_c_swapped(spec: mr.RecurrentSpec, output: mr.Output, lengths: Any) -> mr.Output:
    h, c = output.state
    return output if c is None else mr.Output(output.sequence, mr.State(c, h))


def last_output_repeated(spec: mr.RecurrentSpec, output: mr.Output, lengths: Any) -> mr.Output:
    """As Keras has it by default: padding repeats the last valid output."""
    sequence = output.sequence.copy()
    if lengths is not None and sequence.ndim == 3:
        for row, length in enumerate(lengths):
            if 0 < length < sequence.shape[1]:
                sequence[row, length:] = sequence[row, length - 1]
    return mr.Output(sequence, output.state)


def state_ignored(layer, x, state, lengths):
    return layer(x, None, lengths=lengths)


def padding_run_through(layer, x, state, lengths):
    return layer(np.nan_to_num(np.asarray(x, layer.spec.dtype)), state)


def mask_off_by_one(layer, x, state, lengths):
    if lengths is not None:
        lengths = np.minimum(np.asarray(lengths) + 1, np.asarray(x).shape[-2])
    return layer(x, state, lengths=lengths)


def padding_leaks(layer, x, state, lengths):
    output = layer(x, state, lengths=lengths)
    leak = 0 * np.asarray(x, layer.spec.dtype).sum(axis=(-1, -2), keepdims=True)
    return mr.Output(output.sequence + leak, output.state)


def float32_slip(layer, x, state, lengths):
    output = layer(x, state, lengths=lengths)
    return mr.Output(output.sequence.astype("float32").astype(layer.spec.dtype), output.state)


def float64_out(layer, x, state, lengths):
    output = layer(x, state, lengths=lengths)
    return mr.Output(output.sequence.astype("float64"), output.state)


class StateKept:
    """The final state of a call is the next one's initial state."""

    def __init__(self) -> None:
        self.kept: weakref.WeakKeyDictionary[Any, mr.State] = weakref.WeakKeyDictionary()

    def __call__(self, layer, x, state, lengths):
        kept = self.kept.get(layer)
        if state is None and kept is not None and kept.h.ndim == np.ndim(x) and kept.h.shape[1] == len(x):
            state = kept
        output = layer(x, state, lengths=lengths)
        self.kept[layer] = output.state
        return output


class BufferReused:
    """The output is a view of a buffer that the next call writes to."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[int, ...], np.ndarray] = {}

    def __call__(self, layer, x, state, lengths):
        output = layer(x, state, lengths=lengths)
        buffer = self.buffers.setdefault(output.sequence.shape, np.empty_like(output.sequence))
        if buffer.dtype != output.sequence.dtype:
            return output
        buffer[...] = output.sequence
        return mr.Output(buffer, output.state)


def input_zeroed_in_place(layer, x, state, lengths):
    output = layer(x, state, lengths=lengths)
    if isinstance(x, np.ndarray) and x.flags.writeable and x.ndim == 3 and lengths is not None:
        x[np.arange(x.shape[1]) >= np.asarray(lengths)[:, None]] = 0
    return output


# --- Mistakes in the gradients ---------------------------------------------------------------------------------------


def in_gradients(change: Callable[[mr.RecurrentSpec, mr.Gradients], mr.Gradients]) -> Mistake:
    def vjp(layer, x, state, lengths, cotangent):
        return change(layer.spec, layer.vjp(x, state, lengths=lengths, cotangent=cotangent))

    return Mistake(vjp=vjp)


def zeroed(kind: str) -> Callable[[mr.RecurrentSpec, mr.Gradients], mr.Gradients]:
    def change(spec: mr.RecurrentSpec, gradients: mr.Gradients) -> mr.Gradients:
        return gradients._replace(
            weights={name: 0 * array if kind in name else array for name, array in gradients.weights.items()}
        )

    return change


def state_detached(spec: mr.RecurrentSpec, gradients: mr.Gradients) -> mr.Gradients:
    h, c = gradients.state
    return gradients._replace(state=mr.State(0 * h, None if c is None else 0 * c))


def last_step_only(layer, x, state, lengths, cotangent):
    """Overwritten at each step, not summed over time: what is left is the gradient of the last steps."""
    cut = np.array(cotangent.sequence)
    if cut.ndim == 3:
        cut[:, :-1] = 0
    return layer.vjp(x, state, lengths=lengths, cotangent=mr.Output(cut, cotangent.state))


def state_cotangent_ignored(layer, x, state, lengths, cotangent):
    zeros = mr.State(*(0 * part for part in cotangent.state if part is not None))
    return layer.vjp(x, state, lengths=lengths, cotangent=mr.Output(cotangent.sequence, zeros))


def gradient_without_lengths(layer, x, state, lengths, cotangent):
    return layer.vjp(np.nan_to_num(x), state, cotangent=mr.Output(np.nan_to_num(cotangent.sequence), cotangent.state))


def bias_gradient_doubled(spec: mr.RecurrentSpec, gradients: mr.Gradients) -> mr.Gradients:
    return gradients._replace(
        weights={name: 2 * array if "bias" in name else array for name, array in gradients.weights.items()}
    )


MISTAKES: dict[str, Mistake] = {
    "input bias dropped": in_arrays("bias_ih", lambda spec, array: 0 * array),
    "recurrent bias dropped": in_arrays("bias_hh", lambda spec, array: 0 * array),
    "recurrent matrix transposed": in_arrays("weight_hh", lambda spec, array: array.swapaxes(1, 2)),
    "LSTM gates i f c o read as i c f o": in_gates("lstm", lambda array: array[[0, 2, 1, 3]]),
    "LSTM gates in the order of ONNX": in_gates("lstm", lambda array: array[[0, 3, 1, 2]]),
    "GRU gates r and z swapped": in_gates("gru", lambda array: array[[1, 0, 2]]),
    "GRU update gate inverted": in_gates("gru", lambda array: np.stack([array[0], -array[1], array[2]])),
    "forget bias added twice": in_arrays("bias_ih", plus_at("f", "lstm")),
    "reset placement flipped to before": in_spec(reset_after=False),
    "reset placement flipped to after": in_spec(reset_after=True),
    "recurrent candidate bias merged into the input bias": Mistake(weights=candidate_bias_merged),
    "relu in place of tanh": in_spec(activation="relu"),
    "hard_sigmoid of the other slope": in_spec(recurrent_activation=mr.Activation("hard_sigmoid", 0.19, 0.5)),
    "directions swapped": Mistake(weights=directions_swapped),
    "weights rounded to float32 in float64": Mistake(weights=rounded),
    "reverse output not flipped": mapped(reverse_half_flipped),
    "states ordered by direction before layer": mapped(state_order_swapped),
    "backward state taken at the last step": mapped(backward_state_at_the_end),
    "h and c swapped": mapped(h_and_c_swapped),
    "last output repeated at padding": mapped(last_output_repeated),
    "initial state ignored": Mistake(call=state_ignored),
    "padding run through": Mistake(call=padding_run_through),
    "mask off by one": Mistake(call=mask_off_by_one),
    "NaN in padding leaks": Mistake(call=padding_leaks),
    "float32 slip in float64": Mistake(call=float32_slip),
    "float64 handed back by a float32 layer": Mistake(call=float64_out),
    "state kept between calls": Mistake(call=StateKept()),
    "output buffer reused": Mistake(call=BufferReused()),
    "input changed in place": Mistake(call=input_zeroed_in_place),
    "gradient of the recurrent matrix detached": in_gradients(zeroed("weight_hh")),
    "gradient detached at a layer": in_gradients(zeroed("layers.0")),
    "gradient of the initial state missing": in_gradients(state_detached),
    "gradient not summed over time": Mistake(vjp=last_step_only),
    "cotangent of the final state ignored": Mistake(vjp=state_cotangent_ignored),
    "gradient run through the padding": Mistake(vjp=gradient_without_lengths),
    "bias gradient doubled": in_gradients(bias_gradient_doubled),
    "a frozen bias counted": Mistake(count=lambda spec: spec.parameter_count + spec.hidden_size),
    "refuses, and builds all the same": Mistake(refuses=lambda spec: "no GRU" if spec.cell == "gru" else None),
    "refuses everything": Mistake(refuses=lambda spec: "not today"),
}


def failing_checks(backend: Any) -> Iterator[str]:
    for name, check in cases():
        try:
            check(backend)
        except AssertionError:
            yield name


@pytest.mark.parametrize("name", MISTAKES)
def test_wrong_backend_is_caught(name: str) -> None:
    assert next(failing_checks(WrongBackend(name, MISTAKES[name])), None), f"{name}: no check catches it"


def test_what_is_caught_is_named() -> None:
    wrong = WrongBackend("reversed gates", MISTAKES["GRU gates r and z swapped"])
    with pytest.raises(AssertionError, match=r"(?s)backend 'reversed gates' fails \d+ of \d+ checks.*agrees: gru"):
        check_backend(wrong)


def test_the_same_backend_without_a_mistake_passes() -> None:
    assert check_backend(WrongBackend("right", Mistake())) == len(cases())


def test_every_check_catches_a_wrong_backend() -> None:
    """No check is idle: each of the laws, and agreement, fails for at least one mistake."""
    caught = {check for name in MISTAKES for check in failing_checks(WrongBackend(name, MISTAKES[name]))}
    kinds = {check.split(":")[0] for check, _ in cases()}
    assert {check.split(":")[0] for check in caught} == kinds


def test_expected_failures_are_strict() -> None:
    wrong = WrongBackend("wrong", MISTAKES["GRU update gate inverted"])
    expected = dict.fromkeys(failing_checks(wrong), "z is the weight of the new state")
    assert check_backend(wrong, expected_failures=expected) == len(cases()) - len(expected)
    with pytest.raises(AssertionError, match="expected to fail"):
        check_backend(RIGHT, expected_failures={next(iter(expected)): "a mistake that it does not have"})
    with pytest.raises(KeyError, match="no check is named"):
        check_backend(RIGHT, expected_failures={"no such check": "?"})


def test_the_catalogue_is_large_enough() -> None:
    print(f"{len(MISTAKES)} wrong backends, {len(cases())} checks")
    assert len(MISTAKES) >= 15
