"""The NumPy backend: every spec, exactly, on the processor."""

from multirnn import BoundaryLayer, Gradients, Inputs, Output, State, Weights
from multirnn.weights import Array
from multirnn_numpy.stack import Stack
from multirnn_numpy.weights import read

__all__ = ["NumpyLayer"]


class NumpyLayer(BoundaryLayer):
    """A stack in NumPy. In float64 it is what all other backends are held against."""

    def __init__(self, native: Stack) -> None:
        super().__init__(native.spec)
        self._native = native

    @property
    def native(self) -> Stack:
        """The `Stack`; its parameters are this layer's."""
        return self._native

    @property
    def parameter_count(self) -> int:
        """The sizes of the stack's arrays, added up."""
        return sum(array.size for array in self._native.parameters.values())

    def weights(self) -> Weights:
        """The parameters as they are now, after any training."""
        return read(self._native)

    def run(self, inputs: Inputs) -> Output:
        """The output of a checked call."""
        y, state, _ = self._native.forward(*_time_major(inputs))
        return Output(_batch_major(y), _state(state, y))

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """The gradients of a checked call: forward once, remembering, then back."""
        _, _, tape = self._native.forward(*_time_major(inputs))
        dy, dstate, _ = _time_major(Inputs(cotangent.sequence, cotangent.state, None))
        weights, dx, first = self._native.backward(tape, dy, dstate)
        return Gradients(weights, _batch_major(dx), _state(first, dx))


def _time_major(inputs: Inputs) -> tuple[Array, list[Array], Array | None]:
    """What `Stack.forward` takes; of a batch of one without the batch axis."""
    padded = None if inputs.lengths is None else ~inputs.valid[..., None]
    state = [part for part in inputs.state if part is not None]
    if len(inputs.x) == 1:
        return inputs.x[0], [part[:, 0] for part in state], None if padded is None else padded[0]
    return inputs.x.swapaxes(0, 1), state, None if padded is None else padded.swapaxes(0, 1)


def _batch_major(array: Array) -> Array:
    return array[None] if array.ndim == 2 else array.swapaxes(0, 1)


def _state(parts: list[Array], steps: Array) -> State:
    return State(*(part[:, None] if steps.ndim == 2 else part for part in parts))
