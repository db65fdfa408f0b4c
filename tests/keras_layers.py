"""What the tests of the Keras backend share: its layers of test sizes, and processes with another engine."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import multirnn as mr
from multirnn import kernel
from multirnn.protocol import with_implementation

multirnn_keras = pytest.importorskip("multirnn_keras")
keras = pytest.importorskip("keras")

BACKEND = multirnn_keras.BACKEND
FAST = with_implementation(BACKEND, "fast")
ON_TENSORFLOW = BACKEND.engine == "tensorflow"
INPUT_SIZE, HIDDEN_SIZE = 5, 11
MEANS = ("compiled", "loops")


def spec_of(form: dict, **changes) -> mr.RecurrentSpec:
    return mr.RecurrentSpec(**{"input_size": INPUT_SIZE, "hidden_size": HIDDEN_SIZE, **form, **changes})


def widened(state: mr.State) -> mr.State:
    return mr.State(*(part if part is None else part.astype("float64") for part in state))


def assert_close(actual, expected, dtype: str = "float32") -> None:
    assert mr.difference(np.asarray(actual), np.asarray(expected)).normwise <= mr.tolerance(dtype)


def numpy_of(tensor) -> np.ndarray:
    return np.asarray(keras.ops.stop_gradient(tensor))


def mask_of(lengths: np.ndarray, time: int) -> np.ndarray:
    return np.arange(time) < lengths[:, None]


def trained(model, **options) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 7, INPUT_SIZE)).astype("float32")
    y = rng.standard_normal(model(x).shape).astype("float32")
    # A small step down the gradient of the whole batch: the loss falls from any start.
    model.compile(optimizer=keras.optimizers.SGD(0.01), loss="mse", **options)
    losses = model.fit(x, y, epochs=2, batch_size=6, verbose=0).history["loss"]
    assert losses[1] < losses[0]


def use(means: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run fast layers with the compiled recurrence, if there is one, or as if there were none."""
    if means == "loops":
        monkeypatch.setattr(kernel, "refuses", lambda: "not here")
    elif not ON_TENSORFLOW or kernel.refuses():
        pytest.skip(kernel.refuses() or "the compiled recurrence serves TensorFlow")
    return means


def in_a_process(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a Python of its own, which finds these files; its engine is the default unless the environment says otherwise."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")
    }
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parent), inherited.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**inherited, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
