"""Keras' recurrent layers made fast: the same classes, functions and weights, with a loop of their own.

`FastSimpleRNN`, `FastLSTM` and `FastGRU` are Keras' layers in all but the loop over time: they are configured, trained,
saved and loaded as those are. To load a saved model that has one, import `multirnn_keras` first.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np

from multirnn import Gradients, Inputs, InvalidCall, Output, RecurrentSpec, State, Unrepresentable, Weights
from multirnn.cells import Bias, CellName
from multirnn.layer import FAST, Plan
from multirnn.spec import DTYPES
from multirnn_keras.activations import from_keras
from multirnn_keras.cells import Form
from multirnn_keras.engine import ENGINE, device_named, on_device
from multirnn_keras.host import Host
from multirnn_keras.kernel import recurrence as by_kernel
from multirnn_keras.kernel import serves, there
from multirnn_keras.layer import KerasLayer, mask_of, parts_of
from multirnn_keras.memory import in_memory
from multirnn_keras.recurrence import recurrence, undifferentiated
from multirnn_keras.structure import CELLS, recurrent_layers
from multirnn_keras.weights import from_variables, stack

__all__ = ["FastGRU", "FastKerasLayer", "FastLSTM", "FastSimpleRNN", "build"]

ops: Any = keras.ops  # typed there as what a layer of Keras makes of them
CELLS_OF_KERAS: dict[Any, CellName] = {
    keras.layers.SimpleRNNCell: "simple_rnn",
    keras.layers.LSTMCell: "lstm",
    keras.layers.GRUCell: "gru",
}
Loop = Callable[[Form, Sequence[Any], Any], list[Any]]


class Fast(keras.layers.RNN):  # type: ignore[misc]
    """A layer of Keras with a loop of ours; a mixin before Keras' own class.

    With dropout while training, with `unroll=True`, with activations that no spec has, and with a cell that is not Keras'
    own, it is Keras' own loop.

    Attributes:
        use_kernel: whether graphs of TensorFlow may call back to the compiled recurrence of multirnn. Such graphs run in
            this process alone: set it to False before `export` writes them for elsewhere. It is not saved.
    """

    use_kernel = True

    def inner_loop(self, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        """See `keras.layers.RNN`: the last output, all of them in the order in which they were computed, the states."""
        form = self.form()
        if form is None or self.unroll or (training and (self.dropout or self.recurrent_dropout)):
            return super().inner_loop(sequences, initial_state, mask, training)
        states = initial_state if isinstance(initial_state, list | tuple) else [initial_state]
        sequences, states, mask = self._given(sequences, states, mask)
        cell = self.cell
        primals = [sequences, cell.kernel, cell.recurrent_kernel, *([cell.bias] if cell.use_bias else []), *states]
        # The compiled recurrence gives zero at padding, and not the output of the step before.
        zero = mask is None or self.zero_output_for_mask
        if (
            zero
            and self.use_kernel
            and self.compute_dtype in DTYPES
            and serves(spec := self._spec(form), None, *sequences.shape[:2])
        ):
            host = Host(spec, form.reverse)
            sequence, *final = by_kernel(host, partial(self._loop, undifferentiated, form), primals, mask)
        else:
            sequence, *final = self._loop(recurrence, form, primals, mask)
        if form.reverse:
            sequence = ops.flip(sequence, axis=1)
        return sequence[:, -1], sequence, final

    def _given(self, sequences: Any, states: Sequence[Any], mask: Any) -> tuple[Any, list[Any], Any]:
        """The input, the states and the mask in their dtypes and in the whole of their shapes."""
        # Keras has cast what is of another floating dtype, and not integers.
        sequences, *states = (ops.cast(each, self.compute_dtype) for each in (sequences, *states))
        batch, time, features = ops.shape(sequences)
        known = self.cell.kernel.shape[0]
        if sequences.shape[-1] not in (known, None):
            raise InvalidCall(f"layer {self.name!r} was built for {known} features, and is given {features}")
        for state in states:
            if len(state.shape) != 2 or state.shape[1] != self.units:
                raise InvalidCall(
                    f"the states of layer {self.name!r} have the shape (batch, {self.units}), not {tuple(state.shape)}"
                )
        if mask is not None:
            mask = ops.cast(mask, "bool")
            mask = _whole(mask[:, :, 0] if len(mask.shape) == 3 else mask, (batch, time))
        return sequences, [_whole(state, (batch, self.units)) for state in states], mask

    def _loop(self, run: Loop, form: Form, primals: Sequence[Any], mask: Any) -> list[Any]:
        """The outputs, where their inputs stand, and the final states, by the engine's own operations."""
        sequence, *final = run(form, primals, mask)
        return [_masked(sequence, mask, self.zero_output_for_mask, form.reverse), *final]

    def form(self) -> Form | None:
        """What the loop computes; None where no spec has such an activation, or the cell computes in its own way."""
        cell = self.cell
        kind = CELLS_OF_KERAS.get(type(cell))
        if kind is None or "call" in vars(cell):
            return None
        try:
            activation = from_keras(cell.activation)
            gate = from_keras(getattr(cell, "recurrent_activation", keras.activations.sigmoid))
        except Unrepresentable:
            return None
        return Form(kind, getattr(cell, "reset_after", True), activation, gate, cell.use_bias, self.go_backwards)

    def _spec(self, form: Form) -> RecurrentSpec:
        features, _ = self.cell.kernel.shape
        dtype: Any = self.compute_dtype
        held: Bias = "double" if form.cell == "gru" and form.reset_after else "single"
        return RecurrentSpec(
            form.cell,
            features,
            self.units,
            bias=held if form.bias else "none",
            reset_after=form.reset_after,
            activation=form.activation,
            recurrent_activation=form.recurrent_activation,
            dtype=dtype,
        )


def _whole(tensor: Any, shape: tuple[Any, ...]) -> Any:
    """A tensor of this shape, of one that Keras' layers may broadcast to it."""
    known = all(isinstance(size, int) for size in shape)
    return tensor if known and tuple(tensor.shape) == shape else ops.broadcast_to(tensor, shape)


def _masked(sequence: Any, mask: Any, zero: bool, reverse: bool) -> Any:
    """The outputs that Keras gives at padding: zero, or the output of the valid step before."""
    if mask is None:
        return sequence
    if not zero:
        if ENGINE == "jax":
            return sequence  # with the initial state where there is no such step
        steps = ops.cast(mask, "int32")
        mask = ops.flip(ops.cumsum(ops.flip(steps, axis=1), axis=1), axis=1) if reverse else ops.cumsum(steps, axis=1)
        mask = mask > 0
    return ops.where(mask[:, :, None], sequence, ops.zeros_like(sequence))


@keras.saving.register_keras_serializable(package="multirnn")
class FastSimpleRNN(Fast, keras.layers.SimpleRNN):  # type: ignore[misc]
    """`keras.layers.SimpleRNN`, faster."""


@keras.saving.register_keras_serializable(package="multirnn")
class FastLSTM(Fast, keras.layers.LSTM):  # type: ignore[misc]
    """`keras.layers.LSTM`, faster."""


@keras.saving.register_keras_serializable(package="multirnn")
class FastGRU(Fast, keras.layers.GRU):  # type: ignore[misc]
    """`keras.layers.GRU`, faster."""


LAYERS = {"simple_rnn": FastSimpleRNN, "lstm": FastLSTM, "gru": FastGRU}
CELLS.update({layer: cell for cell, layer in LAYERS.items()})


def build(weights: Weights, device: str | None) -> "FastKerasLayer":
    """The layer of these weights.

    Raises:
        InvalidCall: Keras' engine has no such device here.
    """
    device = device_named(device)
    with on_device(device):
        return FastKerasLayer(weights.spec, stack(weights, LAYERS), device)


class FastKerasLayer(KerasLayer):
    """A stack realised by `FastSimpleRNN`, `FastLSTM` or `FastGRU`.

    On TensorFlow and a processor, calls from NumPy go to the compiled recurrence at once, over the memory of the model's
    variables. Without it, and on the other engines, they run the loops of `multirnn_keras.recurrence`.

    A call reads each variable once. Where another thread assigns to several of them meanwhile, it may find one assigned
    and the next one not yet; of each it has all numbers from before, or all from after. (On the engine torch not even that:
    there Keras writes into the memory of its variables.)
    """

    _compiles = True

    def __init__(self, spec: RecurrentSpec, native: Any, device: str | None = None) -> None:
        super().__init__(spec, native, device)
        self._host: Any = Host(spec) if there(device) else None
        self._variables = [variable.value for variable in native.weights]

    @property
    def implementation(self) -> str:
        """See `BoundaryLayer.implementation`."""
        return FAST

    def plan(self, batch: int, time: int, *, lengths: bool = False, gradients: bool = False) -> Plan:
        """What runs for calls of this shape."""
        return _PLAN_OF_KERNEL if serves(self.spec, self._device, batch, time) else _PLAN

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        if not self._served(inputs):
            return super().run(inputs)
        sequence, *state, _ = self._host.forward(*self._arguments(inputs))
        return Output(sequence, State(*state))

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`."""
        if not self._served(inputs):
            return super().pull_back(inputs, cotangent)
        x, *rest = self._arguments(inputs)
        nothing = np.empty(0, np.uint8)
        y = np.empty((*x.shape[:2], self.spec.output_size), x.dtype)
        found = self._host.backward(x, cotangent.sequence, *parts_of(cotangent.state), y, nothing, *rest)
        count = 1 + len(self.native.weights)
        return Gradients(from_variables(found[1:count], self.spec).arrays, found[0], State(*found[count:]))

    def _served(self, inputs: Inputs) -> bool:
        return serves(self.spec, self._device, *inputs.x.shape[:2])

    def _arguments(self, inputs: Inputs) -> list[Any]:
        mask = mask_of(inputs)
        weights = [in_memory(variable) for variable in self._variables]
        return [inputs.x, *weights, *parts_of(inputs.state), *([] if mask is None else [mask])]

    def apply(self, mask: Any, primals: list[Any]) -> list[Any]:
        """See `KerasLayer.apply`."""
        x, *states = primals
        if serves(self.spec, self._device, *x.shape[:2]):
            given = [x, *self._variables, *states]
            return by_kernel(self._host, partial(self._loops, undifferentiated), given, mask)
        return self._loops(recurrence, [x, *(variable.value for variable in self.native.weights), *states], mask)

    def _loops(self, run: Loop, primals: Sequence[Any], mask: Any) -> list[Any]:
        """The same by the engine's own operations; the primals are x, the weights, and the parts of the state."""
        spec = self.spec
        kinds = 2 if spec.bias == "none" else 3
        count = 1 + kinds * spec.num_layers * len(spec.directions)
        sequence, weights = primals[0], iter(primals[1:count])
        initial = zip(*(ops.unstack(part) for part in primals[count:]), strict=True)
        final = []
        for layers in recurrent_layers(self.native):
            outputs = []
            for layer in layers:
                if (form := layer.form()) is None:
                    raise InvalidCall(
                        f"layer {layer.name!r} of this model was changed, and has no loop of ours any more"
                    )
                own = [next(weights) for _ in range(kinds)]
                output, *end = run(form, [sequence, *own, *next(initial)], mask)
                outputs.append(_masked(output, mask, True, form.reverse))
                final.append(end)
            sequence = ops.concatenate(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
        return [sequence, *(ops.stack(part) for part in zip(*final, strict=True))]


_PLAN_OF_KERNEL = Plan("fast", "the compiled recurrence, the whole stack in one call, over the memory of the variables")
_PLAN = Plan(
    "fast",
    {
        "tensorflow": "a loop compiled by XLA for each shape, the input projected before it, gradients by one loop back",
        "jax": "lax.scan, the input projected before it, gradients by one scan back",
        "torch": "a loop over addmm, the input projected before it, gradients by one loop back",
    }.get(ENGINE, ""),
)
