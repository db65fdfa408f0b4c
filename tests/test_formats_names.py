"""Stacks found by names and shapes, whatever else a file holds; and files written whole or not at all."""

import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convention_stacks import stack

import multirnn as mr
from multirnn import formats
from multirnn.atomic import replacing
from multirnn.conventions import CONVENTIONS

Arrays = dict[str, np.ndarray]


def written(path: Path, *parts: Arrays) -> Path:
    np.savez(path, **{name: array for part in parts for name, array in part.items()})
    return path


def named(convention: str, spec: mr.RecurrentSpec, prefix: str = "", seed: int = 1) -> Arrays:
    arrays = mr.to_arrays(mr.initialise(spec, seed), convention=convention)
    return {f"{prefix}{name}": array for name, array in arrays.items()}


OTHERS: Arrays = {
    name: np.ones(shape, "f")
    for name, shape in {
        "head.weight": (2, 4),
        "head.bias": (2,),
        "params/Dense_0/kernel": (4, 2),
        "params/Dense_0/bias": (2,),
        "dense/dense/kernel": (4, 2),
        "conv1d/kernel": (3, 4, 2),
        "norm/scale": (4,),
        "b": (4,),
        "W": (4, 4),
        "step": (),
    }.items()
}
PREFIXES = {
    "torch": ("rnn.", "module.", "_orig_mod.module.encoder.lstm."),
    "keras": ("", "model/"),
    "keras-cudnn": ("", "model/"),
    "flax-linen": ("params/", "model/params/encoder/"),
    "flax-nnx": ("encoder/", "model.rnn."),
    "haiku": ("", "my_model/~/"),
    "equinox": ("encoder/", "model."),
    "tensorflow-v1": ("", "model/"),
    "onnx": ("model.",),
}


@pytest.mark.parametrize("sizes", [(1, False), (2, True)], ids=["a layer", "two layers both ways"])
@pytest.mark.parametrize(("convention", "prefix"), [(name, one) for name, own in PREFIXES.items() for one in own])
def test_a_stack_is_found_among_other_layers(
    tmp_path: Path, convention: str, prefix: str, sizes: tuple[int, bool]
) -> None:
    layers, both = sizes
    both = both and bool(CONVENTIONS[convention].place_bidirectional)
    form = "lstm" if "lstm" in CONVENTIONS[convention].arrays else "simple_rnn"
    bias = next(reversed(CONVENTIONS[convention].arrays[form]))
    spec = stack(form, bias, num_layers=layers, bidirectional=both)
    path = written(tmp_path / "a.npz", OTHERS, named(convention, spec, prefix))
    (only,) = mr.inspect(path)
    assert (only.spec, only.convention) == (spec, convention)
    assert prefix.rstrip("/.") in only.name or convention == "haiku"
    assert mr.load(path).spec == spec


def test_stacks_of_several_conventions_in_the_order_of_the_file(tmp_path: Path) -> None:
    gru, lstm = mr.RecurrentSpec("gru", 5, 4), mr.RecurrentSpec("lstm", 4, 3)
    parts = [
        named("torch", gru, "b."),
        named("flax-linen", lstm, "params/x/"),
        named("torch", gru, "a.", seed=2),
        named("keras", lstm, "model/"),
    ]
    path = written(tmp_path / "a.npz", OTHERS, *parts)
    assert [(one.name, one.convention) for one in mr.inspect(path)] == [
        ("b", "torch"),
        ("params/x", "flax-linen"),
        ("a", "torch"),
        ("model", "keras"),
    ]
    assert mr.load(path, "a") == mr.initialise(gru, 2)
    assert mr.load(path, "model") == mr.initialise(lstm, 1)
    with pytest.raises(mr.FormatError, match=r"holds the stacks 'b', 'params/x', 'a', 'model'; pass name="):
        mr.load(path)
    with pytest.raises(mr.FormatError, match="has no stack 'c'; it holds 'b', "):
        mr.load(path, "c")


@pytest.mark.parametrize("convention", ["keras", "keras-cudnn", "haiku", "flax-linen"])
def test_layers_that_are_no_stack_are_found_one_by_one(tmp_path: Path, convention: str) -> None:
    """An encoder and a decoder of one Keras model: their names number them as layers."""
    bias = "double" if convention == "keras-cudnn" else "single"
    spec = mr.RecurrentSpec("lstm", 5, 4, 2, bias=bias)
    arrays = named(convention, spec, "model/")
    second = [name for name in arrays if "_1/" in name]
    other = named(convention, replace(spec, input_size=7, num_layers=1), "model/", seed=2)
    first_names = [name for name in arrays if name not in second]
    changed = dict(zip(second, other.values(), strict=True))
    path = written(tmp_path / "a.npz", {name: arrays[name] for name in first_names}, changed)
    found = mr.inspect(path)
    assert [one.spec for one in found] == [replace(spec, num_layers=1, input_size=size) for size in (5, 7)]
    assert "it is no stack together with others below 'model': " in found[0].about[-1]
    assert all(one.name.startswith("model/") for one in found)
    assert mr.load(path, found[1].name).spec.input_size == 7


def test_two_stacks_of_one_name_are_told_apart(tmp_path: Path) -> None:
    gru = mr.RecurrentSpec("gru", 5, 4)
    path = written(tmp_path / "a.npz", named("torch", gru), named("flax-linen", mr.RecurrentSpec("lstm", 4, 3)))
    assert [one.name for one in mr.inspect(path)] == ["as torch", "as flax-linen"]
    assert mr.load(path, "as torch") == mr.initialise(gru, 1)


def test_conventions_that_say_the_same_are_one(tmp_path: Path) -> None:
    """A cell without biases has the same names and rows in PyTorch and in Equinox."""
    spec = mr.RecurrentSpec("lstm", 5, 4, bias="none")
    arrays = named("equinox", spec)
    assert all(re.fullmatch(CONVENTIONS["torch"].pattern, name) for name in arrays)
    path = written(tmp_path / "a.npz", arrays)
    (only,) = mr.inspect(path)
    assert only.convention == "torch"
    assert mr.load(path) == mr.load(path, convention="equinox") == mr.initialise(spec, 1)


def test_not_even_where_they_hold_nan(tmp_path: Path) -> None:
    arrays = {name: np.full_like(array, np.nan) for name, array in named("equinox", stack("lstm", "none")).items()}
    path = written(tmp_path / "a.npz", {f"x/{name}": array for name, array in arrays.items()})
    assert np.isnan(mr.load(path).arrays["layers.0.forward.weight_ih"]).all()


SQUARE = mr.RecurrentSpec("simple_rnn", 4, 4, bias="single")


def test_conventions_that_say_something_else_are_told_apart_by_the_caller(tmp_path: Path) -> None:
    path = written(tmp_path / "a.npz", named("textbook", SQUARE))
    (only,) = mr.inspect(path)
    assert only.about[-1] == (
        "its arrays fit the convention 'textbook-rows' too, with other weights; pass convention= to choose"
    )
    with pytest.raises(
        mr.FormatError, match="fit 'textbook' and 'textbook-rows', with other weights; pass convention="
    ):
        mr.load(path)
    assert mr.load(path, convention="textbook") == mr.load(path, transposed=False) == mr.initialise(SQUARE, 1)
    assert mr.load(path, convention="textbook-rows") == mr.load(path, transposed=True)
    turned = mr.load(path, convention="textbook-rows").arrays["layers.0.forward.weight_ih"]
    assert np.array_equal(turned[0], mr.initialise(SQUARE, 1).arrays["layers.0.forward.weight_ih"][0].T)


def test_another_convention_than_the_files_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.npz", named("torch", SQUARE))
    with pytest.raises(mr.FormatError, match="holds no recurrent stack"):
        mr.load(path, convention="keras")
    with pytest.raises(mr.Unrepresentable, match=r"no convention named 'torhc'; .* did you mean 'torch'"):
        mr.load(path, convention="torhc")
    mr.save(mr.initialise(SQUARE), tmp_path / "b.npz")
    assert mr.load(tmp_path / "b.npz", convention="canonical") == mr.initialise(SQUARE)
    with pytest.raises(mr.FormatError, match="its arrays lie as 'canonical' says, not as 'torch'"):
        mr.load(tmp_path / "b.npz", convention="torch")


def test_what_the_arrays_do_not_tell_can_be_passed(tmp_path: Path) -> None:
    spec = mr.RecurrentSpec("gru", 5, 4, bias="none", reset_after=False, activation="relu")
    path = written(tmp_path / "a.npz", named("keras", spec))
    with pytest.raises(mr.FormatError, match="do not tell gru reset after from gru reset before; pass reset_after="):
        mr.load(path)
    assert mr.load(path, reset_after=False, activation="relu", recurrent_activation="sigmoid").spec == spec


DAMAGE: dict[str, tuple[Any, str]] = {
    "a missing matrix": (lambda a: a.pop("rnn.weight_hh_l1"), "weight_hh of layer 1 forward is missing"),
    "a missing layer": (
        lambda a: [a.pop(name) for name in list(a) if "l0" in name],
        "the arrays are of the layers '1'; the torch convention numbers them from 0 without gaps",
    ),
    "a missing bias": (lambda a: a.pop("rnn.bias_hh_l1"), "bias_hh of layer 1 forward is missing"),
    "an array too many": (lambda a: a.update({"rnn.gain": np.ones(3, "f")}), "'rnn.gain' is beside the arrays"),
    "a wrong shape": (
        lambda a: a.update({"rnn.weight_hh_l1": np.ones((16, 5), "f")}),
        r"weight_hh of layer 1 forward must have the shape \(16, 4\), not \(16, 5\)",
    ),
    "another dtype": (lambda a: a.update({"rnn.bias_hh_l1": np.ones(16)}), "all be float32 or all float64"),
    "integers": (lambda a: a.update({"rnn.bias_hh_l1": np.ones(16, int)}), "'rnn.bias_hh_l1' is int64"),
    "complex numbers": (lambda a: a.update({"rnn.bias_hh_l1": np.ones(16, complex)}), "'rnn.bias_hh_l1' is complex128"),
    "no axes": (lambda a: a.update({"rnn.weight_ih_l0": np.float32(1)}), "must have the axes"),
    "no numbers": (lambda a: a.update({"rnn.weight_ih_l0": np.ones((16, 0), "f")}), "must have the axes"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_nearly_a_stack_is_refused_with_the_reason(tmp_path: Path, what: str) -> None:
    change, sentence = DAMAGE[what]
    arrays = named("torch", stack("lstm", "double", bidirectional=False), "rnn.")
    change(arrays)
    path = written(tmp_path / "a.npz", OTHERS, arrays)
    with pytest.raises(mr.FormatError, match=sentence) as error:
        mr.load(path)
    assert "the layer 'rnn' cannot be read: " in str(error.value)
    assert "(in the convention 'torch')" in str(error.value)
    (only,) = mr.inspect(path)
    assert (only.name, only.spec, only.parameter_count, only.stored) == ("rnn", None, None, "float32")
    assert re.search(sentence, only.refused)
    assert only.to_dict()["spec"] is None


def test_a_file_without_recurrent_layers_holds_none(tmp_path: Path) -> None:
    assert mr.inspect(written(tmp_path / "a.npz", OTHERS)) == ()


def test_a_large_model_around_a_stack(tmp_path: Path) -> None:
    blocks = {
        f"params/block_{k}/{part}": np.ones((2, 2), "f") for k in range(1500) for part in ("dense/kernel", "W", "b")
    }
    path = written(tmp_path / "a.npz", blocks, named("flax-linen", mr.RecurrentSpec("lstm", 5, 4), "params/encoder/"))
    assert [one.name for one in mr.inspect(path)] == ["params/encoder"]


# --- Convert ---------------------------------------------------------------------------------------------------------

WRITTEN = {".safetensors": "canonical", ".npz": "canonical", ".pt": "torch", ".msgpack": "flax-linen"}


@pytest.mark.parametrize("target", WRITTEN)
@pytest.mark.parametrize("source", WRITTEN)
@pytest.mark.parametrize(
    "spec", [stack("lstm", "double"), stack("gru reset after", "double"), stack("simple_rnn", "single")], ids=repr
)
def test_one_format_into_another(tmp_path: Path, spec: mr.RecurrentSpec, source: str, target: str) -> None:
    if ".msgpack" in (source, target):
        pytest.importorskip("msgpack")
    weights = mr.initialise(spec, 1)
    mr.save(weights, tmp_path / f"a{source}")
    made = mr.convert(tmp_path / f"a{source}", tmp_path / f"b{target}")
    verified = mr.verify(tmp_path / f"a{source}", tmp_path / f"b{target}")
    assert verified.ok
    assert verified.exact == (not made.changes)
    assert (made.format, made.convention) == ({".pt": "torch"}.get(target, target[1:]), WRITTEN[target])
    assert made.spec == mr.load(tmp_path / f"b{target}").spec
    assert made.to_dict()["path"] == str(tmp_path / f"b{target}")


def test_one_stack_of_several_is_converted_by_name(tmp_path: Path) -> None:
    spec = mr.RecurrentSpec("gru", 5, 4)
    path = written(tmp_path / "a.npz", named("torch", spec, "a."), named("torch", spec, "b.", seed=2))
    mr.convert(path, tmp_path / "b.npz", name="b", to="keras")
    assert mr.load(tmp_path / "b.npz") == mr.initialise(spec, 2)
    assert mr.inspect(tmp_path / "b.npz")[0].convention == "keras"


def test_what_a_format_does_not_have_is_refused(tmp_path: Path) -> None:
    weights = mr.initialise(SQUARE)
    for name, how, sentence in (
        ("a.nam", {}, "cannot be written: files of this format are only read"),
        ("a.txt", {}, "has none of the suffixes that tell the format"),
        ("a.pt", {"convention": "canonical"}, "its format has no place for the spec beside them"),
        ("a.onnx", {"convention": "torch"}, "its format has 'onnx' alone"),
    ):
        with pytest.raises(mr.FormatError, match=sentence):
            mr.save(weights, tmp_path / name, **how)
    with pytest.raises(mr.Unrepresentable, match="no convention named 'torhc'"):
        mr.save(weights, tmp_path / "a.pt", convention="torhc")
    assert not list(tmp_path.iterdir())


# --- Whole or not at all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, b"before"])
def test_an_exception_leaves_what_was_there(tmp_path: Path, before: bytes | None, error: type[BaseException]) -> None:
    path = tmp_path / "a.pt"
    if before:
        path.write_bytes(before)

    def half() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        half()
    assert [one.read_bytes() for one in tmp_path.iterdir()] == ([before] if before else [])


def test_an_exception_of_a_writer_does_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from multirnn.formats import torch

    def interrupted(number: int) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "_int", interrupted)
    (tmp_path / "a.pt").write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        mr.save(mr.initialise(SQUARE), tmp_path / "a.pt")
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"before"]


FULL = """
import resource, sys
import multirnn as mr
weights = mr.initialise(mr.RecurrentSpec("lstm", 64, 64))
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    mr.save(weights, sys.argv[1])
except mr.FormatError as error:
    print(error)
"""


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt", ".msgpack"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, suffix: str) -> None:
    """A limit on the size of files stops the writer in the middle, as a full disk does."""
    if suffix == ".msgpack":
        pytest.importorskip("msgpack")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"before")
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=False)
    assert done.stdout == f"{path} cannot be written: File too large\n", done.stderr
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"before"]


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    for umask in (0o022, 0o077, 0o002):
        before = os.umask(umask)
        try:
            formats.save(mr.initialise(SQUARE), tmp_path / f"{umask}.npz")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / f"{umask}.npz").stat().st_mode) == 0o666 & ~umask


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"secret")
    (tmp_path / "a.npz").chmod(0o600)
    mr.save(mr.initialise(SQUARE), tmp_path / "a.npz")
    assert stat.S_IMODE((tmp_path / "a.npz").stat().st_mode) == 0o600
    assert mr.load(tmp_path / "a.npz") == mr.initialise(SQUARE)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link(tmp_path: Path, there: bool) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "b.npz", tmp_path / "a.npz"
    if there:
        target.write_bytes(b"before")
    link.symlink_to(Path("far") / "b.npz")
    mr.save(mr.initialise(SQUARE), link)
    assert link.is_symlink()
    assert not target.is_symlink()
    assert mr.load(target) == mr.load(link) == mr.initialise(SQUARE)
    assert [one.name for one in (tmp_path / "far").iterdir()] == ["b.npz"]


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    weights = mr.initialise(SQUARE)
    with pytest.raises(mr.FormatError, match=r"missing/a.npz cannot be written: No such file or directory"):
        mr.save(weights, tmp_path / "missing" / "a.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(mr.FormatError, match=r"folder.npz cannot be written: Is a directory"):
        mr.save(weights, tmp_path / "folder.npz")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(mr.FormatError, match=r"file/a.npz cannot be written: Not a directory"):
        mr.save(weights, tmp_path / "file" / "a.npz")
    with pytest.raises(mr.FormatError, match=r"cannot be written: .*embedded null"):
        mr.save(weights, "\0.npz")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder.npz"]
