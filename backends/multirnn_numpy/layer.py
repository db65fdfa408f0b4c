"""A stack run by NumPy: how it is called, and its gradients."""

from collections.abc import Callable, Sequence

from multirnn import Gradients, Output, State, Weights
from multirnn.boundary import BoundaryLayer, Inputs
from multirnn.weights import Array
from multirnn_numpy.kernel import CompiledStack
from multirnn_numpy.loop import Padding
from multirnn_numpy.parameters import Parameters
from multirnn_numpy.stack import Stack
from multirnn_numpy.weights import read
from multirnn_numpy.workspace import Workspaces

__all__ = ["NumpyLayer", "batch_first", "padding", "time_first"]


class NumpyLayer(BoundaryLayer):
    """A stack run by loops in NumPy; write into `native.parameters` to train it. In float64 it is the reference."""

    takes_strides = True

    def __init__(self, native: Stack) -> None:
        super().__init__(native.spec)
        self._native = native
        self._parameters = Parameters(native)
        self._workspaces = Workspaces()

    @property
    def native(self) -> Stack:
        """The stack; `native.parameters` are the layer's."""
        return self._native

    @property
    def parameter_count(self) -> int:
        """The size of the stack's arrays."""
        return sum(array.size for array in self._native.parameters.values())

    def weights(self) -> Weights:
        """The parameters as they are now, copied; `InvalidWeights` if they were replaced by arrays that do not fit."""
        return read(self._native)

    def stack_for(self, inputs: Inputs) -> Stack | CompiledStack:
        """The stack that runs a checked call: `native`, or another form over the same parameters."""
        return self._native

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        self._parameters.now()  # or arrays of another dtype would go through
        y, state, _ = self._native.forward(*time_first(inputs.x, inputs.state), padding(inputs))
        return Output(*batch_first(y, state))

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`."""
        return self.forward_and_backward(inputs, lambda output: cotangent)

    def forward_and_backward(self, inputs: Inputs, cotangent_of: Callable[[Output], Output]) -> Gradients:
        """The gradients of a checked call for a cotangent that depends on its output, as the gradient of a loss does.

        The memory of the output is reused afterwards. The cotangent is zero at padding.
        """
        stack = self.stack_for(inputs)
        assert isinstance(stack, Stack)
        self._parameters.now()
        with self._workspaces.lend() as empty:
            y, last, passes = stack.forward(*time_first(inputs.x, inputs.state), padding(inputs), empty)
            cotangent = cotangent_of(Output(*batch_first(y, last)))
            dparameters, dx, dstate = stack.backward(passes, *time_first(cotangent.sequence, cotangent.state))
        return Gradients(dparameters, *batch_first(dx, dstate))


def time_first(sequence: Array, state: State) -> tuple[Array, Sequence[Array]]:
    """In the layout of `Stack`; a batch of one loses its axis."""
    if len(sequence) == 1:
        return sequence[0], [part[:, 0] for part in state.parts]
    return sequence.swapaxes(0, 1), state.parts


def batch_first(sequence: Array, state: Sequence[Array]) -> tuple[Array, State]:
    """In the layout of `Layer`."""
    if sequence.ndim == 2:
        return sequence[None], State(*[part[:, None] for part in state])
    return sequence.swapaxes(0, 1), State(*state)


def padding(inputs: Inputs) -> Padding | None:
    """The steps that are padding, in the layout of `Stack`."""
    if inputs.lengths is None:
        return None
    padded = ~inputs.valid[..., None]
    return padded[0] if len(padded) == 1 else padded.swapaxes(0, 1)
