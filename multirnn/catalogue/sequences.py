"""Mistakes with the sequence: its directions, its axes, its padding."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from multirnn.assembly import Plumbing, reversed_rows, unchanged
from multirnn.boundary import Inputs
from multirnn.layer import Gradients, Lengths, Output
from multirnn.mistakes import Change, Mistake, Runs
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

__all__ = ["SEQUENCES"]


def _bidirectional(spec: RecurrentSpec) -> bool:
    return spec.bidirectional


def _always(spec: RecurrentSpec) -> bool:
    return True


def _of_sequence(
    forth: Callable[[RecurrentSpec, Array], Array], back: Callable[[RecurrentSpec, Array], Array]
) -> Change:
    """The sequence changed on its way out, by a linear map."""
    return Change(
        output=lambda spec, inputs, output: output._replace(sequence=forth(spec, output.sequence)),
        cotangent=lambda spec, inputs, cotangent: cotangent._replace(sequence=back(spec, cotangent.sequence)),
    )


# --- Directions ------------------------------------------------------------------------------------------------------


def _halves_swapped(spec: RecurrentSpec, sequence: Array) -> Array:
    return np.roll(sequence, spec.hidden_size, axis=2)


def _forward_twice(spec: RecurrentSpec, sequence: Array) -> Array:
    return np.tile(sequence[:, :, : spec.hidden_size], 2)


def _added_to_forward(spec: RecurrentSpec, sequence: Array) -> Array:
    """The adjoint of `_forward_twice`."""
    forward, backward = np.split(sequence, 2, axis=2)
    return np.concatenate([forward + backward, np.zeros_like(forward)], axis=2)


def _backward_first(parts: Sequence[Array]) -> Array:
    return np.concatenate(parts[::-1], axis=2)


def _apart_backward_first(sequence: Array, directions: int) -> list[Array]:
    return np.split(sequence, directions, axis=2)[::-1]


def _unit_by_unit(parts: Sequence[Array]) -> Array:
    return np.stack(parts, axis=3).reshape(*parts[0].shape[:2], -1)


def _apart_unit_by_unit(sequence: Array, directions: int) -> list[Array]:
    return [sequence[:, :, place::directions] for place in range(directions)]


def _bare_reshape(parts: Sequence[Array]) -> Array:
    """(time, directions, batch, units) read as (time, batch, directions * units)."""
    batch, time, units = parts[0].shape
    stacked = np.stack([part.swapaxes(0, 1) for part in parts], axis=1)
    return stacked.reshape(time, batch, len(parts) * units).swapaxes(0, 1)


def _apart_bare_reshape(sequence: Array, directions: int) -> list[Array]:
    batch, time, units = sequence.shape
    stacked = sequence.swapaxes(0, 1).reshape(time, directions, batch, units // directions)
    return [stacked[:, place].swapaxes(0, 1) for place in range(directions)]


def _reversed(sequence: Array, lengths: Lengths | None) -> Array:
    """The whole time axis reversed, padding and all."""
    return sequence[:, ::-1]


def _padding_in_front(inputs: Inputs) -> np.ndarray:
    return inputs.valid[:, ::-1, None]


def _run_through_front(direction: str, layer: Runs, inputs: Inputs) -> Output:
    if direction == "forward":
        return layer(inputs.x, inputs.state, lengths=inputs.lengths)
    sequence, state = layer(inputs.x, inputs.state)
    return Output(np.where(_padding_in_front(inputs), sequence, sequence.dtype.type(0)), state)


def _pull_through_front(direction: str, layer: Runs, inputs: Inputs, cotangent: Output) -> Gradients:
    if direction == "forward":
        return layer.vjp(inputs.x, inputs.state, lengths=inputs.lengths, cotangent=cotangent)
    sequence = cotangent.sequence
    sequence = np.where(_padding_in_front(inputs), sequence, sequence.dtype.type(0))
    return layer.vjp(inputs.x, inputs.state, cotangent=Output(sequence, cotangent.state))


_BACKWARD_IN = Change(
    inputs=lambda spec, inputs: replace(inputs, x=reversed_rows(inputs.x, inputs.lengths)),
    gradients=lambda spec, inputs, found: found._replace(x=reversed_rows(found.x, inputs.lengths)),
)
_DIRECTIONS = (
    Mistake(
        "reverse output not flipped",
        "reverse",
        "leaves the outputs of the backward direction in the order of processing, as Keras does with go_backwards=True "
        "and Flax with reverse=True alone",
        "flip them back in time before they are concatenated: keep_order=True in Flax, a flip after go_backwards in Keras",
        _bidirectional,
        realise=Plumbing(flip_out=unchanged),
    ),
    Mistake(
        "reverse input not flipped",
        "reverse",
        "runs the backward direction forward in time and flips its outputs all the same",
        "flip the input of the backward direction too",
        _bidirectional,
        realise=Plumbing(flip_in=unchanged),
    ),
    Mistake(
        "backward direction runs forward",
        "reverse",
        "runs the backward direction forward in time",
        "run it from the last step to the first: go_backwards=True in Keras, reverse=True in Flax",
        _bidirectional,
        realise=Plumbing(flip_in=unchanged, flip_out=unchanged),
    ),
    Mistake(
        "runs backward in time",
        "time",
        "runs from the last step to the first and leaves the outputs in that order, as Keras does with go_backwards=True",
        "give it the sequence in its own order, go_backwards=False",
        _always,
        realise=_BACKWARD_IN,
    ),
    Mistake(
        "runs backward in time, outputs flipped back",
        "time",
        "runs from the last step to the first, and hands the outputs back in the order of time, as ONNX does with "
        "direction='reverse'",
        "give it direction='forward'",
        _always,
        realise=replace(
            _BACKWARD_IN,
            output=lambda spec, inputs, output: output._replace(
                sequence=reversed_rows(output.sequence, inputs.lengths)
            ),
            cotangent=lambda spec, inputs, cotangent: cotangent._replace(
                sequence=reversed_rows(cotangent.sequence, inputs.lengths)
            ),
        ),
    ),
    Mistake(
        "output backward‖forward",
        "concatenation",
        "concatenates the outputs of the last layer as backward‖forward",
        "concatenate forward‖backward, as PyTorch and Keras do",
        _bidirectional,
        realise=_of_sequence(_halves_swapped, _halves_swapped),
    ),
    Mistake(
        "forward output in both halves",
        "concatenation",
        "hands out the forward outputs of the last layer in both halves, where the backward ones belong in the second",
        "concatenate forward‖backward, as PyTorch and Keras do",
        _bidirectional,
        realise=_of_sequence(_forward_twice, _added_to_forward),
    ),
    Mistake(
        "backward‖forward between layers",
        "concatenation",
        "concatenates the outputs of every layer as backward‖forward, so that the layer above reads them swapped",
        "concatenate forward‖backward, as PyTorch and Keras do",
        lambda spec: spec.bidirectional and spec.num_layers > 1,
        realise=Plumbing(join=_backward_first, split=_apart_backward_first),
    ),
    Mistake(
        "directions interleaved",
        "concatenation",
        "puts the two directions side by side unit by unit, by a stack on the last axis and a reshape",
        "concatenate the directions along the last axis, all units forward and then all units backward",
        lambda spec: spec.bidirectional and spec.hidden_size > 1,
        realise=Plumbing(join=_unit_by_unit, split=_apart_unit_by_unit),
    ),
    Mistake(
        "directions mixed with rows",
        "concatenation",
        "reshapes ONNX's Y (time, directions, batch, units) to (time, batch, directions * units) without the transpose "
        "before it, which mixes rows and directions",
        "transpose Y to (time, batch, directions, units) first, then reshape",
        _bidirectional,
        realise=Plumbing(join=_bare_reshape, split=_apart_bare_reshape),
    ),
    Mistake(
        "padding read first backward",
        "padding",
        "reverses the whole batch in time, so that the backward direction begins in the padding of the shorter rows",
        "reverse each row within its own length: a PackedSequence in PyTorch, a mask in Keras, seq_lengths in Flax",
        _bidirectional,
        realise=Plumbing(flip_in=_reversed, flip_out=_reversed, run=_run_through_front, pull_back=_pull_through_front),
        shows="lengths",
    ),
)

# --- Axes ------------------------------------------------------------------------------------------------------------


def _swapped(spec: RecurrentSpec, sequence: Array) -> Array:
    return sequence.swapaxes(0, 1)


_AXES = (
    Mistake(
        "batch and time swapped",
        "axes",
        "reads x as (time, batch, features), as PyTorch does without batch_first=True: it runs over the rows",
        "pass batch_first=True in PyTorch, time_major=False in Flax, or transpose x",
        _always,
        realise=Change(
            inputs=lambda spec, inputs: replace(inputs, x=inputs.x.swapaxes(0, 1)),
            output=lambda spec, inputs, output: output._replace(sequence=_swapped(spec, output.sequence)),
            cotangent=lambda spec, inputs, cotangent: cotangent._replace(sequence=_swapped(spec, cotangent.sequence)),
            gradients=lambda spec, inputs, found: found._replace(x=found.x.swapaxes(0, 1)),
        ),
    ),
    Mistake(
        "output time-major",
        "axes",
        "hands the sequence back as (time, batch, features)",
        "transpose the first two axes of the output: here it is (batch, time, features)",
        _always,
        realise=_of_sequence(_swapped, _swapped),
    ),
)

# --- Steps -----------------------------------------------------------------------------------------------------------


def _run_delayed(direction: str, layer: Runs, inputs: Inputs) -> Output:
    sequence, state = layer(inputs.x, inputs.state, lengths=inputs.lengths)
    before = np.concatenate([inputs.state.h[0][:, None], sequence[:, :-1]], axis=1)
    return Output(np.where(inputs.valid[:, :, None], before, before.dtype.type(0)), state)


def _pull_delayed(direction: str, layer: Runs, inputs: Inputs, cotangent: Output) -> Gradients:
    before = np.where(inputs.valid[:, :, None], cotangent.sequence, cotangent.sequence.dtype.type(0))
    sequence = np.concatenate([before[:, 1:], np.zeros_like(before[:, :1])], axis=1)
    found = layer.vjp(inputs.x, inputs.state, lengths=inputs.lengths, cotangent=Output(sequence, cotangent.state))
    return found._replace(state=found.state._replace(h=found.state.h + before[:, 0][None]))


_STEPS = (
    Mistake(
        "output before the step",
        "time",
        "hands out the state before each step instead of the one after it, one step late",
        "append h to the outputs after it is updated",
        _always,
        realise=Plumbing(run=_run_delayed, pull_back=_pull_delayed),
    ),
)

# --- Padding ---------------------------------------------------------------------------------------------------------


def _only_valid(spec: RecurrentSpec, inputs: Inputs, output: Output) -> Output:
    return output._replace(sequence=np.where(inputs.valid[:, :, None], output.sequence, output.sequence.dtype.type(0)))


def _at_least_one(spec: RecurrentSpec, inputs: Inputs) -> Inputs:
    return inputs if inputs.lengths is None else replace(inputs, lengths=np.maximum(inputs.lengths, 1))


def _longer(steps: int) -> Callable[[RecurrentSpec, Inputs], Inputs]:
    def inputs(spec: RecurrentSpec, inputs: Inputs) -> Inputs:
        if inputs.lengths is None:
            return inputs
        return replace(inputs, lengths=np.clip(inputs.lengths + steps, 0, inputs.x.shape[1]))

    return inputs


def _last_repeated(spec: RecurrentSpec, inputs: Inputs, output: Output) -> Output:
    if inputs.lengths is None:
        return output
    last = np.maximum(inputs.lengths - 1, 0)
    step = np.minimum(np.arange(inputs.x.shape[1]), last[:, None])
    return output._replace(sequence=np.take_along_axis(output.sequence, step[:, :, None], axis=1))


def _padding(name: str, says: str, fix: str, change: Change) -> Mistake:
    return Mistake(name, "padding", says, fix, _always, realise=change, shows="lengths")


_PADDING = (
    _padding(
        "padding run through",
        "runs through the padding as if it were data",
        "tell it the lengths: a PackedSequence in PyTorch, a mask in Keras, seq_lengths in Flax, sequence_lens in ONNX",
        Change(inputs=lambda spec, inputs: replace(inputs, lengths=None)),
    ),
    _padding(
        "padding run through, outputs masked",
        "runs through the padding and zeroes the outputs there afterwards, so that the states go on changing",
        "keep the state where the mask is off, do not only mask the outputs",
        Change(inputs=lambda spec, inputs: replace(inputs, lengths=None), output=_only_valid, cotangent=_only_valid),
    ),
    _padding(
        "mask one step too long",
        "takes each row for one step longer than it is: step <= length where step < length is meant",
        "mask with arange(time) < lengths",
        Change(inputs=_longer(1)),
    ),
    _padding(
        "mask one step too short",
        "takes each row for one step shorter than it is: it uses the index of the last step as the length",
        "mask with arange(time) < lengths, where lengths counts the steps",
        Change(inputs=_longer(-1)),
    ),
    _padding(
        "empty rows run for one step",
        "takes rows of length 0 for rows of one step, as lengths.clamp(min=1) before pack_padded_sequence does",
        "leave rows of length 0 out of the batch and keep their state as it is",
        Change(inputs=_at_least_one),
    ),
    _padding(
        "last output repeated at padding",
        "repeats the last valid output at padding, as Keras does without zero_output_for_mask=True",
        "zero the outputs at padding: zero_output_for_mask=True in Keras",
        Change(output=_last_repeated),
    ),
)

SEQUENCES: tuple[Mistake, ...] = (*_DIRECTIONS, *_AXES, *_STEPS, *_PADDING)
