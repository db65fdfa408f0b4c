"""`multirnn diagnose`: two sides, planted mistakes, a picture, corrected weights, and the messages of wrong use."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from planted_pairs import Planted

import multirnn as mr
from multirnn.cli import main
from multirnn.diagnosis import diagnose
from multirnn.mistakes import MISTAKES, mistakes_for
from multirnn.protocol import Backend

build = mr.backend("numpy").build

SMALL = ("--cell", "gru", "--hidden", "3")


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["diagnose", *map(str, args)], env={"COLUMNS": "300"})


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current folder."""
    source = """
import multirnn as mr
right = mr.build(mr.RecurrentSpec("gru", 4, 3), "numpy")
class inside:
    @staticmethod
    def port(x, h0):
        output = right(x)
        return output.sequence, output.state.h
"""
    name = f"model_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return name


def test_two_backends_are_equal() -> None:
    result = run("numpy", "numpy", *SMALL)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "A and B are the same function" in result.stdout


def test_planted_mistakes_are_found_on_real_data() -> None:
    args = ("numpy", "numpy", *SMALL, "--mistake", "gates z r n", "--mistake", "mask one step too long")
    result = run(*args)
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.startswith("A: numpy; B: numpy made wrong (gates z r n, mask one step too long); Recurrent")
    assert "B reads the GRU blocks as z r n" in result.stdout
    assert "It also takes each row for one step longer than it is" in result.stdout
    told = json.loads(run(*args, "--json").stdout)
    assert told["causes"][0]["mistakes"] == ["gates z r n", "mask one step too long"]


def test_objects_of_the_users_own(module: str) -> None:
    result = run(f"{module}:right", f"{module}:inside.port")
    assert (result.exit_code, result.stderr) == (1, "")
    assert "B starts from zero whatever initial state is given." in result.stdout
    assert run(f"{module}:right", f"{module}:right").exit_code == 0
    assert run(f"{module}:right", "numpy").exit_code == 0
    assert run("numpy", f"{module}:inside.port", *SMALL).exit_code == 1


@pytest.mark.parametrize("name", ["right.npz", "right.pt"])
def test_the_corrected_weights_are_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    result = run("numpy", "numpy", *SMALL, "--mistake", "gates z r n", "--save", path)
    assert result.exit_code == 1
    assert f"weights with which B is right: {path}" in result.stdout
    weights = mr.load(path)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    right = mr.initialise(mr.RecurrentSpec("gru", 4, 3), 0)
    assert diagnose(build(right), Planted(weights, MISTAKES["gates z r n"])).equal
    none = run("numpy", "numpy", *SMALL, "--mistake", "initial state ignored", "--save", tmp_path / "none.npz")
    assert "no weights are written: none make B right" in none.stdout
    assert not (tmp_path / "none.npz").exists()


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run("numpy", "numpy", *SMALL, "--mistake", "gates z r n", "--plot", tmp_path / "a.png")
    assert result.exit_code == 1, result.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_list_of_mistakes() -> None:
    result = run("--list")
    assert result.exit_code == 0
    assert f"{len(MISTAKES)} known mistakes" in result.stdout
    listed = json.loads(run("--list", "--cell", "gru", "--hidden", "3", "--json").stdout)["mistakes"]
    assert [entry["name"] for entry in listed] == [m.name for m in mistakes_for(mr.RecurrentSpec("gru", 4, 3))]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "name two sides, A and B, or ask for the --list of mistakes."),
        (("numpy", "numpy"), "the backend 'numpy' builds the stack of --cell and --hidden; give both."),
        (("numpy", "numpy", "--cell", "gru"), "--cell and --hidden belong together; --hidden is missing."),
        (("numpy", "numpi", *SMALL), "no backend named 'numpi'"),
        (("numpy", "numpy", *SMALL, "--mistake", "gates z r"), "did you mean 'gates z r n'?"),
        (
            ("numpy", "numpy", *SMALL, "--mistake", "nonsense"),
            "Error: no mistake is named 'nonsense'; --list names them all\n",
        ),
        (("numpy", "numpy", *SMALL, "--mistake", "gates f i g o"), "makes no difference to RecurrentSpec('gru'"),
        (("numpy", "no.such:layer", *SMALL), "no.such:layer: there is no module 'no', neither in this folder"),
        (("numpy", "json:nope", *SMALL), "json:nope: json has no 'nope'; write module:object"),
        (("numpy", ":nope", *SMALL), ":nope: write module:object, as in model:port"),
        (("numpy", "json:loads", *SMALL, "--mistake", "gates z r n"), "--mistake is planted in a backend"),
        (("numpy", "numpy", *SMALL, "--save", "a.txt"), "a.txt has none of the suffixes that tell the format"),
        (("numpy", "numpy", *SMALL, "--save", "a.nam"), "a.nam cannot be written: files of this format are only read"),
        (("numpy", "numpy", *SMALL, "--save", "nowhere/a.npz"), "there is no folder nowhere; make it first"),
    ],
)
def test_what_cannot_be_run_is_said(args: tuple[str, ...], said: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_framework(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Backend:
        raise mr.MissingFramework(f"backend {name!r} needs it")

    monkeypatch.setattr("multirnn.cli.diagnose.backend", missing)
    result = run("torch", "numpy", *SMALL)
    assert (result.exit_code, result.stderr) == (3, "Error: backend 'torch' needs it\n")
