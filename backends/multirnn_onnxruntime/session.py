"""An ONNX model with the ONNX Runtime session that runs it: `OnnxStack`."""

from typing import Any

import onnxruntime
from onnx import ModelProto

__all__ = ["OnnxStack"]


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

    Attributes:
        session: `session.run(None, {"x": x, "lengths": lengths, "h_0": h})` runs it. No array may be empty, and no
            length 0: ONNX Runtime ends the process, or reads memory that is not its own. NaN is taken for a large number.
    """

    def __init__(self, model: ModelProto, *, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what is wrong is raised, and need not be printed too
        self._bytes = model.SerializeToString()
        self._threads = threads
        self.session: Any = onnxruntime.InferenceSession(self._bytes, options, providers=["CPUExecutionProvider"])

    @property
    def model(self) -> ModelProto:
        """A copy of the model that the session was made of."""
        model: ModelProto = ModelProto.FromString(self._bytes)
        return model

    def __reduce__(self) -> Any:
        return _again, (self._bytes, self._threads)  # a session can be neither pickled nor copied

    def __repr__(self) -> str:
        return f"<OnnxStack of {len(self._bytes)} bytes>"


def _again(serialised: bytes, threads: int) -> OnnxStack:
    return OnnxStack(ModelProto.FromString(serialised), threads=threads)
