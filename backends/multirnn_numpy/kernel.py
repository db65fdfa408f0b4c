"""A `Stack` run by the compiled recurrence, `multirnn.kernel`."""

from collections.abc import Callable, Mapping
from ctypes import addressof, c_char
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multirnn import Gradients, Output, State, kernel
from multirnn.boundary import Inputs
from multirnn.weights import Array
from multirnn_numpy.parameters import Parameters
from multirnn_numpy.stack import Stack
from multirnn_numpy.workspace import Empty, Workspaces

__all__ = ["CompiledStack"]

NOWHERE = (0, 0)

Table = tuple[tuple[Array, ...], bytes]
"""Parameters, and the table of their addresses, good for as long as they are kept."""


class CompiledStack:
    """Runs checked calls with the parameters of a stack, where they are and as they are at the call.

    Args:
        native: the stack.
        frozen: whether its parameters are constants; then they are packed here, and not in every call.

    Raises:
        MissingFramework: the compiled recurrence is not installed.
    """

    def __init__(self, native: Stack, *, frozen: bool = False) -> None:
        spec = native.spec
        self._native = native
        self._kernel = kernel.Stack(spec)
        self.instructions = self._kernel.instructions
        self._dtype, self._features, self._hidden = np.dtype(spec.dtype), spec.output_size, spec.hidden_size
        self._rows, self._has_c = len(list(spec.passes)), "c" in spec.form.states
        self._now = Parameters(native).now
        self._bound: Table = ((), b"")
        self._workspaces = Workspaces()
        self._packed: kernel.Packed | None = None
        if frozen:
            parameters = self._parameters()
            self._packed = self._kernel.pack(parameters[1])

    def run(self, inputs: Inputs, threads: int) -> Output:
        """The output of a checked call; see `BoundaryLayer.run`."""
        return self._forward(inputs, threads, self._parameters())

    def bound(self, inputs: Inputs, threads: int) -> Callable[[], Output]:
        """A checked call of which nothing is left but the compiled recurrence, and new memory for what comes out of it."""
        batch, time, _ = inputs.x.shape
        parameters, x, first, lengths = self._parameters(), _sequence(inputs.x), _first(inputs), _lengths(inputs)
        table = parameters[1]
        packed = self._address_of_packed()

        # By the addresses alone the arrays would not be kept.
        def call(kept: tuple[Inputs, Table] = (inputs, parameters)) -> Output:
            y, last = np.empty((batch, time, self._features), self._dtype), self._empty_state(batch)
            self._kernel.forward(
                table, batch, time, x, _sequence(y), first, _state(last), lengths, 0, threads, packed=packed
            )
            return Output(y, last)

        return call

    def there_and_back(self, inputs: Inputs, cotangent_of: Callable[[Output], Output], threads: int) -> Gradients:
        """The gradients of a checked call; see `NumpyLayer.there_and_back`."""
        x, parameters = inputs.x, self._parameters()
        table = parameters[1]
        batch, time, _ = x.shape
        dparameters = {name: np.empty(shape, self._dtype) for name, shape in self._native.spec.shapes.items()}
        dx, dfirst = np.empty(x.shape, self._dtype), self._empty_state(batch)
        with self._workspaces.lend() as empty:
            stash = _address(empty((self._kernel.stash_size(batch, time),), np.uint8))
            output = self._forward(inputs, threads, parameters, stash, empty)
            cotangent = cotangent_of(output)
            self._kernel.backward(
                table,
                self._bind(dparameters),
                batch,
                time,
                _sequence(x),
                _sequence(output.sequence),
                _first(inputs),
                _sequence(cotangent.sequence),
                _state(cotangent.state),
                _sequence(dx),
                _state(dfirst),
                stash,
                threads,
            )
        return Gradients(dparameters, dx, dfirst)

    def _forward(
        self, inputs: Inputs, threads: int, parameters: Table, stash: int = 0, empty: Empty = np.empty
    ) -> Output:
        x = inputs.x
        batch, time, _ = x.shape
        output = Output(empty((batch, time, self._features), self._dtype), self._empty_state(batch))
        self._kernel.forward(
            parameters[1],
            batch,
            time,
            _sequence(x),
            (_address(output.sequence), time * self._features, self._features),
            _first(inputs),
            _state(output.state),
            _lengths(inputs),
            stash,
            threads,
            packed=0 if stash else self._address_of_packed(),
        )
        return output

    def _address_of_packed(self) -> int:
        return 0 if self._packed is None else self._packed.address

    def _parameters(self) -> Table:
        """As they are now; a call keeps them to its end, for another thread may replace them meanwhile.

        Raises:
            InvalidWeights: see `Parameters.now`.
        """
        arrays, bound = self._now(), self._bound
        if arrays is not bound[0]:
            table = self._bind(dict(zip(self._native.spec.shapes, arrays, strict=True)))
            self._bound = bound = arrays, table
        return bound

    def _bind(self, arrays: Mapping[str, Array]) -> bytes:
        return self._kernel.bind({name: kernel.operand(array) for name, array in arrays.items()})

    def _empty_state(self, batch: int) -> State:
        shape = self._rows, batch, self._hidden
        return State(np.empty(shape, self._dtype), np.empty(shape, self._dtype) if self._has_c else None)


def _address(array: NDArray[Any]) -> int:
    """Where an array begins; its own `__array_interface__` takes 2 microseconds to say so, this 0.9."""
    try:
        return addressof(c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):  # read-only, or with gaps
        address: int = array.__array_interface__["data"][0]
        return address


def _sequence(array: Array) -> kernel.Sequence:
    batch, time, _ = array.strides
    size = array.itemsize
    return _address(array), batch // size, time // size


def _state(state: State) -> kernel.States:
    h, c = state
    return _address(h), 0 if c is None else _address(c)


def _first(inputs: Inputs) -> kernel.States:
    return _state(inputs.state) if inputs.state_given else NOWHERE


def _lengths(inputs: Inputs) -> int:
    return 0 if inputs.lengths is None else _address(inputs.lengths)
