"""Mistakes with the sequence: its directions, its axes, its padding."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from multirnn.boundary import Inputs
from multirnn.layer import Gradients, Lengths, Output
from multirnn.mistakes.change import Change, Edit, Mistake, Runs, in_family, of_output, pull_back, run
from multirnn.mistakes.plumbing import Plumbing, reversed_rows, unchanged
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

__all__ = ["SEQUENCES"]

Map = Callable[[RecurrentSpec, Inputs, Array], Array]
"""Of a sequence `(batch, time, n)` of a call."""


def _at_output(forth: Map, back: Map | None = None) -> Change:
    """The sequence changed on its way out, by a linear map that is its own adjoint unless another is given."""
    back = back or forth
    return Change(
        output=lambda spec, inputs, out: out._replace(sequence=forth(spec, inputs, out.sequence)),
        cotangent=lambda spec, inputs, cotangent: cotangent._replace(sequence=back(spec, inputs, cotangent.sequence)),
    )


def _at_input(change: Map) -> Change:
    """The input changed, by a linear map that is its own adjoint."""
    return Change(
        inputs=lambda spec, inputs: replace(inputs, x=change(spec, inputs, inputs.x)),
        gradients=lambda spec, inputs, found: found._replace(x=change(spec, inputs, found.x)),
    )


def _both(one: Change, other: Change) -> Change:
    return replace(one, output=other.output, cotangent=other.cotangent)


def _only_at(valid: np.ndarray, sequence: Array) -> Array:
    """Zero where not valid, `(batch, time)`."""
    return np.where(valid[:, :, None], sequence, sequence.dtype.type(0))


# --- Directions ------------------------------------------------------------------------------------------------------


def _sequence(change: Callable[[RecurrentSpec, Array], Array]) -> Edit:
    return lambda spec, arrays: {"sequence": change(spec, arrays["sequence"])}


_BACKWARD_FIRST = _sequence(lambda spec, sequence: np.roll(sequence, spec.hidden_size, axis=2))


def _unit_by_unit(spec: RecurrentSpec, sequence: Array) -> Array:
    halves = sequence.reshape(*sequence.shape[:2], len(spec.directions), spec.hidden_size)
    return halves.swapaxes(2, 3).reshape(sequence.shape)


def _bare_reshape(spec: RecurrentSpec, sequence: Array) -> Array:
    """(time, directions, batch, units) read as (time, batch, directions * units)."""
    batch, time, units = sequence.shape
    stacked = sequence.reshape(batch, time, len(spec.directions), -1).transpose(1, 2, 0, 3)
    return stacked.reshape(time, batch, units).swapaxes(0, 1)


def _whole_reversed(sequence: Array, lengths: Lengths | None) -> Array:
    """The whole time axis reversed, padding and all."""
    return sequence[:, ::-1]


def _run_through_front(direction: str, layer: Runs, inputs: Inputs) -> Output:
    if direction == "forward":
        return run(layer, inputs)
    sequence, state = run(layer, replace(inputs, lengths=None))
    return Output(_only_at(inputs.valid[:, ::-1], sequence), state)


def _pull_through_front(direction: str, layer: Runs, inputs: Inputs, cotangent: Output) -> Gradients:
    if direction == "forward":
        return pull_back(layer, inputs, cotangent)
    sequence = _only_at(inputs.valid[:, ::-1], cotangent.sequence)
    return pull_back(layer, replace(inputs, lengths=None), Output(sequence, cotangent.state))


def _in_time(spec: RecurrentSpec, inputs: Inputs, sequence: Array) -> Array:
    return reversed_rows(sequence, inputs.lengths)


# --- Axes and steps --------------------------------------------------------------------------------------------------


def _swapped(spec: RecurrentSpec, inputs: Inputs, sequence: Array) -> Array:
    return sequence.swapaxes(0, 1)


def _run_delayed(direction: str, layer: Runs, inputs: Inputs) -> Output:
    sequence, state = run(layer, inputs)
    before = np.concatenate([inputs.state.h[0][:, None], sequence[:, :-1]], axis=1)
    return Output(_only_at(inputs.valid, before), state)


def _pull_delayed(direction: str, layer: Runs, inputs: Inputs, cotangent: Output) -> Gradients:
    before = _only_at(inputs.valid, cotangent.sequence)
    sequence = np.concatenate([before[:, 1:], np.zeros_like(before[:, :1])], axis=1)
    found = pull_back(layer, inputs, Output(sequence, cotangent.state))
    return found._replace(state=found.state._replace(h=found.state.h + before[:, 0][None]))


# --- Padding ---------------------------------------------------------------------------------------------------------


def _with_lengths(change: Callable[[Lengths], Lengths | None]) -> Change:
    """A ragged call with other lengths."""

    def changed(spec: RecurrentSpec, inputs: Inputs) -> Inputs:
        lengths = inputs.lengths
        return inputs if lengths is None else replace(inputs, lengths=change(lengths))

    return Change(inputs=changed)


def _longer(steps: int) -> Change:
    def changed(spec: RecurrentSpec, inputs: Inputs) -> Inputs:
        lengths = inputs.lengths
        return inputs if lengths is None else replace(inputs, lengths=np.clip(lengths + steps, 0, inputs.x.shape[1]))

    return Change(inputs=changed)


_RUN_THROUGH = _with_lengths(lambda lengths: None)


def _last_repeated(spec: RecurrentSpec, inputs: Inputs, output: Output) -> Output:
    last = np.maximum(inputs.valid.sum(axis=1) - 1, 0)
    step = np.minimum(np.arange(inputs.x.shape[1]), last[:, None])
    return output._replace(sequence=np.take_along_axis(output.sequence, step[:, :, None], axis=1))


def _bidirectional(spec: RecurrentSpec) -> bool:
    return spec.bidirectional


SEQUENCES: tuple[Mistake, ...] = (
    *in_family(
        "reverse",
        Mistake(
            "reverse output not flipped",
            "leaves the outputs of the backward direction in the order of processing, as Keras does with "
            "go_backwards=True and Flax with reverse=True alone",
            "flip them back in time before they are concatenated: keep_order=True in Flax, a flip after go_backwards in "
            "Keras",
            Plumbing(flip_out=unchanged),
            _bidirectional,
        ),
        Mistake(
            "reverse input not flipped",
            "runs the backward direction forward in time and flips its outputs all the same",
            "flip the input of the backward direction too",
            Plumbing(flip_in=unchanged),
            _bidirectional,
        ),
        Mistake(
            "backward direction runs forward",
            "runs the backward direction forward in time",
            "run it from the last step to the first: go_backwards=True in Keras, reverse=True in Flax",
            Plumbing(flip_in=unchanged, flip_out=unchanged),
            _bidirectional,
        ),
    ),
    *in_family(
        "time",
        Mistake(
            "runs backward in time",
            "runs from the last step to the first and leaves the outputs in that order, as Keras does with "
            "go_backwards=True",
            "give it the sequence in its own order, go_backwards=False",
            _at_input(_in_time),
        ),
        Mistake(
            "runs backward in time, outputs flipped back",
            "runs from the last step to the first, and hands the outputs back in the order of time, as ONNX does with "
            "direction='reverse'",
            "give it direction='forward'",
            _both(_at_input(_in_time), _at_output(_in_time)),
        ),
    ),
    *in_family(
        "concatenation",
        Mistake(
            "output backward‖forward",
            "concatenates the outputs of the last layer as backward‖forward",
            "concatenate forward‖backward, as PyTorch and Keras do",
            of_output(_BACKWARD_FIRST),
            _bidirectional,
        ),
        Mistake(
            "forward output in both halves",
            "hands out the forward outputs of the last layer in both halves, where the backward ones belong in the second",
            "concatenate forward‖backward, as PyTorch and Keras do",
            of_output(_sequence(lambda spec, sequence: np.tile(sequence[:, :, : spec.hidden_size], 2))),
            _bidirectional,
        ),
        Mistake(
            "backward‖forward between layers",
            "concatenates the outputs of every layer as backward‖forward, so that the layer above reads them swapped",
            "concatenate forward‖backward, as PyTorch and Keras do",
            Plumbing(joined=_BACKWARD_FIRST),
            lambda spec: spec.bidirectional and spec.num_layers > 1,
        ),
        Mistake(
            "directions interleaved",
            "puts the two directions side by side unit by unit, by a stack on the last axis and a reshape",
            "concatenate the directions along the last axis, all units forward and then all units backward",
            Plumbing(joined=_sequence(_unit_by_unit)),
            lambda spec: spec.bidirectional and spec.hidden_size > 1,
        ),
        Mistake(
            "directions mixed with rows",
            "reshapes ONNX's Y (time, directions, batch, units) to (time, batch, directions * units) without the transpose "
            "before it, which mixes rows and directions",
            "transpose Y to (time, batch, directions, units) first, then reshape",
            Plumbing(joined=_sequence(_bare_reshape)),
            _bidirectional,
        ),
    ),
    *in_family(
        "padding",
        Mistake(
            "padding read first backward",
            "reverses the whole batch in time, so that the backward direction begins in the padding of the shorter rows",
            "reverse each row within its own length: a PackedSequence in PyTorch, a mask in Keras, seq_lengths in Flax",
            Plumbing(_whole_reversed, _whole_reversed, run=_run_through_front, pull_back=_pull_through_front),
            _bidirectional,
        ),
        shows="lengths",
    ),
    *in_family(
        "axes",
        Mistake(
            "batch and time swapped",
            "reads x as (time, batch, features), as PyTorch does without batch_first=True: it runs over the rows",
            "pass batch_first=True in PyTorch, time_major=False in Flax, or transpose x",
            _both(_at_input(_swapped), _at_output(_swapped)),
        ),
        Mistake(
            "output time-major",
            "hands the sequence back as (time, batch, features)",
            "transpose the first two axes of the output: here it is (batch, time, features)",
            _at_output(_swapped),
        ),
    ),
    *in_family(
        "time",
        Mistake(
            "output before the step",
            "hands out the state before each step instead of the one after it, one step late",
            "append h to the outputs after it is updated",
            Plumbing(run=_run_delayed, pull_back=_pull_delayed),
        ),
    ),
    *in_family(
        "padding",
        Mistake(
            "padding run through",
            "runs through the padding as if it were data",
            "tell it the lengths: a PackedSequence in PyTorch, a mask in Keras, seq_lengths in Flax, sequence_lens in ONNX",
            _RUN_THROUGH,
        ),
        Mistake(
            "padding run through, outputs masked",
            "runs through the padding and zeroes the outputs there afterwards, so that the states go on changing",
            "keep the state where the mask is off, do not only mask the outputs",
            _both(_RUN_THROUGH, _at_output(lambda spec, inputs, sequence: _only_at(inputs.valid, sequence))),
        ),
        Mistake(
            "mask one step too long",
            "takes each row for one step longer than it is: step <= length where step < length is meant",
            "mask with arange(time) < lengths",
            _longer(1),
        ),
        Mistake(
            "mask one step too short",
            "takes each row for one step shorter than it is: it uses the index of the last step as the length",
            "mask with arange(time) < lengths, where lengths counts the steps",
            _longer(-1),
        ),
        Mistake(
            "empty rows run for one step",
            "takes rows of length 0 for rows of one step, as lengths.clamp(min=1) before pack_padded_sequence does",
            "leave rows of length 0 out of the batch and keep their state as it is",
            _with_lengths(lambda lengths: np.maximum(lengths, 1)),
        ),
        Mistake(
            "last output repeated at padding",
            "repeats the last valid output at padding, as Keras does without zero_output_for_mask=True",
            "zero the outputs at padding: zero_output_for_mask=True in Keras",
            Change(output=_last_repeated),
        ),
        shows="lengths",
    ),
)
