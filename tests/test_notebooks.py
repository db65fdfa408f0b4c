"""What a notebook shows, executed in a real kernel: each record once, as one piece of HTML; and the text of `str`."""

import re
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

SETUP = """
import multirnn as mr
from multirnn.parity import train_parity
spec = mr.RecurrentSpec("gru", 4, 3)
layer = mr.build(spec, "numpy")
other = mr.build(spec, "numpy", seed=1)
found = {
    "Comparison": mr.compare(spec, backends="numpy"),
    "Parity": train_parity(spec, backends="numpy", steps=2, optimisers="sgd"),
    "Divergence": mr.first_divergence(layer, other),
    "Diagnosis": mr.diagnose(layer, other),
}
"""
TITLES = {
    "Comparison": "RecurrentSpec('gru', input_size=4, hidden_size=3) on batch 5, time 7",
    "Parity": "RecurrentSpec('gru', input_size=4, hidden_size=3) trained for 2 steps on batch",
    "Divergence": "First divergence: layer 0, forward, step 0",
    "Diagnosis": "A: NumpyLayer; B: NumpyLayer; RecurrentSpec('gru', input_size=4, hidden_size=3)",
}
TABLE = "from multirnn.tables import Table\ntable = Table('name', 'value')\ntable.add_row('<one>', '1')\n"


@pytest.fixture(scope="module")
def outputs() -> dict[str, list[Any]]:
    """What each cell wrote, by its source."""
    shown = [f"found[{name!r}]" for name in TITLES]
    cells = [SETUP, *shown, *(f"print({name})" for name in shown), *(f"len(str({name}))" for name in shown)]
    cells += [f"{TABLE}table", "list(found.values())"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3", allow_errors=False).execute()
    return {cell.source: cell.outputs for cell in notebook.cells}


@pytest.mark.parametrize("name", TITLES)
def test_a_record_is_shown_once(outputs: dict[str, list[Any]], name: str) -> None:
    (shown,) = outputs[f"found[{name!r}]"]
    assert shown.output_type == "execute_result"
    assert set(shown.data) == {"text/html", "text/plain"}
    html, plain = shown.data["text/html"], shown.data["text/plain"]
    title = TITLES[name]
    assert plain.startswith(title)
    assert html.count(title.replace("'", "&#x27;")) == 1
    assert html.count("<table>") == 1
    assert "\x1b" not in plain


@pytest.mark.parametrize("name", TITLES)
def test_its_text_is_printed_and_is_a_string(outputs: dict[str, list[Any]], name: str) -> None:
    (printed,) = outputs[f"print(found[{name!r}])"]
    assert (printed.output_type, printed.name) == ("stream", "stdout")
    assert printed.text.startswith(TITLES[name])
    assert max(map(len, printed.text.splitlines())) <= 80
    (length,) = outputs[f"len(str(found[{name!r}]))"]
    assert set(length.data) == {"text/plain"}
    assert int(length.data["text/plain"]) == len(printed.text) - 1


def test_a_table_and_a_list_of_records(outputs: dict[str, list[Any]]) -> None:
    (table,) = outputs[f"{TABLE}table"]
    assert "<td>&lt;one&gt;</td>" in table.data["text/html"]
    (listed,) = outputs["list(found.values())"]
    assert set(listed.data) == {"text/plain"}
    assert all(re.search(re.escape(title), listed.data["text/plain"]) for title in TITLES.values())


def test_the_setup_shows_nothing(outputs: dict[str, list[Any]]) -> None:
    assert outputs[SETUP] == []
