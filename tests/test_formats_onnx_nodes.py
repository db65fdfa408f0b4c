"""The nodes that are computed in NumPy, against the reference evaluator of the package onnx, in all their versions."""

from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.formats.onnx_nodes import MOVING, ORDERING, SIZES, Budget, computed, data_of

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")

X = np.random.default_rng(0).standard_normal((3, 4, 5)).astype("float32")


def ints(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


LAST = 2**63 - 1
CASES: list[tuple[str, list[Any], dict[str, Any], int, int]] = [
    # operator, inputs, attributes, outputs, version of the operators
    ("Add", [ints(3, 4), ints(2)], {}, 1, 18),
    ("Sub", [ints(3, 4), ints(2)], {}, 1, 18),
    ("Mul", [ints(3, 4), ints(2)], {}, 1, 18),
    ("Min", [ints(3, 4), ints(2), ints(9)], {}, 1, 18),
    ("Max", [ints(3, 4), ints(2), ints(9)], {}, 1, 18),
    ("Cast", [X], {"to": 11}, 1, 18),
    ("Cast", [ints(3, -4)], {"to": 6}, 1, 18),
    ("Cast", [np.float16(X)], {"to": 1}, 1, 18),
    ("Concat", [X, X[:, :1]], {"axis": 1}, 1, 18),
    ("Concat", [X, X], {"axis": -1}, 1, 18),
    ("Constant", [], {"value": X}, 1, 18),
    ("Constant", [], {"value_int": 3}, 1, 18),
    ("Constant", [], {"value_ints": [3, 4]}, 1, 18),
    ("Constant", [], {"value_float": 0.5}, 1, 18),
    ("Constant", [], {"value_floats": [0.5, 2.5]}, 1, 18),
    ("ConstantOfShape", [ints(2, 3)], {}, 1, 18),
    ("ConstantOfShape", [ints(2, 3)], {"value": ints(7)}, 1, 18),
    ("ConstantOfShape", [ints()], {"value": ints(7)}, 1, 18),
    ("Expand", [X[:, :1], ints(3, 4, 5)], {}, 1, 18),
    ("Expand", [X[:, :1], ints(2, 1, 1, 5)], {}, 1, 18),
    ("Flatten", [X], {}, 1, 18),
    ("Flatten", [X], {"axis": 0}, 1, 18),
    ("Flatten", [X], {"axis": -1}, 1, 18),
    ("Gather", [X, ints(2, -1, 0)], {}, 1, 18),
    ("Gather", [X, np.array(-1)], {"axis": 1}, 1, 18),
    ("Gather", [X, np.array([[0, 1], [2, 3]])], {"axis": -1}, 1, 18),
    ("Identity", [X], {}, 1, 18),
    ("Reshape", [X, ints(0, -1)], {}, 1, 18),
    ("Reshape", [X, ints(2, 3, 2, 5)], {}, 1, 18),
    ("Reshape", [X[:0], ints(0, 7)], {"allowzero": 1}, 1, 18),
    ("Shape", [X], {}, 1, 18),
    ("Shape", [X], {"start": 1}, 1, 18),
    ("Shape", [X], {"start": -2, "end": -1}, 1, 18),
    ("Slice", [X, ints(1, 0), ints(LAST, 2)], {}, 1, 18),
    ("Slice", [X, ints(-2), ints(-1), ints(1)], {}, 1, 18),
    ("Slice", [X, ints(-1), ints(-LAST), ints(2), ints(-1)], {}, 1, 18),
    ("Slice", [X, ints(0, 1), ints(3, 4), ints(-1, 0), ints(2, 1)], {}, 1, 18),
    ("Slice", [X], {"starts": [1, 0], "ends": [3, 2], "axes": [1, 2]}, 1, 9),
    ("Slice", [X], {"starts": [-1], "ends": [LAST]}, 1, 9),
    ("Split", [X, ints(1, 3)], {"axis": 1}, 2, 13),
    ("Split", [X], {"axis": 1}, 2, 13),
    ("Split", [X], {"axis": -1, "num_outputs": 2}, 2, 18),
    ("Split", [X], {"axis": 2, "split": [2, 3]}, 2, 11),
    ("Squeeze", [X[:1, :, :1]], {}, 1, 18),
    ("Squeeze", [X[:1, :, :1], ints(-1)], {}, 1, 18),
    ("Squeeze", [X[:1, :, :1]], {"axes": [0]}, 1, 11),
    ("Transpose", [X], {}, 1, 18),
    ("Transpose", [X], {"perm": [2, 0, 1]}, 1, 18),
    ("Unsqueeze", [X, ints(0, -1)], {}, 1, 18),
    ("Unsqueeze", [X], {"axes": [1]}, 1, 11),
]


@pytest.mark.parametrize(("kind", "inputs", "attributes", "outputs", "version"), CASES)
def test_as_the_reference_evaluator_does(
    kind: str, inputs: list[Any], attributes: dict[str, Any], outputs: int, version: int
) -> None:
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    names = [f"i{k}" for k in range(len(inputs))]
    made = {
        name: numpy_helper.from_array(one) if isinstance(one, np.ndarray) else one for name, one in attributes.items()
    }
    node = helper.make_node(kind, names, [f"o{k}" for k in range(outputs)], **made)
    kinds = [helper.np_dtype_to_tensor_dtype(array.dtype) for array in inputs]
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(*one)
            for one in zip(names, kinds, [array.shape for array in inputs], strict=True)
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
    wanted = ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))
    if kind == "Cast":
        attributes = {"to": helper.tensor_dtype_to_np_dtype(attributes["to"])}
    found = computed(kind, inputs, attributes, outputs, Budget(10_000))
    assert len(found) == outputs
    for array, expected in zip(found, wanted, strict=True):
        assert array.dtype == np.asarray(expected).dtype
        assert array.shape == np.shape(expected)
        assert np.array_equal(array, expected)


def test_every_node_is_tried() -> None:
    assert {case[0] for case in CASES} == MOVING | SIZES
    assert ORDERING < MOVING


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "reason"),
    [
        ("Cast", [X], {"to": "float16"}, "it casts float32 to float16, which changes numbers"),
        ("Cast", [np.array([2**40])], {"to": "int32"}, "it casts int64 to int32, which changes numbers"),
        ("Cast", [np.array([0.5])], {"to": "int32"}, "which changes numbers"),
        ("Concat", [X, X.astype("float64")], {"axis": 0}, "it joins arrays of several dtypes"),
        ("Add", [X, X], {}, "it changes numbers that are no sizes"),
        ("Add", [ints(*range(2000)), ints(1)], {}, "it changes numbers that are no sizes"),
        ("Reshape", [X, None], {}, "a node Reshape cannot be computed"),
        ("Split", [X, ints(1, 1)], {}, r"parts of the sizes \[1, 1\] are not 3"),
        ("Transpose", [None], {}, "an input is missing"),
        ("Identity", [X], {}, "it makes 1 arrays, and 2 are taken"),
        ("Squeeze", [X], {"axes": [0]}, "a node Squeeze cannot be computed"),
    ],
)
def test_what_changes_numbers_or_does_not_fit(kind: str, inputs: Any, attributes: Any, reason: str) -> None:
    with pytest.raises(mr.FormatError, match=reason):
        computed(kind, inputs, attributes, 2, Budget(10_000))


def test_a_budget_counts_numbers_and_nodes() -> None:
    budget = Budget(70, nodes=3)
    computed("Identity", [X[0]], {}, 1, budget)
    with pytest.raises(
        mr.FormatError, match="computing the node Identity takes more numbers than a model of this size"
    ):
        computed("Identity", [X], {}, 1, budget)
    budget = Budget(100, nodes=1)
    budget.spend(1, "Identity")
    with pytest.raises(mr.FormatError, match="computing the node Identity takes more"):
        budget.spend(1, "Identity")


def test_an_expanded_array_is_counted_as_it_becomes() -> None:
    computed("Expand", [np.zeros((1, 1, 11)), ints(2, 3, 1)], {}, 1, Budget(66))
    with pytest.raises(mr.FormatError, match="computing the node Expand takes more"):
        computed("Expand", [np.zeros((1, 1, 11)), ints(2, 3, 1)], {}, 1, Budget(65))


def test_which_inputs_are_moved() -> None:
    assert data_of("Concat", ["a", "b"]) == ["a", "b"]
    assert data_of("Reshape", ["a", "shape"]) == ["a"]
    assert data_of("ConstantOfShape", ["shape"]) == ()
