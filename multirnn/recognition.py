"""From a framework's arrays to weights: which convention, which stack, which cell. `from_arrays`.

Names and shapes decide. Nothing is guessed: arrays that fit no cell, or several, are refused with the reason.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from multirnn.activations import Activation
from multirnn.arrays import as_array
from multirnn.cells import CELLS, FORMS, CellName
from multirnn.conventions import (
    CONVENTIONS,
    FLAX_LINEN,
    FLAX_NNX,
    KERAS,
    TEXTBOOK,
    TEXTBOOK_ROWS,
    Convention,
    convention_named,
)
from multirnn.errors import InvalidWeights, Unrepresentable, an, kind_of
from multirnn.names import fused_gates, listed, numbered_cells, one_stack
from multirnn.packing import Key, groups_of, shapes_of, unpacked
from multirnn.spec import BIASES, DIRECTIONS, DTYPES, RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["from_arrays"]


def from_arrays(
    arrays: Mapping[str, Any] | Sequence[Any],
    *,
    convention: str | Convention | None = None,
    prefix: str | None = None,
    names: Mapping[str, str] | None = None,
    cell: CellName | None = None,
    reset_after: bool | None = None,
    activation: str | Activation = "tanh",
    recurrent_activation: str | Activation = "sigmoid",
    transposed: bool | None = None,
) -> Weights:
    """The weights in a framework's arrays, exactly; the spec is read from names and shapes.

    Args:
        arrays: by the framework's names, of one stack or of a model with one. Nested dictionaries (Flax) are joined with
            "/". A list is in the order of Keras' `get_weights()`.
        convention: a name out of `CONVENTIONS`, or a `Convention`; the one that fits unless given.
        prefix: what stands before the names of this stack, such as "encoder.lstm."; needed if the arrays hold several.
        names: the framework's name of each of your own, such as `{"enc_w_ih": "weight_ih_l0"}`; others are left out.
        cell, reset_after: needed only if names and shapes leave two possibilities.
        activation, recurrent_activation: as of the layer; the arrays do not show them.
        transposed: of "textbook", whether the step is `x W` and not `W x`; needed if the matrices are square.

    Raises:
        Unrepresentable: no convention fits, several fit, or names and shapes fit no cell or several.
        InvalidWeights: dtypes are mixed, or neither float32 nor float64.
    """
    flat = listed(arrays) if isinstance(arrays, list | tuple) else _flatten(arrays)
    if isinstance(arrays, list | tuple) and convention is None:
        convention = KERAS
    if names is not None:
        if missing := [own for own in names if own not in flat]:
            raise Unrepresentable(f"there is no array {missing[0]!r}; there are {', '.join(map(repr, flat))}")
        if len(set(names.values())) < len(names):
            raise Unrepresentable("names gives one name to several arrays")
        flat = {theirs: flat[own] for own, theirs in names.items()}
    known = {"activation": activation, "recurrent_activation": recurrent_activation}

    def read(one: Convention) -> Weights:
        return _read(flat, one, prefix, cell, reset_after, known)

    if convention is not None and (chosen := convention_named(convention)) is not TEXTBOOK:
        return read(chosen)
    other = {None: None, True: TEXTBOOK, False: TEXTBOOK_ROWS}[transposed]
    among = CONVENTIONS.values() if convention is None else (TEXTBOOK, TEXTBOOK_ROWS)
    return _only(flat, read, [one for one in among if one is not other])


def _only(flat: Mapping[str, Array], read: Any, conventions: Sequence[Convention]) -> Weights:
    """The weights by the one convention that fits; several may, if they say the same."""
    found: dict[str, Weights] = {}
    refused: dict[str, Exception] = {}
    for convention in conventions:
        try:
            found[convention.name] = read(convention)
        except (Unrepresentable, InvalidWeights) as error:
            if any(re.search(rf"(?:^|[./])(?:{convention.pattern})$", name) for name in flat):
                refused[convention.name] = error
    different = [weights for place, weights in enumerate(found.values()) if weights not in [*found.values()][:place]]
    if len(different) == 1:
        return different[0]
    if set(found) == {TEXTBOOK.name, TEXTBOOK_ROWS.name}:
        raise Unrepresentable(
            "the matrices are square, so shapes do not tell W x from x W; pass transposed=False for W x, transposed=True for x W"
        )
    if found:
        raise Unrepresentable(f"the arrays fit the conventions {', '.join(found)}; pass convention=")
    if len(refused) == 1:
        raise next(iter(refused.values()))
    if refused:
        raise Unrepresentable("; ".join(f"{name}: {error}" for name, error in refused.items()))
    if not flat:
        raise Unrepresentable("there are no arrays here; every layer has some")
    some = ", ".join(map(repr, list(flat)[:3]))
    raise Unrepresentable(
        f"no convention has names such as {some}; pass names= with the name of each in a convention, "
        'as in names={"my_w_ih": "weight_ih_l0"}'
    )


def _read(
    flat: Mapping[str, Array],
    convention: Convention,
    prefix: str | None,
    cell: str | None,
    reset_after: bool | None,
    known: Mapping[str, Any],
) -> Weights:
    if convention is FLAX_LINEN:
        flat = numbered_cells(flat)
    elif convention is FLAX_NNX:
        flat = fused_gates(flat)
    own = one_stack(flat, convention, prefix)
    found = _parsed(convention, own)
    cell = cell or _named_cell(convention, own)
    candidates, reasons = [], []
    for form in FORMS.values():
        if form.form not in convention.arrays or cell not in (None, form.name):
            continue
        if form.name == "gru" and reset_after not in (None, form.reset_after):
            continue
        try:
            sizes = _sizes(convention, form.form, found)
        except Unrepresentable as reason:
            reasons.append(reason)
            continue
        gates = "sigmoid" if len(form.gates) == 1 else known["recurrent_activation"]
        for bias in BIASES:
            if bias not in convention.arrays[form.form]:
                continue
            candidate = RecurrentSpec(
                form.name,
                **sizes,
                bias=bias,
                reset_after=form.reset_after,
                activation=known["activation"],
                recurrent_activation=gates,
            )
            if convention.refuses(candidate) is None:
                candidates.append(candidate)
    shapes = {key: array.shape for key, array in found.items()}
    fitting = [spec for spec in candidates if shapes_of(spec, convention) == shapes]
    if len(fitting) > 1:
        raise Unrepresentable(
            f"names and shapes do not tell {' from '.join(spec.form.form for spec in fitting)}; "
            f"pass {'reset_after=True or reset_after=False' if len({s.cell for s in fitting}) == 1 else 'cell='}"
        )
    if not fitting and not candidates and reasons:
        raise reasons[0]
    if not fitting:
        raise Unrepresentable(_why_none_fits(convention, candidates, shapes))
    return Weights(fitting[0], unpacked(convention, fitting[0], found))


def _flatten(arrays: Any) -> dict[str, Array]:
    if not isinstance(arrays, Mapping):
        raise InvalidWeights(f"arrays must be a mapping from names to arrays, not {kind_of(arrays)}")
    flat: dict[str, Array] = {}
    for name, value in arrays.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{inner}": array for inner, array in _flatten(value).items()}
        else:
            flat[str(name)] = as_array(repr(name), value, error=InvalidWeights)
    return flat


def _parsed(convention: Convention, arrays: Mapping[str, Array]) -> dict[Key, Array]:
    """The arrays of one stack by layer, direction and own name."""
    parsed = {}
    for name, array in arrays.items():
        match = re.fullmatch(convention.pattern, name)
        assert match is not None, name
        parts = match.groupdict()
        parsed[name] = (parts["layer"] or "", parts.get("direction") or "", parts["name"], array)
    layers = _in_order([layer for layer, *_ in parsed.values()])
    if not convention.gaps and layers not in ([], [""], [str(number) for number in range(len(layers))]):
        raise Unrepresentable(
            f"the arrays are of the layers {', '.join(map(repr, layers))}; "
            f"the {convention.name} convention numbers them from 0 without gaps"
        )
    stacked = any("direction" in entry.axes for entry in next(_entries(convention)))
    found: dict[Key, Array] = {}
    for name, (layer, direction, own, array) in parsed.items():
        word = direction or convention.directions[0]
        key = (layers.index(layer), "" if stacked else DIRECTIONS[convention.directions.index(word)], own)
        if key in found:
            raise Unrepresentable(f"two arrays stand for {own} of layer {key[0]}; the second is {name!r}")
        found[key] = array
    return found


def _named_cell(convention: Convention, names: Iterable[str]) -> str | None:
    """The cell that the names of modules tell, such as "basic_rnn_cell"; None where they do not."""
    modules = {re.fullmatch(convention.pattern, name).groupdict().get("cell") or "" for name in names}  # type: ignore[union-attr]
    told = {cell for cell in CELLS if any(cell.removeprefix("simple_") in module for module in modules)}
    return told.pop() if len(told) == 1 else None


def _entries(convention: Convention) -> Iterator[Any]:
    return (entries for held in convention.arrays.values() for entries in held.values())


def _in_order(layers: list[str]) -> list[str]:
    """The layers' names without repetition: sorted by number if they differ in nothing else, else in the given order.

    Keras numbers the layers of a class in the order of creation over the whole process: lstm, lstm_1, … lstm_10.
    """
    names = list(dict.fromkeys(layers))
    numbers = {name: int(re.sub(r"\D", "", name[len(name.rstrip("0123456789")) :]) or 0) for name in names}
    stems = {name.rstrip("0123456789").rstrip("_") for name in names}
    return sorted(names, key=lambda name: numbers[name]) if len(stems) == 1 else names


def _sizes(convention: Convention, form: str, found: Mapping[Key, Array]) -> dict[str, Any]:
    """The fields of a spec that sizes tell, read as a form of a cell."""
    if not found:
        raise Unrepresentable(f"there are no arrays here; the {convention.name} convention has some for every layer")
    dtypes = sorted({str(array.dtype) for array in found.values()})
    if len(dtypes) > 1 or dtypes[0] not in DTYPES:
        raise InvalidWeights(f"the arrays must all be float32 or all float64, not {' and '.join(dtypes)}")
    sizes: dict[str, int] = {}
    directions = {direction for _, direction, _ in found}
    gates = len(FORMS[form].gates)
    for entry in next(iter(convention.arrays[form].values())):
        if not entry.holds[0].startswith("weight"):
            continue
        own = re.compile(re.escape(entry.name).replace(r"\{gate\}", "[a-z]?"))
        array = next((a for (layer, _, name), a in found.items() if not layer and own.fullmatch(name)), None)
        if array is None:
            raise Unrepresentable(f"layer 0 has no array {entry.name}, which the {convention.name} convention has")
        groups = groups_of(entry.axes)
        if array.ndim != len(groups) or 0 in array.shape:
            raise Unrepresentable(
                f"{entry.name} of layer 0 must have the axes {entry.axes}, not the shape {array.shape}"
            )
        if ["direction"] in groups:
            directions = set(DIRECTIONS[: array.shape[groups.index(["direction"])]])
        if len(entry.holds) == 2:  # both weights along source: the units are in the other axis
            hidden = array.shape[groups.index(["gate", "unit"])] // len(entry.gates or range(gates))
            sizes = {"weight_hh": hidden, "weight_ih": array.shape[groups.index(["source"])] - hidden}
        elif ["source"] in groups:
            sizes[entry.holds[0]] = array.shape[groups.index(["source"])]
        else:
            sizes[entry.holds[0]] = array.shape[groups.index(["unit"])]  # a recurrent kernel is square in each gate
    if min(sizes.values()) < 1:
        raise Unrepresentable(f"the arrays of layer 0 are too small for {an(form)}")
    return {
        "input_size": sizes["weight_ih"],
        "hidden_size": sizes["weight_hh"],
        "num_layers": 1 + max(layer for layer, _, _ in found),
        "bidirectional": "backward" in directions,
        "dtype": dtypes[0],
    }


def _why_none_fits(
    convention: Convention, candidates: list[RecurrentSpec], shapes: Mapping[Key, tuple[int, ...]]
) -> str:
    """The first mismatch with the candidate that fits the most arrays."""
    if not candidates:
        return f"the {convention.name} convention has no such cell"
    best = max(candidates, key=lambda spec: len(shapes_of(spec, convention).items() & shapes.items()))
    wanted = shapes_of(best, convention)
    what = f"as {an(best.form.form)} with {best.input_size} inputs and {best.hidden_size} units"
    for (layer, direction, name), shape in shapes.items():
        where = f"{name} of layer {layer}{' ' + direction if direction else ''}"
        expected = wanted.get((layer, direction, name))
        if expected is None:
            return f"the arrays fit no cell: read {what}, there is no place for {where}"
        if expected != shape:
            return f"the arrays fit no cell: read {what}, {where} must have the shape {expected}, not {shape}"
    layer, direction, name = next(key for key in wanted if key not in shapes)
    return (
        f"the arrays fit no cell: read {what}, {name} of layer {layer}{' ' + direction if direction else ''} is missing"
    )
