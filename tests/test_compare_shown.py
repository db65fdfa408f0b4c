"""A comparison in its forms: a table, HTML, JSON, and a picture."""

import json

import numpy as np
import pytest
from changed_backends import EPS, GRU, LSTM, Changed

import multirnn as mr
from multirnn.comparison import Comparison


@pytest.fixture
def comparison() -> Comparison:
    wrong = Changed(name="wrong", output=lambda o: o._replace(sequence=o.sequence * np.nan))
    refusing = Changed(name="refusing", refusal="<it> & it alone is not Tuesday")
    forward = Changed(name="forward", differentiable=False)
    return mr.compare(GRU, backends=["numpy", wrong, refusing, forward])


def test_as_a_table(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_as_html(comparison: Comparison) -> None:
    html = comparison._repr_html_()
    assert html.count("<table>") == html.count("</table>") == 1
    assert html.count("<tr>") == 1 + 4
    assert '<td style="text-align: right">inference only</td>' in html
    assert "refusing: &lt;it&gt; &amp; it alone is not Tuesday" in html
    assert "<it>" not in html


def test_as_json(comparison: Comparison) -> None:
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


def test_as_a_picture(comparison: Comparison) -> None:
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
