"""Keras' recurrent layers made fast: `FastSimpleRNN`, `FastLSTM`, `FastGRU` and `FastRNN` replace the loop over time.

They are configured, trained, saved and loaded as Keras' own layers. To load a saved model that has one, import
`multirnn_keras` first.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import keras
import numpy as np

from multirnn import Gradients, InvalidCall, Output, RecurrentSpec, State, Unrepresentable
from multirnn.boundary import Inputs
from multirnn.cells import CellName
from multirnn.layer import FAST, Plan
from multirnn.spec import DTYPES
from multirnn_keras.activations import from_keras
from multirnn_keras.cells import Form, ops
from multirnn_keras.engines import ENGINE, engine
from multirnn_keras.kernel import KerasKernel, serves, there
from multirnn_keras.kernel import recurrence as by_kernel
from multirnn_keras.layer import KerasLayer, mask_of, through
from multirnn_keras.loop import plain
from multirnn_keras.memory import in_memory
from multirnn_keras.reverse import recurrence
from multirnn_keras.structure import CELLS, recurrent_layers, variables_of
from multirnn_keras.weights import from_variables

__all__ = ["KERAS_CELLS", "Fast", "FastGRU", "FastKerasLayer", "FastLSTM", "FastRNN", "FastSimpleRNN"]

KERAS_CELLS: dict[Any, CellName] = {getattr(keras.layers, f"{kind.__name__}Cell"): cell for kind, cell in CELLS.items()}
Loop = Callable[[Form, Sequence[Any], Any], list[Any]]


class Fast(keras.layers.RNN):  # type: ignore[misc]
    """A layer of Keras with our loop; a mixin before Keras' own class.

    Keras' own loop runs with dropout while training, with `unroll=True`, with an activation that no spec has, and with a
    cell that is not Keras' own. With `use_kernel`, which is not saved, graphs of TensorFlow may call back to the compiled
    recurrence of multirnn. Such graphs run in this process alone. `model.export`, TFLite and `tf.saved_model.save` trace
    anew, without calls back; a concrete function that was traced before refuses to be saved.
    """

    use_kernel = True

    def inner_loop(self, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        """See `keras.layers.RNN`: the last output, all outputs in the order in which they were computed, the states."""
        form = self.form()
        if form is None or self.unroll or (training and (self.cell.dropout or self.cell.recurrent_dropout)):
            return super().inner_loop(sequences, initial_state, mask, training)
        if keras.tree.is_nested(mask):
            mask = mask[0]  # of a layer that also returned its states
        states = initial_state if isinstance(initial_state, list | tuple) else [initial_state]
        sequences, states, mask = self._given(sequences, states, mask)
        primals = [sequences, *variables_of(self), *states]
        # The compiled recurrence gives zero at padding, not the output of the step before.
        may = self.use_kernel and (mask is None or self.zero_output_for_mask) and self.compute_dtype in DTYPES
        if may and serves(spec := self._spec(form), None, *sequences.shape[:2]):
            compiled = KerasKernel(spec, form.reverse)
            sequence, *final = by_kernel(compiled, partial(self._loop, plain, form), primals, mask)
        else:
            sequence, *final = self._loop(recurrence, form, primals, mask)
        if form.reverse:
            sequence = ops.flip(sequence, axis=1)
        return sequence[:, -1], sequence, final

    def _given(self, sequences: Any, states: Sequence[Any], mask: Any) -> tuple[Any, list[Any], Any]:
        """The input, the states and the mask, cast and broadcast."""
        # Keras has cast other floating dtypes, but not integers.
        sequences, *states = (ops.cast(each, self.compute_dtype) for each in (sequences, *states))
        batch, time, features = ops.shape(sequences)
        known = self.cell.kernel.shape[0]
        if sequences.shape[-1] not in (known, None):
            raise InvalidCall(f"layer {self.name!r} was built for {known} features, and is given {features}")
        for state in states:
            if len(state.shape) != 2 or state.shape[1] != self.cell.units:
                raise InvalidCall(
                    f"the states of layer {self.name!r} have the shape (batch, {self.cell.units}), not {tuple(state.shape)}"
                )
        if mask is not None:
            mask = ops.cast(mask, "bool")
            mask = _whole(mask[:, :, 0] if len(mask.shape) == 3 else mask, (batch, time))
        return sequences, [_whole(state, (batch, self.cell.units)) for state in states], mask

    def _loop(self, run: Loop, form: Form, primals: Sequence[Any], mask: Any) -> list[Any]:
        """The outputs, in the order of their inputs, and the final states, by the engine's own operations."""
        sequence, *final = run(form, primals, mask)
        return [_masked(sequence, mask, self.zero_output_for_mask, form.reverse), *final]

    def form(self) -> Form | None:
        """What the loop computes; None if no spec has the activations, or the cell is not Keras' own."""
        cell = self.cell
        kind = KERAS_CELLS.get(type(cell))
        if kind is None or "call" in vars(cell):
            return None
        try:
            activation = from_keras(cell.activation)
            gate = from_keras(getattr(cell, "recurrent_activation", keras.activations.sigmoid))
        except Unrepresentable:
            return None
        return Form(kind, getattr(cell, "reset_after", True), activation, gate, cell.use_bias, self.go_backwards)

    def _spec(self, form: Form) -> RecurrentSpec:
        fields: dict[str, Any] = form._asdict()
        del fields["reverse"]
        if fields.pop("bias") is False:
            fields["bias"] = "none"
        fields |= {"input_size": self.cell.kernel.shape[0], "hidden_size": self.cell.units, "dtype": self.compute_dtype}
        return RecurrentSpec(**fields)


def _whole(tensor: Any, shape: tuple[Any, ...]) -> Any:
    """A tensor broadcast to this shape, as Keras' layers may do."""
    known = all(isinstance(size, int) for size in shape)
    return tensor if known and tuple(tensor.shape) == shape else ops.broadcast_to(tensor, shape)


def _masked(sequence: Any, mask: Any, zero: bool, reverse: bool) -> Any:
    """The outputs with Keras' values at padding: zero, or the output of the valid step before."""
    if mask is None:
        return sequence
    if not zero:
        if ENGINE == "jax":
            return sequence  # on JAX, Keras repeats the initial state where there is no such step
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


@keras.saving.register_keras_serializable(package="multirnn")
class FastRNN(Fast):
    """`keras.layers.RNN`, faster with one of Keras' own cells: `SimpleRNNCell`, `LSTMCell` or `GRUCell`."""


LAYERS: dict[CellName, Any] = {"simple_rnn": FastSimpleRNN, "lstm": FastLSTM, "gru": FastGRU}
CELLS.update({layer: cell for cell, layer in LAYERS.items()})


class FastKerasLayer(KerasLayer):
    """A stack realised by `FastSimpleRNN`, `FastLSTM` or `FastGRU`.

    On TensorFlow and a processor, calls from NumPy go straight to the compiled recurrence, over the memory of the model's
    variables. Without it, and on the other engines, they run the loops of `multirnn_keras.reverse`.

    A call reads each variable once. If another thread assigns to several variables meanwhile, the call may see some new
    values and some old ones, but no variable half written. (On PyTorch it may: there Keras writes into the memory of its
    variables.)
    """

    _eager_first = False

    def __init__(self, spec: RecurrentSpec, native: Any, device: str | None = None) -> None:
        super().__init__(spec, native, device)
        self._kernel: Any = KerasKernel(spec) if there(device) else None
        self._variables = [variable.value for variable in native.weights]

    @property
    def implementation(self) -> str:
        """See `BoundaryLayer.implementation`."""
        return FAST

    def plan(self, batch: int, time: int, *, lengths: bool = False, gradients: bool = False) -> Plan:
        """The code that runs calls of this shape."""
        return _PLAN_OF_KERNEL if serves(self.spec, self._device, batch, time) else Plan(FAST, engine.loops)

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        if not serves(self.spec, self._device, *inputs.x.shape[:2]):
            return super().run(inputs)
        sequence, *state, _ = self._kernel.forward(*self._arguments(inputs))
        return Output(sequence, State(*state))

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`."""
        if not serves(self.spec, self._device, *inputs.x.shape[:2]):
            return super().pull_back(inputs, cotangent)
        x, *rest = self._arguments(inputs)
        nothing = np.empty(0, np.uint8)
        y = np.empty((*x.shape[:2], self.spec.output_size), x.dtype)
        found = self._kernel.backward(x, cotangent.sequence, *cotangent.state.parts, y, nothing, *rest)
        count = 1 + len(self._variables)
        return Gradients(from_variables(found[1:count], self.spec).arrays, found[0], State(*found[count:]))

    def _arguments(self, inputs: Inputs) -> list[Any]:
        mask = mask_of(inputs)
        weights = [in_memory(variable) for variable in self._variables]
        return [inputs.x, *weights, *inputs.state.parts, *([] if mask is None else [mask])]

    def apply(self, mask: Any, primals: list[Any]) -> list[Any]:
        """See `KerasLayer.apply`."""
        x, *states = primals
        if serves(self.spec, self._device, *x.shape[:2]):
            given = [x, *self._variables, *states]
            return by_kernel(self._kernel, partial(self._loops, plain), given, mask)
        return self._loops(recurrence, [x, *(variable.value for variable in self.native.weights), *states], mask)

    def _loops(self, run: Loop, primals: Sequence[Any], mask: Any) -> list[Any]:
        """The stack by the engine's own operations; the primals are x, the weights, and the parts of the state."""
        count = 1 + len(self._variables)
        weights = iter(primals[1:count])

        def loop(layer: Any, sequence: Any, initial: list[Any]) -> list[Any]:
            if (form := layer.form()) is None:
                raise InvalidCall(f"layer {layer.name!r} of this model was changed, and has no fast loop any more")
            output, *final = run(form, [sequence, *islice(weights, 2 + form.bias), *initial], mask)
            return [_masked(output, mask, True, form.reverse), *final]

        return through(recurrent_layers(self.native), loop, [primals[0], *primals[count:]])


_PLAN_OF_KERNEL = Plan(FAST, "the compiled recurrence, the whole stack in one call, over the memory of the variables")
