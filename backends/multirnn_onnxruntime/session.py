"""An ONNX model with the ONNX Runtime session that runs it, `OnnxStack`, and safe calls of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto
from onnxruntime.capi import (
    onnxruntime_pybind11_state as raised,  # pyright: ignore[reportAttributeAccessIssue]
)

from multirnn import MultirnnError, RecurrentSpec, Unrepresentable
from multirnn.layer import Lengths
from multirnn.weights import Array
from multirnn_onnxruntime.graph import OPERATORS, inputs_of, outputs_of

__all__ = ["BoundStep", "OnnxStack", "running", "settle", "steps"]

# ONNX Runtime's own errors share no class but Exception; its Python part raises the first two.
FAILURES: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(one for one in vars(raised).values() if isinstance(one, type) and issubclass(one, Exception)),
)


@contextmanager
def running() -> Iterator[None]:
    """Around a user's own model that is loaded or run; `Unrepresentable` with ONNX Runtime's reason if it does not."""
    try:
        yield
    except MultirnnError:
        raise
    except FAILURES as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise Unrepresentable(f"ONNX Runtime does not run this model: {reason[:300]}") from error


class OnnxStack:
    """A model and its session: `layer.native`.

    A session has its own copy of the weights, packed for its kernels and out of reach: they are constants. To change
    them, change `model` and make another stack of it:

        model = stack.model
        ...                                  # onnx.numpy_helper.from_array(W, "layers.0.W") in place of an initializer
        stack = OnnxStack(model)

    Its names and shapes are those of `multirnn_onnxruntime.graph`. `onnx.save(stack.model, path)` writes it to a file.

    Args:
        model: as `multirnn_onnxruntime.graph` makes it.
        threads: of one call; ONNX Runtime's default, one a core, unless given.

    Raises:
        Unrepresentable: it is no model, or ONNX Runtime does not load it.

    Attributes:
        session: `session.run(None, {"x": x, "lengths": lengths, "h_0": h})` runs it. No array may be empty, and no
            length 0: ONNX Runtime ends the process, or reads foreign memory. Many of its kernels lose NaN.
    """

    def __init__(self, model: ModelProto, *, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # errors are raised, and need not be printed too
        self._threads = threads
        if not isinstance(model, ModelProto):
            raise Unrepresentable(
                f"a {type(model).__name__} is not an onnx.ModelProto, and an OnnxStack is made of one"
            )
        if model.ByteSize() >= 2**31:
            raise Unrepresentable("an ONNX model in memory holds at most 2 GB, and this one is larger")
        with running():
            self._bytes = model.SerializeToString()
            self._session: Any = onnxruntime.InferenceSession(self._bytes, options, providers=["CPUExecutionProvider"])

    @property
    def session(self) -> Any:
        """The session of the model."""
        return self._session

    @property
    def model(self) -> ModelProto:
        """A copy of the model that the session was made of."""
        model: ModelProto = ModelProto.FromString(self._bytes)
        return model

    def watched(self) -> "OnnxStack":
        """The same, with further outputs: the sequences that go into each layer above the first, time first."""
        model = self.model
        layers = [node for node in model.graph.node if node.op_type in OPERATORS.values()]
        model.graph.output.extend(ValueInfoProto(name=node.input[0]) for node in layers[1:])
        return OnnxStack(model, threads=self._threads)

    def bound(self, spec: RecurrentSpec, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], None]:
        """A call that reads and writes C-contiguous arrays, as `inputs_of` and `outputs_of` list them; for one thread."""
        binding = self._session.io_binding()
        for name, array in zip(inputs_of(spec), inputs, strict=True):
            binding.bind_cpu_input(name, array)
        for name, array in zip(outputs_of(spec), outputs, strict=True):
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        run = self._session.run_with_iobinding

        def call(kept: Any = (inputs, outputs)) -> None:  # the binding holds only addresses
            run(binding)

        return call

    def __reduce__(self) -> Any:
        return _restored, (self._bytes, self._threads)  # a session can be neither pickled nor copied

    def __repr__(self) -> str:
        return f"<OnnxStack of {len(self._bytes)} bytes>"


def _restored(serialised: bytes, threads: int) -> OnnxStack:
    return OnnxStack(ModelProto.FromString(serialised), threads=threads)


class BoundStep:
    """One time step of full rows, bound to arrays of its own; for one thread at a time.

    Converting arrays to and from its values takes ONNX Runtime 8 µs; a step of a simple RNN of 256 units takes 15.
    """

    def __init__(self, native: OnnxStack, spec: RecurrentSpec, batch: int) -> None:
        self._made_of = native, spec, batch
        shapes = [(spec.num_layers * len(spec.directions), batch, spec.hidden_size)] * len(spec.form.states)
        x, *self._state = (np.zeros(shape, np.float32) for shape in ((1, batch, spec.input_size), *shapes))
        self._x = x.swapaxes(0, 1)
        y, *final = (np.empty(shape, np.float32) for shape in ((1, batch, spec.output_size), *shapes))
        self._outputs = [y.swapaxes(0, 1), *final]
        ones: Any = np.ones(batch, np.int32)
        self._run = native.bound(spec, [x, ones, *self._state], [y, *final])

    def __call__(self, x: Array, state: Sequence[Array]) -> list[Array]:
        """The sequence `(batch, 1, directions * hidden_size)` and the parts of the final state, from x `(batch, 1, input_size)`.

        The state is given in every call of a step; or never, and it is zero.
        """
        self._x[...] = x  # for so few numbers quicker than `copyto`
        for mine, given in zip(self._state, state, strict=False):
            mine[...] = given
        self._run()
        return [array.copy() for array in self._outputs]

    def __reduce__(self) -> Any:
        return BoundStep, self._made_of  # a binding can be neither pickled nor copied


# --- Rows of length 0. ONNX Runtime returns zeros for their state, and its RNN reads before its own memory. -----------


def steps(lengths: Lengths | None, batch: int, time: int) -> NDArray[np.int32]:
    """The steps to run of each row, `(batch,)`: at least one. `settle` corrects the results."""
    return np.full(batch, time, np.int32) if lengths is None else np.maximum(lengths, 1).astype(np.int32)


def settle(y: Array, final: Sequence[Array], state: Sequence[Array], lengths: Lengths | None) -> None:
    """Set the outputs y `(time, batch, directions * hidden_size)` of rows of length 0 to zero, in place.

    Their final states become the initial ones. Without lengths every row is full.
    """
    if lengths is None or lengths.all():
        return
    empty = lengths == 0
    y[:, empty] = 0
    for end, start in zip(final, state, strict=True):
        end[:, empty] = start[:, empty]
