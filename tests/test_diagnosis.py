"""The mistake is named: over drawn pairs, on every backend, of bare functions; and nothing is named where nothing is wrong."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planted_pairs import Planted, PortPair, experiment, function, same

import multirnn as mr
from multirnn.diagnosis import diagnose, first_divergence
from multirnn.mistakes import MISTAKES, mistakes_for
from multirnn.mistakes.change import Change, Mistake, composed
from multirnn.mistakes.plumbing import Assembly, Plumbing
from multirnn.numerics import TOLERANCE
from multirnn.protocol import Backend

build = mr.backend("numpy").build
GRU = mr.RecurrentSpec("gru", 5, 4)
LSTM = mr.RecurrentSpec("lstm", 5, 3, num_layers=2, bidirectional=True, bias="double")
SPECS = (  # what is quickly diagnosed first
    *(mr.RecurrentSpec("simple_rnn", 3, 3, bias="double"), mr.RecurrentSpec("simple_rnn", 3, 3, activation="relu")),
    *(mr.RecurrentSpec("gru", 5, 4), mr.RecurrentSpec("gru", 5, 4, reset_after=False), mr.RecurrentSpec("lstm", 4, 3)),
    mr.RecurrentSpec("lstm", 5, 3, bias="double", recurrent_activation="tanh", dtype="float64"),
    *(replace(LSTM, cell="simple_rnn"), replace(LSTM, cell="simple_rnn", input_size=6), LSTM),
    replace(LSTM, cell="simple_rnn", num_layers=3),
)


def weights_of(spec: mr.RecurrentSpec, seed: int = 0) -> mr.Weights:
    return mr.initialise(spec, seed)


def named(found: Any) -> list[list[str]]:
    return [[mistake.name for mistake in cause.mistakes] for cause in found.causes]


# --- What it is for --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mistakes", "pairs"), [(0, 40), (1, 80), (2, 20)])
def test_what_was_planted_is_named(mistakes: int, pairs: int, capsys: pytest.CaptureFixture[str]) -> None:
    rates = experiment.measure(mistakes, pairs, seed=1)
    with capsys.disabled():
        print(f"\n{rates}")
    assert rates.pairs == pairs
    assert rates.rate >= experiment.GOALS[mistakes], "\n".join(rates.missed)


@pytest.mark.parametrize("family", sorted({mistake.family for mistake in MISTAKES.values()}))
def test_every_known_mistake_is_named(family: str) -> None:
    for mistake in (mistake for mistake in MISTAKES.values() if mistake.family == family):
        spec = next(spec for spec in SPECS if mistake.applies(spec))
        pair = PortPair(weights_of(spec, 3), (mistake,), only_calls=False)
        found = diagnose(pair.right, pair.wrong)
        assert not found.equal, mistake.name
        assert [mistake.name] in named(found), found
        assert all(pair.is_explained_by(*cause.mistakes) for cause in found.causes)


def test_a_mistake_on_any_backend(backend: Backend) -> None:
    weights = weights_of(GRU)
    wrong = composed(backend.build, MISTAKES["gates z r n"], MISTAKES["initial state ignored"])(weights)
    found = diagnose(backend.build(weights), wrong)
    assert named(found) == [["gates z r n", "initial state ignored"]]
    assert diagnose(backend.build(weights), backend.build(weights)).equal


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        ("reverse output not flipped", "gates z r n"),
        ("reverse output not flipped", "directions swapped"),
        ("gradient truncated half-way", "reverse output not flipped"),
        ("forget bias added twice", "gates f i g o"),
        ("gates f i g o", "forget bias added twice"),
        ("initial states backward first", "directions swapped"),
        ("recurrent kernel transposed", "input kernel transposed"),
    ],
)
def test_mistakes_that_change_one_another(inner: str, outer: str) -> None:
    stack = mr.RecurrentSpec("simple_rnn", 2, 6, num_layers=3, bias="none")
    spec = next(
        s
        for s in (replace(GRU, bidirectional=True), LSTM, stack)
        if all(MISTAKES[m].applies(s) for m in (inner, outer))
    )
    pair = PortPair(weights_of(spec), (MISTAKES[inner], MISTAKES[outer]), only_calls=False)
    found = diagnose(pair.right, pair.wrong)
    assert found.causes
    assert all(pair.is_explained_by(*cause.mistakes) for cause in found.causes)
    assert {inner, outer} in map(set, named(found))


@pytest.mark.parametrize(("layer", "direction"), list(LSTM.passes))
def test_a_mistake_in_one_layer_and_direction(layer: int, direction: str) -> None:
    weights = weights_of(LSTM)
    wrong = dict(weights.arrays)
    for name in (name for name in wrong if name.startswith(f"layers.{layer}.{direction}.")):
        wrong[name] = wrong[name][[0, 2, 1, 3]]
    found = diagnose(build(weights), function(build(mr.Weights(LSTM, wrong))))
    assert named(found) == [[f"gates i g f o, in layer {layer} {direction} alone"]]
    assert found.causes[0].sentence.endswith(f"they are stored i f g o, in layer {layer} {direction} alone.")
    assert found.corrected is not None
    mended = {name: array[[0, 2, 1, 3]] if layer_is(name, layer, direction) else array for name, array in arrays(found)}
    assert same(build(mr.Weights(LSTM, mended).astype("float64")), wide(weights), dtype="float32", only_calls=False)


def layer_is(name: str, layer: int, direction: str) -> bool:
    return name.startswith(f"layers.{layer}.{direction}.")


def arrays(found: Any) -> Iterator[tuple[str, np.ndarray]]:
    yield from found.corrected.arrays.items()


def wide(weights: mr.Weights) -> Any:
    return build(weights.astype("float64"))


# --- What B may be ---------------------------------------------------------------------------------------------------


def test_a_port_whose_weights_were_loaded_wrongly() -> None:
    torch = pytest.importorskip("torch")
    weights = weights_of(GRU)
    port = torch.nn.GRU(5, 4, batch_first=True)
    ported = {
        f"{name}_l0": torch.tensor(array[[1, 0, 2]].reshape(12, *array.shape[2:]))
        for name, array in weights.at(0, "forward").items()
    }
    port.load_state_dict(ported)
    found = diagnose(build(weights), port)
    assert named(found) == [["gates z r n"]]
    assert "B is correct for its own weights" in str(found)
    assert found.corrected == weights
    assert diagnose(build(weights), mr.build(found.corrected, "torch").native).equal


def test_a_hand_written_function() -> None:
    weights = weights_of(mr.RecurrentSpec("simple_rnn", 5, 4))
    part = weights.at(0, "forward")

    def port(x: np.ndarray, h0: np.ndarray) -> Any:
        h, outputs = h0[0], []
        for step in x.swapaxes(0, 1):
            h = np.tanh(step @ part["weight_ih"][0].T + h @ part["weight_hh"][0] + part["bias_ih"][0])
            outputs.append(h)
        return np.stack(outputs, axis=1), h[None]

    found = diagnose(build(weights), port)
    assert named(found) == [["recurrent kernel transposed"]]
    assert found.titles[1] == "function port"


def test_a_function_that_returns_no_state_and_takes_none() -> None:
    weights = weights_of(LSTM)
    layer = Planted(weights, MISTAKES["gates i o f g"], MISTAKES["output backward‖forward"])
    found = diagnose(build(weights), lambda x: layer(x).sequence)
    assert named(found) == [["gates i o f g", "output backward‖forward"]]


def test_the_same_weights_in_another_dtype_and_with_folded_biases_are_equal() -> None:
    weights = weights_of(mr.RecurrentSpec("lstm", 5, 4, bias="double", dtype="float64"))
    found = diagnose(build(weights), build(mr.fold_biases(weights).astype("float32")))
    assert found.equal
    assert 'B has bias="single" and 160 parameters, where bias="double" has 176.' in found.remarks
    assert "B computes in float32, and the right weights are float64." in found.remarks


@pytest.mark.parametrize("dtypes", [("float64", "float32"), ("float32", "float64")])
def test_two_dtypes_are_held_by_the_coarser_one(dtypes: tuple[str, str]) -> None:
    wide = weights_of(mr.RecurrentSpec("gru", 5, 4, dtype="float64"))
    a, b = (build(wide.astype(dtype)) for dtype in dtypes)
    found = diagnose(a, b)
    assert (found.equal, found.dtype) == (True, "float32")
    assert 0 < found.eps <= 4  # of the rounding of the weights, in eps of float32
    assert "eps of float32, and 64 count as equal." in " ".join(str(found).split())
    assert (found.to_dict()["dtype"], found.to_dict()["tolerance_eps"]) == ("float32", TOLERANCE["float32"])
    divergence = first_divergence(a, b)
    assert (divergence.kind, divergence.dtype) == ("rounding", "float32")
    # Beyond the bound of the coarser one they are two functions, by both ways round.
    off = {name: array * (1 + 1e-4) for name, array in wide.arrays.items()}
    assert not diagnose(a, build(mr.Weights(wide.spec, off).astype(dtypes[1]))).equal


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_dtype_is_held_by_itself(dtype: str) -> None:
    weights = weights_of(mr.RecurrentSpec("gru", 5, 4, dtype=dtype))
    found = diagnose(build(weights), build(weights))
    assert (found.equal, found.dtype) == (True, dtype)
    assert f"eps of {dtype}, and {TOLERANCE[dtype]} count as equal." in " ".join(str(found).split())


def test_what_the_spec_of_b_says_comes_first() -> None:
    weights = weights_of(mr.RecurrentSpec("gru", 5, 4, bias="single"))
    other = replace(weights.spec, reset_after=False, bias="double")
    wrong = build(mr.Weights(other, mr.split_biases(weights).arrays))
    found = diagnose(build(weights), wrong)
    assert found.causes[0].sentence == "B has reset_after=False, where reset_after=True would be right."
    assert found.causes[0].fix == "Fix: build it with reset_after=True."
    turned = composed(build, MISTAKES["initial state ignored"])(wrong.weights())
    assert named(diagnose(build(weights), turned)) == [["reset_after=False", "initial state ignored"]]


def test_stacks_of_two_shapes_are_told_in_words() -> None:
    found = diagnose(build(weights_of(LSTM)), mr.build(replace(LSTM, hidden_size=7, bidirectional=False), "numpy"))
    assert found.causes[0].sentence == "B has 7 units, and A 3; it has bidirectional=False, and A True."
    assert found.causes[0].fix == "Fix: build B with hidden_size=3, bidirectional=True."
    assert not found.equal
    json.loads(found.to_json())


def test_a_layer_that_counts_wrongly() -> None:
    class Frozen(Planted):
        @property
        def parameter_count(self) -> int:
            return self._right.parameter_count + 4

    weights = weights_of(GRU)
    found = diagnose(build(weights), Frozen(weights))
    assert not found.equal
    count = GRU.parameter_count
    assert found.causes[0].sentence == (
        f"B is the right function, and counts {count + 4} trainable parameters where its spec has {count}."
    )


def test_a_call_of_the_users_own() -> None:
    weights = weights_of(GRU)

    def port(x: np.ndarray, h0: np.ndarray) -> Any:
        return build(weights)(np.clip(x, -50, 50), mr.State(h0))[:1]

    rng = np.random.default_rng(0)
    assert diagnose(build(weights), port).equal
    x = 100 * rng.standard_normal((3, 7, 5)).astype("float32")
    assert not diagnose(build(weights), port, x=x).equal
    assert not diagnose(build(weights), port, x=x[0], state=mr.State(np.ones((1, 4), "float32"))).equal
    with pytest.raises(mr.InvalidCall, match="shape"):
        diagnose(build(weights), port, x=x[..., :3])


def test_a_has_to_have_weights() -> None:
    with pytest.raises(mr.InvalidCall):
        diagnose(lambda x, h0: (x, h0), build(weights_of(GRU)))


def test_a_that_is_wrong_itself_is_said_to_be() -> None:
    weights = weights_of(GRU)
    found = diagnose(Planted(weights, MISTAKES["gates z r n"]), build(weights))
    assert (found.equal, found.subject, named(found)) == (False, "A", [["gates z r n"]])
    assert found.causes[0].sentence.startswith("A reads the GRU blocks as z r n")


# --- Several explanations, and none ----------------------------------------------------------------------------------


def test_explanations_that_nothing_tells_apart_are_all_named() -> None:
    weights = weights_of(LSTM)
    zero = {name: 0 * array if name.endswith("bias_hh") else array for name, array in weights.arrays.items()}
    weights = mr.Weights(LSTM, zero)
    found = diagnose(build(weights), function(Planted(weights, MISTAKES["input bias dropped"])))
    assert found.ambiguous
    assert ["both biases dropped"] in named(found)
    assert ["input bias dropped"] in named(found)
    assert f"no call of B tells these {len(found.causes)} explanations apart:\n1. B " in str(found)


@pytest.mark.parametrize("over", ["the batch", "time"])
def test_explanations_are_told_apart_by_further_calls(over: str) -> None:
    weights = weights_of(GRU)  # what is drawn first has as many rows as steps
    found = diagnose(build(weights), Planted(weights, MISTAKES[f"gradient averaged over {over}"]))
    assert named(found) == [[f"gradient averaged over {over}"]]


def test_what_nothing_explains_is_shown_where_it_begins() -> None:
    class Drifting(Planted):
        def __call__(self, x: Any, state: Any = None, *, lengths: Any = None) -> mr.Output:
            sequence, final = super().__call__(x, state, lengths=lengths)
            return mr.Output(sequence * sequence.dtype.type(1.01), final)

    weights = weights_of(GRU)
    found = diagnose(build(weights), Drifting(weights))
    assert not found.equal
    assert found.causes == ()
    assert found.divergence is not None
    assert found.corrected is None
    assert "none of the known mistakes explains it, alone or two together." in " ".join(str(found).split())
    assert str(found.divergence) in str(found)


def test_a_bias_that_is_skipped_without_a_state_is_named() -> None:
    """nn.GRU of MLX until 0.31: the verdict was that they differ, and the divergence that they agree."""
    skipped = "recurrent candidate bias skipped without a state"
    for spec in (GRU, replace(GRU, num_layers=2, bidirectional=True)):
        weights = weights_of(spec)
        found = diagnose(build(weights), Planted(weights, MISTAKES[skipped]))
        assert named(found) == [[skipped]]
        said = " ".join(str(found).split())
        assert "at the first step if no initial state is given" in said
        assert "First divergence: layer 0, forward, step 0." in said


def test_a_bias_that_is_skipped_without_a_state_in_one_layer_is_named() -> None:
    weights = weights_of(replace(GRU, num_layers=2))
    wrong = Assembly(build, weights, Plumbing())
    wrong._passes[1] = MISTAKES["recurrent candidate bias skipped without a state"].realise(
        build, weights.part(1, "forward")
    )
    found = diagnose(build(weights), wrong)
    assert named(found) == [["recurrent candidate bias skipped without a state, in layer 1 forward alone"]]


class Off(Planted):
    """Off by one percent where one kind of call alone shows it."""

    def __init__(self, weights: mr.Weights, seen_in: str) -> None:
        super().__init__(weights)
        self.seen_in = seen_in

    def __call__(self, x: Any, state: Any = None, *, lengths: Any = None) -> mr.Output:
        sequence, final = super().__call__(x, state, lengths=lengths)
        off = {"no state": state is None, "lengths": lengths is not None, "gradients": False}[self.seen_in]
        return mr.Output(sequence * sequence.dtype.type(1.01 if off else 1), final)

    def vjp(self, x: Any, state: Any = None, *, lengths: Any = None, cotangent: mr.Output) -> mr.Gradients:
        found = super().vjp(x, state, lengths=lengths, cotangent=cotangent)
        return found._replace(x=found.x * found.x.dtype.type(1.01)) if self.seen_in == "gradients" else found


@pytest.mark.parametrize(
    ("seen_in", "probe"), [("no state", "output"), ("lengths", "output"), ("gradients", "gradient")]
)
def test_the_divergence_shown_is_that_of_the_call_that_differed(seen_in: str, probe: str) -> None:
    weights = weights_of(GRU)
    found = diagnose(build(weights), Off(weights, seen_in))
    assert not found.equal
    assert not found.causes
    assert found.divergence is not None
    assert (found.divergence.kind, found.divergence.probe) == ("mistake", probe)
    assert "No divergence" not in str(found)


def test_rounding_that_a_stack_magnifies_is_said_to_be_that() -> None:
    """The difference is beyond the tolerance, and the divergence is rounding: the verdict says both."""
    spec = mr.RecurrentSpec("simple_rnn", 5, 24)
    narrow = mr.Weights(spec, {name: 8 * array for name, array in weights_of(spec).arrays.items()})
    x = np.random.default_rng(0).standard_normal((3, 120, 5)).astype("float32")
    found = diagnose(build(narrow.astype("float64")), build(narrow), x=x)
    assert not found.equal
    assert found.divergence is not None
    assert found.divergence.kind == "rounding"
    assert "no more than this stack magnifies rounding to" in " ".join(str(found).split())


def test_other_weights_are_not_taken_for_a_mistake() -> None:
    found = diagnose(build(weights_of(GRU, 0)), build(weights_of(GRU, 1)))
    assert found.causes == ()
    said = " ".join(str(found).split())
    assert "B is correct for its own weights: they differ from the right ones in" in said
    one = dict(weights_of(GRU, 0).arrays)
    one["layers.0.forward.weight_hh"] = one["layers.0.forward.weight_hh"] + np.float32(0.1)
    found = diagnose(build(weights_of(GRU, 0)), build(mr.Weights(GRU, one)))
    assert found.remarks[-1].endswith("in layers.0.forward.weight_hh, of 4 arrays.")


# --- Corrected weights -----------------------------------------------------------------------------------------------


def test_corrected_weights_make_the_wrong_one_right() -> None:
    corrected = 0
    for spec in SPECS:
        weights = weights_of(spec)
        turning = [m for m in mistakes_for(spec) if m.undo is not None and isinstance(m.realise, Change)]
        for mistake in turning[:: max(1, len(turning) // 5)]:
            found = diagnose(build(weights), function(Planted(weights, mistake)))
            assert found.corrected is not None, mistake.name
            assert found.corrected.spec == spec
            assert diagnose(build(weights), function(Planted(found.corrected, mistake))).equal, mistake.name
            corrected += 1
    assert corrected > len(SPECS)


def test_two_mistakes_are_corrected_together() -> None:
    weights = weights_of(LSTM)
    planted = MISTAKES["gates i o f g"], MISTAKES["recurrent kernel transposed"]
    found = diagnose(build(weights), Planted(weights, *planted))
    assert found.corrected is not None
    assert diagnose(build(weights), function(Planted(found.corrected, *planted))).equal
    assert diagnose(build(weights), Planted(weights, MISTAKES["initial state ignored"])).corrected is None


# --- In words --------------------------------------------------------------------------------------------------------


def test_it_reads_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    weights = weights_of(GRU)
    lines = str(diagnose(build(weights), Planted(weights, MISTAKES["gates z r n"]))).splitlines()
    assert lines[0] == "A: NumpyLayer; B: Planted; RecurrentSpec('gru', input_size=5, hidden_size=4)"
    assert re.fullmatch(r"B reads the GRU blocks as z r n.*; they are stored r z n\.", lines[1])
    assert re.fullmatch(r"Fix: swap the first two blocks of weight_ih, weight_hh and .*biases\.", lines[2])
    assert re.fullmatch(r"First divergence: layer 0, forward, step 0, gate [rz]\.", lines[3])
    assert lines[4:] == ["B's weights are right: the mistake is in their use."]
    two = diagnose(build(weights), Planted(weights, MISTAKES["gates z r n"], MISTAKES["initial state ignored"])).causes
    assert re.fullmatch(r"B reads .*\. It also starts from zero .*\.", two[0].sentence)
    assert re.fullmatch(r"Fix: swap .*; and pass the initial state on.*\.", two[0].fix)
    equal = str(diagnose(build(weights), build(weights))).splitlines()
    assert re.fullmatch(
        r"A and B are the same function: 5 calls agree within [\d.]+ eps of float32, and 64 count as equal\.", equal[1]
    )
    assert len(equal) == 2


def test_json_and_notebook() -> None:
    weights = weights_of(GRU)
    found = diagnose(build(weights), Planted(weights, MISTAKES["gates z r n"]))
    told = json.loads(found.to_json())
    assert told == json.loads(json.dumps(found.to_dict()))
    assert told["causes"][0]["mistakes"] == ["gates z r n"]
    assert (told["equal"], told["ambiguous"], told["corrected"]) == (False, False, True)
    assert mr.RecurrentSpec.from_dict(told["spec"]) == GRU
    mistake = replace(MISTAKES["gates z r n"], says="reads <z> & r")
    html = replace(found, causes=(replace(found.causes[0], sentence=f"B {mistake.says}."),))._repr_html_()
    assert "reads &lt;z&gt; &amp; r" in html
    unexplained = diagnose(build(weights), build(weights_of(GRU, 1)))
    assert json.loads(unexplained.to_json())["divergence"]["layer"] == 0
    assert unexplained.divergence is not None
    assert unexplained.divergence._repr_html_() in unexplained._repr_html_()


def test_no_sentence_is_broken() -> None:
    for mistake in MISTAKES.values():
        assert isinstance(mistake, Mistake)
        assert re.match(r"[a-z]", mistake.says), mistake.name
        assert not mistake.says.endswith((".", ";", ","))
        assert not mistake.fix.endswith((".", ";", ","))
