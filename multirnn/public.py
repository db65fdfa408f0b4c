"""Every name that `multirnn` offers, in one place."""

from multirnn.activations import ACTIVATIONS, Activation
from multirnn.backend import Backend, accept
from multirnn.boundary import BoundaryLayer, Inputs
from multirnn.cells import CELLS, Cell
from multirnn.compare import Comparison, Difference, compare, difference, tolerance
from multirnn.conventions import CONVENTIONS, Convention, from_arrays, to_arrays
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
from multirnn.layer import Gradients, Layer, Output, State, Stream
from multirnn.registry import backend, backends, build, read
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights, fold_biases, initialise, split_biases

__all__ = [
    "ACTIVATIONS",
    "CELLS",
    "CONVENTIONS",
    "Activation",
    "Backend",
    "BoundaryLayer",
    "Cell",
    "Comparison",
    "Convention",
    "Difference",
    "Gradients",
    "Inputs",
    "InvalidCall",
    "InvalidData",
    "InvalidSpec",
    "InvalidWeights",
    "Layer",
    "MissingFramework",
    "MultirnnError",
    "Output",
    "RecurrentSpec",
    "State",
    "Stream",
    "UnknownBackend",
    "Unrepresentable",
    "Unsupported",
    "Weights",
    "accept",
    "backend",
    "backends",
    "build",
    "compare",
    "difference",
    "fold_biases",
    "from_arrays",
    "initialise",
    "read",
    "split_biases",
    "to_arrays",
    "tolerance",
]
