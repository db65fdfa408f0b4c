"""The measure, the table of tolerances, and the comparison: its verdicts, its words, and its forms."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.diagnosis.calls import distance
from multirnn.numerics import TOLERANCE, draw_call, normwise

EPS = {dtype: float(np.finfo(dtype).eps) for dtype in ("float32", "float64")}

# --- Difference ------------------------------------------------------------------------------------------------------------


def test_the_measure_by_hand() -> None:
    expected = np.array([[1.0, -8.0, 2.0], [0.0, 4.0, 1.0]])
    actual = expected.copy()
    actual[0, 0] += 1  # a large part of a small element
    actual[1, 2] -= 2  # and the largest difference: 2 of 8
    found = mr.difference(actual, expected)
    assert (found.normwise, found.where, found.eps) == (0.25, (1, 2), 0.25 / EPS["float64"])


def test_eps_are_those_of_what_is_measured() -> None:
    expected = np.array([1.0, 2.0])
    found = mr.difference((expected * (1 + EPS["float32"])).astype("float32"), expected)
    assert found.eps == 1
    assert found.normwise == EPS["float32"]


def test_wide_arithmetic_for_narrow_arrays() -> None:
    """The difference to a float64 is not rounded away in float32."""
    assert mr.difference(np.ones(1, "float32"), np.ones(1) + EPS["float32"] / 4).normwise > 0


@pytest.mark.parametrize(
    ("actual", "expected", "normwise", "where"),
    [
        ([], [], 0, ()),
        ([[]], [[]], 0, ()),
        ([1.0, 2.0], [1.0, 2.0], 0, ()),
        ([0.0, 0.0], [0.0, -0.0], 0, ()),
        ([0.0, 1e-30], [0.0, 0.0], np.inf, (1,)),
        ([1.0, np.nan], [1.0, 2.0], np.inf, (1,)),
        ([1.0, np.inf], [1.0, 2.0], np.inf, (1,)),
        ([1.0, 2.0], [1.0, np.nan], np.inf, (1,)),
        ([1.0, 2.0], [1.0, np.inf], np.inf, (1,)),
        ([1.0, np.nan], [1.0, np.nan], 0, ()),
        ([1.0, np.inf, -np.inf], [1.0, np.inf, -np.inf], 0, ()),
        ([1.0, np.inf], [1.0, -np.inf], np.inf, (1,)),
        ([1.0, np.nan], [1.0, np.inf], np.inf, (1,)),
        ([1.0, np.inf], [1.0, np.nan], np.inf, (1,)),
        ([np.nan, 1.0], [1.0, np.nan], np.inf, (0,)),
        ([1.0, np.inf], [1.0, 1e39], 0, ()),  # which is infinite in float32
        ([1.0, np.inf], [1.0, -1e39], np.inf, (1,)),
        ([np.nan, np.inf], [np.nan, np.inf], 0, ()),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_empty_zero_or_not_finite(
    actual: list[float], expected: list[float], normwise: float, where: tuple[int, ...]
) -> None:
    found = mr.difference(np.array(actual, "float32"), np.array(expected))
    assert (found.normwise, found.where) == (normwise, where)
    assert (found.normwise <= mr.tolerance("float32")) == (normwise == 0)


@pytest.mark.parametrize("beside", [np.nan, np.inf, -np.inf, 1e300])
def test_the_scale_is_of_finite_numbers(beside: float) -> None:
    with np.errstate(over="ignore"):
        actual = np.array([4.5, beside], "float32")
    found = mr.difference(actual, np.array([4.0, beside]))
    assert (found.normwise, found.where) == (0.125, (0,))


@pytest.mark.parametrize(
    ("actual", "expected", "sentence"),
    [
        (np.ones((2, 3)), np.ones((3, 2)), "arrays of the shapes (2, 3) and (3, 2) cannot be compared"),
        (np.ones((1, 3)), np.ones(3), "arrays of the shapes (1, 3) and (3,) cannot be compared"),
        (np.ones(3), np.ones(3, "float32"), "an array of float64 cannot be held against one of float32"),
        (np.ones(3, int), np.ones(3), "an array of int64 cannot be held against one of float64"),
    ],
)
def test_what_cannot_be_compared(actual: np.ndarray, expected: np.ndarray, sentence: str) -> None:
    with pytest.raises(mr.InvalidCall, match=f"^{re.escape(sentence)}$"):
        mr.difference(actual, expected)


def test_the_table_of_tolerances() -> None:
    for dtype, units in TOLERANCE.items():
        assert mr.tolerance(dtype) == mr.tolerance(np.dtype(dtype)) == units * EPS[dtype]


# --- Backends to compare -----------------------------------------------------------------------------------------------------

Change = Callable[[Any], Any]


@dataclass
class Changed:
    """The NumPy backend; what it hands out passes through a change first, which may spoil it."""

    name: str = "changed"
    output: Change = field(default=lambda output: output)
    gradients: Change = field(default=lambda gradients: gradients)
    refusal: str | None = None
    differentiable: bool = True
    count: int = 0

    def refuses(self, spec: mr.RecurrentSpec) -> str | None:
        return self.refusal

    def build(self, weights: mr.Weights, *, device: str | None = None) -> mr.Layer:
        mr.accept(self, weights.spec)
        return ChangedLayer(mr.build(weights, "numpy"), self)  # type: ignore[return-value]

    def read(self, native: Any) -> mr.Weights:
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        return {"changed": "1.2.3"}


class ChangedLayer:
    def __init__(self, layer: mr.Layer, backend: Changed) -> None:
        self.layer, self.backend = layer, backend
        self.parameter_count = layer.parameter_count + backend.count

    def __call__(self, *given: Any, **options: Any) -> mr.Output:
        return self.backend.output(self.layer(*given, **options))

    def vjp(self, *given: Any, **options: Any) -> mr.Gradients:
        return self.backend.gradients(self.layer.vjp(*given, **options))


def spoiled(array: np.ndarray, *place: int) -> np.ndarray:
    """The array with the element at this place off by as much as the largest."""
    copy = array.copy()
    copy[place] += abs(array).max()
    return copy


LSTM = mr.RecurrentSpec("lstm", 5, 4, num_layers=2, bidirectional=True)
GRU = mr.RecurrentSpec("gru", 5, 4, bias="single")

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


def test_a_distance_relative_to_a_size() -> None:
    """Zero is zero even of nothing, and what is not zero is infinitely far from zero."""
    found = normwise(np.array([0, 0, 1, 2, np.inf, np.nan]), np.array([0, 3, 0, 4, 1, 1]))
    np.testing.assert_array_equal(found, [0, 0, np.inf, 0.5, np.inf, np.nan])
    equal = np.array([np.inf, -np.inf, np.nan, 1.0])
    assert mr.difference(equal, equal.copy()).normwise == distance(equal, equal.copy()) == 0


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
    def missing(name: str) -> Any:
        if name == "numpy":
            return mr.backend(name)
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


def test_a_drawn_call_can_show_a_mistake() -> None:
    x, state, lengths = draw_call(LSTM, 3)
    assert x.shape == (5, 7, 5)
    assert state.h.shape == (4, 5, 4)
    assert state.c is not None
    assert state.c.shape == (4, 5, 4)
    assert sorted(lengths) == [0, 1, 4, 7, 7]
    assert all(array.all() for array in (x, state.h, state.c))
    assert {str(array.dtype) for array in (x, state.h, state.c)} == {"float32"}
    assert draw_call(GRU, 3)[1].c is None
    again = draw_call(LSTM, np.random.default_rng(3))
    assert np.array_equal(again[0], x)
    assert not np.array_equal(draw_call(LSTM, 4)[0], x)


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


# --- Its forms ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def comparison() -> mr.Comparison:
    wrong = Changed(name="wrong", output=lambda o: o._replace(sequence=o.sequence * np.nan))
    refusing = Changed(name="refusing", refusal="<it> & it alone is not Tuesday")
    forward = Changed(name="forward", differentiable=False)
    return mr.compare(GRU, backends=["numpy", wrong, refusing, forward])


def test_as_a_table(comparison: mr.Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    title, head, rule, *rows, gap, wrong, refused, caption = str(comparison).splitlines()
    assert title == f"{GRU!r} on batch 5, time 7"
    assert " ".join(head.split()) == "backend version parameters output state gradient verdict worst element"
    assert (set(rule), gap) == ({"─"}, "")
    assert caption == "errors: max|a-b| / max|b| against NumPy in float64, in eps of float32; equal means at most 64"
    words = [row.split() for row in rows]
    assert [row[0] for row in words] == ["numpy", "wrong", "refusing", "forward"]
    assert words[0][1:3] == [np.__version__, "124"]
    assert words[1][1:4] == ["1.2.3", "124", "inf"]
    assert " ".join(words[2]) == "refusing 1.2.3 – – – – refuses"
    assert words[3][5:8] == ["inference", "only", "equal"]
    assert wrong == "wrong: output, forward, row 0, step 0, unit 0: inf eps"
    assert refused == "refusing: <it> & it alone is not Tuesday"
    assert repr(comparison) == str(comparison)
    assert "\x1b" not in str(comparison)


def test_as_html(comparison: mr.Comparison) -> None:
    html = comparison._repr_html_()
    assert html.count("<table>") == html.count("</table>") == 1
    assert html.count("<tr>") == 1 + 4
    assert '<td style="text-align: right">inference only</td>' in html
    assert "refusing: &lt;it&gt; &amp; it alone is not Tuesday" in html
    assert "<it>" not in html


def test_as_json(comparison: mr.Comparison) -> None:
    read = json.loads(comparison.to_json())
    assert read == comparison.to_dict()
    assert {name: read[name] for name in ("ok", "spec", "shape", "tolerance_eps")} == {
        "ok": False,
        "spec": GRU.to_dict(),
        "shape": [5, 7, 5],
        "tolerance_eps": 64,
    }
    equal, wrong, refusing, forward = read["rows"]
    assert equal["versions"] == {"numpy": np.__version__}
    assert equal["output"]["eps"] == pytest.approx(equal["output"]["normwise"] / EPS["float32"])
    assert len(equal["output_steps"]) == len(equal["gradient_steps"]) == 7
    assert (wrong["output"]["normwise"], wrong["output"]["eps"], set(wrong["output_steps"])) == (None, None, {None})
    assert (refusing["verdict"], refusing["output"], refusing["output_steps"]) == ("refuses", None, None)
    assert (forward["gradient"], forward["gradient_steps"]) == (None, None)
    assert "\n" not in comparison.to_json(indent=None)


def test_as_a_picture(comparison: mr.Comparison) -> None:
    pytest.importorskip("matplotlib")
    from multirnn.plot import plot_errors

    figure = plot_errors({"GRU": comparison, "again": mr.compare(LSTM, backends=["numpy"])})
    assert [axes.get_title() for axes in figure.axes[:2]] == ["GRU", "again"]
    outputs, gradients = figure.axes[0], figure.axes[2]
    assert [line.get_label() for line in outputs.get_lines()[:-1]] == ["numpy", "wrong", "forward"]
    assert [line.get_label() for line in gradients.get_lines()[:-1]] == ["numpy", "wrong"]
    drawn = outputs.get_lines()[0].get_ydata()
    errors = comparison.rows[0].output_steps / EPS["float32"]  # type: ignore[operator]
    assert np.array_equal(drawn, np.where(errors > 0, errors, np.nan), equal_nan=True)
