"""Files of replaced Keras models that are used where multirnn is not installed: `.keras` and SavedModel."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multirnn as mr

multirnn_keras = pytest.importorskip("multirnn_keras")
keras = pytest.importorskip("keras")

from keras_layers import ON_TENSORFLOW, assert_close, in_a_process, numpy_of  # noqa: E402
from keras_models import MODELS, made  # noqa: E402
from multirnn_keras import FastGRU, FastLSTM  # noqa: E402
from multirnn_keras.fast import Fast  # noqa: E402

layers = keras.layers
only_tensorflow = pytest.mark.skipif(not ON_TENSORFLOW, reason="SavedModels of TensorFlow")

ELSEWHERE = """
import sys
sys.modules["multirnn"] = sys.modules["multirnn_keras"] = None  # not installed
import numpy as np
import tensorflow as tf
import keras
import keras_models
given, found = np.load("given.npz"), {}
for name in sys.argv[1:]:
    x = [given[key] for key in given.files if key.startswith(name)]
    model = keras.saving.load_model(f"{name}.keras")
    found[f"{name} keras"] = model(x if len(x) > 1 else x[0])
    found[f"{name} iterations"] = model.optimizer.iterations
    served = tf.saved_model.load(name)
    found[f"{name} served"] = served.serve(x if len(x) > 1 else x[0])
np.savez("found.npz", **found)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@only_tensorflow
def test_saved_and_exported_models_run_without_multirnn(folder: Path) -> None:
    """Called before, so that their graphs call back to this process; in other batches and lengths where they are run."""
    given, expected = {}, {}
    for name in MODELS:
        model, x, y = made(name)
        replacement = mr.replace_layers(model)
        if name == "tagger":
            model.fit(x, y, verbose=0)
        if name == "forecaster":
            model.predict(x, verbose=0)
        replacement.save(f"{name}.keras")
        any_time = [keras.InputSpec("float32", (None, None, 5))] if name == "forecaster" else None
        model.export(name, verbose=False, input_signature=any_time)
        parts = [np.concatenate([part, part[:2]])[:, 2:] for part in (x if isinstance(x, list) else [x])]
        given |= {f"{name}{number}": part for number, part in enumerate(parts)}
        expected[name] = numpy_of(model(parts if len(parts) > 1 else parts[0]))
        assert all(isinstance(layer, Fast) for layer in model._flatten_layers() if isinstance(layer, layers.RNN))
    np.savez("given.npz", **given)
    done = in_a_process(ELSEWHERE, *MODELS)
    assert done.returncode == 0, done.stderr
    found = np.load("found.npz")
    for name, wanted in expected.items():
        assert_close(found[f"{name} keras"], wanted)
        assert_close(found[f"{name} served"], wanted)
        assert found[f"{name} iterations"] == (name == "tagger")


@only_tensorflow
def test_what_tensorflow_saves_runs_without_calling_back(folder: Path) -> None:
    """`tf.saved_model.save` of a model, and of a function that was called before."""
    import tensorflow as tf

    model = keras.Sequential([keras.Input((None, 5)), FastLSTM(11, return_sequences=True), FastGRU(3), layers.Dense(2)])
    x = np.random.default_rng(0).standard_normal((3, 7, 5)).astype("float32")
    function = tf.function(lambda x: model(x), input_signature=[tf.TensorSpec((None, None, 5))])
    expected = function(x).numpy()
    holder = tf.Module()
    holder.model, holder.function = model, function
    tf.saved_model.save(holder, "module", signatures=function)
    tf.saved_model.save(model, "model")
    of_module, of_model = tf.saved_model.load("module"), tf.saved_model.load("model")
    served = [next(iter(one.signatures["serving_default"](tf.constant(x)).values())) for one in (of_module, of_model)]
    for actual in (of_module.function(x), *served):
        assert_close(actual.numpy(), expected)
    for path in ("module", "model"):
        assert b"PyFunc" not in (folder / path / "saved_model.pb").read_bytes()
    assert_close(function(x).numpy(), expected)

    wrong: Any = tf.Module()
    wrong.model, wrong.function = model, function.get_concrete_function()
    archive = keras.export.ExportArchive()
    archive.track(model)
    any_shape = tf.function(lambda x: model(x))
    any_shape(tf.constant(x))
    archive.add_endpoint("serve", any_shape)
    if multirnn_keras.kernel.there(None):
        for save in (
            lambda: tf.saved_model.save(wrong, "wrong"),
            lambda: tf.saved_model.save(holder, "wrong", signatures=wrong.function),
            lambda: archive.write_out("wrong", verbose=False),
        ):
            with pytest.raises(
                mr.InvalidCall, match=r"whose compiled recurrence no other process has: save the tf\.function"
            ):
                save()


def test_a_file_appears_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = keras.Sequential([keras.Input((None, 5)), layers.LSTM(3)])
    replacement = mr.replace_layers(model)
    path = folder / "a.keras"
    path.write_bytes(b"the one before")
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "write", None)
        patch.setattr(zipfile.ZipFile, "open", None)
        with pytest.raises(TypeError):
            replacement.save(path)
    assert [one.name for one in folder.iterdir()] == ["a.keras"]
    assert path.read_bytes() == b"the one before"
    assert isinstance(model.layers[0], Fast)
    replacement.save(path)
    assert [one.name for one in folder.iterdir()] == ["a.keras"]
    loaded = keras.saving.load_model(path)
    assert type(loaded.layers[0]) is layers.LSTM
    assert isinstance(model.layers[0], Fast)


class Unsaved(keras.Model):
    def __init__(self, thing: object) -> None:
        super().__init__()
        self.thing, self.lstm = thing, layers.LSTM(3)

    def call(self, x):
        return self.lstm(x)


def test_what_cannot_be_saved_is_refused_in_a_sentence(folder: Path) -> None:
    x = np.zeros((1, 2, 5), "float32")
    model = keras.Sequential([layers.LSTM(3)])
    replacement = mr.replace_layers(model)
    with pytest.raises(mr.InvalidCall, match="has no weights yet: call it before it is saved"):
        replacement.save("a.keras")
    model(x)
    with pytest.raises(mr.InvalidCall, match=r"saved as a \.keras file, not as 'a\.h5'"):
        replacement.save("a.h5")
    with pytest.raises(mr.InvalidCall, match=r"nowhere/a\.keras cannot be written"):
        replacement.save(folder / "nowhere" / "a.keras")
    with pytest.raises(mr.InvalidCall, match=r"a \.keras file holds a model, not an LSTM alone"):
        mr.replace_layers(layers.LSTM(3)).save("a.keras")
    unsaved = Unsaved(object())
    unsaved(x)
    with pytest.raises(mr.InvalidCall, match=r"needs a get_config of its own \(Object Unsaved was created"):
        mr.replace_layers(unsaved).save("a.keras")
    assert isinstance(unsaved.lstm, Fast)
    gate = mr.Activation("hard_sigmoid", 0.2, 0.5)
    hard = mr.build(mr.RecurrentSpec("gru", 5, 3, recurrent_activation=gate), "keras").native
    with pytest.raises(mr.InvalidCall, match="has 'HardSigmoid' of multirnn, which Keras does not load without it"):
        mr.replace_layers(hard).save("a.keras")
    assert not list(folder.iterdir())
