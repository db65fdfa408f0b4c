"""Which implementation a backend builds: as it is asked for, or refused in a sentence."""

from dataclasses import dataclass, field

import pytest

import multirnn as mr
from multirnn.layer import FROZEN, NATIVE, Planned
from multirnn.protocol import Abilities, Backend, abilities, accept, realise, with_implementation

SPEC = mr.RecurrentSpec("gru", 3, 5, num_layers=2, bidirectional=True)


@dataclass
class Recorder:
    """NumPy under another name, which notes what it is asked for."""

    name: str = "recorder"
    differentiable: bool = True
    asked: list[str] = field(default_factory=list)

    def refuses(self, spec):
        return "it has no GRU; take an LSTM" if spec.cell == "gru" else None

    def build(self, weights, *, device=None, implementation=NATIVE):
        accept(self, weights.spec)
        self.asked.append(implementation)
        return mr.build(weights, "numpy", device=device)

    def read(self, native):
        return mr.backend("numpy").read(native)

    def versions(self):
        return {"recorder": "1"}


class WithFast(Recorder):
    implementations = ("native", "fast")
    engine = "its engine"


LSTM = mr.RecurrentSpec("lstm", 3, 5)


def test_a_backend_that_names_none_is_native_alone() -> None:
    assert abilities(Recorder()).implementations == ("native",)
    with pytest.raises(mr.InvalidCall, match="backend 'recorder' has 'native' alone, not the implementation 'fast'"):
        mr.build(LSTM, Recorder(), implementation="fast")


def test_a_mistyped_implementation_is_refused() -> None:
    backend = WithFast()
    with pytest.raises(mr.InvalidCall, match="has the implementations 'native', 'fast', not the implementation 'fsat'"):
        mr.build(LSTM, backend, implementation="fsat")
    assert backend.asked == []


def test_build_hands_the_implementation_on() -> None:
    backend = WithFast()
    mr.build(LSTM, backend)
    mr.build(LSTM, backend, implementation="fast")
    realise(backend, mr.initialise(LSTM), implementation="fast")
    assert backend.asked == ["native", "fast", "fast"]


def test_a_backend_with_its_implementation_chosen_is_a_backend() -> None:
    backend = WithFast()
    fast = with_implementation(backend, "fast")
    assert isinstance(fast, Backend)
    assert (fast.name, fast.differentiable, fast.versions()) == ("recorder fast", True, {"recorder": "1"})
    assert abilities(fast).implementations == ("native",)
    assert fast.engine == "its engine"
    assert not hasattr(fast, "adopt")
    fast.build(mr.initialise(LSTM))
    assert backend.asked == ["fast"]
    assert with_implementation(backend, "native") is backend
    with pytest.raises(mr.Unsupported, match="it has no GRU"):
        fast.build(mr.initialise(SPEC))


def test_compare_takes_an_implementation() -> None:
    backend, plain = WithFast(), Recorder()
    found = mr.compare(LSTM, backends=[backend, plain], implementation="fast")
    assert [(row.backend, row.title, row.verdict) for row in found.rows] == [
        ("recorder", "recorder (its engine) fast", "equal"),
        ("recorder", "recorder fast", "refuses"),
    ]
    assert found.rows[1].reason == "it has no implementation 'fast'"
    assert backend.asked == ["fast"]
    assert plain.asked == []
    assert found.ok


MISSPELT = {
    "take_lengths": ("takes_lengths", False),
    "preprare": ("prepare", None),
    "implementation": ("implementations", ("native", "fast")),
    "adopts": ("adopt", None),
    "device": ("devices", None),
}


@pytest.mark.parametrize("name", MISSPELT)
def test_a_misspelt_ability_is_an_error(name: str) -> None:
    right, value = MISSPELT[name]
    sentence = rf"has '{name}' \(did you mean '{right}'\?\)"
    backend = Recorder()
    setattr(backend, name, value)
    for ask in (
        mr.backend,
        lambda backend: mr.build(LSTM, backend),
        lambda backend: mr.compare(LSTM, backends=[backend]),
    ):
        with pytest.raises(mr.UnknownBackend, match=sentence):
            ask(backend)
    with pytest.raises(TypeError, match=f"the backend Mine {sentence}"):
        type("Mine", (Abilities,), {name: value})
    derived = type("Derived", (Abilities, Recorder), {})()
    assert mr.backend(derived) is derived
    setattr(derived, name, value)
    with pytest.raises(mr.UnknownBackend, match=sentence):
        mr.backend(derived)


def test_an_attribute_of_its_own_is_not_a_misspelling() -> None:
    backend = WithFast()
    backend.cache, backend.device, backend.devices = {}, "cpu", lambda: ("cpu",)  # type: ignore[attr-defined]
    assert mr.backend(backend) is backend


def test_what_a_backend_lacks_has_a_default() -> None:
    plain, fast = abilities(Recorder()), abilities(WithFast())
    assert (plain.implementations, plain.takes_lengths, plain.engine, plain.devices()) == (("native",), True, None, ())
    assert (fast.implementations, fast.engine) == (("native", "fast"), "its engine")


@pytest.fixture(params=["fast", FROZEN])
def made_fast(backend: Backend, request: pytest.FixtureRequest) -> Backend:
    if request.param not in abilities(backend).implementations:
        pytest.skip(f"{backend.name} has no {request.param} implementation")
    return with_implementation(backend, request.param)


@pytest.mark.parametrize(("batch", "time"), [(1, 1), (1, 101), (37, 7)])
def test_a_fast_layer_tells_what_it_runs(made_fast: Backend, batch: int, time: int) -> None:
    spec = SPEC if made_fast.refuses(SPEC) is None else LSTM
    layer = made_fast.build(mr.initialise(spec))
    assert isinstance(layer, Planned)
    for lengths in (False, True):
        for gradients in (False, True):
            plan = layer.plan(batch, time, lengths=lengths, gradients=gradients)
            assert plan.implementation in ("fast", "native", *([FROZEN] if FROZEN in made_fast.name else []))
            assert len(plan.sentence.split()) > 2


@pytest.mark.parametrize("implementation", ["native", "fast", "frozen"])
def test_a_layer_says_what_it_is(backend, implementation) -> None:
    if implementation not in abilities(backend).implementations:
        return
    spec = mr.RecurrentSpec("gru", 4, 6, num_layers=2, bidirectional=True, bias="double")
    layer = mr.build(spec, backend, implementation=implementation)
    assert layer.implementation == implementation
    assert repr(layer) == f"<{type(layer).__name__} gru 4→6, 2 layers, bidirectional, {implementation}>"
    contract = {"implementation", "native", "parameter_count", "spec", "stream", "vjp", "weights"}
    assert contract <= set(dir(layer)) <= contract | {"plan", "threads"}


def test_a_stream_says_of_what_it_is() -> None:
    assert (
        repr(mr.build(mr.RecurrentSpec("lstm", 4, 6), "numpy").stream()) == "<Stream of <NumpyLayer lstm 4→6, native>>"
    )


def test_tab_after_the_package_shows_what_it_offers() -> None:
    assert set(dir(mr)) - {"__doc__", "__version__"} == set(mr.__all__)
