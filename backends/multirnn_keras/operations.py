"""The operations that a step is made of, each as the engine has it: without what `keras.ops` adds to every call."""

from importlib import import_module
from typing import Any

import keras

from multirnn_keras.engine import ENGINE, ENGINES

__all__ = ["Tensors", "affine", "concatenate", "engine", "nn", "ops", "rows", "where"]

Tensors = list[Any]
ops: Any = keras.ops  # typed there as what a layer of Keras makes of them

engine: Any = import_module(ENGINE) if ENGINE in ENGINES else None
nn: Any
concatenate: Any
where: Any
if ENGINE == "tensorflow":
    nn, concatenate, where = engine.nn, engine.concat, engine.where
elif ENGINE == "jax":
    nn, concatenate, where = engine.nn, engine.numpy.concatenate, engine.numpy.where
elif ENGINE == "torch":
    nn, concatenate, where = engine, engine.cat, engine.where
else:
    nn = concatenate = where = None  # Keras alone loads on other engines, and their layers are refused


def affine(p: Any, h: Any, matrix: Any) -> Any:
    """`p + h @ matrix`."""
    return engine.addmm(p, h, matrix) if ENGINE == "torch" else p + h @ matrix


def rows(a: Any) -> Any:
    """The rows of all steps, one under another."""
    return ops.reshape(a, (-1, a.shape[-1]))
