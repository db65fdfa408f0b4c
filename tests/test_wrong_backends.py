"""The tests are tested: deliberately wrong backends, each of which the conformance suite has to catch.

Two kinds: mutants, a backend with a mistake of the catalogue in it, which computes another function; and backends that
compute the right one and break a promise all the same: they keep a buffer, count a frozen bias, refuse everything.
"""

import dataclasses
import re
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.cells import FORMS, Cell
from multirnn.mistakes import MISTAKES
from multirnn.mistakes.change import Change, Mistake
from multirnn.protocol import Backend
from multirnn.testing import (
    Check,
    Mutant,
    cases,
    check_backend,
    covering_specs,
    mutants,
    mutation_score,
)

RIGHT = mr.backend("numpy")

# --- Mutants ---------------------------------------------------------------------------------------------------------


class Built:
    """A backend that builds as little as it can: most of the time of these tests is compiling.

    A layer is handed out again for the weights that it was built from: it keeps nothing of a call, as the suite holds,
    and a mutant mostly uses the right one wrongly. Keras, which compiles every layer anew, has other weights written
    into a layer where only one at a time is in use.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name, self.differentiable = backend.name, backend.differentiable
        self.refuses, self.read, self.versions = backend.refuses, backend.read, backend.versions
        self.layers: dict[Any, mr.Layer] = {}
        self.one_at_a_time = False

    def build(self, weights: mr.Weights, *, device: str | None = None) -> mr.Layer:
        key = (weights.spec, *(array.tobytes() for array in weights.arrays.values()))
        if key in self.layers:
            return self.layers[key]
        layer = self.backend.build(weights, device=device)
        if self.name != "keras" or not self.one_at_a_time:
            return self.layers.setdefault(key, layer)
        written = self.layers.setdefault(weights.spec, layer)
        written.native.set_weights(layer.native.get_weights())
        return written


def size(spec: mr.RecurrentSpec) -> tuple[int, bool, bool]:
    """What compiling a stack costs, roughly."""
    return spec.num_layers * len(spec.directions), spec.dtype == "float64", spec.bias == "none"


AGREEMENT = [check for name, check in cases() if name.startswith("agrees: ")]
FROM_ZERO = [  # a call without an initial state, which no other check makes
    (mr.RecurrentSpec(FORMS[form].name, 3, 11, bias="double", reset_after=FORMS[form].reset_after), check)
    for name, check in cases()
    for form in FORMS
    if name == f"full rows agree without lengths and from zero: {form}"
]
COVERING = [*sorted(zip(covering_specs(), AGREEMENT, strict=True), key=lambda pair: size(pair[0])), *FROM_ZERO]


def shown(mistake: Mistake, place: int) -> bool:
    """Whether a check of `COVERING` makes calls that can show the mistake."""
    return (place >= len(AGREEMENT)) == (mistake.shows == "no state")


def fails(check: Check, backend: Any) -> bool:
    try:
        check(backend)
    except (AssertionError, mr.MultirnnError):  # a loud mistake is one too
        return True
    return False


@cache
def killed_on_numpy(name: str, place: int) -> bool:
    return fails(COVERING[place][1], Mutant(RIGHT, MISTAKES[name]))


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_every_mutant_is_killed(backend: Backend, form: Cell, tell: Callable[[str], None]) -> None:
    """By agreement on the smallest stack that can show the mistake, which kills it on NumPy too."""
    built = Built(backend)
    killed, survivors, used = [], [], set()
    for name, mistake in MISTAKES.items():
        for place, (spec, check) in enumerate(COVERING):
            if spec.form != form or not shown(mistake, place) or not mistake.applies(spec) or backend.refuses(spec):
                continue
            mutant = Mutant(built, mistake)
            built.one_at_a_time = isinstance(mistake.realise, Change)
            caught = fails(check, mutant)
            if not mutant.built:  # the framework cannot make this mistake here
                continue
            used.add(place)
            (killed if caught and killed_on_numpy(name, place) else survivors).append(name)
            break
    built.one_at_a_time = False
    for place in used:
        COVERING[place][1](built)
    total = len(killed) + len(survivors)
    tell(
        f"{backend.name}, {form.form}: {len(killed)} of {total} mutants killed by {len(used)} checks, which hold without"
    )
    assert not survivors
    least = 60 if backend.differentiable else 45  # without those that show in gradients alone
    assert backend.refuses(mr.RecurrentSpec(form.name, 3, 4, reset_after=form.reset_after)) or total >= least


def test_the_catalogue_is_killed_over_the_three_cells(tell: Callable[[str], None]) -> None:
    killed = {
        name
        for name, mistake in MISTAKES.items()
        if any(
            shown(mistake, place) and mistake.applies(spec) and killed_on_numpy(name, place)
            for place, (spec, _) in enumerate(COVERING)
        )
    }
    tell(f"catalogue: {len(killed)} of {len(MISTAKES)} mistakes killed; the suite has {len(cases())} checks")
    assert killed == set(MISTAKES)
    assert len(killed) >= 60


def test_a_mutant_is_a_backend_that_counts_and_hands_back_right() -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 3, 4), seed=1)
    assert len(mutants()) == len(MISTAKES)
    for mutant in mutants():
        assert isinstance(mutant, Backend)
        layer = mutant.build(weights)
        assert layer.spec == weights.spec
        assert layer.parameter_count == weights.spec.parameter_count
        assert mutant.read(layer.native) == layer.weights() == weights
        assert layer.stream()(np.ones((2, 2, 3), "float32")).sequence.shape == (2, 2, 4)


def test_a_clean_run_passes() -> None:
    held = check_backend(RIGHT)
    print(f"numpy holds {held} of {len(cases())} checks")
    assert held == len(cases())


# --- Broken promises -------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Promise:
    """Right in everything that it does not replace."""

    call: Callable[..., mr.Output] = lambda layer, x, state, lengths: layer(x, state, lengths=lengths)
    count: Callable[[mr.RecurrentSpec], int] = lambda spec: spec.parameter_count
    refuses: Callable[[mr.RecurrentSpec], str | None] = lambda spec: None


class WrongLayer:
    """A NumPy layer that breaks a promise."""

    def __init__(self, weights: mr.Weights, broken: Promise) -> None:
        self._weights = weights
        self._layer = RIGHT.build(weights)
        self._broken = broken
        self.spec = weights.spec
        self.native = weights
        self.vjp = self._layer.vjp

    parameter_count = property(lambda self: self._broken.count(self.spec))

    def weights(self) -> mr.Weights:
        return self._weights

    def __call__(self, x, state=None, *, lengths=None):
        return self._broken.call(self._layer, x, state, lengths)

    def stream(self) -> mr.Stream:
        return mr.Stream(self)


class WrongBackend:
    differentiable = True

    def __init__(self, name: str, broken: Promise) -> None:
        self.name, self.broken = name, broken

    def refuses(self, spec: mr.RecurrentSpec) -> str | None:
        return self.broken.refuses(spec)

    def build(self, weights: mr.Weights, *, device: str | None = None) -> WrongLayer:
        return WrongLayer(weights, self.broken)

    def read(self, native: Any) -> mr.Weights:
        return native

    def versions(self) -> dict[str, str]:
        return {}


def padding_leaks(layer, x, state, lengths):
    output = layer(x, state, lengths=lengths)
    leak = 0 * np.asarray(x, layer.spec.dtype).sum(axis=(-1, -2), keepdims=True)
    return mr.Output(output.sequence + leak, output.state)


def float64_out(layer, x, state, lengths):
    output = layer(x, state, lengths=lengths)
    return mr.Output(output.sequence.astype("float64"), output.state)


def nothing_run_from_zero(layer, x, state, lengths):
    """The final state of a call without a step is zero, and not the initial one."""
    return layer(x, state if np.size(x) else None, lengths=lengths)


def batch_of_one_kept(layer, x, state, lengths):
    """An unbatched call answered with a batch."""
    output = layer(x, state, lengths=lengths)
    return output if np.ndim(x) == 3 else output._replace(sequence=output.sequence[None])


class StateKept:
    """The final state of a call is the next one's initial state."""

    def __init__(self) -> None:
        self.kept: weakref.WeakKeyDictionary[Any, mr.State] = weakref.WeakKeyDictionary()

    def __call__(self, layer, x, state, lengths):
        kept = self.kept.get(layer)
        if state is None and kept is not None and kept.h.ndim == np.ndim(x) and kept.h.shape[1] == len(x):
            state = kept
        output = layer(x, state, lengths=lengths)
        self.kept[layer] = output.state
        return output


class BufferReused:
    """The output is a view of a buffer that the next call writes to."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[int, ...], np.ndarray] = {}

    def __call__(self, layer, x, state, lengths):
        output = layer(x, state, lengths=lengths)
        buffer = self.buffers.setdefault(output.sequence.shape, np.empty_like(output.sequence))
        if buffer.dtype != output.sequence.dtype:
            return output
        buffer[...] = output.sequence
        return mr.Output(buffer, output.state)


def input_zeroed_in_place(layer, x, state, lengths):
    output = layer(x, state, lengths=lengths)
    if isinstance(x, np.ndarray) and x.flags.writeable and x.ndim == 3 and lengths is not None:
        x[np.arange(x.shape[1]) >= np.asarray(lengths)[:, None]] = 0
    return output


BROKEN: dict[str, Promise] = {
    "NaN in padding leaks": Promise(call=padding_leaks),
    "float64 handed back by a float32 layer": Promise(call=float64_out),
    "nothing run from zero": Promise(call=nothing_run_from_zero),
    "a batch of one kept": Promise(call=batch_of_one_kept),
    "state kept between calls": Promise(call=StateKept()),
    "output buffer reused": Promise(call=BufferReused()),
    "input changed in place": Promise(call=input_zeroed_in_place),
    "a frozen bias counted": Promise(count=lambda spec: spec.parameter_count + spec.hidden_size),
    "refuses, and builds all the same": Promise(refuses=lambda spec: "no GRU" if spec.cell == "gru" else None),
    "refuses everything": Promise(refuses=lambda spec: "not today"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_caught(name: str) -> None:
    wrong = WrongBackend(name, BROKEN[name])
    assert any(fails(check, wrong) for _, check in cases()), f"{name}: no check catches it"


def test_what_is_caught_is_named() -> None:
    with pytest.raises(AssertionError) as raised:
        check_backend(Mutant("numpy", MISTAKES["batch and time swapped"]))
    assert re.search(
        r'(?s)with the mistake "batch and time swapped"\' fails \d+ of \d+ checks.*agrees: gru.*InvalidCall: ',
        str(raised.value),
    )


def test_the_same_backend_without_a_mistake_passes() -> None:
    assert check_backend(WrongBackend("right", Promise())) == len(cases())


def wrong_backends() -> Iterator[Any]:
    """Those first that most checks catch."""
    for name in ("initial state ignored", "padding run through", "reverse output not flipped"):
        yield Mutant(RIGHT, MISTAKES[name])
    yield from (WrongBackend(name, broken) for name, broken in BROKEN.items())
    yield from mutants()


def test_no_check_is_idle() -> None:
    """Each of them fails for at least one wrong backend."""
    idle = [name for name, check in cases() if not any(fails(check, wrong) for wrong in wrong_backends())]
    assert not idle


def test_expected_failures_are_strict() -> None:
    wrong = Mutant(RIGHT, MISTAKES["update gate inverted"])
    expected = {name: "z is the weight of the new state" for name, check in cases() if fails(check, wrong)}
    assert check_backend(wrong, expected_failures=expected) == len(cases()) - len(expected)
    with pytest.raises(AssertionError, match="expected to fail"):
        check_backend(RIGHT, expected_failures={next(iter(expected)): "a mistake that it does not have"})
    with pytest.raises(KeyError, match="no check is named"):
        check_backend(RIGHT, expected_failures={"no such check": "?"})


def test_a_mistake_of_ones_own_can_be_tried() -> None:
    own = Mistake(
        name="quiet",
        family="own",
        says="hands out half of what it computes",
        fix="hand out all of it",
        applies=lambda spec: True,
        realise=lambda build, weights: WrongLayer(weights, Promise(call=halved)),
    )
    assert list(mutation_score(AGREEMENT[0], mistakes=[own]).killed) == ["quiet"]


def halved(layer, x, state, lengths):
    sequence, final = layer(x, state, lengths=lengths)
    return mr.Output(sequence / 2, final)
