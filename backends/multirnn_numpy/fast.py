"""The fast implementation: the same stack through the compiled recurrence, or through fewer operations in NumPy."""

import os
from collections.abc import Callable
from operator import is_not

from multirnn import Gradients, InvalidCall, Output, Weights
from multirnn.boundary import Inputs
from multirnn.kernel import refuses
from multirnn.layer import FAST, FROZEN, NATIVE, Plan
from multirnn_numpy.faster import HALVED, faster_together, halvable
from multirnn_numpy.kernel import CompiledStack
from multirnn_numpy.layer import NumpyLayer, batch_first, padding, time_first
from multirnn_numpy.loop import CELLS
from multirnn_numpy.stack import Stack
from multirnn_numpy.weights import stack

__all__ = ["FastNumpyLayer"]

UNPACKED, PACKED = 24, 64
"""Up to the first number of steps of rows, batch * time, the compiled recurrence does not pack the weights; from the second
on packing pays off, whatever their size. The time in NumPy over the time of the compiled recurrence, on one thread: LSTMs of
(batch, time, input, hidden) = (1, 1, 1024, 1024) 1.04, (1, 4, 512, 512) 1.4, (4, 4, 512, 512) 1.35.
"""
LARGE = 4_000_000
"""In between, packing more parameters does not: (1, 32, 1024, 1024) 0.7; (1, 25, 512, 512), half as many, 1.0."""
PREPARED = 128
"""From so many steps of rows on it pays to halve the weights, or to put both directions side by side: LSTMs of
(1, 150, 256, 256) took 5.3 ms instead of 6.8, but of (4, 25, 512, 512) 25.0 instead of 23.0.
"""


class FastNumpyLayer(NumpyLayer):
    """A stack through the compiled recurrence; if that is not installed, in NumPy.

    Args:
        weights: copied into the parameters of a `Stack`, which is `native`.
        compiled: whether to use the compiled recurrence; by default if it is installed.
        frozen: whether the parameters are read-only, and packed for the compiled recurrence once.

    Attributes:
        threads: the most threads of a call to the compiled recurrence; by default `OMP_NUM_THREADS`, which NumPy's own
            products obey too, or else the available processors.

    Raises:
        MissingFramework: the compiled recurrence is asked for, and is not installed.
    """

    def __init__(self, weights: Weights, compiled: bool | None = None, *, frozen: bool = False) -> None:
        native = stack(weights)
        super().__init__(native)
        self._constants = self._parameters.now() if frozen else None
        for array in self._constants or ():
            array.flags.writeable = False
        self.threads = available_threads()
        use = refuses() is None if compiled is None else compiled
        self._compiled = CompiledStack(native, frozen=frozen) if use else None
        self._chosen: dict[tuple[int, int], Stack | CompiledStack] = {}
        cells = HALVED if halvable(native.spec) else CELLS
        self._apart, self._together = (
            Stack(native.spec, native.parameters, cells, together=together) for together in (False, True)
        )

    @property
    def implementation(self) -> str:
        """See `BoundaryLayer.implementation`."""
        return FAST if self._constants is None else FROZEN

    def plan(self, batch: int, time: int, *, lengths: bool = False, gradients: bool = False) -> Plan:
        """See `multirnn.layer.Planned.plan`."""
        steps, loops = batch * time, "the loops in NumPy"
        if self._compiled is not None:
            sentence = f"the compiled recurrence ({self._compiled.instructions})"
            if self._constants is not None and not gradients:
                return Plan(FROZEN, f"{sentence}, its weights packed once")
            if UNPACKED < steps < PACKED and self.spec.parameter_count > LARGE:
                return Plan(NATIVE, f"{loops}: to pack the weights takes longer than {steps} steps of rows")
            return Plan(FAST, sentence)
        why = refuses() or "the compiled recurrence is not asked for"
        forms = {"sigmoids by tanh": halvable(self.spec), "both directions at once": faster_together(self.spec, batch)}
        if not any(forms.values()):
            return Plan(NATIVE, f"{loops}, of which no faster form is known for this spec; {why}")
        if steps < PREPARED:
            return Plan(NATIVE, f"{loops}: to prepare the weights takes longer than {steps} steps of rows; {why}")
        return Plan(FAST, f"{loops}, {', '.join(form for form in forms if forms[form])}; {why}")

    def stack_for(self, inputs: Inputs) -> Stack | CompiledStack:
        """See `NumpyLayer.stack_for`; follows `plan`. Refuses a frozen layer whose parameters were replaced."""
        if self._constants is not None and any(map(is_not, self._constants, self._parameters.now())):
            raise InvalidCall(
                "the parameters of a frozen layer are constants, and one of them was replaced; build a frozen layer of "
                "the new weights, or take implementation='fast'"
            )
        batch, time, _ = inputs.x.shape
        stack = self._chosen.get((batch, time))
        if stack is None:
            native = self.plan(batch, time).implementation == NATIVE
            loops = self._together if faster_together(self.spec, batch) else self._apart
            stack = self._native if native else self._compiled or loops
            self._chosen[batch, time] = stack
        self._apart.parameters = self._together.parameters = self._native.parameters
        return stack

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        stack = self.stack_for(inputs)
        if isinstance(stack, CompiledStack):
            return stack.run(inputs, self.threads)
        if stack is self._native:
            return super().run(inputs)
        self._parameters.now()
        with self._workspaces.lend() as empty:
            x, state = time_first(inputs.x, inputs.state)
            y, last, _ = stack.forward(x, state, padding(inputs), empty)
            if not self.spec.bidirectional:  # else it was concatenated into new memory
                y = y.copy()
            return Output(*batch_first(y, last))

    def forward_and_backward(self, inputs: Inputs, cotangent_of: Callable[[Output], Output]) -> Gradients:
        """See `NumpyLayer.forward_and_backward`."""
        stack = self.stack_for(inputs)
        if isinstance(stack, CompiledStack):
            return stack.forward_and_backward(inputs, cotangent_of, self.threads)
        return super().forward_and_backward(inputs, cotangent_of)


def available_threads() -> int:
    """As many as OpenMP would start."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
