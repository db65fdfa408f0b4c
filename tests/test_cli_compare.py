"""`multirnn compare`: what it prints, the picture, and its exit status."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import FRAMEWORKS, SMALL, STRANGER, install, run, run_apart, without

import multirnn as mr
from multirnn.cells import CELLS


def test_compare_on_every_installed_backend() -> None:
    result = run("compare", *SMALL, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, result.stderr, found["ok"]) == (0, "", True)
    assert [mr.RecurrentSpec.from_dict(one["spec"]).cell for one in found["comparisons"]] == list(CELLS)
    for one in found["comparisons"]:
        assert one["shape"] == [3, 7, 4]
        assert [row["backend"] for row in one["rows"]] == list(mr.backends())
        assert {row["verdict"] for row in one["rows"]} <= {"equal", "missing"}
    about = found["data"]
    assert about["features"] == ["precipitation", "temp_max", "temp_min", "wind"]
    assert about["left_out"] == ["date", "weather"]
    assert max(about["lengths"]) == 7
    assert min(about["lengths"]) < 7


def test_compare_where_only_numpy_is_installed() -> None:
    status, out, err = run_apart("compare", *SMALL, prelude=without(*FRAMEWORKS), env={**os.environ, "COLUMNS": "200"})
    assert (status, err) == (0, "")
    for name in ("torch", "keras", "jax"):
        assert len(re.findall(rf"^{name} .* missing *$", out, re.MULTILINE)) == 3
        assert len(re.findall(rf'^{name}: .* pip install "multirnn\[{name}\]"$', out, re.MULTILINE)) == 3
    assert "equal: outputs, states, gradients and counts, on numpy\n" in out


def test_compare_with_a_missing_framework_that_was_asked_for() -> None:
    names = ("--backend", "torch", "--backend", "numpy")
    status, out, err = run_apart("compare", *names, *SMALL, prelude=without("torch"))
    assert status == 3
    assert err == "Error: backend 'torch' needs 'torch', which is not installed: pip install \"multirnn[torch]\"\n"
    assert "equal: outputs, states, gradients and counts, on numpy\n" in out


def test_compare_without_matplotlib(tmp_path: Path) -> None:
    args = ("compare", "--backend", "numpy", *SMALL, "--plot", tmp_path / "a.png")
    status, out, err = run_apart(*args, prelude=without("matplotlib"))
    assert (status, out) == (3, "")
    assert err == 'Error: a picture needs matplotlib, which is not installed: pip install "multirnn[plot]"\n'


def test_compare_with_a_backend_that_refuses(tmp_path: Path) -> None:
    env = install(tmp_path, "picky", STRANGER.format(name="picky", reason="it never does", factor=1))
    status, out, err = run_apart("compare", *SMALL, "--backend", "picky", "--backend", "numpy", env=env)
    assert (status, err) == (3, "Error: backend 'picky' refuses: it never does\n")
    assert len(re.findall(r"^picky +1\.0 .* refuses$", out, re.MULTILINE)) == 3
    assert len(re.findall(r"^picky: it never does$", out, re.MULTILINE)) == 3
    status, out, err = run_apart("compare", *SMALL, env=env, prelude=without(*FRAMEWORKS))
    assert (status, err) == (0, "")
    assert len(re.findall(r"^picky: it never does$", out, re.MULTILINE)) == 3


def test_compare_with_a_backend_that_differs(tmp_path: Path) -> None:
    env = install(tmp_path, "wrong", STRANGER.format(name="wrong", reason=None, factor=1.01))
    args = ("compare", *SMALL, "--cell", "gru", "--cell", "lstm")
    status, out, err = run_apart(*args, env=env, prelude=without(*FRAMEWORKS))
    assert (status, err) == (1, "")
    assert "different: gru on wrong, lstm on wrong\n" in out
    status, out, err = run_apart(*args, "--backend", "wrong", "--backend", "torch", env=env, prelude=without("torch"))
    assert status == 1, "a difference comes before what is missing"
    assert "which is not installed" in err
    status, out, _ = run_apart(*args, "--backend", "wrong", "--json", env=env)
    assert (status, json.loads(out)["ok"]) == (1, False)


def test_compare_gives_each_option_to_the_cells_that_have_it() -> None:
    gates = ("--recurrent-activation", "hard_sigmoid:0.2,0.5")
    found = json.loads(run("compare", *SMALL, "--backend", "numpy", "--reset-before", *gates, "--json").stdout)
    rnn, lstm, gru = (mr.RecurrentSpec.from_dict(one["spec"]) for one in found["comparisons"])
    assert rnn == mr.RecurrentSpec("simple_rnn", 4, 5)
    gate = mr.Activation("hard_sigmoid", alpha=0.2, beta=0.5)
    assert lstm == mr.RecurrentSpec("lstm", 4, 5, recurrent_activation=gate)
    assert gru == mr.RecurrentSpec("gru", 4, 5, reset_after=False, recurrent_activation=gate)
    result = run("compare", *SMALL, "--backend", "numpy", "--cell", "lstm", "--reset-before")
    assert result.exit_code == 2
    assert "cell='lstm' has no reset gate" in result.stderr


def test_compare_takes_every_field_of_a_spec() -> None:
    fields = ("--layers", "2", "--bidirectional", "--bias", "none", "--dtype", "float64", "--activation", "relu")
    found = json.loads(run("compare", *SMALL, "--backend", "numpy", "--cell", "lstm", *fields, "--json").stdout)
    spec = mr.RecurrentSpec.from_dict(found["comparisons"][0]["spec"])
    expected = {"num_layers": 2, "bidirectional": True, "bias": "none", "dtype": "float64", "activation": "relu"}
    assert spec == mr.RecurrentSpec("lstm", 4, 5, **expected)
    assert found["comparisons"][0]["tolerance_eps"] == 256


def test_compare_on_the_users_own_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", np.c_[rng.standard_normal((17, 2)), np.ones(17)])
    result = run("compare", "--backend", "numpy", "--cell", "gru", "--data", tmp_path / "a.npy")
    assert result.exit_code == 0
    assert f"{tmp_path / 'a.npy'}\n16 windows of 1 to 17 steps out of 17;" in result.stdout
    assert "zero, since they never change: column 3" in result.stdout
    assert "input_size=3, hidden_size=16) on batch 16, time 17" in result.stdout


def test_compare_depends_on_the_seed_alone() -> None:
    args = ("compare", *SMALL, "--backend", "numpy", "--json", "--seed")
    assert run(*args, 1).stdout == run(*args, 1).stdout
    assert run(*args, 1).stdout != run(*args, 2).stdout


def test_compare_names_a_backend_once() -> None:
    found = json.loads(run("compare", *SMALL, "--backend", "numpy", "--backend", "numpy", "--json").stdout)
    assert [len(one["rows"]) for one in found["comparisons"]] == [1, 1, 1]


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("PDF", b"%PDF")])
def test_compare_writes_a_picture(tmp_path: Path, suffix: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / f"a.{suffix}"
    picture.write_bytes(b"old")
    result = run("compare", *SMALL, "--backend", "numpy", "--plot", picture)
    assert result.exit_code == 0
    assert result.stdout.endswith(f"picture: {picture}\n")
    assert picture.read_bytes().startswith(start)
    assert picture.stat().st_size > 5_000
    assert os.listdir(tmp_path) == [picture.name]


def test_a_picture_has_a_line_for_each_backend_in_every_panel() -> None:
    pytest.importorskip("matplotlib")
    from multirnn.plot import plot_errors

    spec = mr.RecurrentSpec("gru", 4, 5)
    comparison = mr.compare(spec, backends=["numpy"])
    figure = plot_errors({"one": comparison, "two": comparison})
    assert [axes.get_title() for axes in figure.axes] == ["one", "two", "", ""]
    for axes in figure.axes:
        lines = [line for line in axes.get_lines() if line.get_label() == "numpy"]
        assert len(lines) == 1
        assert len(lines[0].get_xdata()) == comparison.shape[1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["numpy"]


def test_a_picture_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from multirnn.plot import write_figure

    class Half(Figure):
        def savefig(self, fname: Any, **options: Any) -> None:
            fname.write(b"half")
            raise OSError(28, "disk full")

    picture = tmp_path / "a.png"
    picture.write_bytes(b"old")
    with pytest.raises(mr.InvalidCall, match=r"a\.png cannot be written: disk full$"):
        write_figure(Half(), picture)
    assert picture.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]
