"""Mistakes with the sequence: its directions, its axes, its padding."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from multirnn.boundary import Inputs
from multirnn.layer import Gradients, Lengths, Output
from multirnn.mistakes.change import Change, Runs, bidirectional, known, pull_back, run
from multirnn.mistakes.edits import Edit, of_output
from multirnn.mistakes.plumbing import Plumbing, reversed_rows, unchanged
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

__all__ = ["SEQUENCES"]

Map = Callable[[RecurrentSpec, Inputs, Array], Array]  # of a sequence (batch, time, n) of a call


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


def _sequence(change: Callable[[RecurrentSpec, Array], Array]) -> Edit:
    return lambda spec, arrays: {"sequence": change(spec, arrays["sequence"])}


_BACKWARD_FIRST = _sequence(lambda spec, sequence: np.roll(sequence, spec.hidden_size, axis=2))
_FORWARD_TWICE = _sequence(lambda spec, sequence: np.tile(sequence[:, :, : spec.hidden_size], 2))


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


def _with_lengths(change: Callable[[Lengths, int], Lengths | None]) -> Change:
    """A ragged call with other lengths, made from its own and from the time."""

    def changed(spec: RecurrentSpec, inputs: Inputs) -> Inputs:
        lengths = inputs.lengths
        return inputs if lengths is None else replace(inputs, lengths=change(lengths, inputs.x.shape[1]))

    return Change(inputs=changed)


_RUN_THROUGH = _with_lengths(lambda lengths, time: None)


def _last_repeated(spec: RecurrentSpec, inputs: Inputs, output: Output) -> Output:
    last = np.maximum(inputs.valid.sum(axis=1) - 1, 0)
    step = np.minimum(np.arange(inputs.x.shape[1]), last[:, None])
    return output._replace(sequence=np.take_along_axis(output.sequence, step[:, :, None], axis=1))


SEQUENCES = known(
    "sequences",
    {
        "reverse output not flipped": (Plumbing(flip_out=unchanged), bidirectional),
        "reverse input not flipped": (Plumbing(flip_in=unchanged), bidirectional),
        "backward direction runs forward": (Plumbing(flip_in=unchanged, flip_out=unchanged), bidirectional),
        "runs backward in time": _at_input(_in_time),
        "runs backward in time, outputs flipped back": _both(_at_input(_in_time), _at_output(_in_time)),
        "output backward‖forward": (of_output(_BACKWARD_FIRST), bidirectional),
        "forward output in both halves": (of_output(_FORWARD_TWICE), bidirectional),
        "backward‖forward between layers": (
            Plumbing(joined=_BACKWARD_FIRST),
            lambda spec: spec.bidirectional and spec.num_layers > 1,
        ),
        "directions interleaved": (
            Plumbing(joined=_sequence(_unit_by_unit)),
            lambda spec: spec.bidirectional and spec.hidden_size > 1,
        ),
        "directions mixed with rows": (Plumbing(joined=_sequence(_bare_reshape)), bidirectional),
        "padding read first backward": (
            Plumbing(_whole_reversed, _whole_reversed, run=_run_through_front, pull_back=_pull_through_front),
            bidirectional,
        ),
        "batch and time swapped": _both(_at_input(_swapped), _at_output(_swapped)),
        "output time-major": _at_output(_swapped),
        "output before the step": Plumbing(run=_run_delayed, pull_back=_pull_delayed),
        "padding run through": _RUN_THROUGH,
        "padding run through, outputs masked": _both(
            _RUN_THROUGH, _at_output(lambda spec, inputs, sequence: _only_at(inputs.valid, sequence))
        ),
        "mask one step too long": _with_lengths(lambda lengths, time: np.minimum(lengths + 1, time)),
        "mask one step too short": _with_lengths(lambda lengths, time: np.maximum(lengths - 1, 0)),
        "empty rows run for one step": _with_lengths(lambda lengths, time: np.maximum(lengths, 1)),
        "last output repeated at padding": Change(output=_last_repeated),
    },
)
