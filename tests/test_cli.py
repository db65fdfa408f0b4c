"""What every command keeps: what it imports, how it prints, and what it says where it is used wrongly."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from command_line import FRAMEWORKS, GRU, LSTM, SMALL, run, run_apart, start, without

import multirnn as mr


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
    assert "3 x 3 x (10 + 3)" in out
    assert "?" not in out


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


@pytest.mark.parametrize("command", ["bench", "doctor"])
def test_without_the_benchmark_its_commands_say_so(command: str) -> None:
    status, out, err = run_apart(command, "--help", prelude=without("multirnn_bench"))
    assert (status, out) == (3, "")
    assert err.startswith(f"Error: 'multirnn {command}' needs the package 'multirnn_bench', which is not installed")
    status, out, err = run_apart("--help", prelude=without("multirnn_bench"))
    assert (status, err) == (0, "")
    assert f"  {command} " in out


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
