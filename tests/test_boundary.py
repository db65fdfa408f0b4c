"""The NumPy side of every layer: which calls are refused and how, and in what form the others reach a backend."""

import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.boundary import BoundaryLayer, Inputs
from multirnn.protocol import Backend

BATCH, TIME, INPUT, HIDDEN = 3, 7, 5, 4
ROWS = 2 * 2  # layers * directions


def spec_of(cell: str) -> mr.RecurrentSpec:
    return mr.RecurrentSpec(cell, INPUT, HIDDEN, num_layers=2, bidirectional=True)


@cache
def layer_of(backend: str, cell: str) -> mr.Layer:
    return mr.build(spec_of(cell), backend, seed=1)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype("float32")


X = drawn(BATCH, TIME, INPUT)
H, C = drawn(ROWS, BATCH, HIDDEN, seed=1), drawn(ROWS, BATCH, HIDDEN, seed=2)
LENGTHS = np.array([4, 0, 7])
COTANGENT = mr.Output(drawn(BATCH, TIME, 2 * HIDDEN, seed=3), mr.State(H[::-1], C[::-1]))

# --- Refusals --------------------------------------------------------------------------------------------------------------

SHAPES = f"x must have the shape (batch, time, {INPUT}), or (time, {INPUT}) unbatched, not "
TO_FLOAT32 = "and the layer computes in float32; pass {0}.astype('float32')"
STATE_SHAPE = f"must have the shape (num_layers * directions, batch, hidden_size) = {(ROWS, BATCH, HIDDEN)}, not "
UNBATCHED_STATE = f"must have the shape (num_layers * directions, hidden_size) = {(ROWS, HIDDEN)}, not "
RANGE = f"lengths must be from 0 to {TIME}, the time steps of x; "

BAD_X: list[tuple[Any, str]] = [
    (X[:, :, :4], f"{SHAPES}(3, 7, 4)"),
    (X.transpose(2, 1, 0), f"{SHAPES}(5, 7, 3)"),
    (X[0, 0], f"{SHAPES}(5,)"),
    (X[None], f"{SHAPES}(1, 3, 7, 5)"),
    (1.0, f"{SHAPES}()"),
    (None, f"{SHAPES}()"),
    (X.astype("float64"), f"x is float64, {TO_FLOAT32.format('x')}, or build the layer with dtype='float64'"),
    *(
        (X.astype(dtype), f"x is {dtype}, {TO_FLOAT32.format('x')}")
        for dtype in ("int64", "bool", "float16", "complex64", ">f4")
    ),
    ("words", "x must be an array of float32: could not convert string to float: 'words'"),
    ([[1.0], [1.0, 2.0]], "x must be an array of float32: setting an array element with a sequence."),
]

BAD_STATES: list[tuple[str, Any, str]] = [
    ("lstm", H, "state must be a multirnn.State, not ndarray"),
    ("lstm", (H, C), "state must be a multirnn.State, not tuple"),
    ("lstm", mr.State(H), "state of an LSTM needs the cell state too: State(h, c)"),
    ("gru", mr.State(H, C), "state.c is the cell state of an LSTM; a gru has none, so it must be None"),
    ("simple_rnn", mr.State(H, C), "state.c is the cell state of an LSTM; a simple_rnn has none, so it must be None"),
    ("lstm", mr.State(H.swapaxes(0, 1), C), f"state.h {STATE_SHAPE}(3, 4, 4)"),
    ("lstm", mr.State(H, C[:1]), f"state.c {STATE_SHAPE}(1, 3, 4)"),
    ("gru", mr.State(H[:, :2]), f"state.h {STATE_SHAPE}(4, 2, 4)"),
    ("gru", mr.State(H[:, 0]), f"state.h {STATE_SHAPE}(4, 4)"),
    (
        "lstm",
        mr.State(H, C.astype("float64")),
        f"state.c is float64, {TO_FLOAT32.format('state.c')}, or build the layer with dtype='float64'",
    ),
]

BAD_LENGTHS: list[tuple[Any, str]] = [
    ([4, 7], "lengths must be one integer for each of the 3 rows, shape (3,), not of shape (2,)"),
    (7, "lengths must be one integer for each of the 3 rows, shape (3,), not of shape ()"),
    ([[4, 0, 7]], "lengths must be one integer for each of the 3 rows, shape (3,), not of shape (1, 3)"),
    ([], "lengths must be one integer for each of the 3 rows, shape (3,), not of shape (0,)"),
    ([[4], [0, 7], [1]], "lengths must be an array of integers: setting an array element with a sequence."),
    ([4.0, 0.0, 7.0], "lengths must be integers, not float64"),
    (np.arange(TIME) < LENGTHS[:, None], "lengths must be integers, not bool"),
    ([4, None, 7], "lengths must be integers, not object"),
    ("long", "lengths must be integers, not <U4"),
    ([4, 0, 8], f"{RANGE}row 2 has 8"),
    ([4, -1, 8], f"{RANGE}row 1 has -1"),
    (np.array([4, 0, 255], "uint8"), f"{RANGE}row 2 has 255"),
]

BAD_COTANGENTS: list[tuple[str, Any, str]] = [
    ("gru", COTANGENT.sequence, "cotangent must be a multirnn.Output, shaped as the call's, not ndarray"),
    (
        "gru",
        mr.Output(COTANGENT.sequence[:, :, :HIDDEN], mr.State(H)),
        f"cotangent.sequence must have the shape of the call's output, {(BATCH, TIME, 2 * HIDDEN)}, not (3, 7, 4)",
    ),
    (
        "gru",
        mr.Output(COTANGENT.sequence.astype("float64"), mr.State(H)),
        f"cotangent.sequence is float64, {TO_FLOAT32.format('cotangent.sequence')}, "
        "or build the layer with dtype='float64'",
    ),
    (
        "lstm",
        mr.Output(COTANGENT.sequence, mr.State(H)),
        "cotangent.state of an LSTM needs the cell state too: State(h, c)",
    ),
    ("lstm", mr.Output(COTANGENT.sequence, H), "cotangent.state must be a multirnn.State, not ndarray"),  # type: ignore[arg-type]
    ("gru", mr.Output(COTANGENT.sequence, mr.State(H[:2])), f"cotangent.state.h {STATE_SHAPE}(2, 3, 4)"),
    (
        "gru",
        mr.Output(COTANGENT.sequence, mr.State(H, C)),
        "cotangent.state.c is the cell state of an LSTM; a gru has none, so it must be None",
    ),
]

UNBATCHED: list[tuple[dict[str, Any], str]] = [
    ({"state": mr.State(H)}, f"state.h {UNBATCHED_STATE}(4, 3, 4)"),
    ({"state": mr.State(H[:, :1])}, f"state.h {UNBATCHED_STATE}(4, 1, 4)"),
    ({"lengths": [4]}, "lengths must be one integer for an unbatched x, not of shape (1,)"),
    ({"lengths": 8}, f"{RANGE}row 0 has 8"),
    ({"lengths": 4.0}, "lengths must be integers, not float64"),
]

Call = Callable[[Any], object]
BAD_CALLS: list[tuple[str, Call, str]] = [
    *(("gru", lambda f, x=x: f(x), sentence) for x, sentence in BAD_X),
    *((cell, lambda f, state=state: f(X, state), sentence) for cell, state, sentence in BAD_STATES),
    *(("gru", lambda f, lengths=lengths: f(X, lengths=lengths), sentence) for lengths, sentence in BAD_LENGTHS),
    *(("gru", lambda f, options=options: f(X[0], **options), sentence) for options, sentence in UNBATCHED),
]


def assert_refused(sentence: str, call: Callable[[], object]) -> None:
    """NumPy's own words may follow ours."""
    with pytest.raises(mr.InvalidCall, match=f"^{re.escape(sentence)}") as caught:
        call()
    assert isinstance(caught.value, ValueError)
    if not sentence.endswith("sequence."):
        assert str(caught.value) == sentence


@pytest.mark.parametrize(("cell", "call", "sentence"), BAD_CALLS, ids=[sentence for *_, sentence in BAD_CALLS])
def test_every_backend_refuses_the_same_calls_with_the_same_sentence(
    backend: Backend, cell: str, call: Call, sentence: str
) -> None:
    layer = layer_of(backend.name, cell)
    assert_refused(sentence, lambda: call(layer))
    if backend.differentiable:
        assert_refused(sentence, lambda: call(lambda *x, **options: layer.vjp(*x, **options, cotangent=COTANGENT)))


@pytest.mark.parametrize(
    ("cell", "cotangent", "sentence"), BAD_COTANGENTS, ids=[sentence for *_, sentence in BAD_COTANGENTS]
)
def test_every_backend_refuses_the_same_cotangents(backend: Backend, cell: str, cotangent: Any, sentence: str) -> None:
    if backend.differentiable:
        assert_refused(sentence, lambda: layer_of(backend.name, cell).vjp(X, cotangent=cotangent))


def test_a_float64_layer_does_not_take_float32() -> None:
    layer = mr.build(mr.RecurrentSpec("gru", INPUT, HIDDEN, dtype="float64"), "numpy")
    assert_refused(
        "x is float32, and the layer computes in float64; pass x.astype('float64'), "
        "or build the layer with dtype='float32'",
        lambda: layer(X),
    )


def test_two_directions_cannot_be_streamed(backend: Backend) -> None:
    assert_refused(
        "a bidirectional stack cannot be streamed: its backward direction begins at the end of the sequence",
        layer_of(backend.name, "gru").stream,
    )


# --- What reaches a backend --------------------------------------------------------------------------------------------------


class Recorder(BoundaryLayer):
    """Keeps what it is called with."""

    native = None
    parameter_count = 0
    inputs: Inputs
    cotangent: mr.Output

    def weights(self) -> mr.Weights:
        return mr.initialise(self.spec)

    def run(self, inputs: Inputs) -> mr.Output:
        self.inputs = inputs
        batch, time, _ = inputs.x.shape
        return mr.Output(np.ones((batch, time, self.spec.output_size), self.spec.dtype), inputs.state)

    def pull_back(self, inputs: Inputs, cotangent: mr.Output) -> mr.Gradients:
        self.inputs, self.cotangent = inputs, cotangent
        return mr.Gradients({}, inputs.x, cotangent.state)


def as_is(array: np.ndarray) -> np.ndarray:
    return array


def negative_strides(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array[tuple(slice(None, None, -1) for _ in array.shape)])[
        tuple(slice(None, None, -1) for _ in array.shape)
    ]


def every_second(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 2, axis=-1)[..., ::2]


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def a_view_of_batch_last(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 0, -1)), -1, 0)


MADE = [as_is, np.asfortranarray, negative_strides, every_second, read_only, a_view_of_batch_last, np.ndarray.tolist]


@pytest.mark.parametrize("made", MADE, ids=lambda made: made.__name__)
def test_all_memory_layouts_reach_a_backend_as_one(made: Callable[[np.ndarray], Any]) -> None:
    layer = Recorder(spec_of("lstm"))
    state = mr.State(made(H), made(C))
    layer.vjp(made(X), state, lengths=made(LENGTHS), cotangent=mr.Output(made(COTANGENT.sequence), state))
    valid = np.arange(TIME) < LENGTHS[:, None]
    assert np.array_equal(layer.inputs.x, X * valid[:, :, None])
    assert np.array_equal(layer.inputs.valid, valid)
    assert np.array_equal(layer.inputs.state.h, H)
    assert np.array_equal(layer.inputs.state.c, C)  # type: ignore[arg-type]
    assert np.array_equal(layer.cotangent.sequence, COTANGENT.sequence * valid[:, :, None])
    assert layer.inputs.lengths is not None
    assert layer.inputs.lengths.dtype == np.int64
    arrays = [layer.inputs.x, *layer.inputs.state, layer.cotangent.sequence, *layer.cotangent.state]
    assert all(array.flags.c_contiguous and array.dtype == "float32" for array in arrays)  # type: ignore[union-attr]


def test_a_plain_call_reaches_a_backend_as_it_is() -> None:
    layer = Recorder(spec_of("lstm"))
    functions: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            functions.append(frame.f_code.co_name)

    layer(X)
    zero = layer.inputs.state
    profile = sys.getprofile()
    sys.setprofile(note)
    try:
        layer(X)
    finally:
        sys.setprofile(profile)
    # All that a call costs before `run`: a step of a small layer is run in the time of twenty such functions.
    before = ["__call__", "_is_plain", "run_from_zero", "_zero_state", "__init__", "run"]
    assert functions[: len(before)] == before
    assert layer.inputs.x is X
    assert layer.inputs.state is zero
    given = mr.State(H, C)
    layer(X, given)
    assert layer.inputs.x is X
    assert all(np.shares_memory(part, mine) for part, mine in zip(layer.inputs.state.parts, given.parts, strict=True))


def test_what_is_run_from_zero() -> None:
    layer, runs = Recorder(spec_of("lstm")), []

    def run_from_zero(x: np.ndarray) -> mr.Output:
        runs.append(x)
        return type(layer).run_from_zero(layer, x)

    layer.run_from_zero = run_from_zero  # type: ignore[method-assign]
    read_only = X.copy()
    read_only.flags.writeable = False
    one_byte_off = np.empty(X.nbytes + 1, np.uint8)[1:].view("float32").reshape(X.shape)
    one_byte_off[...] = X
    for x in (X, read_only, one_byte_off, np.asfortranarray(X), X[::2], X[0], X.tolist(), X[:0]):
        layer(x)
    layer(X, mr.State(H, C))
    layer(X, lengths=LENGTHS)
    assert [x is X for x in runs] == [True]


def test_the_zero_state_that_calls_share_is_of_their_batch_and_not_to_be_written() -> None:
    layer = Recorder(spec_of("lstm"))
    for batch in (BATCH, 1, BATCH):
        layer(X[:batch].copy())
        parts = layer.inputs.state.parts
        assert [part.shape for part in parts] == [(ROWS, batch, HIDDEN)] * 2
        assert not any(part.any() or part.flags.writeable for part in parts)


def test_what_is_left_out_is_zero() -> None:
    layer = Recorder(spec_of("lstm"))
    layer.vjp(X, cotangent=mr.Output(None, None))  # type: ignore[arg-type]
    assert layer.inputs.lengths is None
    assert layer.inputs.valid.shape == (BATCH, TIME)
    assert layer.inputs.valid.all()
    parts = [*layer.inputs.state, layer.cotangent.sequence, *layer.cotangent.state]
    assert [part.shape for part in parts] == [H.shape, C.shape, COTANGENT.sequence.shape, H.shape, C.shape]  # type: ignore[union-attr]
    assert not any(part.any() for part in parts)  # type: ignore[union-attr]
    layer(X, lengths=[TIME] * BATCH)
    assert layer.inputs.lengths is None  # every row is full: a backend need not look


def test_an_unbatched_call_reaches_a_backend_as_a_batch_of_one() -> None:
    layer = Recorder(spec_of("lstm"))
    output = layer(X[0], mr.State(H[:, 0], C[:, 0]), lengths=4)
    assert (layer.inputs.x.shape, layer.inputs.state.h.shape) == ((1, TIME, INPUT), (ROWS, 1, HIDDEN))
    assert layer.inputs.lengths is not None
    assert layer.inputs.lengths.tolist() == [4]
    assert (output.sequence.shape, output.state.h.shape) == ((TIME, 2 * HIDDEN), (ROWS, HIDDEN))
    assert output.state.c is not None
    assert output.state.c.shape == (ROWS, HIDDEN)


def test_what_stands_in_padding_reaches_no_backend() -> None:
    layer = Recorder(spec_of("gru"))
    dirty, cotangent = X.copy(), COTANGENT.sequence.copy()
    for row, length in enumerate(LENGTHS):
        dirty[row, length:] = [np.nan, np.inf, -np.inf, 1e38, np.nan]
        cotangent[row, length:] = np.nan
    layer.vjp(dirty, lengths=LENGTHS, cotangent=mr.Output(cotangent, None))  # type: ignore[arg-type]
    assert np.isfinite(layer.inputs.x).all()
    assert np.isfinite(layer.cotangent.sequence).all()


def test_a_call_with_nothing_valid_is_answered_without_the_backend() -> None:
    layer = Recorder(spec_of("lstm"))
    layer.run = layer.pull_back = pytest.fail  # type: ignore[assignment, method-assign]
    for x, ragged in [*product((X[:0], X[:, :0], X[:0, :0]), (False, True)), (X, True)]:
        batch, time, _ = x.shape
        state = mr.State(H[:, :batch], C[:, :batch])
        counts = np.zeros(batch, int) if ragged else None
        output = layer(x, state, lengths=counts)
        assert output.sequence.shape == (batch, time, 2 * HIDDEN)
        assert not output.sequence.any()
        assert np.array_equal(output.state.h, state.h)
        gradients = layer.vjp(x, state, lengths=counts, cotangent=mr.Output(output.sequence, state))
        assert gradients.x.shape == x.shape
        assert {name: array.shape for name, array in gradients.weights.items()} == dict(layer.spec.shapes)
        assert not any(array.any() for array in gradients.weights.values())
        assert np.array_equal(gradients.state.h, state.h)
    unbatched = layer(X[0, :0], mr.State(H[:, 0], C[:, 0]), lengths=0)
    assert unbatched.sequence.shape == (0, 2 * HIDDEN)
    assert np.array_equal(unbatched.state.h, H[:, 0])


# --- What comes back -----------------------------------------------------------------------------------------------------------

CALLS: Mapping[str, tuple[np.ndarray, Any]] = {
    "full rows": (X, None),
    "ragged rows": (X, LENGTHS),
    "rows of length 0 only": (X, np.zeros(BATCH, int)),
    "no time steps": (X[:, :0], None),
    "no rows": (X[:0], None),
}


def all_arrays(*records: Any) -> list[np.ndarray]:
    """Every array in outputs, states and gradients."""
    arrays = []
    for record in records:
        if isinstance(record, np.ndarray):
            arrays.append(record)
        elif record is not None:
            arrays += all_arrays(*(record.values() if isinstance(record, Mapping) else record))
    return arrays


@pytest.mark.parametrize("case", CALLS)
def test_a_call_neither_writes_to_what_it_was_given_nor_hands_it_out(backend: Backend, case: str) -> None:
    layer = layer_of(backend.name, "lstm")
    x, lengths = CALLS[case]
    batch, time, _ = x.shape
    x = x.copy()
    state = mr.State(H[:, :batch].copy(), C[:, :batch].copy())
    cotangent = mr.Output(COTANGENT.sequence[:batch, :time].copy(), mr.State(state.h + 1, state.c))  # type: ignore[operator]
    given = all_arrays(x, state, lengths, cotangent)
    before = [array.copy() for array in given]
    handed_out = all_arrays(layer(x, state, lengths=lengths))
    if backend.differentiable:
        handed_out += all_arrays(layer.vjp(x, state, lengths=lengths, cotangent=cotangent))
    assert all(map(np.array_equal, given, before))
    held = given + all_arrays(layer.weights().arrays)
    assert not [1 for one, other in product(handed_out, held) if np.shares_memory(one, other)]
    assert all(isinstance(array, np.ndarray) and array.dtype == "float32" for array in handed_out)


def test_nan_where_there_is_no_padding_shows(backend: Backend) -> None:
    """Only padding is cleaned: a NaN in the data is the user's to see, and of its own row alone."""
    x = X.copy()
    x[2, 3, 1] = np.nan
    output = layer_of(backend.name, "gru")(x, lengths=LENGTHS).sequence
    assert np.isnan(output[2]).any()
    assert not np.isnan(output[:2]).any()
