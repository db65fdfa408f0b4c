"""A stack in ONNX Runtime: what is refused, how it is built and run. It has no gradients."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from multirnn import InvalidCall, InvalidWeights, Output, RecurrentSpec, State, Weights
from multirnn.boundary import InferenceLayer, Inputs
from multirnn.layer import Lengths
from multirnn.registry import backend as load_backend
from multirnn.weights import Array
from multirnn_onnxruntime.graph import inputs_of, outputs_of
from multirnn_onnxruntime.overflow import Guard
from multirnn_onnxruntime.session import BoundStep, OnnxStack, settle, steps
from multirnn_onnxruntime.weights import model, read_as

__all__ = ["OnnxRuntimeLayer", "build", "refuses"]

FEW = 64
"""Rows up to which a step is run by a `BoundStep`: a simple RNN of 32 units took 11 µs for 15 with one row, 39 for 42
with 64; an LSTM of 256 units with 128 rows took 5.2 ms for 4.6.
"""

LARGEST = 2**31 - 2**20  # bytes of a message of Protocol Buffers, less what is no weight


def refuses(spec: RecurrentSpec) -> str | None:
    """None if ONNX Runtime has operators for the spec, else the reason why not."""
    if spec.dtype != "float32":
        return (
            f"ONNX Runtime computes RNN, LSTM and GRU in float32 alone, not in {spec.dtype}; take dtype='float32', "
            "or another backend"
        )
    if 4 * spec.parameter_count > LARGEST:
        return (
            f"an ONNX model in memory holds at most 2 GB, and {spec.parameter_count} parameters are more; take fewer, "
            "or another backend"
        )
    return None


def build(weights: Weights, device: str | None, threads: int = 0) -> "OnnxRuntimeLayer":
    """The layer of these weights; `InvalidWeights` unless all are finite, `InvalidCall` on a device other than "cpu"."""
    if bad := [name for name, array in weights.arrays.items() if not np.isfinite(array).all()]:
        raise InvalidWeights(
            f"{bad[0]} holds NaN or infinity, which ONNX Runtime loses on its way to the outputs; it must be finite"
        )
    if device not in (None, "cpu"):
        raise InvalidCall(
            f"the ONNX Runtime backend computes on the device 'cpu' alone, not on {device!r}: the operators of other "
            "execution providers are not held to the same function"
        )
    return OnnxRuntimeLayer(weights, OnnxStack(model(weights), threads=threads))


class OnnxRuntimeLayer(InferenceLayer):
    """A stack of ONNX Runtime's operators RNN, LSTM and GRU; for inference only.

    The NumPy backend computes rows in which a number is not finite, or may overflow: see `overflow`.

    Args:
        weights: what it computes.
        native: the model of them and its session.
    """

    takes_strides = True  # a sequence that is time first in memory is not copied

    def __init__(self, weights: Weights, native: OnnxStack) -> None:
        spec = weights.spec
        super().__init__(spec)
        self._native = native
        self._guard = Guard(weights)
        self._watched: OnnxStack | None = None
        self._inputs, self._outputs = inputs_of(spec), outputs_of(spec)
        # Those that no call is using, by rows and by whether the state is given.
        self._steps: defaultdict[tuple[int, bool], list[BoundStep]] = defaultdict(list)
        self._full = steps(None, 0, 0)

    @property
    def native(self) -> OnnxStack:
        """The model and its session; the weights are constants in both."""
        return self._native

    @property
    def parameter_count(self) -> int:
        """The sizes of the model's initialisers, added up."""
        return sum(int(np.prod(tensor.dims)) for tensor in self._native.model.graph.initializer)

    def weights(self) -> Weights:
        """The model's initialisers: the weights that the layer was built from."""
        return read_as(self.spec, self._native.model)

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        given = inputs.state.parts if inputs.state_given else ()
        sequence, *rest = self._run(inputs.x, given, inputs.lengths)
        final, below = rest[: len(self._states)], rest[len(self._states) :]
        outputs: list[Array] = []
        if self._guard.sees_outputs:
            if not below:  # there is one layer; or one step, and the outputs of all layers are their states
                below = [h.swapaxes(0, 1) for h in np.split(final[0], self.spec.num_layers)[:-1]]
            outputs = [*below, sequence]
        passes = self._guard.passes(inputs.x, *given, *outputs)
        unsafe = None if passes else self._guard.unsafe(inputs, outputs)
        if inputs.lengths is not None:
            settle(sequence.swapaxes(0, 1), final, inputs.state.parts, inputs.lengths)
        if unsafe is not None:
            self._replace(unsafe, inputs, sequence, final)
        return Output(sequence, State(*final))

    def run_from_zero(self, x: Array) -> Output:
        """See `Boundary.run_from_zero`."""
        if self._guard.sees_outputs or not self._guard.passes(x):
            return super().run_from_zero(x)
        sequence, *final = self._run(x, (), None)
        return Output(sequence, State(*final))

    def _replace(self, rows: NDArray[np.bool_], inputs: Inputs, sequence: Array, final: Sequence[Array]) -> None:
        """Overwrite these rows with the NumPy backend's results."""
        reference = load_backend("numpy").build(self.weights())
        with np.errstate(all="ignore"):  # on all rows: fewer may round, and overflow, differently
            right = reference(inputs.x, inputs.state, lengths=inputs.lengths)
        sequence[rows] = right.sequence[rows]
        for part, array in zip(final, right.state.parts, strict=True):
            part[:, rows] = array[:, rows]

    def _run(self, x: Array, state: Sequence[Array], lengths: Lengths | None) -> Sequence[Array]:
        """The sequence `(batch, time, directions * hidden_size)` and the parts of the final state.

        A step of few rows is run by a `BoundStep`, all else by the session. Rows of length 0 are run for a step, and the
        state is zero unless given. If the guard `sees_outputs`, the sequences of the layers below the last follow, but
        not of a single step.
        """
        batch, time, _ = x.shape
        if time > 1 or batch > FEW:
            first = state or self._zero_state(batch).parts
            rows = self._full_rows(batch, time) if lengths is None else steps(lengths, batch, time)
            given = dict(zip(self._inputs, (x.swapaxes(0, 1), rows, *first), strict=True))
            native = self._native
            outputs: tuple[str, ...] | None = self._outputs
            if time > 1 and self._guard.sees_outputs and self.spec.num_layers > 1:
                self._watched = native = self._watched or native.watched()
                outputs = None
            found = native.session.run(outputs, given)
            states = len(self._outputs)
            return found[0].swapaxes(0, 1), *found[1:states], *(below.swapaxes(0, 1) for below in found[states:])
        free = self._steps[batch, bool(state)]
        try:
            step = free.pop()  # atomic, as other threads may be here
        except IndexError:
            step = BoundStep(self._native, self.spec, batch)
        results = step(x, state)
        free.append(step)
        return results

    def _full_rows(self, batch: int, time: int) -> NDArray[np.int32]:
        """`steps` of full rows, kept from the last call if that had the same shape."""
        full = self._full
        if len(full) != batch or full[0] != time:
            self._full = full = steps(None, batch, time)
        return full
