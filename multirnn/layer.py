"""`Layer`, the contract of every layer, and the records that go in and come out of it.

The axes, on the NumPy side of every backend: `batch`, `time`, `input_size`; `directions * hidden_size` for a sequence,
forward‖backward; `num_layers * directions` for a state, in the order of `RecurrentSpec.passes`. An unbatched call has
no `batch` axis anywhere.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from multirnn.errors import InvalidCall
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["FAST", "FROZEN", "NATIVE", "Gradients", "Implementation", "Layer", "Lengths", "Output", "Plan", "Planned"]
__all__ += ["Runs", "State", "Stream"]

Implementation = Literal["native", "fast", "frozen"]
NATIVE: Final = "native"
"""The implementation that is the framework's own layer: the default, and the subject of a comparison of frameworks."""
FAST: Final = "fast"
"""The same function and contract, `native` included, made fast; where nothing faster is known it is native and says so."""
FROZEN: Final = "frozen"
"""Fast with constant weights, packed once at `build` and not in every call. Differentiable; changed weights are refused."""

Lengths = NDArray[np.int64]


class State(NamedTuple):
    """The hidden state h and, of an LSTM, the cell state c: `(num_layers * directions, batch, hidden_size)` each."""

    h: Array
    c: Array | None = None

    @property
    def parts(self) -> tuple[Array, ...]:
        """h, and for an LSTM c."""
        return (self.h,) if self.c is None else (self.h, self.c)


class Output(NamedTuple):
    """The sequence `(batch, time, directions * hidden_size)`, zero at padding, and the final state.

    Each final state is its own direction's end: after the last valid step forward, after step 0 backward.
    """

    sequence: Array
    state: State


class Gradients(NamedTuple):
    """A cotangent pulled back: an array for every weight by name, for the input, and for the initial state."""

    weights: Mapping[str, Array]
    x: Array
    state: State


class Runs(Protocol):
    """The calls of a `Layer`."""

    @property
    def spec(self) -> RecurrentSpec:
        """The spec that it implements."""
        ...

    def __call__(self, x: ArrayLike, state: State | None = None, *, lengths: ArrayLike | None = None) -> Output:
        """Run over `x`.

        Args:
            x: `(batch, time, input_size)`, or `(time, input_size)` unbatched. An array has to have the spec's dtype;
                numbers without a dtype of their own (lists) are read as the spec's.
            state: the initial state; zero unless given.
            lengths: `(batch,)` integers, 0 <= length <= time; right padding. Every row is full unless given. Unbatched:
                one integer.

        Raises:
            InvalidCall: a shape, dtype, length or state that the stack cannot take.
        """
        ...

    def vjp(
        self, x: ArrayLike, state: State | None = None, *, lengths: ArrayLike | None = None, cotangent: Output
    ) -> Gradients:
        """The gradients of `sum(cotangent.sequence * sequence) + sum(cotangent.state * state)`.

        Args:
            x, state, lengths: as in a call.
            cotangent: shaped as the output of the call; a part that is None counts as zero.

        Raises:
            InvalidCall: as in a call, or a cotangent that is not shaped as the output; or the layer is for inference only.
        """
        ...


class Layer(Runs, Protocol):
    """A stack realised by a framework, called with NumPy arrays."""

    @property
    def native(self) -> Any:
        """The framework's own object, live: it shares the layer's parameters."""
        ...

    @property
    def parameter_count(self) -> int:
        """Trainable parameters, counted by the framework's own means."""
        ...

    def weights(self) -> Weights:
        """The parameters as they are now, after any training."""
        ...

    def stream(self) -> "Stream":
        """A runner that carries the state from chunk to chunk.

        Raises:
            InvalidCall: the stack is bidirectional: its backward direction begins at the end of the sequence.
        """
        ...


class Stream:
    """Runs a sequence chunk by chunk; the outputs, concatenated, equal the output of the whole.

    Attributes:
        state: after the last chunk; None before the first, which starts from zero.
    """

    def __init__(self, layer: Layer) -> None:
        if layer.spec.bidirectional:
            raise InvalidCall(
                "a bidirectional stack cannot be streamed: its backward direction begins at the end of the sequence"
            )
        self._layer = layer
        self.state: State | None = None

    def __repr__(self) -> str:
        return f"<Stream of {self._layer!r}>"

    def __call__(self, chunk: ArrayLike, *, lengths: ArrayLike | None = None) -> Output:
        """Run over the next chunk `(batch, time, input_size)`; every chunk has the same batch."""
        output = self._layer(chunk, self.state, lengths=lengths)
        self.state = output.state
        return output

    def reset(self, state: State | None = None) -> None:
        """Begin again, from `state` or from zero."""
        self.state = state


class Plan(NamedTuple):
    """The code that a layer runs for a shape."""

    implementation: Implementation  # "fast" or "frozen", or "native" where nothing faster is known
    sentence: str  # the code that runs, and the reason if it is native


@runtime_checkable
class Planned(Protocol):
    """A layer of an implementation other than native."""

    def plan(self, batch: int, time: int, *, lengths: bool = False, gradients: bool = False) -> Plan:
        """The code that runs for an input of `batch` rows and `time` steps.

        Args:
            batch: rows.
            time: steps of the longest row.
            lengths: whether rows end before `time`.
            gradients: forward and backward; forward alone unless given.
        """
        ...
