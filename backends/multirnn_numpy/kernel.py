"""A `Stack` run by the compiled recurrence, `multirnn.kernel`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from multirnn import Gradients, Output, State, kernel
from multirnn.boundary import Inputs
from multirnn.kernel import address, call_record, operand, sequence
from multirnn.weights import Array
from multirnn_numpy.parameters import Parameters
from multirnn_numpy.stack import Stack
from multirnn_numpy.workspace import Empty, Workspaces

__all__ = ["CompiledStack"]

Bound = tuple[tuple[Array, ...], kernel.Table]
"""Parameters and their table, which is valid as long as they are kept."""


class CompiledStack:
    """Runs checked calls with the parameters of a stack, in place and as they are at the call.

    If these are `frozen`, constants, they are packed once, not in every call. `MissingFramework` if the compiled
    recurrence is not installed.
    """

    def __init__(self, native: Stack, *, frozen: bool = False) -> None:
        spec = native.spec
        self._native = native
        self._compiled = kernel.CompiledRecurrence(spec)
        self.instructions = self._compiled.instructions
        self._dtype, self._features, self._hidden = np.dtype(spec.dtype), spec.output_size, spec.hidden_size
        self._passes, self._has_c = len(list(spec.passes)), "c" in spec.form.states
        self._now = Parameters(native).now
        self._bound: Bound = (), kernel.Table(b"")
        self._workspaces = Workspaces()
        self._packed = self._compiled.pack(self._parameters()[1]) if frozen else None

    def run(self, inputs: Inputs, threads: int) -> Output:
        """The output of a checked call; see `BoundaryLayer.run`."""
        x, first, lengths = sequence(inputs.x), _first(inputs), _lengths(inputs)
        return self._forward(inputs, self._parameters(), threads, x, first, lengths)

    def bound(self, inputs: Inputs, threads: int) -> Callable[[], Output]:
        """A checked call reduced to the compiled recurrence and new memory for its results."""
        x, first, lengths = sequence(inputs.x), _first(inputs), _lengths(inputs)
        return partial(self._forward, inputs, self._parameters(), threads, x, first, lengths)

    def forward_and_backward(self, inputs: Inputs, cotangent_of: Callable[[Output], Output], threads: int) -> Gradients:
        """The gradients of a checked call; see `NumpyLayer.forward_and_backward`."""
        x, parameters = inputs.x, self._parameters()
        batch, time, _ = x.shape
        dparameters = {name: np.empty(shape, self._dtype) for name, shape in self._native.spec.shapes.items()}
        dx, dfirst = np.empty(x.shape, self._dtype), self._empty_state(batch)
        with self._workspaces.lend() as empty:
            stash = address(empty((self._compiled.stash_size(batch, time),), np.uint8))
            given = sequence(x), _first(inputs), _lengths(inputs)
            output = self._forward(inputs, parameters, threads, *given, stash, empty)
            cotangent = cotangent_of(output)
            record = call_record(
                batch=batch,
                time=time,
                x=sequence(x),
                y=sequence(output.sequence),
                first=_first(inputs),
                last=_states(cotangent.state),
                stash=stash,
                threads=threads,
                dy=sequence(cotangent.sequence),
                dx=sequence(dx),
                dfirst=_states(dfirst),
            )
            gradients = self._compiled.bind({name: address(array) for name, array in dparameters.items()})
            self._compiled.backward(parameters[1], gradients, record)
        return Gradients(dparameters, dx, dfirst)

    def _forward(
        self,
        inputs: Inputs,
        parameters: Bound,
        threads: int,
        x: Any,
        first: Any,
        lengths: Any,
        stash: int = 0,
        empty: Empty = np.empty,
    ) -> Output:
        # The record holds addresses only: the arguments keep the arrays.
        batch, time, _ = inputs.x.shape
        y, last = empty((batch, time, self._features), self._dtype), self._empty_state(batch)
        record = call_record(
            batch=batch,
            time=time,
            x=x,
            y=sequence(y),
            first=first,
            last=_states(last),
            lengths=lengths,
            stash=stash,
            threads=threads,
            packed=None if stash or self._packed is None else self._packed.address,
        )
        self._compiled.forward(parameters[1], record)
        return Output(y, last)

    def _empty_state(self, batch: int) -> State:
        shape = self._passes, batch, self._hidden
        return State(np.empty(shape, self._dtype), np.empty(shape, self._dtype) if self._has_c else None)

    def _parameters(self) -> Bound:
        """As `Parameters.now`. A call keeps them to its end, because another thread may replace them meanwhile."""
        arrays, bound = self._now(), self._bound
        if arrays is not bound[0]:
            operands = dict(zip(self._native.spec.shapes, map(operand, arrays), strict=True))
            self._bound = bound = arrays, self._compiled.bind(operands)
        return bound


def _states(state: State) -> kernel.States:
    h, c = state
    return address(h), None if c is None else address(c)


def _first(inputs: Inputs) -> kernel.States:
    return _states(inputs.state) if inputs.state_given else (None, None)


def _lengths(inputs: Inputs) -> int | None:
    return None if inputs.lengths is None else address(inputs.lengths)
