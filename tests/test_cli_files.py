"""`multirnn inspect`, `verify` and `convert`: what they print, their exit statuses, and what they write."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import FRAMEWORKS, run, run_apart

import multirnn as mr

SPEC = mr.RecurrentSpec("gru", 4, 3, num_layers=2, bidirectional=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.npz"
    mr.save(mr.initialise(SPEC), path)
    return path


def test_inspect(file: Path) -> None:
    done = run("inspect", file)
    assert done.exit_code == 0
    row = done.stdout.splitlines()[2].split()
    assert row[:4] == ["–", "gru", "reset", "after"]
    assert "4 → 3, 2 layers, both directions" in done.stdout
    assert row[-3:] == [f"{SPEC.parameter_count}", "canonical", "float32"]
    (found,) = json.loads(run("inspect", file, "--json").stdout)["stacks"]
    assert mr.RecurrentSpec.from_dict(found["spec"]) == SPEC
    assert found["parameters"] == SPEC.parameter_count


def test_inspect_says_that_a_model_has_several_and_what_the_file_leaves_open(tmp_path: Path) -> None:
    arrays = {
        f"{name}.{own}": array
        for name in ("encoder", "decoder")
        for own, array in mr.to_arrays(mr.initialise(SPEC), convention="torch").items()
    }
    np.savez(tmp_path / "model.npz", **arrays, **{"head.weight": np.zeros((2, 3), "f4")})
    done = run("inspect", tmp_path / "model.npz", COLUMNS="80")
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines() if " 4 → 3" in line] == ["encoder", "decoder"]
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "encoder: its activations are not in the file." in done.stdout


def test_inspect_of_a_file_without_any(tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", a=np.zeros(3, "f4"))
    done = run("inspect", tmp_path / "none.npz")
    assert (done.exit_code, done.stdout) == (
        1,
        f"{tmp_path / 'none.npz'} holds no recurrent stack that is known here.\n",
    )


def test_verify(file: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "same.pt", tmp_path / "other.safetensors"
    mr.save(mr.initialise(SPEC), same)
    mr.save(mr.initialise(SPEC, seed=1), tmp_path / "other.npz")
    done = run("verify", file, same)
    assert (done.exit_code, done.stdout) == (0, f"the same {SPEC.parameter_count:,} numbers, bit for bit\n")
    other = tmp_path / "other.npz"
    done = run("verify", file, other)
    assert done.exit_code == 1
    assert done.stdout.startswith("not the same: ")
    found = json.loads(run("verify", file, other, "--json").stdout)
    assert not found["ok"]
    assert found["largest"][0] > 0


def test_convert(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.pt"
    done = run("convert", file, target, "--verify")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"the same {SPEC.parameter_count:,} numbers, bit for bit"
    assert mr.load(target) == mr.initialise(SPEC)
    found = json.loads(run("convert", file, tmp_path / "c.npz", "--to", "flax-linen", "--json").stdout)
    assert found["convention"] == "flax-linen"
    (change,) = found["changes"]
    assert change.startswith("the two biases of each gate were added up")
    assert mr.verify(file, tmp_path / "c.npz").ok


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("convert", "a.npz", "b.txt"), "has none of the suffixes that tell the format: .safetensors, "),
        (("convert", "a.npz", "b.nam"), "cannot be written: files of this format are only read"),
        (("convert", "none.npz", "b.npz"), "none.npz cannot be read: No such file or directory"),
        (("convert", "a.npz", "nowhere/b.npz"), "nowhere/b.npz cannot be written: "),
        (("convert", "a.npz", "b.npz", "--to", "tensorflow-v1"), "TensorFlow 1 has no GRU whose reset gate acts after"),
        (("convert", "a.npz", "b.npz", "--to", "pytorch"), "'pytorch' is not one of"),
        (("inspect", "broken.pt"), "broken.pt: it is neither a zip archive nor a pickle of torch.save"),
        (("verify", "a.npz", "a.npz", "--name-a", "b"), "a.npz has no stack 'b'; it holds ''"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    args: tuple[str, ...], sentence: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.pt").write_bytes(b"no checkpoint")
    before = sorted(path.name for path in tmp_path.iterdir())
    done = run(*args)
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_no_framework_is_loaded(file: Path, tmp_path: Path) -> None:
    told = f"import sys, atexit; atexit.register(lambda: print([m for m in {FRAMEWORKS!r} if m in sys.modules]))"
    for args in (("inspect", file), ("convert", file, tmp_path / "b.pt", "--verify"), ("verify", file, file)):
        code, out, err = run_apart(*args, prelude=told)
        assert (code, out.splitlines()[-1]) == (0, "[]"), err


def test_weights_save_and_load(tmp_path: Path) -> None:
    weights = mr.initialise(SPEC)
    weights.save(tmp_path / "a.npz")
    assert mr.Weights.load(tmp_path / "a.npz") == weights


def test_what_a_file_does_not_say_is_said_by_hand(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("gru", 4, 3, bias="none", activation="relu"))
    mr.save(weights, tmp_path / "a.npz", convention="keras")  # without biases, names and shapes tell neither form
    assert "pass reset_after=True or reset_after=False" in run("convert", tmp_path / "a.npz", tmp_path / "b.npz").stderr
    known = ("--known", "reset_after=true", "--known", "activation=relu")
    done = run("convert", tmp_path / "a.npz", tmp_path / "b.npz", *known, "--verify")
    assert done.exit_code == 0, done.stderr
    assert mr.load(tmp_path / "b.npz") == weights
    done = run("verify", tmp_path / "a.npz", tmp_path / "b.npz", "--known-a", "reset_after=true")
    assert done.exit_code == 0, done.stderr
    assert "A does not say its activations, so activation='relu'" in done.stdout
    for wrong in ("relu", "activation", "reset_after=no", "activation=rely", "size=3"):
        assert run("convert", tmp_path / "a.npz", tmp_path / "c.npz", "--known", wrong).exit_code == 2


def test_verify_of_activations_that_both_files_say(tmp_path: Path) -> None:
    for name in ("tanh", "relu"):
        mr.save(mr.initialise(mr.RecurrentSpec("simple_rnn", 4, 3, activation=name)), tmp_path / f"{name}.npz")
    done = run("verify", tmp_path / "tanh.npz", tmp_path / "relu.npz")
    assert (done.exit_code, done.stdout) == (1, "not the same: activation is 'tanh' in A and 'relu' in B\n")


def test_what_a_file_says_is_not_overruled(tmp_path: Path) -> None:
    mr.save(mr.initialise(SPEC), tmp_path / "a.npz")
    assert mr.load(tmp_path / "a.npz", cell="gru", activation=mr.Activation("tanh")).spec == SPEC
    with pytest.raises(mr.FormatError, match=r"a\.npz: it says activation='tanh', not 'relu'$"):
        mr.load(tmp_path / "a.npz", activation="relu")
    with pytest.raises(
        TypeError, match=r"^load takes no activations=; what a file does not tell are convention, cell,"
    ):
        mr.load(tmp_path / "a.npz", activations="relu")
    with pytest.raises(TypeError, match=r"^save takes Weights, not a RecurrentSpec$"):
        mr.save(SPEC, tmp_path / "b.npz")  # type: ignore[arg-type]
