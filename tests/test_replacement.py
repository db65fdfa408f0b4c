"""`replace_layers` without a framework: the record of a replacement, and what is refused."""

import json
import subprocess
import sys
from typing import Any

import pytest

import multirnn as mr
from multirnn.protocol import Abilities
from multirnn.replacement import Kept, Replaced, Replacement, refuse_without


class Model:
    pass


class Undone(Replacement):
    def restore(self) -> None:
        self.model.restored = True


REPLACED = [Replaced("encoder.rnn", "LSTM", "FastLSTM"), Replaced("", "GRU", "FastGRU")]
KEPT = [Kept("decoder", "LSTM", "it projects its state (proj_size=3), which no fast layer does")]


def test_the_record_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    record = Undone(Model(), REPLACED, KEPT)
    assert str(record) == repr(record)
    assert str(record).splitlines() == [
        "Model: 2 of 3 recurrent layers replaced",
        "layer        before  after",
        "─" * 60,
        "encoder.rnn  LSTM    FastLSTM",
        "(the model)  GRU     FastGRU",
        "decoder      LSTM    kept: it projects its state",
        "                     (proj_size=3), which no fast layer does",
    ]
    assert str(Undone(Model(), REPLACED[:1], [])).startswith("Model: 1 of 1 recurrent layer replaced\n")


def test_the_record_as_json_and_html() -> None:
    record = Undone(Model(), REPLACED, KEPT)
    assert json.loads(record.to_json()) == {
        "model": "Model",
        "replaced": [
            {"path": "encoder.rnn", "before": "LSTM", "after": "FastLSTM"},
            {"path": "", "before": "GRU", "after": "FastGRU"},
        ],
        "kept": [{"path": "decoder", "kind": "LSTM", "reason": KEPT[0].reason}],
    }
    assert "<td>kept: it projects its state" in record._repr_html_()


def test_the_record_has_the_model_itself() -> None:
    model: Any = Model()
    record = Undone(model, REPLACED, KEPT)
    assert record.model is model
    assert (record.replaced, record.kept) == (tuple(REPLACED), tuple(KEPT))
    record.restore()
    assert model.restored


def test_nothing_replaced_is_an_error_with_the_reasons() -> None:
    with pytest.raises(mr.InvalidCall, match=r"^this Model has no recurrent layer to replace$"):
        refuse_without(Model(), [])
    said = r"^no recurrent layer of this Model can be replaced: a \(LSTM\): it is odd; b.c \(GRU\): it is even$"
    with pytest.raises(mr.InvalidCall, match=said):
        refuse_without(Model(), [Kept("a", "LSTM", "it is odd"), Kept("b.c", "GRU", "it is even")])
    with pytest.raises(mr.InvalidCall, match=r"^no recurrent layer of this Model can be replaced: it is odd$"):
        refuse_without(Model(), [Kept("", "LSTM", "it is odd")])


@pytest.mark.parametrize("model", [None, 3, "model.pt", Model(), Model, {}, mr.RecurrentSpec("gru", 2, 3)])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(
        mr.InvalidCall, match=r"^layers are replaced inside a PyTorch module, a Keras model or a Flax NNX module, not "
    ):
        mr.replace_layers(model)


def test_a_layer_of_a_backend_without_models_is_refused() -> None:
    native = mr.build(mr.RecurrentSpec("gru", 2, 3), "numpy").native
    assert mr.read(native).spec.cell == "gru"
    with pytest.raises(mr.InvalidCall, match=r"^layers are replaced inside a PyTorch module"):
        mr.replace_layers(native)


@pytest.mark.parametrize("implementation", ["frozen", "quick", None, True])
def test_another_implementation_is_refused(implementation: Any) -> None:
    with pytest.raises(mr.InvalidCall, match=f"^the layers of a model are 'fast' or 'native', not {implementation!r}$"):
        mr.replace_layers(Model(), implementation)


WITHOUT = """
import sys
import multirnn as mr

sys.modules["torch"] = None
model = type("Model", (), {"__module__": "torch.nn"})()
try:
    mr.replace_layers(model)
except mr.MissingFramework as error:
    print(error)
"""


def test_a_framework_that_is_not_installed() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert done.stdout == "backend 'torch' needs 'torch', which is not installed: pip install \"multirnn[torch]\"\n"


def test_a_misspelt_ability_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"has 'replace_layer' \(did you mean 'replace_layers'\?\)"):
        type("Misspelt", (Abilities,), {"replace_layer": None})
