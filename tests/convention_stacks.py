"""Stacks by the form of their cell and biases, and arrays under other names."""

from dataclasses import replace
from typing import Any

import numpy as np

import multirnn as mr
from multirnn.cells import FORMS
from multirnn.conventions import CONVENTIONS

Arrays = dict[str, np.ndarray]
INVERTED = replace(CONVENTIONS["keras"], name="inverted", title="the inverted GRU", update="new")


def stack(form: str, bias: str, **changes: Any) -> mr.RecurrentSpec:
    """Two layers both ways, unless changed."""
    sizes = {"input_size": 5, "hidden_size": 4, "num_layers": 2, "bidirectional": True} | changes
    cell = FORMS[form]
    return mr.RecurrentSpec(cell.name, bias=bias, reset_after=cell.reset_after, **sizes)


def keras_names(arrays: Arrays, *prefixes: str) -> Arrays:
    """The arrays of a Keras stack under other names of its layers."""
    layers = list(dict.fromkeys(name.partition("/")[0] for name in arrays))
    return {prefixes[layers.index(name.partition("/")[0])] + name[name.index("/") :]: a for name, a in arrays.items()}
