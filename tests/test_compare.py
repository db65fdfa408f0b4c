"""The comparison: its verdicts, its words, and what is compared on."""

import json
import re
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from changed_backends import GRU, LSTM, Change, Changed, ChangedLayer, spoiled

import multirnn as mr
from multirnn.numerics import draw_call

PLACES: list[tuple[mr.RecurrentSpec, dict[str, Change], str]] = [
    (
        LSTM,
        {"output": lambda o: o._replace(sequence=spoiled(o.sequence, 1, 6, 5))},
        "output, backward, row 1, step 6, unit 1",
    ),
    (
        LSTM,
        {"output": lambda o: o._replace(state=o.state._replace(h=spoiled(o.state.h, 2, 3, 1)))},
        "final h of layer 1 forward, row 3, unit 1",
    ),
    (
        LSTM,
        {"output": lambda o: o._replace(state=o.state._replace(c=spoiled(o.state.c, 1, 0, 3)))},
        "final c of layer 0 backward, row 0, unit 3",
    ),
    (
        LSTM,
        {"gradients": lambda g: g._replace(x=spoiled(g.x, 2, 3, 4))},
        "gradient of x, row 2, step 3, feature 4",
    ),
    (
        LSTM,
        {"gradients": lambda g: g._replace(state=g.state._replace(c=spoiled(g.state.c, 3, 2, 0)))},
        "gradient of initial c of layer 1 backward, row 2, unit 0",
    ),
    *(
        (
            LSTM,
            {"gradients": lambda g, name=name, place=place: g._replace(weights=with_spoiled(g.weights, name, *place))},
            f"gradient of {name}, {words}",
        )
        for name, place, words in [
            ("layers.0.forward.weight_ih", (1, 2, 4), "gate f, unit 2, source 4"),
            ("layers.1.backward.weight_hh", (3, 0, 1), "gate o, unit 0, source 1"),
            ("layers.1.forward.bias_ih", (2, 3), "gate g, unit 3"),
        ]
    ),
    (
        GRU,
        {"gradients": lambda g: g._replace(weights=with_spoiled(g.weights, "layers.0.forward.bias_hh", 0, 2))},
        "gradient of layers.0.forward.bias_hh, gate n, unit 2",
    ),
]


def with_spoiled(weights: dict[str, np.ndarray], name: str, *place: int) -> dict[str, np.ndarray]:
    return {**weights, name: spoiled(weights[name], *place)}


# --- Verdicts --------------------------------------------------------------------------------------------------------------


def test_the_reference_in_float64_is_equal_to_itself() -> None:
    comparison = mr.compare(mr.RecurrentSpec("lstm", 5, 4, dtype="float64"), backends=["numpy"])
    (row,) = comparison.rows
    assert (row.verdict, row.backend, row.title, row.parameters) == ("equal", "numpy", "numpy", 160)
    assert row.worst is not None
    assert row.worst.difference.normwise == 0
    assert comparison.ok


def test_all_that_are_installed_unless_said_otherwise() -> None:
    comparison = mr.compare(mr.RecurrentSpec("simple_rnn", 5, 4))
    assert [row.backend for row in comparison.rows] == list(mr.backends())
    assert comparison.ok, comparison
    assert [row.backend for row in mr.compare(GRU, backends="numpy").rows] == ["numpy"]
    right = mr.backend("numpy")
    assert [row.title for row in mr.compare(GRU, backends=[Changed(), "numpy", right]).rows] == [
        "changed",
        "numpy",
        "numpy",
    ]


@pytest.mark.parametrize(("spec", "changes", "place"), PLACES, ids=[place for *_, place in PLACES])
def test_what_differs_is_placed(spec: mr.RecurrentSpec, changes: dict[str, Change], place: str) -> None:
    x, state, _ = draw_call(spec, 3)
    comparison = mr.compare(spec, x, state, backends=["numpy", Changed(**changes)])
    equal, differs = comparison.rows
    assert not comparison.ok
    assert equal.verdict == "equal"
    assert differs.verdict == "differs"
    assert differs.worst is not None
    assert differs.worst.where == place
    assert differs.reason == f"{place}: {differs.worst.difference.eps:.3g} eps"


def test_each_part_has_its_own_worst() -> None:
    spoil = PLACES[1][1]
    (row,) = mr.compare(LSTM, backends=[Changed(**spoil)]).rows
    assert row.output is not None
    assert row.state is not None
    assert row.gradient is not None
    bound = mr.tolerance("float32")
    assert row.output.difference.normwise <= bound < row.state.difference.normwise
    assert row.gradient.difference.normwise <= bound


def test_the_error_over_the_steps() -> None:
    x, _, _ = draw_call(LSTM, 3)
    wrong = Changed(
        output=lambda o: o._replace(sequence=spoiled(o.sequence, 1, 6, 5)),
        gradients=lambda g: g._replace(x=spoiled(g.x, 2, 3, 4)),
    )
    (row,) = mr.compare(LSTM, x, backends=[wrong]).rows
    assert row.output_steps is not None
    assert row.gradient_steps is not None
    bound = mr.tolerance("float32")
    assert [step for step, error in enumerate(row.output_steps) if error > bound] == [6]
    assert [step for step, error in enumerate(row.gradient_steps) if error > bound] == [3]
    assert len(row.output_steps) == len(row.gradient_steps) == 7
    assert row.output is not None
    assert max(row.output_steps) == row.output.difference.normwise


@pytest.mark.parametrize(
    ("spec", "changes", "reason"),
    [
        (GRU, {"count": 12}, "counts 136 parameters where the spec has 124"),
        (
            GRU,
            {"output": lambda o: o._replace(sequence=o.sequence.astype("float64"))},
            "output is float64, not float32",
        ),
        (
            GRU,
            {"output": lambda o: o._replace(sequence=o.sequence[:, :-1])},
            "output has the shape (5, 6, 4), not (5, 7, 4)",
        ),
        (
            GRU,
            {"output": lambda o: o._replace(state=mr.State(o.state.h[0]))},
            "final h has the shape (5, 4), not (1, 5, 4)",
        ),
        (LSTM, {"output": lambda o: o._replace(state=mr.State(o.state.h))}, "final c is missing"),
        (
            GRU,
            {"output": lambda o: o._replace(state=mr.State(o.state.h, o.state.h))},
            "there is a final c, which the spec does not have",
        ),
        (
            LSTM,
            {"gradients": lambda g: g._replace(state=mr.State(g.state.h, g.state.c.astype("float64")))},
            "gradient of initial c is float64, not float32",
        ),
        (
            GRU,
            {"gradients": lambda g: g._replace(weights=dict(list(g.weights.items())[:3]))},
            "gradient of layers.0.forward.bias_hh is missing",
        ),
        (
            GRU,
            {"gradients": lambda g: g._replace(weights={**g.weights, "extra": g.x})},
            "there is a gradient of extra, which the spec does not have",
        ),
    ],
)
def test_what_cannot_be_held_against_the_reference_differs(
    spec: mr.RecurrentSpec, changes: dict[str, Any], reason: str
) -> None:
    comparison = mr.compare(spec, backends=[Changed(**changes)])
    assert (comparison.rows[0].verdict, comparison.rows[0].reason) == ("differs", reason)
    assert not comparison.ok


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_not_finite_differ(number: float) -> None:
    """In any place, beside others that are well."""
    changes = [
        {"output": lambda o: o._replace(sequence=np.full_like(o.sequence, number))},
        {"gradients": lambda g: g._replace(state=mr.State(np.full_like(g.state.h, number)))},
        {
            "gradients": lambda g: g._replace(
                weights={name: np.full_like(array, number) for name, array in g.weights.items()}
            )
        },
    ]
    for change in changes:
        assert mr.compare(GRU, backends=[Changed(**change)]).rows[0].verdict == "differs"


NOT_FINITE = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("number", NOT_FINITE)
@pytest.mark.parametrize(
    "spec", [replace(GRU, cell="simple_rnn"), LSTM, replace(GRU, bias="double")], ids=lambda spec: spec.cell
)
def test_what_is_not_finite_in_the_input_is_in_the_same_places_of_the_output(
    spec: mr.RecurrentSpec, number: float
) -> None:
    x, state, lengths = draw_call(spec, 3)
    x[np.argmax(lengths), 2, 3] = number
    with np.errstate(all="raise"):
        comparison = mr.compare(spec, x, state, lengths=lengths)
    assert [(row.backend, row.verdict) for row in comparison.rows if row.verdict not in ("equal", "missing")] == []
    assert comparison.ok
    assert np.isfinite(json.loads(comparison.to_json())["rows"][0]["output_steps"]).all()
    assert ("numbers of the reference's output are not finite" in str(comparison)) == bool(np.isnan(number))


@pytest.mark.parametrize("number", NOT_FINITE)
def test_what_is_not_finite_in_another_place_differs(number: float) -> None:
    def elsewhere(output: mr.Output) -> mr.Output:
        sequence = output.sequence.copy()
        sequence[0, 0, 0] = number
        return output._replace(sequence=sequence)

    x, _, _ = draw_call(GRU, 3)
    x[1, 2, 3] = np.nan
    (row,) = mr.compare(GRU, x, backends=[Changed(output=elsewhere)]).rows
    assert (row.verdict, row.reason) == ("differs", "output, forward, row 0, step 0, unit 0: inf eps")
    (row,) = mr.compare(
        GRU, x, backends=[Changed(output=lambda o: o._replace(sequence=np.nan_to_num(o.sequence)))]
    ).rows
    assert row.verdict == "differs"
    assert row.reason.startswith("output, forward, row 1, step 2")


def test_a_refusal_is_a_row_and_no_failure() -> None:
    comparison = mr.compare(GRU, backends=["numpy", Changed(refusal="it is not Tuesday")])
    row = comparison.rows[1]
    assert comparison.ok
    assert (row.verdict, row.reason, row.parameters, row.worst) == ("refuses", "it is not Tuesday", None, None)
    assert not mr.compare(GRU, backends=[Changed(refusal="it is not Tuesday")]).ok  # nobody has realised it


def test_a_missing_framework_is_a_row_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    load = mr.backend

    def missing(name: str) -> Any:
        if name == "numpy":
            return load(name)
        raise mr.MissingFramework(f"{name} is not here")

    monkeypatch.setattr(sys.modules["multirnn.registry"], "backend", missing)
    comparison = mr.compare(GRU, backends=["numpy", "torch"])
    assert comparison.ok
    row = comparison.rows[1]
    assert (row.backend, row.title, row.verdict, row.reason) == ("torch", "torch", "missing", "torch is not here")


def test_inference_alone_is_compared_without_gradients() -> None:
    comparison = mr.compare(GRU, backends=[Changed(differentiable=False, gradients=pytest.fail)])
    assert comparison.ok
    assert (comparison.rows[0].gradient, comparison.rows[0].gradient_steps) == (None, None)


# --- What is compared on -----------------------------------------------------------------------------------------------------


def test_the_users_own_call() -> None:
    x, state, lengths = draw_call(LSTM, 3)
    seen: list[tuple[Any, ...]] = []

    class Watched(Changed):
        def build(self, weights: mr.Weights, *, device: str | None = None) -> Any:
            layer = super().build(weights)
            assert weights == mr.initialise(LSTM, 9)

            class Watch(ChangedLayer):
                def __call__(self, *given: Any, **options: Any) -> mr.Output:
                    seen.append((*given, options["lengths"]))
                    return super().__call__(*given, **options)

            return Watch(layer.layer, self)

    comparison = mr.compare(mr.initialise(LSTM, 9), x, state, lengths=lengths, backends=[Watched()])
    assert comparison.ok
    assert comparison.shape == (5, 7, 5)
    assert np.array_equal(seen[0][0], x)
    assert seen[0][1] is state
    assert np.array_equal(seen[0][2], lengths)


def test_weights_and_inputs_are_drawn_by_the_seed() -> None:
    one, same, other = (mr.compare(GRU, backends=["numpy"], seed=seed).to_json() for seed in (1, 1, 2))
    assert one == same != other


def test_an_unbatched_call() -> None:
    x, state, lengths = draw_call(LSTM, 3)
    unbatched = mr.State(state.h[:, 0], state.c[:, 0])  # type: ignore[index]
    for length in (int(lengths[0]), None):
        comparison = mr.compare(LSTM, x[0], unbatched, lengths=length, backends=["numpy"])
        assert comparison.ok
        assert comparison.shape == (1, 7, 5)
    assert mr.compare(GRU, x[0].tolist(), backends=["numpy"]).ok


@pytest.mark.parametrize("shape", [(0, 7, 5), (5, 0, 5)])
def test_an_empty_call_is_equal(shape: tuple[int, ...]) -> None:
    comparison = mr.compare(LSTM, np.zeros(shape, "float32"), backends=["numpy"])
    assert comparison.ok
    assert json.loads(comparison.to_json())["rows"][0]["output"]["eps"] == 0


X, STATE, _ = draw_call(GRU, 3)
SHAPES = "x must have the shape (batch, time, 5), or (time, 5) unbatched, not "


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"state": STATE}, "a state or lengths belong to an x: pass x too"),
        ({"lengths": [1, 2]}, "a state or lengths belong to an x: pass x too"),
        ({"x": X[:, :, :4]}, f"{SHAPES}(5, 7, 4)"),
        ({"x": X[0, 0]}, f"{SHAPES}(5,)"),
        ({"x": [[1.0], [1.0, 2.0]]}, "x must be an array of float32: setting an array element with a sequence."),
        (
            {"x": X.astype("float64")},
            "x is float64, and the layer computes in float32; pass x.astype('float32'), or build the layer with "
            "dtype='float64'",
        ),
        ({"x": X, "state": STATE.h}, "state must be a multirnn.State, not ndarray"),
        ({"x": X[0], "state": STATE.h}, "state must be a multirnn.State, not ndarray"),
        (
            {"x": X[0], "state": STATE},
            "state.h must have the shape (num_layers * directions, hidden_size) = (1, 4), not (1, 5, 4)",
        ),
        ({"x": X[0], "lengths": [7, 7]}, "lengths must be one integer for an unbatched x, not of shape (2,)"),
        ({"x": X, "lengths": [7] * 4 + [8]}, "lengths must be from 0 to 7, the time steps of x; row 4 has 8"),
    ],
)
def test_a_call_that_does_not_fit(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(mr.InvalidCall, match=f"^{re.escape(sentence)}"):
        mr.compare(GRU, **given, backends=["numpy"])


def test_other_mistakes_of_the_caller() -> None:
    with pytest.raises(TypeError, match=r"^compare takes a RecurrentSpec or Weights, not a str$"):
        mr.compare("gru")  # type: ignore[arg-type]
    with pytest.raises(mr.UnknownBackend, match="did you mean 'torch'"):
        mr.compare(GRU, backends=["pytorch"])
