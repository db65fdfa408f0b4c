"""One description of a recurrent layer stack, run by NumPy, PyTorch, Keras, JAX and ONNX Runtime, proven the same function.

>>> import multirnn as mr
>>> spec = mr.RecurrentSpec("simple_rnn", input_size=10, hidden_size=3)
>>> spec.parameter_count
42
>>> layer = mr.build(spec, backend="numpy", seed=0)

Here are the names for users of layers. Authors of a backend find theirs in `multirnn.protocol` and `multirnn.boundary`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # type checkers and editors read this, the interpreter _HOME: NumPy is loaded by the first name
    from multirnn.activations import Activation as Activation
    from multirnn.adoption import adopt as adopt
    from multirnn.comparison import compare as compare
    from multirnn.diagnosis import diagnose as diagnose
    from multirnn.diagnosis import first_divergence as first_divergence
    from multirnn.errors import FormatError as FormatError
    from multirnn.errors import InvalidCall as InvalidCall
    from multirnn.errors import InvalidSpec as InvalidSpec
    from multirnn.errors import InvalidWeights as InvalidWeights
    from multirnn.errors import MissingFramework as MissingFramework
    from multirnn.errors import MultirnnError as MultirnnError
    from multirnn.errors import UnknownBackend as UnknownBackend
    from multirnn.errors import Unrepresentable as Unrepresentable
    from multirnn.errors import Unsupported as Unsupported
    from multirnn.formats import convert as convert
    from multirnn.formats import inspect as inspect
    from multirnn.formats import load as load
    from multirnn.formats import save as save
    from multirnn.formats import verify as verify
    from multirnn.layer import Gradients as Gradients
    from multirnn.layer import Layer as Layer
    from multirnn.layer import Output as Output
    from multirnn.layer import State as State
    from multirnn.layer import Stream as Stream
    from multirnn.numerics import difference as difference
    from multirnn.numerics import tolerance as tolerance
    from multirnn.packing import to_arrays as to_arrays
    from multirnn.parity import train_parity as train_parity
    from multirnn.recognition import from_arrays as from_arrays
    from multirnn.registry import backend as backend
    from multirnn.registry import backends as backends
    from multirnn.registry import build as build
    from multirnn.registry import read as read
    from multirnn.replacement import replace_layers as replace_layers
    from multirnn.spec import RecurrentSpec as RecurrentSpec
    from multirnn.weights import Weights as Weights
    from multirnn.weights import fold_biases as fold_biases
    from multirnn.weights import initialise as initialise
    from multirnn.weights import split_biases as split_biases
else:
    _HOME = {
        name: f"multirnn.{module}"
        for module, names in {
            "activations": "Activation",
            "adoption": "adopt",
            "comparison": "compare",
            "diagnosis": "diagnose first_divergence",
            "errors": "FormatError InvalidCall InvalidSpec InvalidWeights MissingFramework MultirnnError UnknownBackend Unrepresentable Unsupported",
            "formats": "convert inspect load save verify",
            "layer": "Gradients Layer Output State Stream",
            "numerics": "difference tolerance",
            "packing": "to_arrays",
            "parity": "train_parity",
            "recognition": "from_arrays",
            "registry": "backend backends build read",
            "replacement": "replace_layers",
            "spec": "RecurrentSpec",
            "weights": "Weights fold_biases initialise split_biases",
        }.items()
        for name in names.split()
    }
    __all__ = sorted(_HOME)

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            return getattr(import_module(_HOME[name]), name)
        raise AttributeError(f"module 'multirnn' has no attribute {name!r}")

    def __dir__() -> list[str]:
        """The public names, for Tab; no submodules and no imports."""
        return ["__doc__", "__version__", *__all__]
