"""Flax's msgpack files: what Flax writes is read without it, and what is written it loads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convention_stacks import stack

import multirnn as mr
from multirnn.cells import FORMS

msgpack = pytest.importorskip("msgpack")
jax = pytest.importorskip("jax")
nn = pytest.importorskip("flax.linen")
serialization = pytest.importorskip("flax.serialization")
optax = pytest.importorskip("optax")

CELLS = {"simple_rnn": "SimpleCell", "lstm": "LSTMCell", "gru reset after": "GRUCell"}
X = np.ones((2, 3, 5), "float32")


def filled(tree: Any) -> Any:
    """The tree with distinct numbers, zeros of Flax's biases too."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.uniform(-1, 1, leaf.shape).astype(leaf.dtype), tree)


def parameters(model: Any, x: Any = X) -> Any:
    """The parameters of a model, distinct and not zero."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return filled(shapes)["params"]


def saved(path: Path, tree: Any) -> Path:
    path.write_bytes(serialization.to_bytes(tree))
    return path


# --- Reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "around", [{}, {"params": ...}, {"model": {"params": ...}}], ids=["", "params", "model/params"]
)
@pytest.mark.parametrize("form", CELLS)
def test_a_layer_is_read_bit_for_bit(tmp_path: Path, form: str, around: Any) -> None:
    own = parameters(nn.RNN(getattr(nn, CELLS[form])(4)))
    tree = {"params": own} if around.get("params") else {"model": {"params": own}} if around else own
    path = saved(tmp_path / "a.msgpack", tree)
    (only,) = mr.inspect(path)
    assert only.name == "/".join([*around, *(["params"] if "model" in around else [])])
    assert only.convention == "flax-linen"
    assert mr.load(path) == mr.from_arrays(own, convention="flax-linen")
    assert only.spec.form.form == form


class Compact(nn.Module):
    """Flax numbers the cells that a compact method makes."""

    cell: str

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for size in (4, 3):
            x = nn.RNN(getattr(nn, self.cell)(size))(x)
        return nn.Dense(2)(x)


@pytest.mark.parametrize("cell", ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"])
def test_cells_that_flax_numbers(tmp_path: Path, cell: str) -> None:
    tree = parameters(Compact(cell))
    assert {f"{cell}_0", "Dense_0"} <= set(tree)
    for number in (0, 1):
        path = saved(tmp_path / "a.msgpack", {f"{cell}_0": tree[f"{cell}_{number}"], "Dense_0": tree["Dense_0"]})
        own = {f"cell/{name}": array for name, array in _flat(tree[f"{cell}_{number}"]).items()}
        assert mr.load(path) == mr.from_arrays(own, convention="flax-linen")


def _flat(tree: Any, before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{before}{name}/") if isinstance(value, dict) else {f"{before}{name}": value}
    return found


def test_numbered_cells_of_several_kinds_and_modules(tmp_path: Path) -> None:
    lstm, gru = (parameters(nn.RNN(getattr(nn, cell)(4)))["cell"] for cell in ("LSTMCell", "GRUCell"))
    path = saved(tmp_path / "a.msgpack", {"a": {"LSTMCell_0": lstm, "GRUCell_0": gru}, "b": {"GRUCell_0": gru}})
    assert {one.name: one.spec.cell for one in mr.inspect(path)} == {
        "a/LSTMCell": "lstm",
        "a/GRUCell": "gru",
        "b": "gru",
    }
    assert mr.load(path, "b") == mr.load(path, "a/GRUCell") == mr.from_arrays({"cell": gru}, convention="flax-linen")


def test_cells_that_may_be_layers_or_directions_are_refused(tmp_path: Path) -> None:
    cell = parameters(nn.RNN(nn.GRUCell(5)))["cell"]
    path = saved(tmp_path / "a.msgpack", {"GRUCell_0": cell, "GRUCell_1": cell})
    with pytest.raises(mr.FormatError, match="GRUCell_0 and GRUCell_1 may be two layers or two directions"):
        mr.load(path)


def test_or_each_cell_is_found_alone_and_that_is_said(tmp_path: Path) -> None:
    cell = parameters(nn.RNN(nn.LSTMCell(5)))["cell"]
    path = saved(tmp_path / "a.msgpack", {"LSTMCell_0": cell, "LSTMCell_1": cell})
    assert [one.name for one in mr.inspect(path)] == ["LSTMCell_0", "LSTMCell_1"]
    for one in mr.inspect(path):
        assert "LSTMCell_0 and LSTMCell_1 may be two layers or two directions" in one.about[-1]
    assert mr.load(path, "LSTMCell_1") == mr.from_arrays({"cell": cell}, convention="flax-linen")


def test_a_stack_in_a_sequential_model_is_one(tmp_path: Path) -> None:
    """Once it was read as a stack of another convention for each layer too."""
    spec = mr.RecurrentSpec("lstm", 5, 4, 2, bidirectional=True)
    layers = [nn.Bidirectional(nn.RNN(nn.LSTMCell(4)), nn.RNN(nn.LSTMCell(4))) for _ in range(2)]
    tree = parameters(nn.Sequential(layers))
    path = saved(tmp_path / "a.msgpack", tree)
    (only,) = mr.inspect(path)
    assert (only.name, only.spec, only.convention) == ("", spec, "flax-linen")
    assert mr.load(path) == mr.from_arrays(tree, convention="flax-linen")


def test_the_state_of_an_optimiser_is_no_stack(tmp_path: Path) -> None:
    state = pytest.importorskip("flax.training.train_state")
    model = nn.RNN(nn.GRUCell(4))
    tree = parameters(model)
    whole = state.TrainState.create(apply_fn=model.apply, params=tree, tx=optax.adam(0.1))
    path = saved(tmp_path / "a.msgpack", whole)
    assert b"opt_state" in path.read_bytes()
    assert [one.name for one in mr.inspect(path)] == ["params"]
    assert mr.load(path) == mr.from_arrays(tree, convention="flax-linen")


def test_arrays_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = parameters(nn.RNN(nn.LSTMCell(4)))
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 48)
    path = saved(tmp_path / "a.msgpack", tree)
    assert b"__msgpack_chunked_array__" in path.read_bytes()
    assert mr.load(path) == mr.from_arrays(tree, convention="flax-linen")


@pytest.mark.parametrize("pieces", [None, 16])
@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_half_precision_is_widened_exactly(
    tmp_path: Path, stored: str, pieces: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    jnp = jax.numpy
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, stored), parameters(nn.RNN(nn.LSTMCell(4))))
    if pieces:
        monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", pieces)
    path = saved(tmp_path / "a.msgpack", {**half, "scale": jnp.zeros(3, "float8_e4m3fn"), "step": 3, "z": 1j})
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), half)
    assert mr.load(path) == mr.from_arrays(wide, convention="flax-linen")
    assert mr.inspect(path)[0].stored == stored


# --- Writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("form", CELLS)
def test_flax_loads_what_is_written(tmp_path: Path, form: str, layers: int, bidirectional: bool) -> None:
    def layer() -> Any:
        rnn = [nn.RNN(getattr(nn, CELLS[form])(4)) for _ in range(1 + bidirectional)]
        return nn.Bidirectional(*rnn) if bidirectional else rnn[0]

    weights = mr.initialise(stack(form, "single", num_layers=layers, bidirectional=bidirectional), 1)
    written = mr.save(weights, tmp_path / "a.msgpack")
    model = nn.Sequential([layer() for _ in range(layers)]) if layers > 1 else layer()
    loaded = serialization.from_bytes(parameters(model), (tmp_path / "a.msgpack").read_bytes())
    assert mr.from_arrays(loaded, convention="flax-linen") == weights == mr.load(tmp_path / "a.msgpack")
    assert (written.convention, written.changes) == ("flax-linen", ())


def test_float64_stays(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 5, 4, dtype="float64"), 1)
    mr.save(weights, tmp_path / "a.msgpack")
    found = serialization.msgpack_restore((tmp_path / "a.msgpack").read_bytes())
    assert found["cell"]["hi"]["kernel"].dtype == np.float64
    assert mr.load(tmp_path / "a.msgpack") == weights


@pytest.mark.parametrize("form", [form for form in FORMS if form in CELLS])
@pytest.mark.parametrize("bias", ["none", "double"])
def test_biases_that_flax_does_not_hold_are_folded_and_said(tmp_path: Path, form: str, bias: str) -> None:
    weights = mr.initialise(stack(form, bias), 1)
    written = mr.save(weights, tmp_path / "a.msgpack")
    assert mr.load(tmp_path / "a.msgpack") == mr.fold_biases(mr.split_biases(weights))
    (change,) = written.changes
    assert ("biases of zero were added" if bias == "none" else "the two biases of each gate were added up") in change


def test_an_array_of_more_than_four_gigabytes_is_refused(tmp_path: Path) -> None:
    from multirnn.formats.msgpack import _pack_array

    large = np.broadcast_to(np.float32(0), (1 << 15, 1 << 15))
    with (
        (tmp_path / "a.msgpack").open("wb") as file,
        pytest.raises(mr.FormatError, match="of 4294967296 bytes; save it as"),
    ):
        _pack_array(msgpack.Packer(), large, file)


# --- Damaged ---------------------------------------------------------------------------------------------------------


def ext(shape: Any, dtype: Any, raw: Any, code: int = 1) -> Any:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, raw)))


DEEP: Any = 1
for _ in range(150):
    DEEP = {"a": DEEP}
DAMAGED = {
    "empty": (b"", "is no msgpack file of Flax"),
    "text": (b"nonsense", "is no msgpack file of Flax"),
    "terabytes": ({"a": ext((1 << 40,), "float32", b"1234")}, "claims the shape"),
    "negative": ({"a": ext((-1,), "float32", b"1234")}, "has an impossible shape"),
    "a shape of text": ({"a": ext("ab", "float32", b"1234")}, r"claims the shape \(97, 98\)"),
    "no tuple": ({"a": msgpack.ExtType(1, b"\x01")}, "is no msgpack file of Flax, or damaged"),
    "another extension": ({"a": ext((1,), "float32", b"1234", 9)}, "the unknown extension type 9"),
    "objects": ({"a": ext((1,), "object", b"12345678")}, "holds no recurrent stack"),
    "a name twice": (b"\x82\xa1a\x01\xa1a\x02", "it names something twice"),
    "two of one name": (
        {"a/b": ext((1,), "float32", b"1234"), "a": {"b": ext((1,), "float32", b"1234")}},
        "has two arrays that are named 'a/b'",
    ),
    "depth": (DEEP, "is nested more than 100 deep"),
    "an array of terabytes": (b"\xdd\xff\xff\xff\xff", "is no msgpack file of Flax"),
    "pieces": ({"a": {"__msgpack_chunked_array__": True}}, "has an array in pieces, and no list of them"),
    "no pieces": (
        {"a": {"__msgpack_chunked_array__": True, "chunks": {}, "shape": {}}},
        "has an array in pieces, and no list of them",
    ),
    "pieces that are none": (
        {"a": {"__msgpack_chunked_array__": True, "chunks": {"0": 3}, "shape": {"0": 1}}},
        "has an array in pieces of several dtypes|no list of them",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_told(tmp_path: Path, what: str) -> None:
    data, sentence = DAMAGED[what]
    path = tmp_path / "a.msgpack"
    path.write_bytes(data if isinstance(data, bytes) else msgpack.packb(data))
    with pytest.raises(mr.FormatError, match=sentence) as error:
        mr.load(path)
    assert str(error.value).startswith(str(path))
