"""`compare`: every backend against one reference, as a table.

The reference is the NumPy backend in float64. Each backend is compared with it alone, so any framework can be tested without
the others. Outputs, final states, and the gradients of every weight, the input and the initial state are compared, under
random cotangents on both the sequence and the state.
"""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from multirnn.errors import InvalidCall
from multirnn.layer import NATIVE, Gradients, Implementation, Output, State
from multirnn.numerics import TOLERANCE, Difference, by_step, difference, draw_call, draw_cotangent, tolerance
from multirnn.protocol import Backend, BackendName, abilities, backend_title, realise
from multirnn.registry import Absent, present
from multirnn.registry import backend as load_backend
from multirnn.registry import backends as installed_backends
from multirnn.spec import RecurrentSpec
from multirnn.tables import Column, Content, Shown, Styled, Table, json_value
from multirnn.weights import Array, Weights, weights_of

__all__ = ["Comparison", "Part", "Row", "batched", "compare", "gradient_pairs", "place", "state_pairs", "widened"]
__all__ += ["worst_part"]


@dataclass(frozen=True, slots=True)
class Part:
    """The worst array of an output, a state or a set of gradients: its difference, and its worst element in words."""

    difference: Difference
    where: str


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """The result of one backend.

    Attributes:
        backend: its name.
        title: its name with its engine, `keras (tensorflow)`.
        verdict: "equal"; "differs"; "refuses", the spec; "missing", its framework is not installed; "broken", it cannot be
            loaded.
        reason: why it is not equal; empty if it is.
        versions: of its packages.
        parameters: by the framework's own count.
        output, state, gradient: the worst difference from the reference; `gradient` is None for inference only.
        output_steps, gradient_steps: the normwise difference at each time step, of the sequence and of the gradient of
            the input; `(time,)`.
    """

    backend: str
    title: str
    verdict: str
    reason: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    parameters: int | None = None
    output: Part | None = None
    state: Part | None = None
    gradient: Part | None = None
    output_steps: Array | None = None
    gradient_steps: Array | None = None

    @property
    def worst(self) -> Part | None:
        """The worst of output, state and gradient."""
        parts = [part for part in (self.output, self.state, self.gradient) if part is not None]
        return max(parts, key=lambda part: part.difference.normwise, default=None)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Comparison(Shown):
    """One row per backend, as text, HTML or JSON.

    Attributes:
        spec: the stack that was compared.
        shape: of the input, `(batch, time, input_size)`.
        rows: in the order of `multirnn.backends()`, or as asked.
        not_finite: how many numbers of the reference's output are NaN or infinite; the same number there is equal.
    """

    spec: RecurrentSpec
    shape: tuple[int, ...]
    rows: tuple[Row, ...]
    not_finite: int = 0

    @property
    def ok(self) -> bool:
        """Whether every backend that accepts the spec equals the reference, and at least one does."""
        verdicts = {row.verdict for row in self.rows}
        return "equal" in verdicts and "differs" not in verdicts

    def to_dict(self) -> dict[str, Any]:
        """The comparison in JSON's values; infinities and NaN are null."""
        return {
            "ok": self.ok,
            "spec": self.spec.to_dict(),
            "shape": list(self.shape),
            "tolerance_eps": TOLERANCE[self.spec.dtype],
            "not_finite": self.not_finite,
            "rows": [_row_to_dict(row) for row in self.rows],
        }

    def _contents(self) -> Iterator[Content]:
        batch, time, _ = self.shape
        yield Styled(f"{self.spec!r} on batch {batch}, time {time}", "bold")
        numbers = (Column(name, number=True) for name in ("parameters", "output", "state", "gradient"))
        table = Table("backend", "version", *numbers, "verdict", Column("worst element", whole=True, spare=True))
        for row in self.rows:
            table.add_row(*_cells(row))
        yield table
        yield ""
        yield from (f"{row.title}: {row.reason}" for row in self.rows if row.reason)
        yield (
            f"errors: max|a-b| / max|b| against NumPy in float64, in eps of {self.spec.dtype}; "
            f"equal means at most {TOLERANCE[self.spec.dtype]}"
        )
        if self.not_finite:
            yield (
                f"{self.not_finite:,} numbers of the reference's output are not finite; equal are the same, NaN or "
                "infinity, in the same places"
            )


def _cells(row: Row) -> tuple[str, ...]:
    output, state, gradient = (
        f"{part.difference.eps:.2g}" if part else "–" for part in (row.output, row.state, row.gradient)
    )
    if row.output and not row.gradient:
        gradient = "inference only"
    version = next(iter(row.versions.values()), "–")
    parameters = "–" if row.parameters is None else str(row.parameters)
    verdict = Styled(row.verdict, {"equal": "green", "differs": "bold red"}.get(row.verdict, "yellow"))
    return row.title, version, parameters, output, state, gradient, verdict, row.worst.where if row.worst else ""


def _row_to_dict(row: Row) -> dict[str, Any]:
    def value(found: Any) -> Any:
        if isinstance(found, Part):
            found = {"normwise": found.difference.normwise, "eps": found.difference.eps, "where": found.where}
        return json_value(found)

    return {entry.name: value(getattr(row, entry.name)) for entry in fields(row)}


# --- The comparison --------------------------------------------------------------------------------------------------


@np.errstate(all="ignore")
def compare(
    spec_or_weights: RecurrentSpec | Weights,
    x: ArrayLike | None = None,
    state: State | None = None,
    *,
    lengths: ArrayLike | None = None,
    backends: BackendName | str | Sequence[BackendName | str | Backend] | None = None,
    seed: int = 0,
    implementation: Implementation = NATIVE,
) -> Comparison:
    """Compare backends with the reference: outputs, final states, gradients and parameter counts.

    Args:
        spec_or_weights: weights, or a spec whose weights are drawn by `initialise(spec, seed)`.
        x: `(batch, time, input_size)` of the spec's dtype. Unless given, a ragged batch, its lengths and initial states
            are drawn by `draw_call(spec, seed)`.
        state: the initial state.
        lengths: `(batch,)` integers.
        backends: a name, or names and Backend objects; all that are installed unless given.
        seed: seeds weights, inputs and cotangents.
        implementation: "native", the frameworks' own layers; "fast" or "frozen". A backend without it is a row that says so.

    Raises:
        UnknownBackend: a name that no distribution offers. A missing, broken or refusing backend is a row.
        InvalidCall: x, state or lengths do not fit the spec.
    """
    weights = weights_of(spec_or_weights, seed, "compare")
    spec = weights.spec
    rng = np.random.default_rng(seed)
    if x is None:
        if state is not None or lengths is not None:
            raise InvalidCall("a state or lengths belong to an x: pass x too")
        x, state, lengths = draw_call(spec, rng)
    load_backend("numpy").build(weights)(x, state, lengths=lengths)  # refuses a call that does not fit
    array, state, lengths = batched(x, state, lengths, spec)
    reference = _Reference(weights, array, state, lengths, rng)
    names = installed_backends() if backends is None else [backends] if isinstance(backends, str) else backends
    rows = tuple(_row(name, implementation, weights, reference) for name in names)
    return Comparison(spec, array.shape, rows, int((~np.isfinite(reference.output.sequence)).sum()))


def batched(
    x: ArrayLike, state: State | None, lengths: ArrayLike | None, spec: RecurrentSpec
) -> tuple[Array, State | None, ArrayLike | None]:
    """A call with a batch axis, of one row if it had none."""
    array = np.asarray(x, spec.dtype)
    if array.ndim == 3:
        return array, state, lengths
    one = None if state is None else State(*(part[:, None] for part in state.parts))
    return array[None], one, None if lengths is None else np.asarray(lengths).reshape(1)


def widened(state: State | None) -> State | None:
    """A state in float64."""
    return None if state is None else State(*(np.asarray(part, "float64") for part in state.parts))


def widened_output(output: Output) -> Output:
    """An output in float64."""
    return Output(output.sequence.astype("float64"), State(*(part.astype("float64") for part in output.state.parts)))


class _Reference:
    """The call, its cotangent, and the reference's output and gradients."""

    def __init__(
        self, weights: Weights, x: Array, state: State | None, lengths: ArrayLike | None, rng: np.random.Generator
    ) -> None:
        layer = load_backend("numpy").build(weights.astype("float64"))
        self.x, self.state, self.lengths = x, state, lengths
        call: Any = (x.astype("float64"), widened(state))
        self.output = layer(*call, lengths=lengths)
        self.cotangent = draw_cotangent(weights.spec, len(x), x.shape[1], rng)
        self.gradients = layer.vjp(*call, lengths=lengths, cotangent=widened_output(self.cotangent))


def _row(name: str | Backend, implementation: Implementation, weights: Weights, reference: _Reference) -> Row:
    backend = present(name)
    if isinstance(backend, Absent):
        return Row(backend.name, backend.name, backend.verdict, backend.reason)
    spec = weights.spec
    title = backend_title(backend, implementation)
    known = implementation in abilities(backend).implementations
    if reason := backend.refuses(spec) if known else f"it has no implementation {implementation!r}":
        return Row(backend.name, title, "refuses", reason, backend.versions())
    layer = realise(backend, weights, implementation=implementation)
    output = layer(reference.x, reference.state, lengths=reference.lengths)
    row = Row(backend.name, title, "equal", versions=backend.versions(), parameters=layer.parameter_count)
    sequence = {"output": (output.sequence, reference.output.sequence)}
    state = dict(state_pairs(output.state, reference.output.state))
    gradients, gradient = None, {}
    if backend.differentiable:
        gradients = layer.vjp(reference.x, reference.state, lengths=reference.lengths, cotangent=reference.cotangent)
        gradient = dict(gradient_pairs(gradients, reference.gradients))
    if reason := _unlike({**sequence, **state, **gradient}, spec):
        return replace(row, verdict="differs", reason=reason)
    row = replace(
        row,
        output=worst_part(spec, sequence),
        state=worst_part(spec, state),
        gradient=worst_part(spec, gradient) if gradient else None,
        output_steps=by_step(output.sequence, reference.output.sequence),
        gradient_steps=None if gradients is None else by_step(gradients.x, reference.gradients.x),
    )
    if row.parameters != spec.parameter_count:
        reason = f"counts {row.parameters} parameters where the spec has {spec.parameter_count}"
    elif row.worst is not None and not row.worst.difference.normwise <= tolerance(spec.dtype):
        reason = f"{row.worst.where}: {row.worst.difference.eps:.3g} eps"
    return replace(row, verdict="differs", reason=reason) if reason else row


Pairs = Iterator[tuple[str, tuple[Any, Any]]]  # by name: a backend's array, unchecked, and the expected one


def state_pairs(actual: State, expected: State, prefix: str = "final ") -> Pairs:
    """The parts of two states by name; a part that both lack is left out."""
    for name, a, b in zip(("h", "c"), actual, expected, strict=True):
        if a is not None or b is not None:
            yield prefix + name, (a, b)


def gradient_pairs(actual: Gradients, expected: Gradients) -> Pairs:
    """Two sets of gradients by name: of every weight, of x, and of the initial state."""
    for name in {**expected.weights, **actual.weights}:
        yield f"gradient of {name}", (actual.weights.get(name), expected.weights.get(name))
    yield "gradient of x", (actual.x, expected.x)
    yield from state_pairs(actual.state, expected.state, "gradient of initial ")


def _unlike(pairs: Mapping[str, tuple[Any, Any]], spec: RecurrentSpec) -> str:
    """The first array that is missing, or has not the reference's shape or the spec's dtype; empty if there is none."""
    for name, (actual, expected) in pairs.items():
        if actual is None or expected is None:
            return f"{name} is missing" if actual is None else f"there is a {name}, which the spec does not have"
        if actual.shape != expected.shape:
            return f"{name} has the shape {actual.shape}, not {expected.shape}"
        if actual.dtype != spec.dtype:
            return f"{name} is {actual.dtype}, not {spec.dtype}"
    return ""


def worst_part(spec: RecurrentSpec, pairs: Mapping[str, tuple[Array, Array]]) -> Part:
    """The worst of pairs of actual and expected arrays, by the name of a weight or of a part of a `Row`."""
    found = {name: difference(*pair) for name, pair in pairs.items()}
    name = max(found, key=lambda key: found[key].normwise)
    return Part(found[name], f"{name}{place(spec, name, found[name].where)}")


def place(spec: RecurrentSpec, name: str, where: tuple[int, ...]) -> str:
    """The index of an element in words: layer, direction, gate, unit, row, step."""
    if not where:
        return ""
    if name == "output":
        row, step, feature = where
        direction = spec.directions[feature // spec.hidden_size]
        return f", {direction}, row {row}, step {step}, unit {feature % spec.hidden_size}"
    if name == "gradient of x":
        return f", row {where[0]}, step {where[1]}, feature {where[2]}"
    if name.endswith((" h", " c")):
        layer, direction = list(spec.passes)[where[0]]
        return f" of layer {layer} {direction}, row {where[1]}, unit {where[2]}"
    gates = spec.form.gates if spec.shapes[name.removeprefix("gradient of ")][0] > 1 else (spec.form.candidate,)
    source = f", source {where[2]}" if len(where) == 3 else ""
    return f", gate {gates[where[0]]}, unit {where[1]}{source}"
