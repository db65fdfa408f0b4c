"""ONNX models that somebody made wrong, by mistake or on purpose: each is refused in a sentence, or read and confirmed."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from multirnn_onnxruntime import BACKEND, OnnxStack
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper
from onnx_models import BOTH, attribute, changed, constant, operator, spec_of

import multirnn as mr

Change = Callable[[ModelProto], Any]
TRILLION = 10**12


def inserted(*nodes: onnx.NodeProto, taken: str, layer: int = 0) -> Change:
    """Nodes before an operator, which takes what the last of them makes."""

    def change(model: ModelProto) -> None:
        all_nodes = list(model.graph.node)
        place = all_nodes.index(operator(model, layer))
        del model.graph.node[:]
        model.graph.node.extend([*all_nodes[:place], *nodes, *all_nodes[place:]])
        node = operator(model, layer)
        node.input[list(node.input).index(taken)] = nodes[-1].output[0]

    return change


def fixed(name: str, array: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(array)))


def weight(change: Callable[[TensorProto], Any]) -> Change:
    return lambda model: change(model.graph.initializer[0])


def elsewhere(path: str) -> Change:
    def change(tensor: TensorProto) -> None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=path)

    return weight(change)


def circle(model: ModelProto) -> None:
    """The first layer is fed by the last."""
    operator(model, 0).input[0] = operator(model, 1).output[0]


def other_order(model: ModelProto) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))


def nested(model: ModelProto) -> None:
    inner = GraphProto(name="inner")
    for _ in range(20):
        outer = GraphProto(name="outer")
        outer.node.append(helper.make_node("If", ["x"], ["out"], then_branch=inner))
        inner = outer
    operator(model).attribute.append(AttributeProto(name="body", type=AttributeProto.GRAPH, g=inner))


def as_input(model: ModelProto) -> None:
    tensor = model.graph.initializer.pop(0)
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def as_doubles(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float64"), tensor.name))


def doubling(model: ModelProto) -> None:
    """Forty concatenations of a value with itself."""
    names = ["h_0", *(f"twice.{k}" for k in range(40))]
    nodes = [helper.make_node("Concat", [below] * 2, [name], axis=1) for below, name in pairwise(names)]
    inserted(*nodes, taken="h_0")(model)


def huge_input(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = TRILLION


def own_function(model: ModelProto) -> None:
    """A GRU that is not ONNX's."""
    nodes = [helper.make_node("Identity", ["X"], ["Y"])]
    model.functions.append(helper.make_function("", "GRU", ["X"], ["Y"], nodes, [helper.make_opsetid("", 14)]))


def repeated_attribute(model: ModelProto) -> None:
    operator(model).attribute.append(helper.make_attribute("hidden_size", 11))


HOSTILE: dict[str, tuple[Change, str]] = {
    "a file beside": (elsewhere("weights.bin"), "lies in another file (external data), and nothing is read from there"),
    "a file above": (elsewhere("../secret"), "lies in another file (external data)"),
    "an absolute path": (elsewhere("/etc/passwd"), "lies in another file (external data)"),
    "a trillion weights": (weight(lambda t: t.dims.__setitem__(0, TRILLION)), "does not hold as many numbers"),
    "a negative size": (weight(lambda t: t.dims.__setitem__(0, -1)), "does not hold as many numbers"),
    "cut short": (weight(lambda t: setattr(t, "raw_data", t.raw_data[:-3])), "does not hold as many numbers"),
    "data type 99": (weight(lambda t: setattr(t, "data_type", 99)), "is of the data type 99, which is none of plain"),
    "texts": (weight(lambda t: setattr(t, "data_type", TensorProto.STRING)), "is of the data type 8, which is none"),
    "another rank": (
        weight(lambda t: t.dims.append(1)),
        "must have 3 axes, none of them empty, not the shape (1, 33, 5, 1)",
    ),
    "another shape": (weight(lambda t: t.dims.__setitem__(slice(None), [3, 11, 5])), "must have the shape (1, 33, 5)"),
    "twice by one name": (
        lambda m: m.graph.initializer.append(m.graph.initializer[0]),
        "two values named 'layers.0.W', or one without a name",
    ),
    "doubles": (as_doubles, "is float64, in which ONNX Runtime has no GRU"),
    "weights in the call": (
        as_input,
        "are given in a call, as 'layers.0.W'; put them into the model: model.graph.init",
    ),
    "no weights": (lambda m: operator(m).input.__setitem__(1, ""), "the GRU of layer 0 has no weights W"),
    "a huge text": (lambda m: setattr(operator(m), "op_type", "A" * 10**7), "which no spec has"),
    "an unknown domain": (lambda m: setattr(operator(m), "domain", "com.evil"), "also computes com.evil.GRU, which no"),
    "an unknown Squeeze": (lambda m: setattr(m.graph.node[-1], "domain", "com.evil"), "also computes com.evil.Squeeze"),
    "a GRU of its own": (own_function, "also computes a function.GRU, which no spec has"),
    "nested graphs": (nested, "the GRU has the attribute 'body', which ONNX has not"),
    "an attribute twice": (repeated_attribute, "the attribute 'hidden_size' of the GRU must be given once, as INT"),
    "a size as text": (attribute("hidden_size", "11"), "must be given once, as INT, and is not"),
    "another size": (attribute("hidden_size", 7), "has hidden_size=7, and the weights R of layer 0 11 units"),
    "another way": (attribute("direction", "sideways"), "has the direction 'sideways', and ONNX forward and bidirect"),
    "both ways": (
        attribute("direction", "bidirectional"),
        "has 2 activations for each direction, and this one 2 in all",
    ),
    "too few activations": (attribute("activations", ["Tanh"]), "has 2 activations for each direction, and this one 1"),
    "too many": (attribute("activations", ["Sigmoid", "Tanh", "Tanh"]), "has 2 activations for each direction"),
    "clip": (attribute("clip", 0.5), "clips what goes into its activations"),
    "layout": (attribute("layout", 1), "has layout=1, batch first, which ONNX Runtime does not run"),
    "linear_before_reset": (attribute("linear_before_reset", 2), "linear_before_reset of the GRU is 0 or 1, not 2"),
    "lengths of its own": (lambda m: constant(m, 4, np.array([3, 2], "int32")), "has lengths of its own, and those of"),
    "no input": (lambda m: m.graph.ClearField("input"), "nothing makes 'x' before the GRU that takes it"),
    "no output": (lambda m: m.graph.ClearField("output"), "returns nothing"),
    "an output of nothing": (lambda m: setattr(m.graph.output[0], "name", "z"), "returns 'z', which nothing makes"),
    "an input for nothing": (
        lambda m: m.graph.input.append(helper.make_tensor_value_info("z", 1, [1])),
        "takes 'z', which is neither x nor lengths nor a state",
    ),
    "another order": (other_order, "each node of a graph follows those that it needs"),
    "a trillion rows": (huge_input, "the model makes arrays of"),
    "a doubling": (doubling, "the size of 'twice.0' cannot be told before the model runs"),
    "a trillion zeros": (
        inserted(
            fixed("size", [1, 5, TRILLION]), helper.make_node("ConstantOfShape", ["size"], ["zeros"]), taken="h_0"
        ),
        "the model makes arrays of",
    ),
    "an opset of the future": (
        lambda m: setattr(m.opset_import[0], "version", 10**6),
        "ONNX Runtime does not run this",
    ),
    "no opset": (lambda m: m.ClearField("opset_import"), ""),
    "lengths that are 0": (
        inserted(
            helper.make_node("Cast", ["lengths"], ["wide"], to=TensorProto.INT64),
            fixed("nothing", np.int64(0)),
            helper.make_node("Mul", ["wide", "nothing"], ["none"]),
            helper.make_node("Cast", ["none"], ["lengths_0"], to=TensorProto.INT32),
            taken="lengths",
        ),
        "layer 0 of the model does not take the lengths as they are given",
    ),
    "no steps": (
        inserted(
            *(fixed(name, [number]) for name, number in (("start", 0), ("end", 0), ("axis", 0))),
            helper.make_node("Slice", ["x", "start", "end", "axis"], ["empty"]),
            taken="x",
        ),
        "layer 0 of the model does not take 'x' as it is",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_models(what: str) -> None:
    change, sentence = HOSTILE[what]
    with pytest.raises(mr.MultirnnError) as error:
        mr.read(changed(change))
    assert sentence in str(error.value)
    assert len(str(error.value)) < 600


STACKED: dict[str, tuple[Change, str]] = {
    "a circle": (circle, "each node of a graph follows those that it needs"),
    "no steps between": (
        inserted(
            *(fixed(name, [number]) for name, number in (("start", 0), ("end", 0), ("axis", 0))),
            helper.make_node("Slice", ["layers.0.y", "start", "end", "axis"], ["empty"]),
            taken="layers.0.y",
            layer=1,
        ),
        "layer 1 of the model is not fed by the outputs of the one below as they are",
    ),
    "half between": (
        inserted(
            helper.make_node("Cast", ["layers.0.y"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["half"], ["full"], to=TensorProto.FLOAT),
            taken="layers.0.y",
            layer=1,
        ),
        "layer 1 of the model is not fed by the outputs of the one below as they are",
    ),
    "a state for one": (
        lambda m: operator(m, 1).input.__setitem__(5, ""),
        "some layers of the model start from a state that is given in a call, and others do not",
    ),
    "states in another order": (
        lambda m: m.graph.node[0].output.__setitem__(slice(None), list(m.graph.node[0].output)[::-1]),
        "layer 0 of the model starts from a state of its own",
    ),
    "final states in another order": (
        lambda m: m.graph.node[-1].input.__setitem__(slice(None), list(m.graph.node[-1].input)[::-1]),
        "the output 'h_n' of the model is neither the sequence of the last layer nor a final state",
    ),
    "another activation above": (attribute("activations", ["Sigmoid", "Relu"], 1), "differ in their activations"),
}


@pytest.mark.parametrize("what", STACKED)
def test_hostile_stacks(what: str) -> None:
    change, sentence = STACKED[what]
    with pytest.raises(mr.Unrepresentable) as error:
        mr.read(changed(change, num_layers=2))
    assert sentence in str(error.value)


def test_no_hidden_size() -> None:
    """ONNX makes it optional."""

    def without(model: ModelProto) -> None:
        for node in model.graph.node:
            kept = [one for one in node.attribute if one.name != "hidden_size"]
            del node.attribute[:]
            node.attribute.extend(kept)

    assert mr.read(changed(without, **BOTH)) == mr.initialise(spec_of(**BOTH))


def test_a_link_out_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_bytes(bytes(4 * 165))
    inside = tmp_path / "inside"
    inside.mkdir()
    os.symlink(tmp_path / "secret", inside / "weights.bin")
    monkeypatch.chdir(inside)
    with pytest.raises(mr.Unrepresentable, match="lies in another file"):
        mr.read(changed(elsewhere("weights.bin")))


def test_what_no_stack_is_made_of() -> None:
    with pytest.raises(mr.Unrepresentable, match=r"a bytes is not an onnx\.ModelProto"):
        OnnxStack(b"")  # type: ignore[arg-type]
    with pytest.raises(mr.Unrepresentable, match="ONNX Runtime does not run this model"):
        OnnxStack(changed(HOSTILE["an opset of the future"][0]))


# --- Mutations -------------------------------------------------------------------------------------------------------

INTEGERS = (-1, 0, 1, 2, 5, 99, 2**31, TRILLION, 2**62, -(2**62))
TEXTS = ("", "x", "y", "h_0", "GRU", "Identity", "Cast", "../secret", "A" * 10_000)
NUMBERS = (np.nan, np.inf, 0.0, -1.0, 1e38)
BYTES = (b"", b"Tanh", b"Relu", b"reverse", b"\xff\xfe")


def messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from messages(inner)


def other(field: Any, value: Any, rng: random.Random) -> Any:
    """Another value of a field."""
    if field.type == field.TYPE_STRING:
        return rng.choice(TEXTS)
    if field.type == field.TYPE_BYTES:
        return rng.choice((*BYTES, value[:-1], value[::-1], value + b"\0"))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return rng.choice(NUMBERS)
    if field.type == field.TYPE_ENUM:
        return rng.choice(sorted(field.enum_type.values_by_number))
    narrow = field.type in (field.TYPE_INT32, field.TYPE_UINT32)
    return rng.choice([one for one in INTEGERS if not narrow or abs(one) < 2**31])


def mutate(model: ModelProto, rng: random.Random) -> None:
    """Drop, repeat, swap or change one field, wherever it is."""
    message = rng.choice(list(messages(model)))
    filled = [field for field, _ in message.ListFields()]
    field = rng.choice(filled if filled and rng.random() < 0.9 else message.DESCRIPTOR.fields)
    value = getattr(message, field.name)
    if not field.is_repeated:
        if field.type == field.TYPE_MESSAGE:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, other(field, value, rng))
        return
    if not value:
        return
    one = rng.randrange(len(value))
    way = rng.choice(("drop", "repeat", "clear", "change"))
    if way == "clear":
        message.ClearField(field.name)
    elif way == "repeat":
        value.extend([value[one]])
    elif way == "drop" or field.type == field.TYPE_MESSAGE:
        del value[one]
    else:
        value[one] = other(field, value[one], rng)


def seeds() -> list[ModelProto]:
    specs = [
        mr.RecurrentSpec("simple_rnn", 3, 2),
        mr.RecurrentSpec("lstm", 3, 2, num_layers=2, bidirectional=True),
        mr.RecurrentSpec("gru", 3, 2, num_layers=2, reset_after=False),
        mr.RecurrentSpec("gru", 3, 2, activation=mr.Activation("elu", 0.5)),
    ]
    return [mr.build(spec, BACKEND, seed=1).native.model for spec in specs]


FUZZ = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
sys.path.insert(0, sys.argv[1])
from test_onnx_hostile import fuzz
fuzz(range(int(sys.argv[2]), int(sys.argv[3])))
"""


def fuzz(numbers: range) -> tuple[int, int]:
    """Read models that were mutated; how many were read, and how many refused. Nothing else happens to any."""
    models, read = seeds(), 0
    for number in numbers:
        rng = random.Random(number)
        model = ModelProto()
        model.CopyFrom(rng.choice(models))
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            mutate(model, rng)
        try:
            weights = mr.read(model)
        except mr.MultirnnError:
            continue
        read += 1
        assert BACKEND.build(weights).weights().spec.cell in ("simple_rnn", "lstm", "gru"), number
    return read, len(numbers) - read


def test_mutated_models() -> None:
    """In a process of its own, which may not take much memory: a crash would end it."""
    command = [sys.executable, "-c", FUZZ, str(Path(__file__).parent), "0", "400"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_some_mutated_models_are_read() -> None:
    read, refused = fuzz(range(40))
    assert read
    assert refused
