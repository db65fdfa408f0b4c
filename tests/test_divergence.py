"""Where two layers part first, held against mistakes whose place is known."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from diverging_layers import (
    BUILD,
    FORWARD,
    LAST,
    TIME,
    Drifting,
    Place,
    as_function,
    assert_headline_and_table_agree,
    draw_spec,
    edited,
    first_wrong_pass,
    in_weights,
    made,
    place_of,
    planted,
    stack,
)
from planted_pairs import experiment

import multirnn as mr
from multirnn.adoption import AdoptedLayer, adopt
from multirnn.diagnosis import first_divergence
from multirnn.mistakes import mistakes_for
from multirnn.mistakes.plumbing import Assembly, Plumbing
from multirnn.numerics import draw_call
from multirnn.protocol import Backend

# --- Drawn pairs, of which the place is known ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_layer_direction_and_step_of_a_planted_mistake_are_found(seed: int) -> None:
    """In every pair where they are defined; of a layer, and of a function of which only calls are known."""
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    while counts.total() < 30:
        spec = draw_spec(rng)
        applying = [m for m in mistakes_for(spec) if m.shows not in ("gradients", "no state")]
        family = rng.choice(sorted({m.family for m in applying}))
        mistake = rng.choice([m for m in applying if m.family == family])
        passes = list(spec.passes)
        one = int(rng.integers(len(passes))) if rng.integers(3) == 0 and family != "axes" else None
        weights = mr.initialise(spec, rng)
        if one is not None and not mistake.applies(weights.part(*passes[one]).spec):
            continue
        drawn = int(rng.integers(2**30))
        x, state, lengths = draw_call(spec, drawn)
        x = np.where((np.arange(TIME) < lengths[:, None])[:, :, None], x, 0)  # padding is zero, whoever reads it
        wide = mr.State(*(part.astype("float64") for part in state if part is not None))
        wrong, expected = planted(mistake, weights, one, x.astype("float64"), wide)
        if expected is None:
            continue
        known = mistake.shows == "lengths" or rng.integers(2) == 0
        found = first_divergence(BUILD(weights), wrong if known else adopt(as_function(wrong), spec=spec), seed=drawn)
        where = f"{mistake.name} in {'all passes' if one is None else passes[one]} of {spec}: {found.says}"
        assert (found.kind, *place_of(found)) == ("mistake", *expected), where
        assert_headline_and_table_agree(found)
        counts[found.probe] += 1
    print(counts.total(), "pairs:", dict(counts))


@pytest.mark.parametrize(("mistakes", "pairs"), [(1, 60), (2, 40)])
def test_layer_direction_and_step_in_the_pairs_of_the_diagnosis(mistakes: int, pairs: int) -> None:
    """With two mistakes it is the earlier; either, where both go wrong after equally many steps of one layer."""
    found = Counter()
    for pair in experiment.draw_pairs(1, pairs, mistakes):
        weights, spec = pair.weights, pair.weights.spec
        shown = [mistake for mistake in pair.mistakes if mistake.shows not in ("gradients", "no state")]
        if any(mistake.family == "axes" for mistake in shown):  # the call that B takes has no lengths
            shown = [mistake for mistake in shown if mistake.shows != "lengths"]
        x, state, lengths = draw_call(spec, 0)
        if not pair.only_calls:
            x = np.where((np.arange(TIME) < lengths[:, None])[:, :, None], x, 0)
        wide = mr.State(*(part.astype("float64") for part in state if part is not None))
        if shown and all(map(in_weights, shown)):
            changed = weights
            for mistake in reversed(shown):
                changed = mistake.realise.weights(changed)
            parts = {at: changed.part(*at) for at in spec.passes}
            places = [first_wrong_pass(weights, parts, x.astype("float64"), wide)]
        else:
            places = [planted(mistake, weights, None, x.astype("float64"), wide)[1] for mistake in shown]
        if len(shown) > 1 and any(mistake.family.startswith("final state") for mistake in shown):
            places = []  # the states that tell where the other one is are handed back elsewhere
        if not places or None in places:
            found["not defined"] += 1
            continue
        first = min(map(run_until, places))
        place = place_of(first_divergence(pair.right, pair.wrong))
        names = " + ".join(mistake.name for mistake in pair.mistakes)
        assert place in [at for at in places if run_until(at) == first], f"{names} in {spec}"
        found["right"] += 1
    print(dict(found))


def run_until(place: Place) -> tuple[int, int]:
    """The layer, and how many steps its direction had run."""
    layer, direction, step = place
    return layer, step if direction == "forward" else LAST - step


@pytest.mark.parametrize("seed", range(30))
def test_of_the_same_stack_nothing_is_found(seed: int) -> None:
    spec = draw_spec(np.random.default_rng(seed))
    weights = mr.initialise(spec, seed)
    for other in (BUILD(weights), Assembly(BUILD, weights, Plumbing()), adopt(as_function(BUILD(weights)), spec=spec)):
        found = first_divergence(BUILD(weights), other, seed=seed)
        assert (found.kind, found.probe, place_of(found)) == ("none", "", (None, None, None))
        assert np.nanmax(found.own) <= found.to_dict()["tolerance_eps"]


def test_no_backend_parts_from_the_reference_and_a_mistake_in_each_is_found(backend: Backend) -> None:
    weights = stack("gru", hidden_size=6, num_layers=1)
    if reason := backend.refuses(weights.spec):
        pytest.skip(reason)
    wrong = edited(weights, "layers.0.backward.", lambda a: a[[1, 0, 2]])
    assert first_divergence(BUILD(weights), backend.build(weights)).kind == "none"
    found = first_divergence(BUILD(weights), backend.build(wrong))
    assert place_of(found) == (0, "backward", LAST)
    assert found.gate in ("r", "z")


# --- Only from some step on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "since"), list(product(product((0, 1), ("forward", "backward")), (1, 3, LAST))))
def test_a_drift_is_found_at_its_step(at: tuple[int, str], since: int) -> None:
    weights = stack("gru")
    x, state, _ = draw_call(weights.spec, 5)
    wrong = Drifting(weights, at, since, lambda part: part * part.dtype.type(1.01))
    found = first_divergence(BUILD(weights), AdoptedLayer(wrong), x, state)
    assert place_of(found) == (*at, since if at[1] == "forward" else LAST - since)
    assert found.probe == "call in part"
    assert f", after {since} that agree." in found.says


def test_a_clipped_state_is_found_where_it_is_first_clipped() -> None:
    weights = stack("simple_rnn", activation="relu", bidirectional=False)
    x, state, _ = draw_call(weights.spec, 3)
    outputs = [BUILD(weights)(x[:, :steps], state).state.h[0].max() for steps in range(1, TIME + 1)]
    limit = sorted(outputs)[-2]  # of the lowest layer: passed once, by its largest state
    wrong = Drifting(weights, (0, "forward"), 0, lambda part: np.minimum(part, limit))
    found = first_divergence(BUILD(weights), AdoptedLayer(wrong), x, state)
    assert place_of(found) == (0, "forward", int(np.argmax(outputs)))
    assert found.values is not None
    np.testing.assert_allclose(found.values, (max(outputs), limit), rtol=mr.tolerance("float32"))


def test_a_recurrent_mistake_shows_when_there_is_a_state() -> None:
    """From zero the first step agrees."""
    weights = stack("lstm")
    x, _, _ = draw_call(weights.spec, 2)
    wrong = edited(weights, "layers.0.backward.", lambda a: a.swapaxes(1, 2), "weight_hh")
    found = first_divergence(BUILD(weights), BUILD(wrong), x)
    assert (found.probe, *place_of(found)) == ("step", 0, "backward", LAST - 1)


# --- Rounding --------------------------------------------------------------------------------------------------------


def chaotic(dtype: str) -> mr.Weights:
    weights = mr.initialise(mr.RecurrentSpec("simple_rnn", 5, 24, dtype=dtype), seed=0)
    return mr.Weights(weights.spec, {name: 8 * array for name, array in weights.arrays.items()})


def test_rounding_that_grows_is_not_a_mistake() -> None:
    """A chaotic stack, whose states are as far apart as they can be after 50 steps."""
    x = np.random.default_rng(0).standard_normal((3, 120, 5)).astype("float32")
    narrow = BUILD(chaotic("float32"))
    wide = BUILD(chaotic("float32").astype("float64"))
    for pair in ((narrow, wide), (wide, narrow)):
        found = first_divergence(*pair, x)
        assert (found.kind, found.probe) == ("rounding", "")
        assert found.eps > found.to_dict()["tolerance_eps"] > np.nanmax(found.own) > 0
        assert found.growth[0, 0] < 10 < 1e6 < found.growth[0, -1]


def test_a_mistake_in_a_chaotic_stack_is_not_rounding() -> None:
    x = np.random.default_rng(0).standard_normal((3, 120, 5)).astype("float32")
    weights = chaotic("float32")
    wrong = Drifting(weights, (0, "forward"), 9, lambda part: 0.9 * part)
    found = first_divergence(BUILD(weights), AdoptedLayer(wrong), x)
    assert (found.kind, *place_of(found)) == ("mistake", 0, "forward", 9)


def test_float32_against_float64_is_rounding() -> None:
    weights = stack("lstm")
    x, state, lengths = draw_call(weights.spec, 1)
    found = first_divergence(BUILD(weights), BUILD(weights.astype("float64")), x, state, lengths=lengths)
    assert found.kind == "rounding"
    assert 0 < np.nanmax(found.growth) < found.to_dict()["tolerance_eps"]


def test_cancellation_is_not_a_mistake() -> None:
    """Large products that cancel in a step: its error is that of the products."""
    weights = stack("simple_rnn", num_layers=1, bidirectional=False)
    huge = edited(weights, "layers.0.forward.", lambda a: 1000 * a, "weight_ih")
    x = np.random.default_rng(0).standard_normal((5, TIME, 5)).astype("float32")
    kernel = huge.arrays["layers.0.forward.weight_ih"][0].astype("float64")
    inside = np.eye(5) - np.linalg.pinv(kernel) @ kernel
    x = (x @ inside.astype("float32")).astype("float32")
    found = first_divergence(BUILD(huge), BUILD(huge.astype("float64")), x)
    assert found.kind == "rounding"


def test_a_slip_into_float32_is_a_mistake() -> None:
    weights = stack("lstm", dtype="float64")
    for name in ("computed in float32", "output rounded to float32"):
        found = first_divergence(BUILD(weights), made(name, weights))
        assert (found.kind, *place_of(found)) == ("mistake", *FORWARD)


# --- Calls -----------------------------------------------------------------------------------------------------------


def test_an_unbatched_call() -> None:
    weights = stack("gru")
    wrong = edited(weights, "layers.0.backward.", lambda a: a[[1, 0, 2]])
    x, state, _ = draw_call(weights.spec)
    one = mr.State(state.h[:, 0])
    for lengths in (None, 4):
        found = first_divergence(BUILD(weights), BUILD(wrong), x[0], one, lengths=lengths)
        assert (found.layer, found.direction, found.shape) == (0, "backward", (1, TIME, 5))


@pytest.mark.parametrize("shape", [(3, 0, 5), (0, 3, 5)])
def test_without_a_step_there_is_no_divergence(shape: tuple[int, ...]) -> None:
    weights = stack("gru")
    wrong = edited(weights, "layers.0.backward.", lambda a: a[[1, 0, 2]])
    found = first_divergence(BUILD(weights), BUILD(wrong), np.zeros(shape, "float32"))
    assert found.kind == "none"
    assert "No divergence" in str(found)
    assert found._repr_html_()


def test_what_cannot_be_compared_is_refused() -> None:
    layer = BUILD(stack("gru"))
    with pytest.raises(mr.InvalidCall, match="A has hidden_size=4 and B 6"):
        first_divergence(layer, BUILD(stack("gru", hidden_size=6)))
    with pytest.raises(mr.InvalidCall, match="belong to an x"):
        first_divergence(layer, layer, lengths=[1])
    with pytest.raises(mr.InvalidCall, match="x must have the shape"):
        first_divergence(layer, layer, np.zeros((2, 3, 4), "float32"))
