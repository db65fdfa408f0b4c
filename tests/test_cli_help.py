"""The help of the command line, and the examples that it shows."""

import json
import shlex
from contextlib import suppress
from pathlib import Path

import click
import numpy as np
import pytest
from command_line import run

import multirnn as mr
from multirnn.cli import COMMANDS, main
from multirnn.samples import seattle_weather


def epilog(*path: str) -> str:
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    assert command.epilog
    return command.epilog


EXAMPLES = sorted(
    {
        line.strip()
        for path in ((), *((name,) for name in COMMANDS))
        for line in epilog(*path).splitlines()
        if line.strip().startswith("multirnn ")
    }
)


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_explains(command: tuple[str, ...], option: str) -> None:
    result = run(*command, option)
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert all(len(line) <= 100 for line in result.stdout.splitlines())
    if command:
        assert "--json" in result.stdout or "Commands:" in result.stdout  # a group's commands have it
        assert "--debug" in result.stdout


def test_help_lists_the_commands_and_the_exit_status() -> None:
    text = run("--help").stdout
    assert [text.index(f"\n  {name} ") for name in COMMANDS] == sorted(text.index(f"\n  {name} ") for name in COMMANDS)
    assert "2  used wrongly, or could not run" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says_first(name: str) -> None:
    listed = run("--help").stdout
    command = main.get_command(click.Context(main), name)
    assert command is not None
    said = command.get_short_help_str(limit=100)
    assert f"  {name:<9} {said}\n" in listed


def test_version() -> None:
    assert run("--version").stdout == f"multirnn {mr.__version__}\n"


LONG = (
    "multirnn bench",
    "multirnn doctor",
)  # minutes of measuring; test_bench_command and test_doctor run them on little


@pytest.mark.parametrize("example", [example for example in EXAMPLES if example.startswith(LONG)])
def test_long_examples_are_understood(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option and argument is one of the command's; what the command does is left out."""
    asked = []
    monkeypatch.setattr(click.Command, "invoke", lambda command, ctx: asked.append(command.name))
    with suppress(click.exceptions.Exit):
        main.main(shlex.split(example)[1:], standalone_mode=False)
    assert asked, example


FILES = ("multirnn inspect", "multirnn verify", "multirnn convert")


def files_of_the_examples() -> None:
    for package in ("h5py", "onnx", "safetensors"):
        pytest.importorskip(package)
    weights = mr.initialise(mr.RecurrentSpec("lstm", 4, 3, bias="double"))
    for name in ("checkpoint.pt", "model.pt", "model.keras", "model.onnx"):
        mr.save(weights, name)
    arrays = mr.to_arrays(weights, convention="torch")
    np.savez("both.npz", **{f"{name}.{own}": a for name in ("encoder", "decoder") for own, a in arrays.items()})
    mr.save(weights, "encoder.safetensors")


@pytest.mark.parametrize("example", [example for example in EXAMPLES if not example.startswith(LONG)])
def test_examples_run(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savetxt("weather.csv", seattle_weather().values, delimiter=",")
    if example.startswith(FILES):
        files_of_the_examples()
    result = run(*shlex.split(example)[1:])
    missing = "which is not installed" in result.stderr
    planted = "--mistake" in example  # and found
    assert result.exit_code == (3 if missing else 1 if planted else 0), result.stderr
    if missing:
        return
    if "--json" in example:
        json.loads(result.stdout)
    if example.startswith("multirnn compare"):
        assert "equal" in result.stdout
        assert "differs" not in result.stdout
    if "--plot" in example:
        assert Path("errors.png").read_bytes().startswith(b"\x89PNG")
        assert Path("errors.png").stat().st_size > 20_000
