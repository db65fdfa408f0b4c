"""Every backend is the reference, or refuses: over a covering grid, by laws, and over drawn specs."""

import pytest
from hypothesis import HealthCheck, given, settings

import multirnn as mr
from multirnn.cells import FORMS, Cell
from multirnn.numerics import TOLERANCE
from multirnn.protocol import Backend
from multirnn.spec import BIASES, DTYPES
from multirnn.testing import cases
from multirnn.testing import strategies as rnn

DRAWN = 40  # a form of the cell and a dtype: 4 * 2 * 40 = 320 specs a backend


@pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in cases()])
def test_conformance(backend: Backend, check) -> None:
    check(backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_drawn_specs_agree(backend: Backend, form: Cell, dtype: str, observed) -> None:
    seen = {"drawn": 0, "accepted": 0, "worst_eps": 0.0, "where": ""}

    @settings(
        max_examples=DRAWN, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(rnn.problems(rnn.specs(cell=form.name, reset_after=form.reset_after, dtype=dtype)))
    def agree(problem: tuple[mr.Weights, rnn.Call]) -> None:
        weights, (x, state, lengths) = problem
        seen["drawn"] += 1
        if reason := backend.refuses(weights.spec):
            with pytest.raises(mr.Unsupported) as refusal:
                backend.build(weights)
            assert reason in str(refusal.value)
            return
        row = mr.compare(weights, x, state, lengths=lengths, backends=[backend]).rows[0]
        assert row.verdict == "equal", row.reason
        seen["accepted"] += 1
        if row.worst is not None and row.worst.difference.eps > seen["worst_eps"]:
            seen["worst_eps"], seen["where"] = row.worst.difference.eps, row.worst.where

    agree()
    assert seen["drawn"] >= DRAWN
    total = observed.setdefault(backend.name, {}).setdefault(
        dtype, {"drawn": 0, "accepted": 0, "worst_eps": 0.0, "where": ""}
    )
    total["drawn"] += seen["drawn"]
    total["accepted"] += seen["accepted"]
    if seen["worst_eps"] > total["worst_eps"]:
        total["worst_eps"], total["where"] = seen["worst_eps"], seen["where"]


def test_the_bounds_are_no_looser_than_promised() -> None:
    assert TOLERANCE["float32"] <= 64
    assert TOLERANCE["float64"] <= 256


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(
    ("cell", "counts"), [("simple_rnn", (39, 42, 45)), ("lstm", (156, 168, 180)), ("gru", (117, 129, 135))]
)
def test_counts_by_the_frameworks_own_counting(backend: Backend, cell: str, counts: tuple[int, ...], bias: str) -> None:
    spec = mr.RecurrentSpec(cell, input_size=10, hidden_size=3, bias=bias)
    expected = counts[BIASES.index(bias)]
    assert spec.parameter_count == expected
    if backend.refuses(spec) is None:
        layer = mr.build(spec, backend)
        assert layer.parameter_count == expected
        assert counted_natively(backend.name, layer.native) == expected


def counted_natively(name: str, native) -> int:
    """As the framework's own users count."""
    if name == "torch":
        return sum(p.numel() for p in native.parameters())
    if name == "keras":
        return native.count_params()
    if name == "jax":
        import jax

        return sum(leaf.size for leaf in jax.tree.leaves(native.params))
    if name == "onnxruntime":
        from onnx import numpy_helper

        return sum(numpy_helper.to_array(tensor).size for tensor in native.model.graph.initializer)
    return sum(array.size for array in native.parameters.values())
