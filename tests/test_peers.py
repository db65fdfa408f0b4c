"""The peers that benchmarks hold us against: each is the same function, and says what it is not."""

import re
import subprocess
import sys
from typing import Any

import pytest
from multirnn_bench.contenders import PEERS, Contender, find, load
from multirnn_bench.inputs import draw
from multirnn_bench.problems import Problem
from multirnn_bench.verify import allowed, answer, error, expected

assert PEERS is not None
SOURCES = {source.name: source for source in find(backends=[], peers=[PEERS])}

STACK = {"num_layers": 2, "bidirectional": True}
FORMS: dict[str, dict[str, Any]] = {
    "rnn": {"cell": "simple_rnn"},
    "rnn relu": {"cell": "simple_rnn", "activation": "relu"},
    "rnn stack": {"cell": "simple_rnn", "bias": "double", **STACK},
    "lstm": {"cell": "lstm"},
    "lstm stack": {"cell": "lstm", "bias": "double", **STACK},
    "lstm ragged": {"cell": "lstm", "lengths": (1, 7), **STACK},
    "gru": {"cell": "gru"},
    "gru stack": {"cell": "gru", **STACK},
    "gru ragged": {"cell": "gru", "lengths": (1, 7)},
    "gru without biases": {"cell": "gru", "bias": "none", **STACK},
    "gru reset before": {"cell": "gru", "reset_after": False},
}

ONE_WAY = {"rnn", "lstm", "gru"}
ALL = set(FORMS)
OF_TORCH = ALL - {"gru reset before"}
OF_KERAS = {"inference": ALL, **dict.fromkeys(("gradients", "training"), frozenset(ALL - {"rnn stack", "lstm stack"}))}
OF_FLAX = {"rnn", "rnn stack", "lstm", "lstm stack", "lstm ragged", "gru without biases"}
FULL = ALL - {"lstm ragged", "gru ragged"}

UNROLLED = {"rnn stack", "gru stack", "gru without biases"}  # too long for torch.compile: two layers in two directions

# What each has to do, over whole sequences; what is not here it has to refuse.
DOES: dict[str, dict[str, Any]] = {
    "JAX scan": {"inference": ALL, "gradients": ALL, "training": ALL},
    "NumPy loop": {"inference": FULL},
    "ONNX Runtime": {"inference": ALL},
    "flax.nnx.RNN": {
        "inference": OF_FLAX,
        "gradients": OF_FLAX - {"rnn stack", "lstm stack"},
        "training": OF_FLAX - {"rnn stack", "lstm stack"},
    },
    "keras, tf.function": OF_KERAS,
    "keras, tf.function, XLA": OF_KERAS,
    "torch LSTM, prepacked": {"inference": {"lstm", "lstm stack"}},
    "torch.compile": {"inference": (FULL & OF_TORCH) - UNROLLED},
    "torch.nn": {"inference": OF_TORCH, "gradients": OF_TORCH, "training": OF_TORCH},
}
STREAMS = {name: {"rnn", "lstm"} if name == "flax.nnx.RNN" else ONE_WAY for name in DOES}
STREAMS["torch LSTM, prepacked"] = {"lstm"}

# What is traced or compiled for seconds is run in these forms alone, and asked about all.
RUN: dict[str, set[str]] = {
    "torch.compile": {"lstm"},
    "keras, tf.function, XLA": {"lstm ragged", "gru"},
    "keras, tf.function": {"rnn", "lstm ragged", "gru stack"},
    "flax.nnx.RNN": {"rnn", "lstm ragged", "lstm stack", "gru without biases"},
    "JAX scan": {"rnn stack", "lstm ragged", "gru", "gru reset before"},
}


def test_all_are_held_here() -> None:
    assert set(SOURCES) == set(DOES)
    assert all(source.kind == "peer" for source in SOURCES.values())


def peer(name: str) -> Contender:
    return load(SOURCES[name].to_dict())


def asked(mode: str, form: str) -> Any:
    return draw(Problem.shaped(time=7, batch=3, input_size=5, hidden_size=11, **FORMS[form]), mode, seed=1)


def cases() -> list[Any]:
    whole = [(name, mode, form) for name, modes in DOES.items() for mode, forms in modes.items() for form in forms]
    steps = [(name, "streaming", form) for name, forms in STREAMS.items() for form in forms]
    return [
        pytest.param(name, mode, form, id=f"{name}-{mode}-{form}")
        for name, mode, form in sorted([*whole, *steps])
        if form in RUN.get(name, ALL)
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own modules
@pytest.mark.parametrize(("name", "mode", "form"), cases())
def test_is_the_same_function(name: str, mode: str, form: str) -> None:
    contender, work = peer(name), asked(mode, form)
    prepared = contender.prepare(work, 1)
    found = answer(work, prepared.result())
    eps, where = error(work, found, expected(work))
    assert eps <= allowed(work.weights.spec), where
    prepared.call()
    prepared.call()


@pytest.mark.parametrize("name", DOES)
def test_refuses_with_a_sentence_what_it_does_not(name: str) -> None:
    contender = peer(name)
    for mode in ("inference", "gradients", "training"):
        for form in FORMS:
            reason = contender.refuses(asked(mode, form))
            assert (reason is None) == (form in DOES[name].get(mode, ())), (mode, form, reason)
            assert reason is None or re.search(r"\w \w", reason)
    for form in ONE_WAY:
        assert (contender.refuses(asked("streaming", form)) is None) == (form in STREAMS[name])


@pytest.mark.parametrize("name", DOES)
def test_tells_its_versions(name: str) -> None:
    assert all(re.match(r"\d+\.\d", version) for version in peer(name).versions().values())


def test_finding_them_loads_no_framework() -> None:
    script = (
        "import sys; from pathlib import Path; from multirnn_bench.contenders import find; "
        f"find(backends=[], peers=[Path({str(PEERS)!r})]); "
        "print([name for name in ('torch', 'tensorflow', 'keras', 'jax', 'flax', 'onnx', 'onnxruntime') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
