"""Training parity: the picture, and `multirnn compare --train`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from parity_backends import (
    GRU,
    NUMPY,
    Default,
    Wrong,
    frozen_bias,
)

import multirnn as mr
from multirnn.cli import main
from multirnn.parity import OPTIMISERS, train_parity


def test_a_picture_has_a_panel_an_optimiser_and_a_line_a_backend() -> None:
    pytest.importorskip("matplotlib")
    from multirnn.plot import plot_curves

    parity = train_parity(GRU, backends=["numpy", Default("own")], optimisers=("sgd", "adam"), steps=3)
    figure = plot_curves({"one": parity, "two": parity})
    assert [axes.get_title() for axes in figure.axes] == ["one", "two", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["sgd: loss", "", "adam: loss", ""]
    for axes, name in zip(figure.axes, ("sgd", "sgd", "adam", "adam"), strict=True):
        numpy, own = axes.get_lines()
        assert (numpy.get_label(), own.get_label()) == ("numpy", "own")
        assert np.array_equal(np.asarray(own.get_ydata()), parity.reference[name])


def run(*args: object) -> Result:
    common = ("compare", "--window", 7, "--windows", 3, "--hidden", 3, "--cell", "gru")
    return CliRunner().invoke(main, [str(arg) for arg in (*common, *args)], env={"COLUMNS": "200"})


def test_the_command_trains(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run("--train", "--backend", "numpy", "--steps", 3, "--optimiser", "adam", "--plot", tmp_path / "a.png")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "trained for 3 steps on batch 3, time 7" in result.stdout
    assert "equal: losses and final weights" in result.stdout
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_json() -> None:
    result = run("--train", "--backend", "numpy", "--json", "--defaults")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"]) == (0, True)
    (one,) = found["trainings"]
    assert one["shape"] == [3, 7, 4]
    assert one["defaults"] is True
    assert [row["optimiser"]["name"] for row in one["rows"]] == list(OPTIMISERS)


@pytest.mark.parametrize("args", [("--steps", 3), ("--optimiser", "sgd"), ("--defaults",)])
def test_options_of_training_belong_to_it(args: tuple[object, ...]) -> None:
    result = run("--backend", "numpy", *args)
    assert result.exit_code == 2
    assert "belong to --train: give it too" in result.stderr


class Refusing(NUMPY):
    def refuses(self, spec: mr.RecurrentSpec) -> str:
        return "it never does"


@pytest.mark.parametrize(
    ("stranger", "status", "said"),
    [
        (Wrong(frozen_bias), 1, "different: gru on wrong"),
        (Default("own", form="keras"), 0, "equal: losses and final weights"),
        (Refusing(), 3, "it never does"),
    ],
    ids=["differs", "explained", "refuses"],
)
def test_the_exit_status(stranger: Any, status: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from multirnn import registry

    load = mr.backend
    monkeypatch.setattr(registry, "backend", lambda name: stranger if name == "torch" else load(name))
    result = run("--train", "--backend", "torch", "--optimiser", "sgd", "--optimiser", "adam")
    assert result.exit_code == status
    assert said in result.stdout
