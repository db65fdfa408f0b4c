"""Training parity: frameworks train alike."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import multirnn_numpy
import numpy as np
import pytest
from parity_backends import GRU, LSTM, RNN, batch_of, by_name, trained

import multirnn as mr
from multirnn.parity import OPTIMISERS
from multirnn.protocol import Backend, Trains

INFERENCE_ONLY = "it is for inference only: it has no gradients to train by"


@pytest.mark.parametrize("spec", [RNN, LSTM], ids=["float64", "float32"])
def test_every_backend_trains_as_the_reference(backend: Backend, spec: mr.RecurrentSpec) -> None:
    if reason := backend.refuses(spec):
        pytest.skip(reason)
    parity = trained(spec, backend.name)
    if not backend.differentiable:
        assert [(row.verdict, row.reason) for row in parity.rows] == [("refuses", INFERENCE_ONLY)]
        return
    assert parity.ok
    assert [row.optimiser.name for row in parity.rows if row.optimiser] == list(parity.optimisers)
    for name, row in by_name(parity).items():
        assert row.verdict == "equal" or row.causes, str(parity)
        assert (row.eps if row.residual is None else row.residual) <= parity.bound(name)
        assert row.losses is not None
        assert row.losses.shape == (parity.steps,)
        assert row.losses[-1] < row.losses[0] / 1.2
    assert by_name(parity)["sgd"].verdict == "equal"


def test_the_native_object_is_what_is_trained(backend: Backend) -> None:
    if not backend.differentiable:
        pytest.skip(INFERENCE_ONLY)
    assert isinstance(backend, Trains)
    spec = LSTM
    weights, batch = mr.initialise(spec), batch_of(spec)
    layer = backend.build(weights)
    losses = backend.train(layer, batch, OPTIMISERS["sgd"], 2)
    expected, _ = batch.loss(mr.build(weights, backend)(batch.x, lengths=batch.lengths).sequence)
    assert mr.difference(losses[:1], np.array([expected])).normwise <= mr.tolerance(spec.dtype)
    assert losses.dtype == spec.dtype
    after = layer.weights()
    assert all(not np.array_equal(array, weights.arrays[name]) for name, array in after.arrays.items())
    found = layer(batch.x, lengths=batch.lengths).sequence  # a call finds the trained weights too
    assert np.array_equal(found, mr.build(after, backend)(batch.x, lengths=batch.lengths).sequence)


class Recorder:
    """Optimisers as they were made, in the place of `OPTIMISERS`."""

    def __init__(self, optimisers: Any) -> None:
        self._optimisers = optimisers
        self.made: list[Any] = []

    def __getitem__(self, name: str) -> Callable[..., Any]:
        def make(*args: Any) -> Any:
            self.made.append(self._optimisers[name](*args))
            return self.made[-1]

        return make


def train_recorded(package: str, monkeypatch: pytest.MonkeyPatch, steps: int) -> Any:
    """The framework's own Adam after some steps."""
    module = pytest.importorskip(f"{package}.training")
    recorder = Recorder(module.OPTIMISERS)
    monkeypatch.setattr(module, "OPTIMISERS", recorder)
    backend = sys.modules[package].BACKEND
    spec = replace(RNN, dtype="float32")
    backend.train(backend.build(mr.initialise(spec)), batch_of(spec), OPTIMISERS["adam"], steps)
    (made,) = recorder.made
    return made


def test_torch_counts_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    made = train_recorded("multirnn_torch", monkeypatch, 3)
    assert {float(state["step"]) for state in made.state.values()} == {3.0}
    assert len(made.state) == len(RNN.shapes)


def test_keras_counts_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("keras")
    assert int(train_recorded("multirnn_keras", monkeypatch, 3).iterations) == 3


def test_jax_is_told_the_steps_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    jax = pytest.importorskip("jax")
    told: list[int] = []

    def recording(update: Callable[..., Any]) -> Callable[..., Any]:
        def call(i: int, *args: Any) -> Any:
            told.append(i)
            return update(i, *args)

        return call

    backend: Any = mr.backend("jax")
    layer = backend.build(mr.initialise(LSTM))
    monkeypatch.setattr(jax, "jit", recording)  # which compiles the update; the gradient is compiled already
    backend.train(layer, batch_of(LSTM), OPTIMISERS["sgd"], 3)
    assert told == [0, 1, 2]


@pytest.mark.parametrize("name", OPTIMISERS)
def test_more_steps_begin_with_the_same(name: str) -> None:
    backend, batch = multirnn_numpy.BACKEND, batch_of(RNN)
    few, many = (backend.train(mr.build(RNN, backend), batch, OPTIMISERS[name], steps) for steps in (3, 5))
    assert np.array_equal(few, many[:3])


def test_the_gradient_of_the_loss_is_its_slope() -> None:
    batch = batch_of(GRU)
    rng = np.random.default_rng(1)
    sequence, direction = rng.standard_normal((2, *batch.target.shape))
    _, slope = batch.loss(sequence)
    # The loss is quadratic, so that a central difference of any width is exact.
    ahead, behind = (batch.loss(sequence + way * direction)[0] for way in (1, -1))
    found = np.array([(slope * direction).sum()])
    assert mr.difference(found, np.array([(ahead - behind) / 2])).normwise <= mr.tolerance("float64")
    assert not slope[~batch.valid].any()
