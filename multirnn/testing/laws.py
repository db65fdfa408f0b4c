"""Laws that every layer obeys, whatever its weights: rows are independent, chunks equal the whole, padding has no effect.

A law is a function of a backend and of a spec that it accepts, and raises `AssertionError` with a sentence.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multirnn.comparison import Pairs, compare, gradient_pairs, state_pairs
from multirnn.errors import InvalidCall
from multirnn.layer import Gradients, Layer, Output, State
from multirnn.numerics import difference, draw_call, tolerance
from multirnn.protocol import Backend
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights, initialise

__all__ = ["LAWS", "Law", "hold"]

Law = Callable[[Backend, RecurrentSpec], None]


def hold(condition: bool, sentence: str) -> None:
    """An assertion that `python -O` keeps."""
    if not condition:
        raise AssertionError(sentence)


# --- Equality --------------------------------------------------------------------------------------------------------


def _equal(what: str, actual: Array | None, expected: Array | None) -> None:
    if actual is None or expected is None:
        hold(actual is expected, f"{what}: one side has it and the other has not")
        return
    found = difference(actual, expected.astype("float64"))
    hold(
        found.normwise <= tolerance(actual.dtype),
        f"{what} differs by {found.eps:.3g} eps at {found.where}, where {tolerance(actual.dtype):.2g} is allowed",
    )


def _equal_parts(what: str, pairs: Pairs) -> None:
    for name, pair in pairs:
        _equal(f"{what}: {name}", *pair)


def _equal_outputs(what: str, actual: Output, expected: Output) -> None:
    _equal(f"{what}: sequence", actual.sequence, expected.sequence)
    _equal_parts(what, state_pairs(actual.state, expected.state))


# --- Layers and calls ------------------------------------------------------------------------------------------------


def _if_accepted(backend: Backend, spec: RecurrentSpec, other: RecurrentSpec) -> RecurrentSpec:
    return other if backend.refuses(other) is None else spec


def _both_ways(backend: Backend, spec: RecurrentSpec) -> RecurrentSpec:
    return _if_accepted(backend, spec, replace(spec, bidirectional=True))


def _drawn(backend: Backend, spec: RecurrentSpec) -> tuple[Layer, Array, State, NDArray[Any]]:
    """A layer, bidirectional if the backend accepts that, and a call of it."""
    spec = _both_ways(backend, spec)
    x, state, lengths = draw_call(spec, 4)
    return backend.build(initialise(spec, seed=1)), x, state, lengths


def _mapped(function: Callable[[Array], Array], state: State) -> State:
    return State(*map(function, state.parts))


def _rows(state: State, rows: NDArray[np.intp]) -> State:
    return _mapped(lambda part: part[:, rows], state)


def _with_batch(state: State) -> State:
    return _mapped(lambda part: part[:, None], state)


def _cotangent(layer: Layer, output: Output) -> Output:
    rng = np.random.default_rng(3)
    parts = output.sequence, *output.state.parts
    sequence, *state = (rng.standard_normal(part.shape).astype(layer.spec.dtype) for part in parts)
    return Output(sequence, State(*state))


# --- The laws --------------------------------------------------------------------------------------------------------


def _full_rows(backend: Backend, spec: RecurrentSpec) -> None:
    spec = _both_ways(backend, spec)
    row = compare(initialise(spec, seed=1), draw_call(spec, 4)[0], backends=[backend]).rows[0]
    hold(row.verdict == "equal", row.reason)


def _weights_exact(backend: Backend, spec: RecurrentSpec) -> None:
    weights = initialise(_both_ways(backend, spec), seed=1)
    layer = backend.build(weights)
    hold(layer.spec == weights.spec, f"layer.spec is {layer.spec!r}, built from {weights.spec!r}")
    count = weights.spec.parameter_count
    hold(layer.parameter_count == count, f"it counts {layer.parameter_count} parameters; the spec has {count}")
    hold(layer.weights() == weights, "layer.weights() is not, bit for bit, what it was built from")
    hold(layer.native is not None, "layer.native is None")
    read = backend.read(layer.native)
    hold(read == weights, f"read(layer.native) gives {read!r}, not the weights it was built from")


def _row_alone(backend: Backend, spec: RecurrentSpec) -> None:
    layer, x, state, lengths = _drawn(backend, spec)
    whole = layer(x, state, lengths=lengths)
    for row, length in enumerate(map(int, lengths)):
        one = np.array([row])
        alone = layer(x[one, :length], _rows(state, one))
        expected = Output(whole.sequence[one, :length], _rows(whole.state, one))
        _equal_outputs(f"row {row} of length {length} run alone", alone, expected)
        hold(not whole.sequence[row, length:].any(), f"the output at the padding of row {row} is not zero")


def _permuted_batch(backend: Backend, spec: RecurrentSpec) -> None:
    layer, x, state, lengths = _drawn(backend, spec)
    order = np.array([3, 0, 4, 2, 1])
    whole = layer(x, state, lengths=lengths)
    permuted = layer(x[order], _rows(state, order), lengths=lengths[order])
    _equal_outputs("the permuted batch", permuted, Output(whole.sequence[order], _rows(whole.state, order)))


def _unbatched(backend: Backend, spec: RecurrentSpec) -> None:
    layer, x, state, _ = _drawn(backend, spec)
    one = np.array([2])
    batched = layer(x[one], _rows(state, one))
    state = _mapped(lambda part: part[:, 2], state)
    output = layer(x[2], state)
    for what, shape, expected in (
        ("sequence", output.sequence.shape, batched.sequence.shape[1:]),
        ("state", output.state.h.shape, batched.state.h[:, 0].shape),
    ):
        hold(shape == expected, f"the unbatched {what} has the shape {shape}, not {expected}")
    _equal_outputs("unbatched", Output(output.sequence[None], _with_batch(output.state)), batched)
    if backend.differentiable:
        gradients = layer.vjp(x[2], state, cotangent=_cotangent(layer, output))
        with_batch = Gradients(gradients.weights, gradients.x[None], _with_batch(gradients.state))
        of_batch = layer.vjp(x[one], _with_batch(state), cotangent=_cotangent(layer, batched))
        _equal_parts("unbatched", gradient_pairs(with_batch, of_batch))


def _chunks(backend: Backend, spec: RecurrentSpec) -> None:
    spec = _if_accepted(backend, spec, replace(spec, num_layers=2))
    layer = backend.build(initialise(spec, seed=1))
    x, state, _ = draw_call(spec, 4)
    whole = layer(x, state)
    stream = layer.stream()
    stream.reset(state)
    parts = [stream(chunk).sequence for chunk in (x[:, :3], x[:, 3:4], x[:, 4:4], x[:, 4:])]
    hold(stream.state is not None, "the stream has no state after four chunks")
    _equal("the chunks' sequence", np.concatenate(parts, axis=1), whole.sequence)
    _equal_parts("the stream", state_pairs(stream.state or state, whole.state))
    stream.reset()
    _equal("a stream that was reset", stream(x[:, :2]).sequence, layer(x[:, :2]).sequence)


def _reversal(backend: Backend, spec: RecurrentSpec) -> None:
    spec = replace(spec, bidirectional=True)
    if backend.refuses(spec) is not None:
        return
    layer, x, state, _ = _drawn(backend, spec)
    other = {"forward": "backward", "backward": "forward"}
    arrays = initialise(spec, seed=1).arrays
    swapped = {name: arrays[".".join(other.get(part, part) for part in name.split("."))] for name in arrays}
    found = backend.build(Weights(spec, swapped))(x[:, ::-1], _mapped(lambda part: part[::-1], state))
    forward, backward = np.split(found.sequence[:, ::-1], 2, axis=2)
    expected = Output(np.concatenate([backward, forward], axis=2), _mapped(lambda part: part[::-1], found.state))
    _equal_outputs("the reversed layer", layer(x, state), expected)


def _padding(backend: Backend, spec: RecurrentSpec) -> None:
    layer, x, state, lengths = _drawn(backend, spec)
    padding = np.arange(x.shape[1]) >= lengths[:, None]
    dirty = x.copy()
    dirty[padding] = np.nan
    clean = layer(x, state, lengths=lengths)
    _equal_outputs("NaN in padding", layer(dirty, state, lengths=lengths), clean)
    if backend.differentiable:
        cotangent = _cotangent(layer, clean)
        expected = layer.vjp(x, state, lengths=lengths, cotangent=cotangent)
        cotangent.sequence[padding] = np.nan
        gradients = layer.vjp(dirty, state, lengths=lengths, cotangent=cotangent)
        _equal_parts("NaN in padding", gradient_pairs(gradients, expected))
        hold(not gradients.x[padding].any(), "the gradient of x at padding is not zero")


def _empty(backend: Backend, spec: RecurrentSpec) -> None:
    layer, x, state, _ = _drawn(backend, spec)
    no_rows = np.array([], np.intp)
    for what, empty_x, empty_state, lengths in (
        ("no time steps", x[:, :0], state, None),
        ("no rows", x[:0], _rows(state, no_rows), None),
        ("no rows, with lengths", x[:0], _rows(state, no_rows), no_rows),
        ("rows of length 0 only", x, state, np.zeros(len(x), int)),
    ):
        output = layer(empty_x, empty_state, lengths=lengths)
        zeros = np.zeros((*empty_x.shape[:2], layer.spec.output_size), layer.spec.dtype)
        hold(output.sequence.shape == zeros.shape, f"{what}: sequence {output.sequence.shape}, not {zeros.shape}")
        _equal_outputs(what, output, Output(zeros, empty_state))
        if backend.differentiable:
            cotangent = _cotangent(layer, output)
            gradients = layer.vjp(empty_x, empty_state, lengths=lengths, cotangent=cotangent)
            hold(not any(a.any() for a in gradients.weights.values()), f"{what}: a weight has a gradient")
            hold(gradients.x.shape == empty_x.shape and not gradients.x.any(), f"{what}: x has a gradient")
            _equal_parts(what, state_pairs(gradients.state, cotangent.state, "gradient of initial "))


def _no_trace(backend: Backend, spec: RecurrentSpec) -> None:
    layer, x, state, lengths = _drawn(backend, spec)
    given = (x, state.h, lengths)
    copies = [array.copy() for array in given]
    first = layer(x, state, lengths=lengths)
    kept = first.sequence.copy(), first.state.h.copy()
    strided = np.repeat(x, 2, axis=1)[:, ::2]
    strided.flags.writeable = False
    layer(-x, state, lengths=lengths)
    if backend.differentiable:
        layer.vjp(x, state, lengths=lengths, cotangent=_cotangent(layer, first))
    again = layer(strided, state, lengths=list(map(int, lengths)))
    hold(all(map(np.array_equal, given, copies)), "a call changed the arrays that it was given")
    hold(
        np.array_equal(first.sequence, kept[0]) and np.array_equal(first.state.h, kept[1]),
        "a later call changed the output of an earlier one",
    )
    _equal_outputs("the same call again, strided and read-only", again, first)
    _equal_outputs("the same call with lists", layer(x.tolist(), state, lengths=lengths), first)


def _gradients_as_said(backend: Backend, spec: RecurrentSpec) -> None:
    """Checks that a non-differentiable backend raises; correct gradients are checked elsewhere."""
    layer = backend.build(initialise(spec, seed=1))
    x, state, _ = draw_call(spec, 4)
    hold(
        backend.differentiable or not getattr(layer, "differentiable", False), "its layers say that they have gradients"
    )
    for rows in (len(x), 0):
        given, initial = x[:rows], _rows(state, np.arange(rows))
        try:
            layer.vjp(given, initial, cotangent=_cotangent(layer, layer(given, initial)))
        except (InvalidCall, AttributeError) as error:
            hold(not backend.differentiable, f"it is differentiable, and a batch of {rows} has no gradients: {error}")
        else:
            hold(backend.differentiable, f"it is not differentiable, and hands out gradients of a batch of {rows}")


LAWS: Mapping[str, Law] = MappingProxyType(
    {
        "full rows agree without lengths and from zero": _full_rows,
        "counts and hands back the weights exactly": _weights_exact,
        "a row alone equals its slice": _row_alone,
        "permuting the batch permutes the result": _permuted_batch,
        "unbatched equals a batch of one": _unbatched,
        "chunks equal the whole": _chunks,
        "reversing a layer and its input reverses the output": _reversal,
        "what stands in padding reaches nothing": _padding,
        "empty rows, batches and times": _empty,
        "calls leave no trace": _no_trace,
        "gradients are there, or refused": _gradients_as_said,
    }
)
"""Every law by its name."""
