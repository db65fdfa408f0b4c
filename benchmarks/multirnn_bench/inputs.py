"""Weights and arrays, drawn once for a problem and handed to every contender's process in a folder."""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from multirnn.layer import Output, State
from multirnn.protocol import Work
from multirnn.weights import Array, Weights, initialise
from multirnn_bench.problems import Problem

__all__ = ["draw", "load", "load_arrays", "save", "save_arrays"]


def draw(problem: Problem, mode: str, seed: int = 0) -> Work:
    """The work of a problem in a mode; the weights are the same in every mode.

    Weights and biases are drawn as PyTorch draws them: states then neither saturate nor fade into denormal numbers,
    which have a speed of their own.
    """
    spec = problem.spec
    rng = np.random.default_rng(seed)
    weights = initialise(spec, seed)
    batch, time = problem.batch, 1 if mode == "streaming" else problem.time
    x = rng.standard_normal((batch, time, spec.input_size)).astype(spec.dtype)
    lengths = cotangent = target = None
    if problem.lengths is not None and mode != "streaming":
        lengths = rng.integers(*problem.lengths, size=batch, endpoint=True)
        x[np.arange(time) >= lengths[:, None]] = 0
    sequence = (batch, time, spec.output_size)
    if mode == "gradients":
        state = (spec.num_layers * len(spec.directions), batch, spec.hidden_size)
        parts = [rng.standard_normal(state).astype(spec.dtype) for _ in spec.form.states]
        cotangent = Output(rng.standard_normal(sequence).astype(spec.dtype), State(*parts))
    if mode == "training":
        target = rng.standard_normal(sequence).astype(spec.dtype)
    return Work(weights, x, lengths, mode, cotangent, target)


def save(work: Work, folder: Path) -> None:
    """Write a work into an empty folder, a file an array."""
    arrays: dict[str, Any] = {f"weights.{name}": array for name, array in work.weights.arrays.items()}
    arrays |= {"x": work.x, "lengths": work.lengths, "target": work.target}
    if work.cotangent is not None:
        sequence, state = work.cotangent
        arrays |= {"cotangent": sequence, "cotangent.h": state.h, "cotangent.c": state.c}
    save_arrays({name: array for name, array in arrays.items() if array is not None}, folder)


def load(problem: Problem, mode: str, folder: Path) -> Work:
    """The work that `save` wrote."""
    arrays = load_arrays(folder)
    weights = Weights(problem.spec, {name: arrays.pop(f"weights.{name}") for name in problem.spec.shapes})
    cotangent = None
    if mode == "gradients":
        cotangent = Output(arrays["cotangent"], State(arrays["cotangent.h"], arrays.get("cotangent.c")))
    return Work(weights, aligned(arrays["x"]), arrays.get("lengths"), mode, cotangent, arrays.get("target"))


def aligned(array: Array) -> Array:
    """A copy that begins at a cache line: XLA shares such memory, and copies any other in every call."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    copy = memory[-memory.ctypes.data % 64 :][: array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def save_arrays(arrays: Mapping[str, Any], folder: Path) -> None:
    """Write arrays into a folder, each under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def load_arrays(folder: Path) -> dict[str, Any]:
    """The arrays that `save_arrays` wrote."""
    return {path.name.removesuffix(".npy"): np.load(path) for path in sorted(folder.glob("*.npy"))}
