"""Names as people's models have them: prefixes, cells, and what Flax numbers by itself."""

from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.numerics import difference, tolerance

LSTM = mr.RecurrentSpec("lstm", 3, 5, num_layers=2, bidirectional=True, bias="double")


def torch_arrays(prefix: str = "") -> dict[str, np.ndarray]:
    arrays = mr.to_arrays(mr.initialise(LSTM, seed=1), convention="torch")
    return {prefix + name: array for name, array in arrays.items()}


@pytest.mark.parametrize("prefix", ["module.", "rnn.", "_orig_mod.", "encoder.lstm.", "module._orig_mod.layers.0."])
def test_one_prefix_of_all_names_is_passed_over(prefix: str) -> None:
    assert mr.from_arrays(torch_arrays(prefix), convention="torch") == mr.initialise(LSTM, seed=1)


def test_a_stack_is_found_in_a_model() -> None:
    arrays = torch_arrays("encoder.lstm.") | {"fc.weight": np.zeros((2, 10), "float32")}
    for convention in ("torch", None):
        assert mr.from_arrays(arrays, convention=convention) == mr.initialise(LSTM, seed=1)


def test_of_several_stacks_the_sentence_names_the_prefixes() -> None:
    two = torch_arrays("encoder.") | torch_arrays("decoder.")
    for convention in ("torch", None):
        with pytest.raises(mr.Unrepresentable, match=r"pass prefix= one of 'encoder\.', 'decoder\.'$"):
            mr.from_arrays(two, convention=convention)
        assert mr.from_arrays(two, convention=convention, prefix="decoder.") == mr.initialise(LSTM, seed=1)
    with pytest.raises(mr.Unrepresentable, match=r"has the prefix 'coder\.'; there are 'encoder\.' and 'decoder\.'$"):
        mr.from_arrays(two, convention="torch", prefix="coder.")


@pytest.mark.parametrize("prefix", ["", "cell."])
@pytest.mark.parametrize("form", ["simple_rnn", "lstm", "gru"])
def test_the_arrays_of_a_cell(form: str, prefix: str) -> None:
    torch = pytest.importorskip("torch")
    kind = {"simple_rnn": torch.nn.RNNCell, "lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}[form]
    cell = kind(3, 5)
    arrays = {prefix + name: value.numpy() for name, value in cell.state_dict().items()}
    weights = mr.from_arrays(arrays)
    assert weights.spec == mr.RecurrentSpec(form, 3, 5, bias="double")
    x = np.random.default_rng(0).standard_normal((2, 1, 3)).astype("float32")
    with torch.no_grad():
        native = cell(torch.from_numpy(x[:, 0]))
    native = native[0] if form == "lstm" else native
    ours = mr.build(weights, "numpy")(x).sequence[:, 0]
    assert difference(native.numpy(), ours).normwise <= tolerance("float32")


def test_names_of_ones_own() -> None:
    arrays = torch_arrays()
    own = {f"enc_{number}": array for number, array in enumerate(arrays.values())} | {"other": np.zeros(3, "float32")}
    names = {f"enc_{number}": name for number, name in enumerate(arrays)}
    assert mr.from_arrays(own, names=names) == mr.initialise(LSTM, seed=1)
    with pytest.raises(mr.Unrepresentable, match=r"^there is no array 'enc_99'; there are 'enc_0', "):
        mr.from_arrays(own, names=names | {"enc_99": "weight_ih_l3"})
    with pytest.raises(
        mr.Unrepresentable, match=r"^no convention has names such as 'enc_0', .*pass names= with the name"
    ):
        mr.from_arrays(own)


# --- A list, as Keras' get_weights() gives it -----------------------------------------------------------------------------


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("cell", "bias"), [("simple_rnn", "none"), ("lstm", "single"), ("gru", "double")])
def test_a_list_of_arrays(cell: str, bias: str, both: bool) -> None:
    keras = pytest.importorskip("keras")
    kind = {"simple_rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[cell]
    layers = [kind(5, return_sequences=True, use_bias=bias != "none") for _ in range(2)]
    model = keras.Sequential([keras.Input((None, 3)), *(map(keras.layers.Bidirectional, layers) if both else layers)])
    x = np.random.default_rng(0).standard_normal((2, 6, 3)).astype("float32")
    known = {"reset_after": True} if cell == "gru" else {}
    weights = mr.from_arrays(model.get_weights(), **known)
    assert weights.spec == mr.RecurrentSpec(cell, 3, 5, num_layers=2, bidirectional=both, bias=bias)
    native = keras.ops.convert_to_numpy(model(x))
    assert difference(native, mr.build(weights, "numpy")(x).sequence).normwise <= tolerance("float32")


def test_lists_that_are_no_layers() -> None:
    kernel, recurrent = np.zeros((3, 5), "float32"), np.zeros((5, 5), "float32")
    with pytest.raises(mr.Unrepresentable, match=r"^a list of arrays must have a kernel, a recurrent kernel"):
        mr.from_arrays([kernel])
    with pytest.raises(mr.Unrepresentable, match=r"^the arrays may be two layers or two directions"):
        mr.from_arrays([recurrent, recurrent, recurrent, recurrent])


# --- Flax -------------------------------------------------------------------------------------------------------------


def compact(make: Any, features: int = 3) -> tuple[Any, np.ndarray, Any]:
    """The parameters of a module with `nn.compact`, x, and what the module computes."""
    jax, nn = pytest.importorskip("jax"), pytest.importorskip("flax.linen")

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return make(nn, x)

    x = np.random.default_rng(0).standard_normal((2, 7, features)).astype("float32")
    params = Model().init(jax.random.key(0), x)["params"]
    return params, x, np.asarray(Model().apply({"params": params}, x))


def assert_reads(params: Any, x: np.ndarray, expected: np.ndarray) -> mr.Weights:
    weights = mr.from_arrays(params, convention="flax-linen")
    found = mr.build(weights, "numpy")(x).sequence
    assert difference(found, expected).normwise <= tolerance("float32")
    return weights


def test_one_compact_layer() -> None:
    for kind in ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"):
        params, x, y = compact(lambda nn, x, kind=kind: nn.RNN(getattr(nn, kind)(5))(x))
        assert list(params) == [f"{kind}_0"]
        assert assert_reads(params, x, y).spec.num_layers == 1


def test_compact_layers() -> None:
    def make(nn: Any, x: Any) -> Any:
        for _ in range(3):
            x = nn.RNN(nn.GRUCell(5))(x)
        return x

    assert assert_reads(*compact(make)).spec.num_layers == 3


@pytest.mark.parametrize("features", [3, 5])
@pytest.mark.parametrize("layers", [1, 2])
def test_compact_directions(layers: int, features: int) -> None:
    def make(nn: Any, x: Any) -> Any:
        for _ in range(layers):
            x = nn.Bidirectional(nn.RNN(nn.LSTMCell(5)), nn.RNN(nn.LSTMCell(5)))(x)
        return x

    call = compact(make, features)
    if (layers, features) == (1, 5):
        with pytest.raises(mr.Unrepresentable, match="LSTMCell_0 and LSTMCell_1 may be two layers or two directions"):
            mr.from_arrays(call[0], convention="flax-linen")
        return
    spec = assert_reads(*call).spec
    assert (spec.num_layers, spec.bidirectional) == (layers, True)


def test_compact_cells_of_two_kinds_are_refused() -> None:
    params, *_ = compact(lambda nn, x: nn.RNN(nn.GRUCell(5))(nn.RNN(nn.LSTMCell(5))(x)))
    with pytest.raises(
        mr.Unrepresentable, match=r"the arrays are of .*Cell and .*Cell; pass those of one kind of cell"
    ):
        mr.from_arrays(params, convention="flax-linen")
