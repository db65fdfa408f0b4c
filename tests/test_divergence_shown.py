"""A divergence as JSON, as a table, as HTML and as a picture."""

import json
from dataclasses import replace

import numpy as np
import pytest
from diverging_layers import BUILD, LAST, TIME, as_function, edited, made, stack

import multirnn as mr
from multirnn.adoption import adopt
from multirnn.diagnosis import Divergence, first_divergence
from multirnn.plot import plot_divergence


@pytest.fixture
def found() -> Divergence:
    weights = stack("lstm", num_layers=3)
    wrong = BUILD(edited(weights, "layers.1.backward.", lambda a: a[[0, 2, 1, 3]]))
    return first_divergence(BUILD(weights), adopt(as_function(wrong), spec=weights.spec))


def test_json_has_all_of_it(found: Divergence) -> None:
    read = json.loads(found.to_json())
    assert read == json.loads(json.dumps(found.to_dict()))
    assert (read["layer"], read["direction"], read["step"], read["gate"]) == (1, "backward", LAST, "i*g")
    assert np.shape(read["own"]) == np.shape(read["growth"]) == (6, TIME)
    assert read["own"][4] == [None] * TIME  # above a layer that parts at every step
    assert mr.RecurrentSpec.from_dict(read["spec"]) == found.spec


def test_the_table_fits_a_narrow_terminal(found: Divergence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "First divergence: layer 1, backward, step 6, gate i*g"
    rows = [line.split() for line in lines if line.split()[1:2] in (["forward"], ["backward"])]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("0", "forward", "–"),
        ("0", "backward", "–"),
        ("1", "forward", "–"),
        ("1", "backward", "6"),
        ("2", "forward", "echo"),
        ("2", "backward", "echo"),
    ]
    assert "…" not in str(found)


def test_html_is_escaped(found: Divergence) -> None:
    shown = replace(found, titles=("<b>", "B"), says="a < b")._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "a &lt; b" in shown
    assert ">echo</td>" in shown


def test_the_picture_has_a_panel_for_steps_for_growth_and_for_gates(found: Divergence) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.collections import QuadMesh

    figure = plot_divergence(found)
    figure.draw_without_rendering()
    steps, growth, gates, bar = figure.axes
    names = [f"layer {layer} {direction}" for layer, direction in found.spec.passes]
    assert [label.get_text() for label in steps.get_yticklabels()] == names
    assert [label.get_text() for label in gates.get_yticklabels()] == ["f", "o", "i*g"]
    (frame,) = steps.patches
    assert frame.get_xy() == (LAST - 0.5, 3 - 0.5)
    assert "eps of float32" in bar.get_ylabel()
    for panel, errors in ((steps, found.own), (growth, found.growth)):
        (mesh,) = (child for child in panel.get_children() if isinstance(child, QuadMesh))
        np.testing.assert_array_equal(np.ma.getmaskarray(mesh.get_array()), np.isnan(errors))


def test_the_picture_of_one_pass_and_no_gates() -> None:
    pytest.importorskip("matplotlib")
    weights = stack("simple_rnn", num_layers=1, bidirectional=False)
    found = first_divergence(BUILD(weights), made("recurrent kernel transposed", weights))
    figure = plot_divergence(found)
    figure.draw_without_rendering()
    assert len(figure.axes) == 3  # steps, growth and the bar of colours
    assert found.gate == "h"
