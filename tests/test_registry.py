"""From a name to a backend: what is found, what is said where it is not, and whose layers are read."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn import registry
from multirnn.protocol import Backend, accept, with_implementation

SPEC = mr.RecurrentSpec("gru", 5, 4)
OURS = ("jax", "keras", "numpy", "torch")


class Picky:
    """Everything that a Backend has; realises nothing."""

    name = "picky"
    differentiable = False

    def refuses(self, spec: mr.RecurrentSpec) -> str | None:
        return f"{spec.cell} is not to its taste"

    def build(self, weights: mr.Weights, *, device: str | None = None) -> mr.Layer:
        accept(self, weights.spec)
        raise AssertionError("it accepted what it refuses")

    def read(self, native: Any) -> mr.Weights:
        return native.weights

    def versions(self) -> dict[str, str]:
        return {}


PICKY = Picky()


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Lets entry points be offered, in place of those of this environment; modules may be written to `tmp_path`."""
    monkeypatch.syspath_prepend(tmp_path)

    def offer(**points: str) -> None:
        found = tuple(EntryPoint(name.rstrip("_"), value, "some group") for name, value in points.items())
        monkeypatch.setattr(registry, "_points", lambda group: found)

    return offer


# --- Names -----------------------------------------------------------------------------------------------------------------


def test_ours_are_found() -> None:
    assert set(OURS) <= set(mr.backends())
    assert list(mr.backends()) == sorted(mr.backends())
    assert mr.backend("numpy").name == "numpy"
    assert mr.backend("numpy") is mr.backend("numpy")


def test_every_backend_has_the_name_that_it_is_found_by(backend: Backend) -> None:
    assert backend.name in mr.backends()
    assert mr.backend(backend.name) is backend
    assert all(isinstance(name, str) and isinstance(version, str) for name, version in backend.versions().items())


def test_a_backend_object_is_itself() -> None:
    assert mr.backend(PICKY) is PICKY
    layer = mr.build(SPEC, mr.backend("numpy"), seed=3)
    assert layer.weights() == mr.initialise(SPEC, 3)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("pytorch", "no backend named 'pytorch'; installed: jax, keras, numpy, torch; did you mean 'torch'?"),
        ("nunpy", "no backend named 'nunpy'; installed: jax, keras, numpy, torch; did you mean 'numpy'?"),
        ("Keras", "no backend named 'Keras'; installed: jax, keras, numpy, torch; did you mean 'keras'?"),
        ("mxnet", "no backend named 'mxnet'; installed: jax, keras, numpy, torch"),
        ("", "no backend named ''; installed: jax, keras, numpy, torch"),
        (None, "a backend is chosen by its name; this is None and not a multirnn Backend"),
        (np, "a backend is chosen by its name; this is a module and not a multirnn Backend"),
    ],
)
def test_what_is_no_backend(offer: Any, name: Any, sentence: str) -> None:
    offer(**{ours: f"multirnn_{ours}:BACKEND" for ours in OURS})
    for ask in (lambda: mr.backend(name), lambda: mr.build(SPEC, name)):
        with pytest.raises(mr.UnknownBackend, match=f"^{re.escape(sentence)}$") as caught:
            ask()
        assert isinstance(caught.value, LookupError)


def test_two_of_one_name(offer: Any) -> None:
    offer(numpy="one:BACKEND", numpy_="other:BACKEND")
    with pytest.raises(
        mr.UnknownBackend,
        match=r"^two distributions offer 'numpy': one:BACKEND, other:BACKEND; uninstall one of them$",
    ):
        mr.backend("numpy")
    assert mr.backends() == ("numpy",)


def test_one_that_is_found_twice_is_one(offer: Any) -> None:
    """An editable install can list a distribution twice."""
    offer(numpy="multirnn_numpy:BACKEND", numpy_="multirnn_numpy:BACKEND")
    assert mr.backend("numpy").name == "numpy"


def test_an_entry_point_that_is_no_backend(offer: Any) -> None:
    offer(circle="math:pi")
    with pytest.raises(
        mr.UnknownBackend,
        match=r"^a distribution offers 'circle' as 'math:pi', which is a float and not a multirnn Backend: install",
    ):
        mr.backend("circle")


# --- Building --------------------------------------------------------------------------------------------------------------


def test_weights_or_a_spec_and_its_seed() -> None:
    assert mr.build(SPEC, "numpy").weights() == mr.initialise(SPEC, 0)
    assert mr.build(SPEC, "numpy", seed=5).weights() == mr.initialise(SPEC, 5)
    assert mr.build(mr.initialise(SPEC, 5), "numpy", seed=6).weights() == mr.initialise(SPEC, 5)
    with pytest.raises(TypeError, match=r"^build takes a RecurrentSpec or Weights, not a str$"):
        mr.build("gru", "numpy")  # type: ignore[arg-type]


def test_a_refusal_is_raised_with_its_reason() -> None:
    sentence = f"backend 'picky' refuses {SPEC!r}: gru is not to its taste"
    with pytest.raises(mr.Unsupported, match=f"^{re.escape(sentence)}$"):
        mr.build(SPEC, PICKY)


def test_a_device_that_there_is_not() -> None:
    sentence = "NumPy computes on the device 'cpu' alone, not on 'cuda'"
    with pytest.raises(mr.InvalidCall, match=f"^{re.escape(sentence)}$"):
        mr.build(SPEC, "numpy", device="cuda")


# --- Frameworks that are missing or broken -----------------------------------------------------------------------------------


def run(code: str, *arguments: str, **environment: str) -> Any:
    """What a program in an interpreter of its own prints as JSON."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


WITHOUT = """
import json, sys
from importlib.machinery import PathFinder
import multirnn as mr

hidden = set()

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name in hidden else super().find_spec(name, *rest)

sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]

def said(backend, framework):
    hidden.add(framework)
    try:
        mr.backend(backend)
    except mr.MissingFramework as error:
        assert isinstance(error, ImportError) and isinstance(error.__cause__, ModuleNotFoundError)
        return str(error)

print(json.dumps([said(*pair.split(":")) for pair in sys.argv[1:]]))
"""


@pytest.mark.parametrize(
    ("missing", "engine"),
    [([("torch", "torch"), ("jax", "jax"), ("keras", "tensorflow")], ""), ([("keras", "keras")], "numpy")],
)
def test_a_framework_that_is_not_installed(missing: list[tuple[str, str]], engine: str) -> None:
    sentence = "backend '{0}' needs '{1}', which is not installed: pip install \"multirnn[{0}]\""
    said = run(WITHOUT, *map(":".join, missing), KERAS_BACKEND=engine)
    assert said == [sentence.format(*pair) for pair in missing]


def test_a_framework_of_a_distribution_without_extras(offer: Any, tmp_path: Path) -> None:
    (tmp_path / "needy_backend.py").write_text("import not_to_be_found\n")
    offer(needy="needy_backend:BACKEND")
    sentence = "backend 'needy' needs 'not_to_be_found', which is not installed: pip install not_to_be_found"
    with pytest.raises(mr.MissingFramework, match=f"^{re.escape(sentence)}$"):
        mr.backend("needy")


@pytest.mark.parametrize(
    ("framework", "error", "words"),
    [
        ("import not_to_be_found", ModuleNotFoundError, "No module named 'not_to_be_found'"),
        ("raise RuntimeError('the driver is too old')", RuntimeError, "the driver is too old"),
        ("raise ImportError('libfast.so is missing')", ImportError, "libfast.so is missing"),
        ("", ModuleNotFoundError, "No module named 'fastness.rnn'"),  # there, but too old to have what is needed
    ],
)
def test_a_framework_that_is_broken_shows_its_own_error(
    offer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, framework: str, error: type[Exception], words: str
) -> None:
    (tmp_path / "fastness").mkdir()
    (tmp_path / "fastness" / "__init__.py").write_text(f"{framework}\n")
    (tmp_path / "fast_backend.py").write_text("import fastness.rnn\n")
    offer(fast="fast_backend:BACKEND")
    with pytest.raises(error, match=f"^{re.escape(words)}$") as caught:
        mr.backend("fast")
    assert not isinstance(caught.value, mr.MultirnnError)
    monkeypatch.delitem(sys.modules, "fastness", raising=False)


# --- Reading ---------------------------------------------------------------------------------------------------------------


def test_what_a_backend_made_is_read_back(backend: Backend) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 5, 4), 3)
    assert mr.read(backend.build(weights).native) == weights


def test_a_framework_is_known_by_any_class_that_a_layer_descends_from() -> None:
    torch = pytest.importorskip("torch")
    mine = type("Mine", (torch.nn.GRU,), {"__module__": "somewhere.else"})
    assert mr.read(mine(5, 4)).spec == SPEC


class Stranger:
    __module__ = "elsewhere.layers"


def test_what_nobody_reads() -> None:
    for native, name in ((Stranger(), "an elsewhere.layers.Stranger"), (object(), "a builtins.object")):
        sentence = f"no installed backend reads {name}; layers are read of "
        with pytest.raises(mr.Unrepresentable, match=f"^{re.escape(sentence)}") as caught:
            mr.read(native)
        assert {"keras", "multirnn_jax", "multirnn_numpy", "torch"} <= set(re.split(", | of ", str(caught.value)))


def test_a_third_partys_layers_are_read_by_its_backend(offer: Any, tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text(
        "from multirnn import RecurrentSpec, initialise\n"
        "class BACKEND:\n"
        "    name, differentiable = 'reader', False\n"
        "    refuses = build = versions = staticmethod(print)\n"
        "    read = staticmethod(lambda native: initialise(RecurrentSpec('gru', 5, 4), native.seed))\n"
    )
    offer(elsewhere="reader:BACKEND")
    native = Stranger()
    native.seed = 7  # type: ignore[attr-defined]
    assert mr.read(native) == mr.initialise(SPEC, 7)


# --- The same on every Python: from 3.12 on, `isinstance` of a Protocol looks at the class alone ----------------------------


class Proxy:
    """Whatever its inner backend has, by `__getattr__`."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_an_attribute_behind_getattr_counts() -> None:
    proxy: Any = Proxy(mr.backend("numpy"))
    assert mr.backend(proxy) is proxy
    assert mr.compare(SPEC, backends=[proxy]).ok


def test_an_object_that_lacks_one_attribute_is_no_backend() -> None:
    lacking: Any = Proxy(SimpleNamespace(name="lacking", differentiable=True, refuses=None, build=None, read=None))
    with pytest.raises(mr.UnknownBackend, match="this is a Proxy"):
        mr.backend(lacking)


def test_a_wrapped_backend_trains() -> None:
    wrapped = with_implementation(mr.backend("numpy"), "fast")
    (row,) = mr.train_parity(SPEC, backends=[wrapped], steps=2, optimisers="sgd").rows
    assert row.verdict == "equal", row.reason
