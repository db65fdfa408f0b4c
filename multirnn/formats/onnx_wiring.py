"""What joins the recurrent operators of an ONNX model to each other and to the rest of it.

Where nodes only move numbers, it is proven: numbers are drawn for what the model is given and for what each operator
returns, and they must arrive in their order, bit for bit. All else is described by the names of the nodes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multirnn.errors import FormatError
from multirnn.formats.onnx_facts import short
from multirnn.formats.onnx_model import MAIN, Missing, Model, Place, Scope, Value
from multirnn.formats.onnx_nodes import MOVING, ORDERING, SIZES, Budget, data_of
from multirnn.formats.onnx_operators import C_0, H_0, LENGTHS, Operator, X

__all__ = ["Wiring"]

LARGEST = 1 << 19
"""Numbers in one array that is drawn."""
MOST, MOST_OUTPUTS = 1 << 23, 100
"""Numbers that are drawn in all, and outputs of a model that are tried."""
TIME, BATCH = 7, 5
LAYOUTS = ("(time, batch, features)", "(batch, time, features)", "(time, features)", "(batch, features)")


@dataclass
class _Start:
    """How a chain of operators begins.

    Attributes:
        x: the model's input; empty if something stands between.
        layout: of x, in words; empty if something stands between.
        time, batch: the sizes that are tried.
        drawn: x, where it is known.
    """

    x: str = ""
    layout: str = ""
    time: int = TIME
    batch: int = BATCH
    drawn: dict[Place, Value] = field(default_factory=dict)


class Wiring:
    """The paths between the operators of a model.

    Args:
        model: with the operators.
        operators: those that a spec describes.

    Raises:
        FormatError: the model has nothing but recurrent operators and nodes that move numbers, and those bring the
            numbers out of order.
    """

    def __init__(self, model: Model, operators: Sequence[Operator]) -> None:
        self._model = model
        self._rng, self._left, self._budget = np.random.default_rng(0), MOST, Budget(4 * MOST, nodes=200_000)
        self._units = max((one.directions * one.arrays["R"].shape[2] for one in operators), default=1)
        self._order: dict[int, int] = {}
        self._consumers: dict[Place, list[tuple[Scope, Any]]] = {}
        self._paths: dict[Place, tuple[list[tuple[Scope, str]], list[str], set[int]]] = {}
        for scope in model.kept:
            for node in scope.nodes:
                self._order[id(node)] = len(self._order)
                for name in filter(None, node.input):
                    self._consumed(scope, node, name)
        self._makers = {(id(one.scope), one.output(0)): one for one in operators if one.output(0)}
        own = {id(one.node) for one in operators}
        self._others = [node for node in model.main.nodes if id(node) not in own and not self._moves(node, SIZES)]
        self._starts: dict[Operator, _Start] = {}
        self.below: dict[Operator, Operator] = {}
        self._between: set[int] = set()
        for one in operators:
            self._starts[one] = self._joined(one) or self._started(one)
        fed = list(self.below.values())
        self.below = {above: below for above, below in self.below.items() if fed.count(below) == 1}

    def _consumed(self, scope: Scope, node: Any, name: str) -> None:
        """Note that a node takes a value, and that the nodes take it which hold graphs around that node."""
        there, own = scope.find(name)
        here: Scope | None = scope
        while here is not None:
            self._consumers.setdefault((id(there), own), []).append((here, node))
            if here is there or here.outer is None or here.holder is None:
                return
            node, here = here.holder

    def _moves(self, node: Any, also: frozenset[str] = frozenset()) -> bool:
        return node.domain in MAIN and node.op_type in MOVING | also and not self._model.function(node)

    def _path(self, scope: Scope, name: str) -> tuple[list[tuple[Scope, str]], list[str], set[int]]:
        """What a value is moved from, the kinds of the nodes that move it, and their identities."""
        key = id(scope), name
        if key not in self._paths:
            self._paths[key] = self._searched(scope, name)
        return self._paths[key]

    def _searched(self, scope: Scope, name: str) -> tuple[list[tuple[Scope, str]], list[str], set[int]]:
        sources: dict[Place, tuple[Scope, str]] = {}
        kinds: dict[str, None] = {}
        nodes: set[int] = set()
        waiting, seen = [scope.find(name)], set()
        while waiting:
            here, one = waiting.pop()
            if not one or (id(here), one) in seen:
                continue
            seen.add((id(here), one))
            node = here.makers.get(one)
            if node is None or not self._moves(node, frozenset(("Min", "Max"))):
                sources[id(here), one] = here, one
            elif node.op_type != "Constant":
                kinds[node.op_type] = None
                nodes.add(id(node))
                waiting += [here.find(given) for given in data_of(node.op_type, node.input)]
        return list(sources.values()), list(kinds)[::-1], nodes

    def _evaluated(self, scope: Scope, name: str, drawn: Mapping[Place, Value]) -> NDArray[Any] | None:
        """A value, from drawn ones; None if it depends on others, or does not fit."""
        try:
            value = self._model.evaluated(scope, name, dict(drawn), self._budget)
        except FormatError:
            return None
        return None if isinstance(value, Missing) else value

    def _draw(self, operator: Operator, shape: Sequence[int]) -> NDArray[Any]:
        self._left -= prod(shape)
        if self._left < 0:
            raise FormatError(
                "its operators and sizes are too many for trying how they are joined; export it with free sizes of batch "
                "and time"
            )
        return self._rng.standard_normal(shape).astype(operator.arrays["W"].dtype)

    # --- Before an operator ------------------------------------------------------------------------------------------

    def _joined(self, above: Operator) -> _Start | None:
        """The start of the operator that feeds this one, if nothing stands between but their right order."""
        sources, kinds, nodes = self._path(above.scope, above.input(X))
        below = self._makers.get((id(sources[0][0]), sources[0][1])) if len(sources) == 1 else None
        if below is None or below not in self._starts or not ORDERING.issuperset(kinds):
            return None  # a node stands behind those that it needs, in every valid model
        start, hidden = self._starts[below], below.arrays["R"].shape[2]
        y = self._draw(below, (start.time, below.directions, start.batch, hidden))
        drawn = start.drawn | {(id(below.scope), below.output(0)): y.transpose(2, 0, 1, 3) if below.batch_first else y}
        found = self._evaluated(above.scope, above.input(X), drawn)
        joined = y.swapaxes(1, 2).reshape(start.time, start.batch, -1)
        if found is not None and np.array_equal(found, joined.swapaxes(0, 1) if above.batch_first else joined):
            if _alike(below, above) and self._lengths(below) == self._lengths(above):
                self.below[above] = below
                self._between |= nodes
            return start
        if found is not None or start.layout:
            self._out_of_order(f"from the operator {short(below.name)} to {short(above.name)}", kinds)
        return None

    def _out_of_order(self, where: str, kinds: Sequence[str]) -> None:
        if not self._others:
            raise FormatError(
                f"{where} the numbers go through {', '.join(kinds) or 'no node'}, which is not their order in a stack; "
                "between layers Y (time, directions, batch, units) becomes (time, batch, directions * units)"
            )

    def _started(self, operator: Operator) -> _Start:
        sources, kinds, _ = self._path(operator.scope, operator.input(X))
        main, start = self._model.main, _Start()
        if len(sources) != 1 or sources[0][0] is not main or sources[0][1] not in main.inputs:
            return start
        name, features = sources[0][1], operator.arrays["W"].shape[2]
        dims = self._dims(name) or [0, 0, 0]
        free = [TIME, BATCH, features] if len(dims) == 3 else [TIME, features]
        shape = [size or other for size, other in zip(dims, free, strict=False)]
        if len(dims) not in (2, 3) or prod(map(float, shape)) > LARGEST:
            return start
        x = self._draw(operator, shape)
        start.drawn = {(id(main), name): x}
        found = self._evaluated(operator.scope, operator.input(X), start.drawn)
        if found is None or found.ndim != 3:
            return start
        found = found.swapaxes(0, 1) if operator.batch_first else found
        if prod(found.shape[:2]) * self._units > LARGEST or 0 in found.shape:
            return _Start()
        start.time, start.batch = found.shape[:2]
        forms = [x, x.swapaxes(0, 1)] if x.ndim == 3 else [None, None, x[:, None], x[None]]
        for layout, form in zip(LAYOUTS, forms, strict=False):
            if form is not None and np.array_equal(found, form):
                start.x, start.layout = name, layout
                return start
        if ORDERING.issuperset(kinds):
            self._out_of_order(f"from the input {short(name)} to the operator {short(operator.name)}", kinds)
        return start

    def _dims(self, name: str) -> list[int]:
        """The sizes of an input of the model; 0 where any is taken."""
        value = next(one for one in self._model.inputs if one.name == name)
        return [max(0, dim.dim_value) for dim in value.type.tensor_type.shape.dim]

    def _lengths(self, operator: Operator) -> Place | None:
        if not (name := operator.input(LENGTHS)):
            return None
        scope, name = operator.scope.find(name)
        return id(scope), name

    # --- In words ----------------------------------------------------------------------------------------------------

    def about(self, chain: Sequence[Operator]) -> tuple[tuple[str, ...], bool]:
        """What surrounds a stack, a sentence each, and whether the whole model is proven to be this stack alone.

        Args:
            chain: its operators, from layer 0.
        """
        start = self._starts[chain[0]]
        drawn = dict(start.drawn)
        said: list[str] = []
        if chain[0].scope.around:
            said.append(f"it is inside of {', '.join(chain[0].scope.around)}")
        if start.layout:
            said.append(f"it takes the model's input {short(start.x)} as {start.layout}")
        else:
            said.append(f"before it: {_listed(self._before(chain[0])) or 'nothing that is known'}")
        forms = self._results(chain, start, drawn)
        lengths, alone = self._about_lengths(chain, start, drawn)
        places = (H_0, C_0) if chain[0].kind == "LSTM" else (H_0,)
        states = [self._about_state(chain, place, drawn, start) for place in places]
        said += [*lengths, *dict.fromkeys(sentence for sentence, *_ in states)]
        returned, complete = self._returned(chain, forms, drawn)
        after = self._after(chain, every=not complete)
        if returned:
            said.append(f"the model returns {', '.join(f'{form} as {short(name)}' for name, form in returned.items())}")
        if after:
            said.append(f"after it: {_listed(after)}")
        used = {start.x, *self._inputs(chain, LENGTHS), *(name for _, names, _ in states for name in names)}
        unused = [one.name for one in self._model.inputs if one.name not in used | self._model.main.initialisers.keys()]
        proven = bool(start.layout) and alone and all(ok for *_, ok in states) and complete
        nothing_else = not (after or self._others or unused) and len(self._starts) == len(chain)
        return tuple(said), proven and nothing_else

    def _inputs(self, chain: Sequence[Operator], place: int) -> list[str]:
        """The model's inputs that an input of the operators is moved from."""
        main = self._model.main
        found = [source for one in chain if one.input(place) for source in self._path(one.scope, one.input(place))[0]]
        return list(dict.fromkeys(name for scope, name in found if scope is main and name in main.inputs))

    def _about_lengths(
        self, chain: Sequence[Operator], start: _Start, drawn: dict[Place, Value]
    ) -> tuple[list[str], bool]:
        if not chain[0].input(LENGTHS):
            return [], True
        names = self._inputs(chain, LENGTHS)
        given = self._rng.integers(1, start.time + 1, start.batch).astype(np.int32)
        if len(names) == 1:
            drawn |= {(id(self._model.main), names[0]): given}
            if all(_same(self._evaluated(one.scope, one.input(LENGTHS), drawn), given) for one in chain):
                return [f"the lengths of the rows are the model's input {short(names[0])}"], True
        return ["the lengths of the rows are computed by the model, or constants of it"], False

    def _about_state(
        self, chain: Sequence[Operator], place: int, drawn: dict[Place, Value], start: _Start
    ) -> tuple[str, list[str], bool]:
        """A sentence, the inputs that the initial state comes from, and whether it is they, or zero; draws them."""
        what, held = "c" if place == C_0 else "h", self._model.main.initialisers
        names = self._inputs(chain, place)
        rows, units = len(chain) * chain[0].directions, chain[0].arrays["R"].shape[2]
        wanted = []
        for name in names:
            dims = self._dims(name)
            shape = [size or other for size, other in zip(dims, (rows // len(names), start.batch, units), strict=False)]
            array = self._draw(chain[0], shape if len(dims) == 3 else (start.batch, units))
            drawn[id(self._model.main), name] = array
            wanted.append(array if array.ndim == 3 else array[None])
        found = [self._evaluated(one.scope, one.input(place), drawn) for one in chain if one.input(place)]
        parts = [
            one.swapaxes(0, 1) if chain[0].batch_first and one.ndim == 3 else one for one in found if one is not None
        ]
        if names:
            whole = len(parts) == len(chain) and len({array.shape[1:] for array in (*parts, *wanted)}) == 1
            exact = whole and _same(np.concatenate(parts), np.concatenate(wanted))
            how = "is" if exact else "comes from"
            said = f"its initial {what} {how} the model's input {', '.join(map(short, names))}"
            if any(np.any(self._model.value(self._model.main, name)) for name in names if name in held):
                said += ", which is not zero if it is left out"
            return said, names, exact
        if len(parts) < len(found):
            return f"its initial {what} is computed by the model", names, False
        if any(map(np.any, parts)):
            return (
                f"its initial {what} is a constant of the model that is not zero; weights do not hold it",
                names,
                False,
            )
        return "it starts from zero", names, True

    # --- After the operators -----------------------------------------------------------------------------------------

    def _results(
        self, chain: Sequence[Operator], start: _Start, drawn: dict[Place, Value]
    ) -> list[tuple[str, NDArray[Any]]]:
        """Draws what the operators return, and gives the forms in which a model may return it."""
        shape = (start.time, chain[0].directions, start.batch, chain[0].arrays["R"].shape[2])
        states: list[list[NDArray[Any]]] = [[], []]
        y: NDArray[Any] = np.empty(0)
        for one in chain:
            y = self._draw(one, shape)
            results = [y.transpose(2, 0, 1, 3) if one.batch_first else y]
            for ends in states:
                ends.append(self._draw(one, shape[1:]))
                results.append(ends[-1].swapaxes(0, 1) if one.batch_first else ends[-1])
            drawn |= {
                (id(one.scope), name): array for name, array in zip(one.node.output, results, strict=False) if name
            }
        return list(_forms(y, [np.concatenate(ends) for ends in states], chain[0].directions))

    def _returned(
        self, chain: Sequence[Operator], forms: Sequence[tuple[str, NDArray[Any]]], drawn: Mapping[Place, Value]
    ) -> tuple[dict[str, str], bool]:
        """The model's outputs that are results of the stack, in words, and whether there are no others."""
        main, returned = self._model.main, dict[str, str]()
        results = {(id(one.scope), output) for one in chain for output in one.node.output}
        for name in main.outputs[:MOST_OUTPUTS]:
            sources, kinds, _ = self._path(main, name)
            if not results & {(id(one), own) for one, own in sources}:
                continue
            found = self._evaluated(main, name, drawn)
            if form := next((form for form, array in forms if _same(found, array)), ""):
                returned[name] = form
            elif (
                found is not None and ORDERING.issuperset(kinds) and results & {(id(one), own) for one, own in sources}
            ):
                self._out_of_order(f"from the operator {short(chain[-1].name)} to the output {short(name)}", kinds)
        return returned, len(returned) == len(main.outputs)

    def _before(self, operator: Operator) -> list[str]:
        """The nodes that an operator's x is made of, in the order of the file, without those that hold constants."""
        found: dict[int, tuple[Scope, Any]] = {}
        waiting, seen = [operator.scope.find(operator.input(X))], set()
        while waiting:
            here, name = waiting.pop()
            if (id(here), name) in seen:
                continue
            seen.add((id(here), name))
            node = here.makers.get(name)
            if node is None and here.holder is not None and name in here.inputs:
                node, here = here.holder
            if node is not None and id(node) not in found:
                found[id(node)] = here, node
                waiting += [here.find(one) for one in node.input if one]
        return [found[one][1].op_type for one in sorted(found, key=lambda one: self._order[one])]

    def _after(self, chain: Sequence[Operator], *, every: bool) -> list[str]:
        """The nodes that results of a stack go into, but those between layers; and unless `every`, those that move them."""
        waiting = [(one.scope, name) for one in chain for name in one.node.output if name]
        own = {id(one.node) for one in chain} | self._between
        found: dict[int, Any] = {}
        while waiting:
            scope, name = waiting.pop()
            if scope.holder is not None and name in scope.outputs:
                holder, outer = scope.holder
                waiting += [(outer, holder.output[k]) for k in _places(scope.outputs, name) if k < len(holder.output)]
            for there, node in self._consumers.get((id(scope), name), ()):
                if id(node) not in found:
                    found[id(node)] = node
                    waiting += [(there, output) for output in node.output if output]
        nodes = [found[one] for one in sorted(found, key=lambda one: self._order[one]) if one not in own]
        return [node.op_type for node in nodes if every or not self._moves(node, SIZES)]


def _places(names: Sequence[str], name: str) -> list[int]:
    return [place for place, one in enumerate(names) if one == name]


def _alike(below: Operator, above: Operator) -> bool:
    """Whether one spec can describe two operators as layers of a stack."""
    names = [name for name in above.attributes if name not in ("hidden_size", "output_sequence")]
    return (
        below.kind == above.kind
        and set(below.arrays) == set(above.arrays)
        and below.arrays["R"].shape == above.arrays["R"].shape
        and below.arrays["R"].dtype == above.arrays["R"].dtype
        and all(below.attributes.get(name) == above.attributes[name] for name in names)
        and set(names) == set(below.attributes) - {"hidden_size", "output_sequence"}
    )


def _same(found: NDArray[Any] | None, wanted: NDArray[Any]) -> bool:
    return found is not None and np.array_equal(found, wanted)


def _forms(y: NDArray[Any], states: Sequence[NDArray[Any]], directions: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """What a model may return of a stack, each with its name.

    Args:
        y: of the last operator, `(time, directions, batch, units)`.
        states: `(layers * directions, batch, units)` each.
        directions: 1 or 2.
    """
    time, _, batch, _ = y.shape
    sequence = y.swapaxes(1, 2).reshape(time, batch, -1)
    yield "its outputs (time, batch, features)", sequence
    yield "its outputs (batch, time, features)", sequence.swapaxes(0, 1)
    yield "its outputs (time, directions, batch, units)", y
    yield "its outputs (batch, time, directions, units)", y.transpose(2, 0, 1, 3)
    yield "its outputs (time, features)", sequence[:, 0] if batch == 1 else y
    yield "its outputs (batch, features)", sequence[0] if time == 1 else y
    for name, state in zip("hc", states, strict=True):
        last = state[-directions:]
        yield f"its final {name}", state
        yield f"its final {name}, batch first", state.swapaxes(0, 1)
        yield f"its final {name}, joined", last.swapaxes(0, 1).reshape(batch, -1)
        yield from ((f"its final {name} of one direction", one) for one in last)
        for k in range(0, len(state), directions):
            part = state[k : k + directions]
            layer = f" of layer {k // directions}"
            yield f"its final {name}{layer}", part
            yield f"its final {name}{layer}, batch first", part.swapaxes(0, 1)
            yield from ((f"its final {name}{layer}, of one direction", one) for one in part)
        if batch == 1:
            yield f"its final {name} of one row", state[:, 0]


def _listed(kinds: Sequence[str]) -> str:
    """Names of nodes without repetition, the first of them."""
    quiet = ("Constant", "ConstantOfShape", "Identity", "Shape")
    names = [name[:40] for name in dict.fromkeys(kinds) if name not in quiet]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
