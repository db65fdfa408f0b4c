"""`multirnn explain`: its counts are those of the frameworks, its gates and arrays those of the conventions."""

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from command_line import GRU, LSTM, RNN, run

import multirnn as mr
from multirnn.conventions import CONVENTIONS


@pytest.mark.parametrize(
    ("args", "counts"),
    [
        (RNN, (39, 42, 45)),
        (LSTM, (156, 168, 180)),
        (GRU, (117, 129, 135)),
        ((*GRU, "--reset-before"), (117, 126, 135)),
        ((*LSTM, "--layers", "3", "--bidirectional"), (744, 816, 888)),
    ],
)
def test_explain_counts_with_formulas_that_come_out(args: tuple[str, ...], counts: tuple[int, ...]) -> None:
    found = json.loads(run("explain", *args, "--json").stdout)["counts"]
    assert [count["bias"] for count in found] == ["none", "single", "double"]
    for count, number in zip(found, counts, strict=True):
        formula = " + ".join(part for part in (count["weights"], count["biases"]) if part)
        assert eval(formula.replace("×", "*")) == count["parameters"] == number
        if args == GRU:
            assert "flax-nnx" not in count["default_of"]  # 126: no recurrent bias of the candidate


def test_explain_says_who_counts_how() -> None:
    text = run("explain", *RNN).stdout
    assert re.search(
        r"^single +1 × 3 × \(10 \+ 3\) +1 × 3 +42 +multirnn, Keras, Flax Linen, Flax NNX,", text, re.MULTILINE
    )
    assert re.search(r"^double +1 × 3 × \(10 \+ 3\) +2 × 1 × 3 +45 +PyTorch, ONNX, Haiku$", text, re.MULTILINE)
    assert re.search(r"^bias_hh_l0 +\(gate unit\) +\(3,\) +3 +bias_hh$", text, re.MULTILINE)


@pytest.mark.parametrize("args", [RNN, LSTM, GRU, (*GRU, "--reset-before"), (*GRU, "--layers", "2", "--bidirectional")])
def test_explain_shows_equations_gates_and_arrays(args: tuple[str, ...]) -> None:
    text, found = run("explain", *args).stdout, json.loads(run("explain", *args, "--json").stdout)
    spec = mr.RecurrentSpec.from_dict(found["spec"])
    assert found["cell"]["equations"] == list(spec.form.equations)
    assert all(f"  {equation}\n" in text for equation in spec.form.equations)
    assert [framework["name"] for framework in found["frameworks"]] == [
        convention.name for convention in CONVENTIONS.values() if spec.cell in convention.gates
    ]
    for framework in found["frameworks"]:
        convention = CONVENTIONS[framework["name"]]
        if framework["reason"]:
            assert framework["arrays"] == []
            assert f"{framework['reason']}." in text
            continue
        held = convention.by_default(spec)
        arrays = mr.to_arrays(mr.initialise(held, scheme="keras"), convention=convention)  # zero biases
        assert {array["name"]: tuple(array["shape"]) for array in framework["arrays"]} == {
            name: array.shape for name, array in arrays.items()
        }
        zero = convention.zero.get(held.form.form, ())
        shapes = {name: shape for name, shape in held.shapes.items() if name.rpartition(".")[2] not in zero}
        assert {name for array in framework["arrays"] for name in array["holds"]} == set(shapes)
        count = sum(map(math.prod, shapes.values()))
        assert f'{convention.title}: {count} parameters, bias="{held.bias}"' in text
        assert framework["arrays"][0]["name"] in text
        if len(spec.form.gates) > 1:
            names = " +".join(convention.gates[spec.cell][gate] for gate in spec.form.gates)
            assert re.search(rf"^{convention.title} +{names} ", text, re.MULTILINE)


def test_explain_with_a_form_that_was_asked_for() -> None:
    text = run("explain", *RNN, "--bias", "double").stdout
    assert 'PyTorch: 45 parameters, bias="double"' in text
    assert 'Keras holds a simple_rnn with bias="none" or bias="single", not bias="double"' in text


def explained(framework: str, *args: str) -> int:
    found = json.loads(run("explain", *args, "--json").stdout)["frameworks"]
    return next(entry["parameters"] for entry in found if entry["name"] == framework)


@pytest.mark.parametrize(("args", "name"), [(RNN, "RNN"), (LSTM, "LSTM"), (GRU, "GRU")])
def test_pytorch_counts_as_explained(args: tuple[str, ...], name: str) -> None:
    torch = pytest.importorskip("torch")
    assert explained("torch", *args) == sum(p.numel() for p in getattr(torch.nn, name)(10, 3).parameters())


@pytest.mark.parametrize(
    ("args", "name", "options"),
    [
        (RNN, "SimpleRNN", {}),
        (LSTM, "LSTM", {}),
        (GRU, "GRU", {}),
        ((*GRU, "--reset-before"), "GRU", {"reset_after": False}),
    ],
)
def test_keras_counts_as_explained(args: tuple[str, ...], name: str, options: dict[str, Any]) -> None:
    keras = pytest.importorskip("keras")
    layer = getattr(keras.layers, name)(3, **options)
    layer.build((None, None, 10))
    assert explained("keras", *args) == layer.count_params()


@pytest.mark.parametrize(("args", "name"), [(RNN, "SimpleCell"), (LSTM, "LSTMCell"), (GRU, "GRUCell")])
def test_flax_linen_counts_as_explained(args: tuple[str, ...], name: str) -> None:
    jax, linen = pytest.importorskip("jax"), pytest.importorskip("flax.linen")
    parameters = linen.RNN(getattr(linen, name)(3)).init(jax.random.key(0), np.zeros((1, 1, 10), "float32"))
    assert explained("flax-linen", *args) == sum(leaf.size for leaf in jax.tree.leaves(parameters))
