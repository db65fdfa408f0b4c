"""What PyTorch exports to ONNX: layers as they are, and modules that do more than the layer in them."""

import io
from itertools import product
from typing import Any

import onnx
import pytest
import torch

import multirnn as mr

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter, about itself and sizes that it may have fixed


def exported(module: torch.nn.Module, *given: Any, free: dict[str, list[int]] | None = None) -> onnx.ModelProto:
    """The model that the exporter writes.

    Args:
        module: the module.
        given: what it is called with.
        free: the axes of which the size is free, by the names of the inputs; else all are fixed.
    """
    file = io.BytesIO()
    names = {} if free is None else {"input_names": list(free), "dynamic_axes": free}
    torch.onnx.export(module.eval(), given, file, dynamo=False, **names)
    return onnx.load_from_string(file.getvalue())


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_layers(kind: str, layers: int) -> None:
    for bidirectional, batch_first, state, free in product((False, True), repeat=4):
        module = getattr(torch.nn, kind)(5, 11, layers, bidirectional=bidirectional, batch_first=batch_first)
        h = torch.zeros(layers * (1 + bidirectional), 3 if batch_first else 7, 11)
        states = [(h, h.clone()) if kind == "LSTM" else h] if state else []
        names = ["h", "c"][: 1 + (kind == "LSTM")] if state else []
        axes = {"x": [0, 1], **{name: [1] for name in names}}
        model = exported(module, torch.zeros(3, 7, 5), *states, free=axes if free else None)
        assert mr.read(model) == mr.read(module)


@pytest.mark.parametrize("options", [{"bias": False}, {"nonlinearity": "relu"}])
def test_layers_with_options(options: dict[str, Any]) -> None:
    module = torch.nn.RNN(5, 11, 2, **options)
    assert mr.read(exported(module, torch.zeros(3, 7, 5))) == mr.read(module)


def test_a_single_row_without_a_batch() -> None:
    module = torch.nn.GRU(5, 11, 2)
    assert mr.read(exported(module, torch.zeros(7, 5))) == mr.read(module)


class Around(torch.nn.Module):
    """An LSTM, and something done before it, to its states, between its layers or after it."""

    def __init__(self, before: Any = None, between: Any = None, after: Any = None, state: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.above = torch.nn.LSTM(5, 11, batch_first=True), torch.nn.LSTM(11, 11, batch_first=True)
        self.ways = [way or (lambda one: one) for way in (before, between, after, state)]

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        before, between, after, state = self.ways
        h, c = state(h), state(c)
        y, _ = self.below(before(x), (h[:1], c[:1]))
        y, _ = self.above(between(y), (h[1:], c[1:]))
        return after(y)


AROUND = {
    "nothing": ({}, None),
    "flipped before": ({"before": lambda x: x.flip(1)}, "layer 0 of the model does not take 'x' as it is"),
    "a permutation of features": ({"before": lambda x: x[..., [1, 0, 2, 3, 4]]}, "layer 0 of the model does not take"),
    "cut before": ({"before": lambda x: x[:, :9]}, "layer 0 of the model does not take 'x' as it is"),
    "few rows before": ({"before": lambda x: x[:20]}, "layer 0 of the model does not take 'x' as it is"),
    "half before": ({"before": lambda x: x.half().float()}, "layer 0 of the model does not take 'x' as it is"),
    "half between": ({"between": lambda y: y.half().float()}, "layer 1 of the model is not fed by the outputs of"),
    "double between": ({"between": lambda y: y.double().float()}, None),
    "flipped between": ({"between": lambda y: y.flip(1)}, "layer 1 of the model is not fed by the outputs of"),
    "flipped after": ({"after": lambda y: y.flip(1)}, "is neither the sequence of the last layer nor a final state"),
    "half after": ({"after": lambda y: y.half().float()}, "is neither the sequence of the last layer nor a final"),
    "double after": ({"after": lambda y: y.double()}, "is neither the sequence of the last layer nor a final"),
    "a part after": ({"after": lambda y: y[..., :4]}, "is neither the sequence of the last layer nor a final"),
    "the last step": ({"after": lambda y: y[:, -1]}, None),
    "states in another order": ({"state": lambda h: h.flip(0)}, "starts from a state of its own"),
    "half states": ({"state": lambda h: h.half().float()}, "starts from a state of its own"),
    "doubled before": ({"before": lambda x: 2 * x}, "the model also computes Mul, which no spec has"),
}


@pytest.mark.parametrize("what", AROUND)
def test_what_stands_around_the_layers(what: str) -> None:
    ways, sentence = AROUND[what]
    module = Around(**ways)
    state = torch.zeros(2, 3, 11)
    free = {"x": [0, 1], "h": [1], "c": [1]}
    model = exported(module, torch.zeros(3, 7, 5), state, state.clone(), free=free)
    if sentence is None:
        read, below = mr.read(model), mr.read(module.below)
        assert read.spec.num_layers == 2
        assert all((read.arrays[name] == array).all() for name, array in below.arrays.items())
        return
    with pytest.raises(mr.Unrepresentable) as error:
        mr.read(model)
    assert sentence in str(error.value)


def test_outputs_of_the_layer_below() -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.above = torch.nn.GRU(5, 11), torch.nn.GRU(11, 11)

        def forward(self, x: torch.Tensor) -> Any:
            y, _ = self.below(x)
            return y, self.above(y)[0]

    with pytest.raises(mr.Unrepresentable, match="is neither the sequence of the last layer nor a final state"):
        mr.read(exported(Both(), torch.zeros(3, 7, 5)))


def test_one_layer_twice() -> None:
    """Two layers with the same weights are a stack, and are read as one."""

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.GRU(11, 11)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x)[0])[0]

    module = Twice()
    read = mr.read(exported(module, torch.zeros(3, 7, 11)))
    assert read.spec == mr.RecurrentSpec("gru", 11, 11, num_layers=2)
    assert (read.arrays["layers.0.forward.weight_hh"] == read.arrays["layers.1.forward.weight_hh"]).all()
