"""Every name that `multirnn` offers, in one place.

What explains a difference is loaded when it is asked for: who builds layers does not pay for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from multirnn.activations import ACTIVATIONS, Activation
from multirnn.boundary import BoundaryLayer, InferenceLayer, Inputs
from multirnn.cells import CELLS, Cell
from multirnn.comparison import Comparison, compare
from multirnn.conventions import CONVENTIONS, Convention
from multirnn.errors import (
    InvalidCall,
    InvalidData,
    InvalidSpec,
    InvalidWeights,
    MissingFramework,
    MultirnnError,
    UnknownBackend,
    Unrepresentable,
    Unsupported,
)
from multirnn.layer import Gradients, Layer, Output, Plan, State, Stream
from multirnn.numerics import Difference, difference, tolerance
from multirnn.packing import from_arrays, to_arrays
from multirnn.protocol import Backend, accept, with_implementation
from multirnn.registry import backend, backends, build, read
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights, fold_biases, initialise, split_biases

if TYPE_CHECKING:
    from multirnn.adoption import Adopted, adopt
    from multirnn.diagnosis import Diagnosis, Divergence, diagnose, first_divergence
    from multirnn.parity import Parity, train_parity

__all__ = [
    "ACTIVATIONS",
    "CELLS",
    "CONVENTIONS",
    "Activation",
    "Adopted",
    "Backend",
    "BoundaryLayer",
    "Cell",
    "Comparison",
    "Convention",
    "Diagnosis",
    "Difference",
    "Divergence",
    "Gradients",
    "InferenceLayer",
    "Inputs",
    "InvalidCall",
    "InvalidData",
    "InvalidSpec",
    "InvalidWeights",
    "Layer",
    "MissingFramework",
    "MultirnnError",
    "Output",
    "Parity",
    "Plan",
    "RecurrentSpec",
    "State",
    "Stream",
    "UnknownBackend",
    "Unrepresentable",
    "Unsupported",
    "Weights",
    "accept",
    "adopt",
    "backend",
    "backends",
    "build",
    "compare",
    "diagnose",
    "difference",
    "first_divergence",
    "fold_biases",
    "from_arrays",
    "initialise",
    "read",
    "split_biases",
    "to_arrays",
    "tolerance",
    "train_parity",
    "with_implementation",
]

_LATER = {
    "Adopted": "adoption",
    "Diagnosis": "diagnosis",
    "Divergence": "diagnosis",
    "Parity": "parity",
    "adopt": "adoption",
    "diagnose": "diagnosis",
    "first_divergence": "diagnosis",
    "train_parity": "parity",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"multirnn.{_LATER[name]}"), name)
    raise AttributeError(f"module 'multirnn.public' has no attribute {name!r}")
