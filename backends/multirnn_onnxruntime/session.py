"""An ONNX model with the ONNX Runtime session that runs it, `OnnxStack`, and calls of it that are bound to arrays."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, ValueInfoProto
from onnxruntime.capi import (
    onnxruntime_pybind11_state as raised,  # pyright: ignore[reportAttributeAccessIssue]
)

from multirnn import MultirnnError, RecurrentSpec, Unrepresentable
from multirnn.weights import Array
from multirnn_onnxruntime.graph import OPERATORS, inputs_of, outputs_of

__all__ = ["OnnxStack", "Step", "running"]

# ONNX Runtime's own have no class in common but Exception; its Python part raises the first two.
_FAILURES: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(one for one in vars(raised).values() if isinstance(one, type) and issubclass(one, Exception)),
)


@contextmanager
def running() -> Iterator[None]:
    """Around a model of the user's own that is loaded or run.

    Raises:
        Unrepresentable: ONNX Runtime does not; with its own reason.
    """
    try:
        yield
    except MultirnnError:
        raise
    except _FAILURES as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise Unrepresentable(f"ONNX Runtime does not run this model: {reason[:300]}") from error


class OnnxStack:
    """What `layer.native` is: a model, and a session of it.

    A session has its own copy of the weights, packed for its kernels, and there is no way to them: they are constants.
    To change them, change `model` and make another stack of it:

        model = stack.model
        ...                                  # onnx.numpy_helper.from_array(W, "layers.0.W") in place of an initializer
        stack = OnnxStack(model)

    Its names and shapes are those of `multirnn_onnxruntime.graph`. `onnx.save(stack.model, path)` writes it to a file.

    Args:
        model: as `multirnn_onnxruntime.graph` makes it.
        threads: of one call; those that ONNX Runtime chooses, one a core, unless given.

    Raises:
        Unrepresentable: it is no model, or none that ONNX Runtime loads.

    Attributes:
        session: `session.run(None, {"x": x, "lengths": lengths, "h_0": h})` runs it. No array may be empty, and no
            length 0: ONNX Runtime ends the process, or reads memory that is not its own. NaN is lost in many of its kernels.
    """

    def __init__(self, model: ModelProto, *, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what is wrong is raised, and need not be printed too
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
        """The same, and after its own outputs it returns what goes into each layer above the first, time first."""
        model = self.model
        layers = [node for node in model.graph.node if node.op_type in OPERATORS.values()]
        model.graph.output.extend(ValueInfoProto(name=node.input[0]) for node in layers[1:])
        return OnnxStack(model, threads=self._threads)

    def bound(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
        """A call that reads these arrays and writes into those, C-contiguous all; by one thread at a time."""
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        run = self._session.run_with_iobinding

        def call(kept: Any = (inputs, outputs)) -> None:  # the binding knows no more than where they are
            run(binding)

        return call

    def __reduce__(self) -> Any:
        return _again, (self._bytes, self._threads)  # a session can be neither pickled nor copied

    def __repr__(self) -> str:
        return f"<OnnxStack of {len(self._bytes)} bytes>"


class Step:
    """One time step of full rows, bound to arrays of its own; for one thread at a time.

    To make its values out of a call's arrays, and arrays out of its values, takes ONNX Runtime 8 µs, and a step of a simple
    RNN of 256 units 15.

    Args:
        native: with the session.
        spec: what it computes.
        batch: rows.
    """

    def __init__(self, native: OnnxStack, spec: RecurrentSpec, batch: int) -> None:
        self._made_of = native, spec, batch
        state = spec.num_layers * len(spec.directions), batch, spec.hidden_size
        shapes = [state for _ in spec.form.states]
        x, *self._state = (np.zeros(shape, np.float32) for shape in ((1, batch, spec.input_size), *shapes))
        self._x = x.swapaxes(0, 1)
        y, *final = (np.empty(shape, np.float32) for shape in ((1, batch, spec.output_size), *shapes))
        self._outputs = [y.swapaxes(0, 1), *final]
        inputs: list[Any] = [x, np.ones(batch, np.int32), *self._state]
        self._run = native.bound(
            dict(zip(inputs_of(spec), inputs, strict=True)), dict(zip(outputs_of(spec), (y, *final), strict=True))
        )

    def __call__(self, x: Array, state: Sequence[Array]) -> list[Array]:
        """The sequence `(batch, 1, directions * hidden_size)` and the parts of the final state.

        Args:
            x: `(batch, 1, input_size)`.
            state: the initial one; none in all calls of a step, or in no call: it is zero.
        """
        self._x[...] = x  # of so few numbers quicker than `copyto`
        for mine, given in zip(self._state, state, strict=False):
            mine[...] = given
        self._run()
        return [array.copy() for array in self._outputs]

    def __reduce__(self) -> Any:
        return Step, self._made_of  # a binding can be neither pickled nor copied


def _again(serialised: bytes, threads: int) -> OnnxStack:
    return OnnxStack(ModelProto.FromString(serialised), threads=threads)
