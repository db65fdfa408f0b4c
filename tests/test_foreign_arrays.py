"""What is no plain array of NumPy, at the boundary: read as it is, or refused in a sentence of ours."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.numerics import draw_call

GRU = mr.RecurrentSpec("gru", 5, 4)
X, STATE, LENGTHS = draw_call(GRU)
MASKED = np.ma.masked_array(X, X > 0)


class Frame:
    """A table as pandas has it: an array by `__array__`, and no dtype of its own."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array if dtype is None else self.array.astype(dtype)


@pytest.fixture
def layer() -> mr.Layer:
    return mr.build(GRU, "numpy", seed=1)


MASKS: dict[str, Callable[[Any], object]] = {
    "x": lambda layer: layer(MASKED),
    r"x\[0\]": lambda layer: layer(list(MASKED)),
    "lengths": lambda layer: layer(X, lengths=np.ma.masked_array(LENGTHS, LENGTHS > 3)),
    "state.h": lambda layer: layer(X, mr.State(np.ma.masked_array(STATE.h, True))),
    "cotangent.sequence": lambda layer: layer.vjp(X, cotangent=mr.Output(np.ma.masked_array(layer(X)[0], False), None)),
    "layers.0.forward.weight_ih": lambda layer: mr.Weights(
        GRU, {name: np.ma.masked_array(array, False) for name, array in layer.weights().arrays.items()}
    ),
    "'weight_ih_l0'": lambda layer: mr.from_arrays(
        {
            name: np.ma.masked_array(array, False)
            for name, array in mr.to_arrays(layer.weights(), convention="torch").items()
        },
        convention="torch",
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_not_dropped(layer: mr.Layer, name: str) -> None:
    with pytest.raises(
        mr.MultirnnError, match=rf"^{name} is a masked array, and NumPy would drop the mask; fill it, and"
    ):
        MASKS[name](layer)


WRONG: dict[str, tuple[Any, str]] = {
    "a table of float64": (Frame(X[0].astype("float64")), "x is float64, and the layer computes in float32"),
    "a table of words": (
        Frame(np.array([["a", 1]], object)),
        r"not a \w+.Frame, in which NumPy finds no",
    ),
    "rows of float64": (list(X.astype("float64")), r"x\[0\] is float64, and x is read as float32; convert it first"),
    "objects": (X.astype(object), "x is object, and the layer computes in float32"),
    "records": (np.zeros((3, 7), "f4,f4"), r"x is \[\('f0', '<f4'\), \('f1', '<f4'\)\], and the layer computes"),
    "bytes": (b"words", r"x is \|S5, and the layer computes in float32"),
    "a set": ({1.0, 2.0}, "x must be an array of float32, not a set, in which NumPy finds no numbers"),
    "a generator": ((row for row in X), "x must be an array of float32, not a generator, in which NumPy finds no"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_array_of_the_specs_dtype_is_refused(layer: mr.Layer, what: str) -> None:
    value, sentence = WRONG[what]
    with pytest.raises(mr.InvalidCall, match=sentence):
        layer(value)


def test_what_numpy_reads_without_loss_is_read(layer: mr.Layer, tmp_path: Any) -> None:
    expected = layer(X[0]).sequence
    stored = np.memmap(tmp_path / "x", "float32", "w+", shape=X[0].shape)
    stored[...] = X[0]
    read_only = X[0].copy()
    read_only.flags.writeable = False
    for x in (stored, read_only, Frame(X[0]), list(X[0]), X[0].tolist(), memoryview(X[0])):
        np.testing.assert_array_equal(layer(x).sequence, expected)
    assert (
        np.isnan(layer([[1e300] * 5]).sequence).sum() == np.isnan(layer(np.full((1, 5), np.inf, "f4")).sequence).sum()
    )


TENSORS: dict[str, Callable[[Any, Any], Any]] = {
    "needs a gradient": lambda torch, t: torch.nn.Parameter(t),
    "a negated view": lambda torch, t: torch._neg_view(t),
    "bfloat16": lambda torch, t: t.bfloat16(),
    "meta": lambda torch, t: t.to("meta"),
    "sparse": lambda torch, t: t.to_sparse(),
    "in a list": lambda torch, t: list(torch.nn.Parameter(t)),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_numpy_cannot_read_are_refused(layer: mr.Layer, what: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = TENSORS[what](torch, torch.from_numpy(X))
    with pytest.raises(
        mr.InvalidCall, match=r"must be an array of \w+, not a torch.* which NumPy cannot read; pass its"
    ):
        layer(tensor)
    np.testing.assert_array_equal(layer(torch.from_numpy(X)).sequence, layer(X).sequence)


def test_parameters_that_need_a_gradient_are_no_weights() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(mr.InvalidWeights, match=r"^'weight_ih_l0' must be an array of numbers, not a torch.Parameter"):
        mr.from_arrays(dict(torch.nn.GRU(5, 4).named_parameters()), convention="torch")


def test_symbolic_tensors_are_refused(layer: mr.Layer) -> None:
    keras = pytest.importorskip("keras")
    with pytest.raises(
        mr.InvalidCall, match=r"^x must be an array of float32, not a keras.KerasTensor of float32, which"
    ):
        layer(keras.Input((7, 5)))


@pytest.mark.parametrize("value", [None, 3, "weight_ih_l0"])
def test_what_is_no_mapping_holds_no_arrays(value: Any) -> None:
    with pytest.raises(mr.InvalidWeights, match=r"^arrays must be a mapping from names to arrays, not"):
        mr.from_arrays(value, convention="torch")
    with pytest.raises(mr.InvalidWeights, match=r"^arrays must be a mapping from names to arrays, not"):
        mr.Weights(GRU, value)
