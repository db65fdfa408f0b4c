"""The NumPy side of every layer: checks a call and brings it into one form, once for all frameworks.

`run` and `pull_back`, the two methods that a backend writes, get calls that are batched, contiguous, of the spec's dtype,
zero at padding (so no NaN there reaches them), and have at least one valid step. All backends refuse the same calls with
the same sentences.

An array must have the spec's dtype; lists and numbers, which have none of their own, are read as the spec's.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike

from multirnn.arrays import as_array
from multirnn.errors import InvalidCall
from multirnn.layer import Gradients, Lengths, Output, State, Stream
from multirnn.spec import DTYPES, RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["Boundary", "BoundaryLayer", "InferenceLayer", "Inputs"]


@dataclass(slots=True)  # a frozen one takes 0.6 µs to make, a third of all checks of a call of one step
class Inputs:
    """A checked call; read it, and do not write to it.

    Attributes:
        x: `(batch, time, input_size)`, zero at padding, C-contiguous unless the layer `takes_strides`.
        state: the initial state, `(num_layers * directions, batch, hidden_size)` each, C-contiguous.
        lengths: `(batch,)`; None where every row is full.
        state_given: False if the call had no state, so it is zero.
    """

    x: Array
    state: State
    lengths: Lengths | None
    state_given: bool = True

    @property
    def nothing_valid(self) -> bool:
        """Whether there is no step to run: no row, no time, or every length 0."""
        return not self.x.size or (self.lengths is not None and not self.lengths.any())

    @property
    def valid(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which steps are not padding: `(batch, time)`."""
        batch, time, _ = self.x.shape
        if self.lengths is None:
            return np.ones((batch, time), bool)
        return np.arange(time) < self.lengths[:, None]


class Boundary(ABC):
    """The checked calls of a spec; subclasses write `run` and `pull_back`.

    Attributes:
        spec: of the stack.
        takes_strides: whether `run` and `pull_back` take sequences with dense features and any strides of batch and time, so
            that time-first outputs of another layer are not copied.
        inside: what to call inside the framework's own transformations, which give no values; for error messages.
    """

    takes_strides = False
    inside = "layer.native"

    def __init__(self, spec: RecurrentSpec) -> None:
        self.spec = spec
        # Used in every call: reading them from the spec takes as long as a step of a small layer.
        self._dtype, self._states = np.dtype(spec.dtype), spec.form.states
        self._features, self._rows, self._hidden = spec.input_size, len(list(spec.passes)), spec.hidden_size
        self._zero: State | None = None

    @abstractmethod
    def run(self, inputs: Inputs) -> Output:
        """The output of a checked call."""

    def run_from_zero(self, x: Array) -> Output:
        """`run` from a zero state over full rows of a writeable, C-contiguous x.

        Override it for a faster path; wrapper overhead dominates these calls.
        """
        return self.run(Inputs(x, self._zero_state(len(x)), None, False))

    @abstractmethod
    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """The gradients of a checked call; both parts of the cotangent are arrays, zero at padding."""

    def __call__(self, x: ArrayLike, state: State | None = None, *, lengths: ArrayLike | None = None) -> Output:
        """Run over `x`; see `Layer.__call__`."""
        if state is None and lengths is None and self._is_plain(x) and x.size:
            return self.run_from_zero(x)  # as below, in a third of the time
        inputs, batched = self._check(x, state, lengths)
        output = self._nothing_run(inputs) if inputs.nothing_valid else self.run(inputs)
        return output if batched else Output(output.sequence[0], _unbatch(output.state))

    def vjp(
        self, x: ArrayLike, state: State | None = None, *, lengths: ArrayLike | None = None, cotangent: Output
    ) -> Gradients:
        """Pull a cotangent back; see `Layer.vjp`."""
        inputs, batched = self._check(x, state, lengths)
        cotangent = self._check_cotangent(cotangent, inputs, batched)
        if inputs.nothing_valid:
            zeros = {name: np.zeros(shape, self.spec.dtype) for name, shape in self.spec.shapes.items()}
            gradients = Gradients(zeros, np.zeros_like(inputs.x), _copy(cotangent.state))
        else:
            gradients = self.pull_back(inputs, cotangent)
        return gradients if batched else Gradients(gradients.weights, gradients.x[0], _unbatch(gradients.state))

    def _nothing_run(self, inputs: Inputs) -> Output:
        batch, time, _ = inputs.x.shape
        return Output(np.zeros((batch, time, self.spec.output_size), self.spec.dtype), _copy(inputs.state))

    def _check(self, x: ArrayLike, state: State | None, lengths: ArrayLike | None) -> tuple[Inputs, bool]:
        array, batched = (x, True) if self._is_plain(x) else self._check_x(x)
        initial = self._check_state("state", state, array.shape[0], batched)
        checked = None if lengths is None else _check_lengths(lengths, array.shape[0], array.shape[1], batched)
        inputs = Inputs(array, initial, checked, state is not None)
        if checked is not None:
            inputs = replace(inputs, x=np.where(inputs.valid[:, :, None], array, array.dtype.type(0)))
        return inputs, batched

    def _is_plain(self, x: Any) -> TypeGuard[Array]:
        """Whether `run` takes x as it is: `(batch, time, input_size)`, writeable, C-contiguous, of the spec's dtype."""
        return (
            type(x) is np.ndarray
            and x.dtype is self._dtype
            and x.ndim == 3
            and x.shape[2] == self._features
            and x.flags.carray
        )

    def _check_x(self, x: ArrayLike) -> tuple[Array, bool]:
        """Any x as `run` takes it, and whether it is batched."""
        array = self._array("x", x)
        if array.ndim not in (2, 3) or array.shape[-1] != self._features:
            raise InvalidCall(
                f"x must have the shape (batch, time, {self._features}), or (time, {self._features}) unbatched, "
                f"not {array.shape}"
            )
        batched = array.ndim == 3
        return self._laid_out(array if batched else array[None]), batched

    def _zero_state(self, batch: int) -> State:
        """Read-only zeros; kept for the next call of as many rows."""
        zero = self._zero
        if zero is None or zero.h.shape[1] != batch:
            arrays = [np.zeros((self._rows, batch, self._hidden), self._dtype) for _ in self._states]
            for array in arrays:
                array.flags.writeable = False
            self._zero = zero = State(*arrays)
        return zero

    def _check_state(self, name: str, state: State | None, batch: int, batched: bool) -> State:
        if state is None:
            return self._zero_state(batch)
        spec = self.spec
        shape = (self._rows, batch, self._hidden)
        if not isinstance(state, State):
            raise InvalidCall(f"{name} must be a multirnn.State, not {type(state).__name__}")
        if state.c is not None and "c" not in self._states:
            raise InvalidCall(f"{name}.c is the cell state of an LSTM; a {spec.cell} has none, so it must be None")
        if state.c is None and "c" in self._states:
            raise InvalidCall(f"{name} of an LSTM needs the cell state too: State(h, c)")
        expected = shape if batched else (shape[0], shape[2])
        axes = f"(num_layers * directions, {'batch, ' if batched else ''}hidden_size)"
        arrays = []
        for part in self._states:
            array = self._array(f"{name}.{part}", getattr(state, part))
            if array.shape != expected:
                raise InvalidCall(f"{name}.{part} must have the shape {axes} = {expected}, not {array.shape}")
            arrays.append(np.ascontiguousarray(array.reshape(shape)))
        return State(*arrays)

    def _check_cotangent(self, cotangent: Output, inputs: Inputs, batched: bool) -> Output:
        if not isinstance(cotangent, Output):
            raise InvalidCall(
                f"cotangent must be a multirnn.Output, shaped as the call's, not {type(cotangent).__name__}"
            )
        batch, time, _ = inputs.x.shape
        shape = (batch, time, self.spec.output_size)
        if cotangent.sequence is None:
            sequence = np.zeros(shape, self.spec.dtype)
        else:
            sequence = self._array("cotangent.sequence", cotangent.sequence)
            if sequence.shape != (expected := shape if batched else shape[1:]):
                raise InvalidCall(
                    f"cotangent.sequence must have the shape of the call's output, {expected}, not {sequence.shape}"
                )
            sequence = self._laid_out(sequence if batched else sequence[None])
            if inputs.lengths is not None:
                sequence = np.where(inputs.valid[:, :, None], sequence, sequence.dtype.type(0))
        return Output(sequence, self._check_state("cotangent.state", cotangent.state, batch, batched))

    def _array(self, name: str, value: ArrayLike) -> Array:
        array: Array = as_array(name, value, self._dtype, inside=self.inside)
        if array.dtype != self._dtype:
            other = f", or build the layer with dtype={str(array.dtype)!r}" if str(array.dtype) in DTYPES else ""
            raise InvalidCall(
                f"{name} is {array.dtype}, and the layer computes in {self.spec.dtype}; "
                f"pass {name}.astype({self.spec.dtype!r}){other}"
            )
        return array

    def _laid_out(self, sequence: Array) -> Array:
        """A sequence with strides that `run` takes."""
        if self.takes_strides and sequence.strides[-1] == sequence.itemsize and sequence.flags.aligned:
            return sequence
        return np.ascontiguousarray(sequence)


class BoundaryLayer(Boundary):
    """A `Layer` whose backend writes `run` and `pull_back` over checked, batched arrays with at least one valid step."""

    @property
    def implementation(self) -> str:
        """Its implementation: "native", "fast" or "frozen"."""
        return "native"

    @property
    @abstractmethod
    def native(self) -> Any:
        """The framework's own object, live: it shares the layer's parameters."""

    @property
    @abstractmethod
    def parameter_count(self) -> int:
        """Trainable parameters, counted by the framework's own means."""

    @abstractmethod
    def weights(self) -> Weights:
        """The parameters as they are now, after any training."""

    def stream(self) -> Stream:
        """A runner that carries the state from chunk to chunk; see `Layer.stream`."""
        return Stream(self)

    def __repr__(self) -> str:
        spec = self.spec
        parts = [f"{spec.cell} {spec.input_size}→{spec.hidden_size}"]
        parts += [f"{spec.num_layers} layers"] if spec.num_layers > 1 else []
        parts += ["bidirectional"] if spec.bidirectional else []
        parts += [spec.dtype] if spec.dtype != "float32" else []
        return f"<{type(self).__name__} {', '.join((*parts, self.implementation))}>"

    def __dir__(self) -> list[str]:
        """For Tab: the contract of a `Layer`, and the extras of an implementation."""
        offered = [name for name in ("plan", "threads") if hasattr(self, name)]
        return sorted(("implementation", "native", "parameter_count", "spec", "stream", "vjp", "weights", *offered))


class InferenceLayer(BoundaryLayer):
    """A `BoundaryLayer` without gradients, of a backend whose `differentiable` is False; it needs no `pull_back`."""

    differentiable = False

    def vjp(
        self, x: ArrayLike, state: State | None = None, *, lengths: ArrayLike | None = None, cotangent: Output
    ) -> Gradients:
        """Refused, whatever the call; see `pull_back`."""
        inputs, _ = self._check(x, state, lengths)
        return self.pull_back(inputs, cotangent)

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """`InvalidCall`: it is for inference only."""
        raise InvalidCall(
            f"{type(self).__name__} is for inference only and has no gradients; build the layer with another backend"
        )


def _check_lengths(lengths: ArrayLike, batch: int, time: int, batched: bool) -> Lengths | None:
    """The lengths `(batch,)`, or None where every row is full."""
    array = as_array("lengths", lengths, of="integers")
    if array.dtype.kind not in "iu" and array.size:
        raise InvalidCall(f"lengths must be integers, not {array.dtype}")
    if array.shape != ((batch,) if batched else ()):
        rows = f"for each of the {batch} rows, shape ({batch},)" if batched else "for an unbatched x"
        raise InvalidCall(f"lengths must be one integer {rows}, not of shape {array.shape}")
    array = array.reshape(batch).astype(np.int64)
    if array.size and (array.min() < 0 or array.max() > time):
        row = int(np.argmax((array < 0) | (array > time)))
        raise InvalidCall(f"lengths must be from 0 to {time}, the time steps of x; row {row} has {array[row]}")
    return None if (array == time).all() else array


def _unbatch(state: State) -> State:
    return State._make(None if part is None else part[:, 0] for part in state)


def _copy(state: State) -> State:
    return State(state.h.copy(), None if state.c is None else state.c.copy())
