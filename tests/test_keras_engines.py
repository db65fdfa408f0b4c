"""Keras' engines and devices: which engine is chosen, loaded and named, that each agrees, and where layers run."""

import json
import sys
from pathlib import Path

import pytest
from keras_layers import BACKEND, assert_close, in_a_process, keras, multirnn_keras, spec_of

import multirnn as mr
from multirnn.numerics import draw_call


def test_names_its_engine() -> None:
    assert BACKEND.engine == keras.config.backend()
    assert dict(BACKEND.versions()) == {
        "keras": keras.__version__,
        BACKEND.engine: sys.modules[BACKEND.engine].__version__,
    }


def test_finds_the_engine_that_keras_will_choose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from multirnn_keras.engines import chosen

    assert chosen() == keras.config.backend()
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert chosen() == "torch"
    monkeypatch.delenv("KERAS_BACKEND")
    assert chosen() == "tensorflow"
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "jax"}))
    assert chosen() == "jax"
    (tmp_path / "keras.json").write_text("not JSON")
    assert chosen() == "tensorflow"


IMPORT = """
import sys
import multirnn_keras
loaded = {"tensorflow", "torch", "jax"} & set(sys.modules)
# Keras itself imports JAX, if it is installed: keras/src/callbacks/orbax_checkpoint.py, 3.15.
assert loaded - {"jax"} == {multirnn_keras.BACKEND.engine} - {"jax"}, loaded
assert multirnn_keras.BACKEND.engine == (sys.argv[1] if len(sys.argv) > 1 else "tensorflow")
"""


@pytest.mark.parametrize("engine", ["", "tensorflow", "jax", "torch"])
def test_importing_says_nothing_and_loads_one_engine(engine: str, tmp_path: Path) -> None:
    if engine:
        pytest.importorskip(engine)
    done = in_a_process(IMPORT, *filter(None, [engine]), KERAS_BACKEND=engine, KERAS_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("missing", ["keras", "tensorflow"])
def test_names_what_is_missing(missing: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import multirnn; multirnn.backend('keras')"
    done = in_a_process(code, KERAS_HOME=str(tmp_path))
    assert f"multirnn.errors.MissingFramework: backend 'keras' needs {missing!r}, which is not installed" in done.stderr


AGREEMENT = """
import warnings
import multirnn as mr
from multirnn import cells
from multirnn.numerics import draw_call
for cell, reset_after in [(form.name, form.reset_after) for form in cells.FORMS.values()]:
    for ragged in (False, True):
        layers = 2 if ragged and cell == "simple_rnn" else 1
        spec = mr.RecurrentSpec(cell, 3, 7, num_layers=layers, bidirectional=ragged, reset_after=reset_after)
        weights = mr.initialise(spec, seed=1)
        x, state, lengths = draw_call(spec, 3)
        row = mr.compare(weights, x, state, lengths=lengths if ragged else None, backends=["keras"]).rows[0]
        assert row.verdict == "equal", (spec, row.reason)
layer = mr.build(weights, "keras")
with warnings.catch_warnings():
    warnings.simplefilter("error")
    x.flags.writeable = False
    first = layer(x, state, lengths=lengths)
layer.native.compile(optimizer="sgd", loss="mse")
layer.native.fit(x, first.sequence * 0 + 1, epochs=1, verbose=0)
assert layer.weights() != weights
after = layer(x, state, lengths=lengths).sequence
wide = mr.State(state.h.astype("float64"))
expected = mr.build(layer.weights().astype("float64"), "numpy")(x.astype("float64"), wide, lengths=lengths).sequence
assert mr.difference(after, expected).normwise <= mr.tolerance("float32")
double = mr.RecurrentSpec("lstm", 3, 7, dtype="float64", bidirectional=True)
row = mr.compare(double, backends=["keras"]).rows[0]
print(row.title, row.verdict)
"""


@pytest.mark.parametrize(("engine", "float64"), [("tensorflow", "equal"), ("jax", "refuses"), ("torch", "refuses")])
def test_agrees_on_every_engine(engine: str, float64: str) -> None:
    pytest.importorskip(engine)
    if engine == BACKEND.engine:
        pytest.skip("the tests of this process run on it")
    done = in_a_process(AGREEMENT, KERAS_BACKEND=engine)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"keras ({engine}) {float64}"


def test_runs_on_a_device_by_its_name() -> None:
    weights = mr.initialise(spec_of({"cell": "gru"}), seed=1)
    x, state, lengths = draw_call(weights.spec, 3)
    expected = BACKEND.build(weights)(x, state, lengths=lengths)
    for device in ("cpu", "CPU:0"):
        layer = multirnn_keras.build(weights, device=device)
        output = layer(x, state, lengths=lengths)
        assert_close(output.sequence, expected.sequence, "float32")
        gradients = layer.vjp(x, state, lengths=lengths, cotangent=output)
        assert gradients.x.shape == x.shape
    for device in ("gpu:99", "cuda:99", "toaster"):
        with pytest.raises(mr.InvalidCall, match=f"has no device '{device}' here; it has cpu:0"):
            multirnn_keras.build(weights, device=device)


def test_runs_on_a_gpu() -> None:
    weights = mr.initialise(spec_of({"cell": "lstm"}, dtype="float64"), seed=1)
    try:
        layer = multirnn_keras.build(weights, device="cuda")
    except (mr.InvalidCall, mr.Unsupported) as error:
        pytest.skip(str(error))
    x, state, lengths = draw_call(weights.spec, 3)
    expected = mr.build(weights, "numpy")(x, state, lengths=lengths)
    for _ in range(2):
        assert_close(layer(x, state, lengths=lengths).sequence, expected.sequence, "float64")
