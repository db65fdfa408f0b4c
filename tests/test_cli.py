"""The command line: what it prints, what it says where it cannot, and its exit status."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

import multirnn as mr
from multirnn.cli import COMMANDS, main
from multirnn.samples import seattle_weather

FRAMEWORKS = ("torch", "tensorflow", "keras", "jax", "jaxlib", "flax", "onnxruntime")
RNN = ("--cell", "simple_rnn", "--input", "10", "--hidden", "3")
LSTM = ("--cell", "lstm", "--input", "10", "--hidden", "3")
GRU = ("--cell", "gru", "--input", "10", "--hidden", "3")
SMALL = ("--window", "7", "--windows", "3", "--hidden", "5")


def run(*args: object, **environment: str) -> Result:
    """The command line in this process, as wide as no table is cut."""
    return CliRunner().invoke(main, [str(arg) for arg in args], env={"COLUMNS": "200", **environment})


def start(*args: object, prelude: str = "", **options: Any) -> "subprocess.Popen[str]":
    """The command line in a process of its own, after some Python."""
    # What a shell starts in the background ignores SIGINT, and so do its children: these tests may be among them.
    heed = "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}\n{prelude}\nfrom multirnn.cli import main\nmain(prog_name='multirnn')"
    command = [sys.executable, "-c", code, *map(str, args)]
    # No width is asked for unless a test does: the runner of these tests may stand in a terminal.
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, **options}
    return subprocess.Popen(command, text=True, **options)


def run_apart(*args: object, **options: Any) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command line in a process of its own."""
    process = start(*args, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def without(*packages: str) -> str:
    """Python after which these packages are not installed: nothing finds them."""
    return f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in {packages!r} else find(name, path, target)
PathFinder.find_spec = classmethod(find_spec)
"""


@pytest.fixture
def install(tmp_path: Path) -> Callable[[str, str], dict[str, str]]:
    """Installs a backend of somebody else's, and gives the environment in which it is found by its true entry point."""

    def install(name: str, source: str) -> dict[str, str]:
        site = tmp_path / "site"
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"multirnn_{name}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[multirnn.backends]\n{name} = multirnn_{name}:BACKEND\n")
        return {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}

    return install


STRANGER = """
import multirnn as mr

class Stranger:
    name = {name!r}
    differentiable = True
    def refuses(self, spec):
        return {reason!r}
    def build(self, weights, *, device=None):
        mr.accept(self, weights.spec)
        changed = {{name: array * {factor} for name, array in weights.arrays.items()}}
        return mr.backend("numpy").build(mr.Weights(weights.spec, changed))
    def read(self, native):
        raise mr.Unrepresentable("nothing to read")
    def versions(self):
        return {{"stranger": "1.0"}}

BACKEND = Stranger()
"""

# --- Help ------------------------------------------------------------------------------------------------------------


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


LONG = ("multirnn bench", "multirnn doctor")  # minutes of measuring; test_bench and test_doctor run them on little


@pytest.mark.parametrize("example", [example for example in EXAMPLES if example.startswith(LONG)])
def test_long_examples_are_understood(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option and argument is one of the command's; what the command does is left out."""
    asked = []
    monkeypatch.setattr(click.Command, "invoke", lambda command, ctx: asked.append(command.name))
    with suppress(click.exceptions.Exit):
        main.main(shlex.split(example)[1:], standalone_mode=False)
    assert asked, example


@pytest.mark.parametrize("example", [example for example in EXAMPLES if not example.startswith(LONG)])
def test_examples_run(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savetxt("weather.csv", seattle_weather().values, delimiter=",")
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


# --- What every command keeps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args", [("--help",), ("compare", "--help"), ("--version",), ("summary", *LSTM), ("explain", *GRU), ("nope",)]
)
def test_what_needs_no_framework_imports_none(args: tuple[str, ...]) -> None:
    code = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    _, _, err = run_apart(*args, prelude=code)
    loaded = {name.partition(".")[0] for name in err.splitlines()[-1].split()}
    assert ("numpy" in loaded) is (args[0] not in ("--help", "--version", "nope"))
    assert not loaded & {*FRAMEWORKS, "matplotlib", "pandas"}
    if args[-1] in ("--help", "--version"):
        assert "rich" not in loaded


@pytest.mark.parametrize("args", [("summary", *LSTM), ("explain", *GRU), ("compare", "--backend", "numpy", *SMALL)])
def test_piped_output_is_plain(args: tuple[str, ...]) -> None:
    result = run(*args)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert result.stderr == ""
    assert not any(line.endswith(" ") for line in result.stdout.splitlines())


def test_colour_and_no_color() -> None:
    colour = re.compile(r"\x1b\[[0-9;]*3[0-7]")
    assert colour.search(run("explain", *GRU, FORCE_COLOR="1").stdout)
    assert not colour.search(run("explain", *GRU, FORCE_COLOR="1", NO_COLOR="1").stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is POSIX")
def test_on_a_terminal_there_is_colour_and_progress_that_goes_away() -> None:
    import pty

    reader, writer = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    environment.pop("NO_COLOR", None)
    process = start("compare", "--backend", "numpy", *SMALL, stdout=writer, stderr=writer, env=environment)
    os.close(writer)
    seen = b""
    while chunk := _read(reader):
        seen += chunk
    os.close(reader)
    assert process.wait(timeout=60) == 0
    assert b"\x1b[32mequal" in seen
    assert b"comparing " in seen
    assert b"\x1b[2K" in seen


def _read(file: int) -> bytes:
    try:
        return os.read(file, 4096)
    except OSError:  # Linux says so when the other end of a pseudo-terminal is closed
        return b""


def test_an_encoding_without_the_signs_is_no_error() -> None:
    status, out, err = run_apart("explain", *GRU, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert (status, err) == (0, "")
    assert "3 ? 3 ? (10 + 3)" in out


@pytest.mark.parametrize("args", [("explain", *GRU), ("summary", *GRU, "--json")])
def test_a_reader_that_has_gone_is_no_error(args: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*args, stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
def test_interrupted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "slow.csv")
    process = start("compare", "--data", tmp_path / "slow.csv")
    with open(tmp_path / "slow.csv", "w"):  # opens when the other side reads, which then waits
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")


# --- Used wrongly ----------------------------------------------------------------------------------------------------

WRONG = {
    "no command of this name": (("nope",), "No such command 'nope'."),
    "no cell": (("summary",), "Missing option '--cell'"),
    "another cell": (
        ("summary", "--cell", "rnn", "--input", "1", "--hidden", "1"),
        "'rnn' is not one of 'simple_rnn', 'lstm', 'gru'.",
    ),
    "no units": (("summary", "--cell", "lstm", "--input", "1", "--hidden", "0"), "0 is not in the range x>=1."),
    "a GRU's option": (
        ("summary", *LSTM, "--reset-before"),
        "reset_after=False describes a form of the GRU; cell='lstm' has no reset gate",
    ),
    "no activation": (("explain", *LSTM, "--activation", "tanhh"), "no activation named 'tanhh'; there are elu, "),
    "two functions": (
        ("explain", *LSTM, "--recurrent-activation", "hard_sigmoid"),
        "here it is written with them, as in hard_sigmoid:1/6,0.5",
    ),
    "three numbers": (
        ("explain", *LSTM, "--activation", "hard_sigmoid:1,2,3"),
        "after 'hard_sigmoid' come one or two numbers, as in hard_sigmoid:1/6,0.5, not '1,2,3'",
    ),
    "no number": (
        ("explain", *LSTM, "--activation", "elu:x"),
        "after 'elu' come one or two numbers, as in hard_sigmoid:1/6,0.5, not 'x'",
    ),
    "no backend of this name": (
        ("compare", "--backend", "numpy", "--backend", "nunpy"),
        f"no backend named 'nunpy'; installed: {', '.join(mr.backends())}; did you mean 'numpy'?",
    ),
    "no backend to list": (("backends", "--backend", "pytorch"), "did you mean 'torch'?"),
    "no file": (("compare", "--data", "none.csv"), "there is no file none.csv"),
    "no series": (
        ("compare", "--data", "empty.csv"),
        "empty.csv is empty; a series needs at least two rows of numbers",
    ),
    "a long window": (
        ("compare", "--window", "2000"),
        "no window of 2000 steps fits into a series of 1461; ask for at most 1461",
    ),
    "no picture": (("compare", "--plot", "a.doc"), "a.doc: a picture's name ends in .png, .svg, .pdf or another of "),
    "no folder": (("compare", "--plot", "none/a.png"), "none/a.png: there is no folder none; make it first"),
}


@pytest.mark.parametrize(("args", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_used_wrongly(args: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.csv").touch()
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert sentence in result.stderr
    assert result.stderr.count("Error: ") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("args", [("--debug", "summary"), ("summary", "--debug")])
def test_debug_shows_where(args: tuple[str, ...]) -> None:
    result = run(*args, *LSTM, "--reset-before")
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert "spec.py" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: reset_after=False describes a form of the GRU")


# --- summary ---------------------------------------------------------------------------------------------------------


def test_summary_of_three_units_on_ten_inputs() -> None:
    lines = run("summary", *RNN, "--time", "2").stdout.splitlines()
    assert lines[0] == "RecurrentSpec('simple_rnn', input_size=10, hidden_size=3)"
    assert lines[1].split() == ["layer", "sequence", "last", "state", "parameters"]
    assert re.split("  +", lines[3]) == ["layers.0 (simple_rnn)", "(None, 2, 3)", "h (None, 3)", "42"]
    assert lines[-1] == "parameters: 42 (168 bytes of float32)"


def test_summary_of_a_stack_that_runs_both_ways() -> None:
    found = json.loads(run("summary", *LSTM, "--layers", "2", "--bidirectional", "--dtype", "float64", "--json").stdout)
    spec = mr.RecurrentSpec("lstm", 10, 3, num_layers=2, bidirectional=True, dtype="float64")
    assert mr.RecurrentSpec.from_dict(found["spec"]) == spec
    assert [layer["name"] for layer in found["layers"]] == ["layers.0", "layers.1"]
    assert [layer["sequence"] for layer in found["layers"]] == [[None, None, 6]] * 2
    states = found["layers"][1]["last_state"]
    assert list(states) == ["h forward", "c forward", "h backward", "c backward"]
    assert all(shape == [None, 3] for shape in states.values())
    assert sum(layer["parameters"] for layer in found["layers"]) == found["parameters"] == spec.parameter_count
    assert found["bytes"] == 8 * spec.parameter_count


@pytest.mark.parametrize(
    ("text", "activation"),
    [
        ("relu", "relu"),
        ("elu", mr.Activation("elu", alpha=1.0)),
        ("elu:0.5", mr.Activation("elu", alpha=0.5)),
        ("hard_sigmoid:1/6,0.5", mr.Activation("hard_sigmoid", alpha=1 / 6, beta=0.5)),
        ("hard_sigmoid:0.2,1/2", mr.Activation("hard_sigmoid", alpha=0.2, beta=0.5)),
    ],
)
def test_activations_with_numbers(text: str, activation: str | mr.Activation) -> None:
    found = json.loads(run("summary", *LSTM, "--activation", text, "--json").stdout)
    assert mr.RecurrentSpec.from_dict(found["spec"]).activation == activation


# --- explain ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "counts"),
    [
        (RNN, (39, 42, 45)),
        (LSTM, (156, 168, 180)),
        (GRU, (117, 129, 135)),
        ((*GRU, "--reset-before"), (117, 126, 135)),
        ((*LSTM, "--layers", "3", "--bidirectional"), (744, 816, 888)),
    ],
)
def test_explain_counts_with_formulas_that_come_out(args: tuple[str, ...], counts: tuple[int, ...]) -> None:
    found = json.loads(run("explain", *args, "--json").stdout)["counts"]
    assert [count["bias"] for count in found] == ["none", "single", "double"]
    for count, number in zip(found, counts, strict=True):
        formula = " + ".join(part for part in (count["weights"], count["biases"]) if part)
        assert eval(formula.replace("×", "*")) == count["parameters"] == number


def test_explain_says_who_counts_how() -> None:
    text = run("explain", *RNN).stdout
    assert re.search(r"^single +1 × 3 × \(10 \+ 3\) +1 × 3 +42 +multirnn, Keras, Flax Linen$", text, re.MULTILINE)
    assert re.search(r"^double +1 × 3 × \(10 \+ 3\) +2 × 1 × 3 +45 +PyTorch, ONNX$", text, re.MULTILINE)
    assert re.search(r"^bias_hh_l0 +\(gate unit\) +\(3,\) +3 +bias_hh$", text, re.MULTILINE)


@pytest.mark.parametrize("args", [RNN, LSTM, GRU, (*GRU, "--reset-before"), (*GRU, "--layers", "2", "--bidirectional")])
def test_explain_shows_equations_gates_and_arrays(args: tuple[str, ...]) -> None:
    text, found = run("explain", *args).stdout, json.loads(run("explain", *args, "--json").stdout)
    spec = mr.RecurrentSpec.from_dict(found["spec"])
    assert found["cell"]["equations"] == list(spec.form.equations)
    assert all(f"  {equation}\n" in text for equation in spec.form.equations)
    assert [framework["name"] for framework in found["frameworks"]] == list(mr.CONVENTIONS)
    for framework in found["frameworks"]:
        convention = mr.CONVENTIONS[framework["name"]]
        if framework["reason"]:
            assert framework["arrays"] == []
            assert f"{framework['reason']}." in text
            continue
        held = convention.by_default(spec)
        arrays = mr.to_arrays(mr.initialise(held), convention=convention)
        assert {array["name"]: tuple(array["shape"]) for array in framework["arrays"]} == {
            name: array.shape for name, array in arrays.items()
        }
        assert {name for array in framework["arrays"] for name in array["holds"]} == set(held.shapes)
        assert f'{convention.title}: {held.parameter_count} parameters, bias="{held.bias}"' in text
        assert framework["arrays"][0]["name"] in text
        if len(spec.form.gates) > 1:
            names = " +".join(convention.gates[spec.cell][gate] for gate in spec.form.gates)
            assert re.search(rf"^{convention.title} +{names} ", text, re.MULTILINE)


def test_explain_with_a_form_that_was_asked_for() -> None:
    text = run("explain", *RNN, "--bias", "double").stdout
    assert 'PyTorch: 45 parameters, bias="double"' in text
    assert 'Keras holds a simple_rnn with bias="none" or bias="single", not bias="double"' in text


def explained(framework: str, *args: str) -> int:
    found = json.loads(run("explain", *args, "--json").stdout)["frameworks"]
    return next(entry["parameters"] for entry in found if entry["name"] == framework)


@pytest.mark.parametrize(("args", "name"), [(RNN, "RNN"), (LSTM, "LSTM"), (GRU, "GRU")])
def test_pytorch_counts_as_explained(args: tuple[str, ...], name: str) -> None:
    torch = pytest.importorskip("torch")
    assert explained("torch", *args) == sum(p.numel() for p in getattr(torch.nn, name)(10, 3).parameters())


@pytest.mark.parametrize(
    ("args", "name", "options"),
    [
        (RNN, "SimpleRNN", {}),
        (LSTM, "LSTM", {}),
        (GRU, "GRU", {}),
        ((*GRU, "--reset-before"), "GRU", {"reset_after": False}),
    ],
)
def test_keras_counts_as_explained(args: tuple[str, ...], name: str, options: dict[str, Any]) -> None:
    keras = pytest.importorskip("keras")
    layer = getattr(keras.layers, name)(3, **options)
    layer.build((None, None, 10))
    assert explained("keras", *args) == layer.count_params()


@pytest.mark.parametrize(("args", "name"), [(RNN, "SimpleCell"), (LSTM, "LSTMCell"), (GRU, "GRUCell")])
def test_flax_linen_counts_as_explained(args: tuple[str, ...], name: str) -> None:
    jax, linen = pytest.importorskip("jax"), pytest.importorskip("flax.linen")
    parameters = linen.RNN(getattr(linen, name)(3)).init(jax.random.key(0), np.zeros((1, 1, 10), "float32"))
    assert explained("flax-linen", *args) == sum(leaf.size for leaf in jax.tree.leaves(parameters))


# --- backends --------------------------------------------------------------------------------------------------------


def test_backends_lists_what_is_installed_and_what_it_refuses() -> None:
    rows = json.loads(run("backends", "--json").stdout)["backends"]
    assert [row["name"] for row in rows] == list(mr.backends())
    for row in rows:
        if row["status"] == "missing":
            assert f'pip install "multirnn[{row["name"]}]"' in row["reason"]
            continue
        backend = mr.backend(row["name"])
        assert row["status"] == "installed"
        assert row["versions"] == backend.versions()
        refused = {(refusal["cell"], refusal["field"]): refusal for refusal in row["refuses"]}
        for cell in mr.CELLS:
            spec = mr.RecurrentSpec(cell, 5, 3, bias="double")
            if mr.RecurrentSpec(cell, 5, 3).bias != "double" and (reason := backend.refuses(spec)):
                assert refused[spec.form.title, "bias"]["reason"] == reason
                assert "double" in refused[spec.form.title, "bias"]["values"]


def test_backends_of_numpy() -> None:
    result = run("backends", "--backend", "numpy")
    assert result.exit_code == 0
    assert re.search(rf"^numpy +installed +numpy {re.escape(np.__version__)} ", result.stdout, re.MULTILINE)
    assert re.search(r"^numpy +all +nothing$", result.stdout, re.MULTILINE)


def test_backends_where_only_numpy_is_installed() -> None:
    status, out, err = run_apart("backends", prelude=without(*FRAMEWORKS))
    assert (status, err) == (0, "")
    for name in ("torch", "keras", "jax"):
        assert re.search(rf"^{name} +missing ", out, re.MULTILINE)
        assert f'pip install "multirnn[{name}]"' in out
    status, _, err = run_apart("backends", "--backend", "torch", prelude=without("torch"))
    assert status == 3
    assert err == "Error: backend 'torch' needs 'torch', which is not installed: pip install \"multirnn[torch]\"\n"


def test_a_broken_framework_is_a_row_with_its_own_error(install: Callable[[str, str], dict[str, str]]) -> None:
    env = install("broken", "raise OSError('libfast.so.3: cannot open shared object file')")
    status, out, err = run_apart("backends", env=env, prelude=without(*FRAMEWORKS))
    assert (status, err) == (0, "")
    assert "broken: OSError: libfast.so.3: cannot open shared object file" in out
    status, _, err = run_apart("compare", "--backend", "broken", *SMALL, env=env)
    assert status == 2
    assert err == "Error: OSError: libfast.so.3: cannot open shared object file (--debug shows where)\n"


def test_backends_of_a_stranger(install: Callable[[str, str], dict[str, str]]) -> None:
    env = install("picky", STRANGER.format(name="picky", reason="it never does", factor=1))
    status, out, _ = run_apart("backends", "--backend", "picky", env=env)
    assert status == 0
    assert re.search(r"^picky +installed +stranger 1.0 ", out, re.MULTILINE)
    assert len(re.findall(r" it never does$", out, re.MULTILINE)) == 4


# --- compare ---------------------------------------------------------------------------------------------------------


def test_compare_on_every_installed_backend() -> None:
    result = run("compare", *SMALL, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, result.stderr, found["ok"]) == (0, "", True)
    assert [mr.RecurrentSpec.from_dict(one["spec"]).cell for one in found["comparisons"]] == list(mr.CELLS)
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
        assert len(re.findall(rf'^{name} .* missing .*pip install "multirnn\[{name}\]"$', out, re.MULTILINE)) == 3
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


def test_compare_with_a_backend_that_refuses(install: Callable[[str, str], dict[str, str]]) -> None:
    env = install("picky", STRANGER.format(name="picky", reason="it never does", factor=1))
    status, out, err = run_apart("compare", *SMALL, "--backend", "picky", "--backend", "numpy", env=env)
    assert (status, err) == (3, "Error: backend 'picky' refuses: it never does\n")
    assert len(re.findall(r"^picky +1\.0 .* refuses +it never does$", out, re.MULTILINE)) == 3
    status, out, err = run_apart("compare", *SMALL, env=env, prelude=without(*FRAMEWORKS))
    assert (status, err) == (0, "")
    assert len(re.findall(r"^picky .* refuses +it never does$", out, re.MULTILINE)) == 3


def test_compare_with_a_backend_that_differs(install: Callable[[str, str], dict[str, str]]) -> None:
    env = install("wrong", STRANGER.format(name="wrong", reason=None, factor=1.01))
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
            Path(fname).write_bytes(b"half")
            raise OSError("disk full")

    picture = tmp_path / "a.png"
    picture.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        write_figure(Half(), picture)
    assert picture.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]
