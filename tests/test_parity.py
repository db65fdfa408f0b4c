"""Training parity: frameworks train alike, what is wrong is caught, and what differs by convention is explained."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import multirnn_numpy
import numpy as np
import pytest
from click.testing import CliRunner, Result
from multirnn_numpy import training
from multirnn_numpy.training import STEPS

import multirnn as mr
from multirnn.cli import main
from multirnn.compare import TOLERANCE, draw_call
from multirnn.parity import OPTIMISERS, Batch, Optimiser, Parity, Trained, Trains, train_parity

NUMPY = type(multirnn_numpy.BACKEND)
RNN = mr.RecurrentSpec("simple_rnn", 5, 7, dtype="float64")
LSTM = mr.RecurrentSpec("lstm", 5, 3, bidirectional=True)
GRU = mr.RecurrentSpec("gru", 5, 3, dtype="float64")


@lru_cache
def trained(spec: mr.RecurrentSpec, backend: str, defaults: bool = False) -> Parity:
    # Keras takes seconds to make the graph of a training.
    optimisers = ("sgd", "momentum", "adam") if spec == RNN else ("sgd", "adam")
    return train_parity(spec, backends=backend, optimisers=optimisers, defaults=defaults)


def by_name(parity: Parity) -> dict[str, Trained]:
    return {row.optimiser.name: row for row in parity.rows if row.optimiser}


def only(backend: Any, spec: mr.RecurrentSpec = RNN, **options: Any) -> dict[str, Trained]:
    return by_name(train_parity(spec, backends=[backend], **options))


def batch_of(spec: mr.RecurrentSpec, seed: int = 0) -> Batch:
    """A ragged batch and a target that is drawn."""
    x, _, lengths = draw_call(spec, seed)
    x, lengths = x[lengths > 0], lengths[lengths > 0]
    target = np.random.default_rng(seed).uniform(-1, 1, (*x.shape[:2], spec.output_size)).astype(spec.dtype)
    return Batch(x, target, lengths)


INFERENCE_ONLY = "it is for inference only: it has no gradients to train by"

# --- Frameworks train alike --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [RNN, LSTM], ids=["float64", "float32"])
def test_every_backend_trains_as_the_reference(backend: mr.Backend, spec: mr.RecurrentSpec) -> None:
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


def test_the_native_object_is_what_is_trained(backend: mr.Backend) -> None:
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


# --- What is wrong is caught -------------------------------------------------------------------------------------------

Train = Callable[[Any, Batch, Optimiser, int], Any]


class Wrong(NUMPY):
    """NumPy with a training of its own."""

    name = "wrong"

    def __init__(self, train: Callable[[Train, Any, Batch, Optimiser, int], Any]) -> None:
        self._wrong = train

    def train(self, layer: Any, batch: Batch, optimiser: Optimiser, steps: int, **form: Any) -> Any:
        return self._wrong(super().train, layer, batch, optimiser, steps)


@contextmanager
def gradients(layer: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[None]:
    """The layer's gradients, changed."""
    backward = layer.native.backward

    def changed(*args: Any) -> Any:
        found, *others = backward(*args)
        return change(found), *others

    with patch.object(layer.native, "backward", changed):
        yield


def halved_gradient(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    with gradients(layer, lambda found: {name: array / 2 for name, array in found.items()}):
        return train(layer, batch, optimiser, steps)


def frozen_bias(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    with gradients(layer, lambda found: {name: array * ("bias" not in name) for name, array in found.items()}):
        return train(layer, batch, optimiser, steps)


def dampened_momentum(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    # m = momentum * m + (1 - d) * g is (1 - d) times the momentum without dampening.
    return train(layer, batch, replace(optimiser, learning_rate=optimiser.learning_rate * 0.9), steps)


def no_momentum(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    return train(layer, batch, replace(optimiser, momentum=0.0), steps)


def counted_from_two(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    count = training._scalars
    with patch.object(training, "_scalars", lambda o, t, dtype: count(o, t + 1, dtype)):
        return train(layer, batch, optimiser, steps)


def no_bias_correction(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    with patch.object(training, "_scalars", lambda o, t, dtype: training.Scalars(o.momentum, 1.0, 1.0)):
        return train(layer, batch, optimiser, steps)


def run_through_padding(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    return train(layer, Batch(batch.x, batch.target, np.full_like(batch.lengths, batch.x.shape[1])), optimiser, steps)


def last_step_missing(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    losses = train(layer, batch, optimiser, steps - 1)
    loss, _ = batch.loss(layer(batch.x, lengths=batch.lengths).sequence)
    return np.append(losses, losses.dtype.type(loss))  # the curve is right, the weights are not


def losses_after_the_steps(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    losses = train(layer, batch, optimiser, steps)
    loss, _ = batch.loss(layer(batch.x, lengths=batch.lengths).sequence)
    return np.append(losses, losses.dtype.type(loss))[1:]  # the weights are right, the curve is not


WRONG: dict[Callable[..., Any], tuple[str, ...]] = {
    halved_gradient: ("sgd", "momentum"),  # Adam divides by the size of the gradient
    frozen_bias: ("sgd", "momentum", "adam"),
    dampened_momentum: ("momentum",),
    no_momentum: ("momentum",),
    counted_from_two: ("adam",),
    no_bias_correction: ("adam",),
    run_through_padding: ("sgd", "momentum", "adam"),
    last_step_missing: ("sgd", "momentum", "adam"),
    losses_after_the_steps: ("sgd", "momentum", "adam"),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_training_is_caught_and_not_explained(wrong: Callable[..., Any], dtype: str) -> None:
    parity = train_parity(replace(GRU, dtype=dtype), backends=[Wrong(wrong), "numpy"], optimisers=WRONG[wrong], steps=6)
    assert not parity.ok
    for row in parity.rows:
        assert row.verdict == ("differs" if row.backend == "wrong" else "equal"), str(parity)
        assert row.causes == ()


def test_adam_does_not_see_the_size_of_the_gradient() -> None:
    row = only(Wrong(halved_gradient), optimisers=Optimiser("adam", 1 / 64, epsilon=1e-30))["adam"]
    assert row.verdict == "equal"


def test_a_training_that_diverges_is_a_difference() -> None:
    def diverging(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
        return train(layer, batch, optimiser, steps) * np.inf

    parity = train_parity(RNN, backends=[Wrong(diverging)], optimisers="sgd")
    assert [row.verdict for row in parity.rows] == ["differs"]
    assert json.loads(parity.to_json())["rows"][0]["curve_eps"] is None


@pytest.mark.parametrize(
    "losses", [np.zeros(3), np.zeros(20, "float32"), [0.0] * 20, None], ids=lambda x: type(x).__name__
)
def test_what_is_returned_has_to_be_the_losses(losses: Any) -> None:
    parity = train_parity(RNN, backends=[Wrong(lambda *args: losses)], optimisers="sgd")
    assert not parity.ok
    assert "train must return 20 losses in an array of float64, not" in str(parity).replace("\n", " ")


# --- What differs by convention is explained ---------------------------------------------------------------------------


class Default(NUMPY):
    """NumPy under the conventions of a framework: by its name the form of its biases, and its own Adam."""

    def __init__(self, name: str, epsilon: float = 1e-8, **form: str) -> None:
        self.name, self._epsilon, self._form = name, epsilon, form

    def train(self, *args: Any, **form: Any) -> Any:
        return super().train(*args, **self._form)

    def default_epsilon(self) -> float:
        return self._epsilon


def explained(row: Trained) -> set[str]:
    """The causes, by a word of each."""
    words = {
        "biases": "of two biases",
        "epsilon": "by default, and the reference 1e-08",
        "hat": "adds epsilon to sqrt(v)",
    }
    words["rounded"] = "to float32"
    found = {name for name, word in words.items() if any(word in cause for cause in row.causes)}
    assert len(found) == len(row.causes)
    return found


EXPLAINED = {
    "nothing": (Default("own"), set()),
    "two biases": (Default("torch"), {"biases"}),
    "the default epsilon": (Default("own", epsilon=1e-6), {"epsilon"}),
    "the place of epsilon": (Default("own", form="keras"), {"hat"}),
    "rounded betas": (Default("own", scalars="float64"), {"rounded"}),
    "place and default": (Default("keras", epsilon=1e-7, form="keras"), {"epsilon", "hat"}),
    "all": (Default("torch", epsilon=1e-7, form="keras", scalars="float64"), {"biases", "epsilon", "hat", "rounded"}),
}


@pytest.mark.parametrize(("backend", "causes"), EXPLAINED.values(), ids=EXPLAINED.keys())
def test_the_fewest_causes_that_make_the_difference_vanish(backend: Any, causes: set[str]) -> None:
    parity = train_parity(RNN, backends=[backend], defaults=True)
    assert parity.ok
    row = by_name(parity)["adam"]
    assert row.verdict == ("explained" if causes else "equal"), str(parity)
    assert explained(row) == causes
    assert all(cause in str(parity).replace("\n", " ") for cause in row.causes)
    if causes:
        assert row.eps > 1000 * parity.bound("adam")
        assert row.residual <= parity.bound("adam")
    for name in ("sgd", "momentum"):
        assert explained(by_name(parity)[name]) <= causes & {"biases", "rounded"}


def test_defaults_are_not_taken_unless_asked_for() -> None:
    assert {row.verdict for row in only(Default("torch", epsilon=1e-6)).values()} == {"equal"}


def test_a_stack_without_biases_has_none_by_default() -> None:
    rows = only(Default("torch"), replace(RNN, bias="none"), defaults=True)
    assert {(row.verdict, row.bias) for row in rows.values()} == {("equal", "none")}


def test_one_bias_moves_half_as_far_as_two() -> None:
    row = only(Default("keras"), replace(RNN, bias="double"), defaults=True, optimisers="sgd")["sgd"]
    assert row.bias == "single"
    assert "one alone moves half as far as the sum of two" in row.causes[0]


@pytest.mark.parametrize("spec", [RNN, GRU, replace(LSTM, dtype="float64")], ids=lambda spec: spec.cell)
@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_sum_of_two_biases_moves_twice_as_far_in_a_step(name: str, spec: mr.RecurrentSpec) -> None:
    """Under Adam as well: each of the two has the gradient of the one. Of a GRU's candidate there are two anyway."""
    backend, batch = multirnn_numpy.BACKEND, batch_of(spec)
    start = mr.initialise(replace(spec, bias="single"))
    moved = []
    for weights in (start, mr.split_biases(start)):
        layer = backend.build(weights)
        backend.train(layer, batch, OPTIMISERS[name], 1)
        after = mr.fold_biases(layer.weights())
        moved.append({name: after.arrays[name] - array for name, array in start.arrays.items()})
    for array, (one, two) in {key: (moved[0][key], moved[1][key]) for key in start.spec.shapes}.items():
        times = np.ones((len(one), *[1] * (one.ndim - 1)))
        if array.endswith("bias_ih"):
            times[: 2 if spec.cell == "gru" else len(one)] = 2
        scale = np.abs(start.arrays[array]).max()  # what was added is known to a rounding of the weight itself
        assert mr.difference(scale + two, scale + times * one).normwise <= mr.tolerance("float64"), array


def test_a_doubled_gradient_is_a_doubled_step_but_for_adam() -> None:
    rng = np.random.default_rng(0)
    g = rng.standard_normal(7)
    for name, times in {"sgd": 2, "momentum": 2, "adam": 1}.items():
        optimiser = replace(OPTIMISERS[name], epsilon=1e-30)
        steps = []
        for gradient in (g, 2 * g):
            w, m, v = np.zeros((3, 7))
            for t in (1, 2, 3):
                STEPS["torch"][name](optimiser, training._scalars(optimiser, t, ""), w, gradient, m, v)
            steps.append(w)
        assert mr.difference(steps[1], times * steps[0]).normwise <= mr.tolerance("float64")


def test_both_forms_of_momentum_are_one_while_the_learning_rate_is_constant() -> None:
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((5, 7))
    for rates, same in (((0.5,) * 5, True), ((0.5, 0.5, 0.25, 0.25, 0.25), False)):
        ends = []
        for form in ("torch", "keras"):
            w, m, v = np.zeros((3, 7))
            for t, (rate, g) in enumerate(zip(rates, gradients, strict=True), 1):
                optimiser = Optimiser("momentum", learning_rate=rate)
                STEPS[form]["momentum"](optimiser, training._scalars(optimiser, t, ""), w, g, m, v)
            ends.append(w)
        assert (mr.difference(*ends).normwise <= mr.tolerance("float64")) is same


def test_epsilon_hat_is_another_epsilon_in_every_step() -> None:
    """What the sentence says: sqrt(v) + e is sqrt(v / c) + e / sqrt(c), with c the correction 1 - beta_2^t."""
    rng = np.random.default_rng(0)
    optimiser = Optimiser("adam", learning_rate=0.5, epsilon=0.01)
    (w, hat), m, v = np.zeros((2, 7)), np.zeros((2, 7)), np.zeros((2, 7))
    for t in range(1, 6):
        scalars = training._scalars(optimiser, t, "")
        other = replace(optimiser, epsilon=optimiser.epsilon * (1 - optimiser.beta_2**t) ** -0.5)
        g = rng.standard_normal(7)
        STEPS["keras"]["adam"](optimiser, scalars, hat, g, m[0], v[0])
        STEPS["torch"]["adam"](other, scalars, w, g, m[1], v[1])
    assert mr.difference(hat, w).normwise <= mr.tolerance("float64")


def test_torch_by_default_trains_two_biases() -> None:
    pytest.importorskip("torch")
    for row in by_name(trained(RNN, "torch", True)).values():
        assert (row.verdict, row.bias, explained(row)) == ("explained", "double", {"biases"})
    assert {row.verdict for row in trained(RNN, "torch").rows} == {"equal"}


def test_keras_has_its_own_epsilon_and_its_own_place_for_it() -> None:
    pytest.importorskip("keras")
    backend: Any = mr.backend("keras")
    if backend.engine != "tensorflow":
        pytest.skip("Keras computes in float64 on TensorFlow alone")
    rows = by_name(trained(RNN, "keras", True))
    assert rows["adam"].optimiser is not None
    assert rows["adam"].optimiser.epsilon == 1e-7
    assert explained(rows["adam"]) == {"epsilon", "hat", "rounded"}
    assert explained(rows["momentum"]) == {"rounded"}
    assert explained(by_name(trained(RNN, "keras"))["adam"]) == {"hat", "rounded"}
    assert rows["sgd"].verdict == "equal"


def test_jax_writes_adam_as_torch_does() -> None:
    pytest.importorskip("jax")
    for defaults in (False, True):
        assert {row.verdict for row in trained(RNN, "jax", defaults).rows} == {"equal"}


# --- What is handed out ------------------------------------------------------------------------------------------------


def test_a_spec_alone_is_enough_where_numpy_is_alone() -> None:
    code = """
import sys
for name in ("torch", "keras", "tensorflow", "jax"):
    sys.modules[name] = None
import multirnn as mr
from multirnn.parity import train_parity
parity = train_parity(mr.RecurrentSpec("gru", 5, 3))
assert parity.ok
print(parity)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 'pip install "multirnn[torch]"' in done.stdout
    assert "adam(learning_rate=0.015625, beta_1=0.9, beta_2=0.999, epsilon=1e-08)" in done.stdout
    assert "mean of (sequence - target)²" in done.stdout


def test_all_is_stated() -> None:
    own = Optimiser("adam", learning_rate=0.25, beta_1=0.5, epsilon=1e-3)
    parity = train_parity(GRU, backends="numpy", optimisers=["sgd", own], steps=3)
    found = json.loads(parity.to_json())
    sgd, adam = found["optimisers"]
    assert (sgd["name"], sgd["learning_rate"]) == ("sgd", OPTIMISERS["sgd"].learning_rate)
    assert "momentum" not in sgd
    assert {name: adam[name] for name in own.hyper_parameters} == own.hyper_parameters
    assert adam["bound_eps"] == TOLERANCE["float64"] * adam["growth"]
    assert adam["growth"] >= 1
    assert mr.RecurrentSpec.from_dict(found["spec"]) == GRU
    (first, second) = found["rows"]
    assert first["losses"] == sgd["reference"]
    assert (first["verdict"], first["weights_eps"], first["residual_eps"]) == ("equal", 0.0, None)
    assert second["optimiser"]["beta_1"] == 0.5
    assert repr(parity) == str(parity)
    html = parity._repr_html_()
    assert html.count("<tr>") == 4
    assert "<td>numpy</td>" in html
    assert "mean of (sequence - target)²" in html


def test_the_learning_rate_of_all() -> None:
    parity = train_parity(GRU, backends="numpy", learning_rate=0.25, steps=2)
    assert {optimiser.learning_rate for optimiser in parity.optimisers.values()} == {0.25}


def test_own_data_and_weights() -> None:
    batch, weights = batch_of(GRU), mr.initialise(GRU, 3, scheme="keras")
    parity = train_parity(weights, x=batch.x, target=batch.target, lengths=batch.lengths, backends="numpy", steps=2)
    assert parity.ok
    layer = multirnn_numpy.BACKEND.build(weights)
    expected = multirnn_numpy.BACKEND.train(layer, batch, OPTIMISERS["sgd"], 2)
    assert np.array_equal(parity.reference["sgd"], expected)
    assert "target: given" in str(parity)


def test_what_stands_at_padding_and_rows_without_a_step_change_nothing() -> None:
    batch, rng = batch_of(GRU), np.random.default_rng(0)
    x, target = (np.where(batch.valid[..., None], array, np.nan) for array in (batch.x, batch.target))
    x, target = (np.concatenate([array, rng.standard_normal((1, *array.shape[1:]))]) for array in (x, target))
    first = train_parity(GRU, x=batch.x, target=batch.target, lengths=batch.lengths, backends="numpy", steps=2)
    second = train_parity(GRU, x=x, target=target, lengths=[*batch.lengths, 0], backends="numpy", steps=2)
    assert all(np.array_equal(first.reference[name], second.reference[name]) for name in OPTIMISERS)


def test_a_refusal_and_a_backend_that_cannot_train_are_rows() -> None:
    class Plain:
        """A backend without `train`."""

        name, differentiable = "plain", True
        refuses, build, read, versions = (getattr(NUMPY(), name) for name in ("refuses", "build", "read", "versions"))

    class Picky(NUMPY):
        name = "picky"

        def refuses(self, spec: mr.RecurrentSpec) -> str:
            return "it never does"

    parity = train_parity(GRU, backends=[Plain(), Picky()], steps=2)
    assert not parity.ok
    assert [(row.backend, row.verdict) for row in parity.rows] == [("plain", "refuses"), ("picky", "refuses")]
    assert "plain: it has no method train" in str(parity)
    assert "picky: it never does" in str(parity)


NOTHING = np.zeros((2, 3, 5))
LINEAR = replace(RNN, activation="linear")
USED_WRONGLY: dict[str, tuple[mr.RecurrentSpec, dict[str, Any], str]] = {
    "optimiser": (
        RNN,
        {"optimisers": "adan"},
        "no optimiser named 'adan'; there are sgd, momentum, adam; did you mean",
    ),
    "none": (RNN, {"optimisers": ()}, "there is no optimiser to train with"),
    "two": (RNN, {"optimisers": ["adam", Optimiser("adam", 1)]}, "two optimisers are named 'adam'"),
    "number": (RNN, {"learning_rate": "fast"}, "learning_rate of an optimiser must be a number, not 'fast'"),
    "rate": (RNN, {"learning_rate": 0}, "learning_rate of an optimiser must be positive and finite, not 0"),
    "diverges": (LINEAR, {"learning_rate": 1e300}, "the training diverges: sgd"),
    "chaos": (
        replace(RNN, dtype="float32"),
        {"learning_rate": 1, "optimisers": "adam"},
        "magnifies rounding .* so that nothing can be told of it",
    ),
    "steps": (RNN, {"steps": 0}, "steps must be a positive integer, not 0"),
    "target": (RNN, {"x": NOTHING, "target": NOTHING}, r"the shape \(batch, time, 7\) = \(2, 3, 7\)"),
    "alone": (RNN, {"target": NOTHING}, "belong to an x"),
    "empty": (RNN, {"x": NOTHING, "lengths": [0, 0]}, "nothing to train on"),
    "unbatched": (RNN, {"x": NOTHING[0]}, r"x must have the shape \(batch, time, 5\)"),
    "dtype": (RNN, {"x": NOTHING.astype("float32")}, "x is float32"),
}


@pytest.mark.parametrize(("spec", "options", "sentence"), USED_WRONGLY.values(), ids=USED_WRONGLY.keys())
def test_used_wrongly(spec: mr.RecurrentSpec, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(mr.InvalidCall, match=sentence):
        train_parity(spec, backends="numpy", **options)


def test_a_spec_or_weights_are_trained() -> None:
    with pytest.raises(TypeError, match="takes a RecurrentSpec or Weights, not a str"):
        train_parity("gru")  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["momentum", "beta_1", "beta_2", "epsilon"])
def test_hyper_parameters_have_ranges(field: str) -> None:
    with pytest.raises(mr.InvalidCall, match=f"{field} of an optimiser must be"):
        Optimiser("adam", 0.1, **{field: -1.0})


def test_a_unit_alone_trains_too() -> None:
    """One unit strides its gates by 16 bytes in float32."""
    parity = train_parity(mr.RecurrentSpec("lstm", 5, 1), backends="numpy")
    assert {row.verdict for row in parity.rows} == {"equal"}


# --- The picture and the command ---------------------------------------------------------------------------------------


def test_a_picture_has_a_panel_an_optimiser_and_a_line_a_backend() -> None:
    pytest.importorskip("matplotlib")
    from multirnn.plot import plot_curves

    parity = train_parity(GRU, backends=["numpy", Default("own")], optimisers=("sgd", "adam"), steps=3)
    figure = plot_curves({"one": parity, "two": parity})
    assert [axes.get_title() for axes in figure.axes] == ["one", "two", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["sgd: loss", "", "adam: loss", ""]
    for axes, name in zip(figure.axes, ("sgd", "sgd", "adam", "adam"), strict=True):
        numpy, own = axes.get_lines()
        assert (numpy.get_label(), own.get_label()) == ("numpy", "own")
        assert np.array_equal(np.asarray(own.get_ydata()), parity.reference[name])


def run(*args: object) -> Result:
    common = ("compare", "--window", 7, "--windows", 3, "--hidden", 3, "--cell", "gru")
    return CliRunner().invoke(main, [str(arg) for arg in (*common, *args)], env={"COLUMNS": "200"})


def test_the_command_trains(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run("--train", "--backend", "numpy", "--steps", 3, "--optimiser", "adam", "--plot", tmp_path / "a.png")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "trained for 3 steps on batch 3, time 7" in result.stdout
    assert "equal: losses and final weights" in result.stdout
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_json() -> None:
    result = run("--train", "--backend", "numpy", "--json", "--defaults")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"]) == (0, True)
    (one,) = found["trainings"]
    assert one["shape"] == [3, 7, 4]
    assert one["defaults"] is True
    assert [row["optimiser"]["name"] for row in one["rows"]] == list(OPTIMISERS)


@pytest.mark.parametrize("args", [("--steps", 3), ("--optimiser", "sgd"), ("--defaults",)])
def test_options_of_training_belong_to_it(args: tuple[object, ...]) -> None:
    result = run("--backend", "numpy", *args)
    assert result.exit_code == 2
    assert "belong to --train: give it too" in result.stderr


class Refusing(NUMPY):
    def refuses(self, spec: mr.RecurrentSpec) -> str:
        return "it never does"


@pytest.mark.parametrize(
    ("stranger", "status", "said"),
    [
        (Wrong(frozen_bias), 1, "different: gru on torch"),
        (Default("own", form="keras"), 0, "equal: losses and final weights"),
        (Refusing(), 3, "it never does"),
    ],
    ids=["differs", "explained", "refuses"],
)
def test_the_exit_status(stranger: Any, status: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from multirnn.parity import training

    load = mr.backend
    monkeypatch.setattr(training, "load_backend", lambda name: stranger if name == "torch" else load(name))
    result = run("--train", "--backend", "torch", "--optimiser", "sgd", "--optimiser", "adam")
    assert result.exit_code == status
    assert said in result.stdout
