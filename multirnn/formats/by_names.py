"""The recurrent stacks among arrays, found by names and shapes: every convention is tried, the largest find wins."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from multirnn.conventions import CONVENTIONS, FLAX_LINEN, FLAX_NNX, TEXTBOOK, TEXTBOOK_ROWS, Convention
from multirnn.errors import FormatError, InvalidSpec, InvalidWeights, Unrepresentable
from multirnn.formats.contents import Tensor, Unread, numbers_of, stored_as
from multirnn.formats.found import FileStack, Found
from multirnn.names import COMPACT, PER_GATE, by_prefix, fused_gates, numbered_cells, one_stack
from multirnn.recognition import from_arrays
from multirnn.weights import Weights

__all__ = ["stacks_by_names"]

LONGEST_NAME, MOST_CLAIMS = 250, 500
OPTIMISERS = {"opt_state", "optimizer", "optimizer_state", "optimizer_states", "optimizer_state_dict", "optimizers"}
"""Above the moments that an optimiser keeps by the names of the weights."""
PROJECTION = re.compile(r"weight_hr_l\d+(_reverse)?")


@dataclass(frozen=True)
class _Claim:
    """Arrays that have the names of a stack in a convention.

    Attributes:
        convention: whose names they are.
        name: the stack's name, as in `Found`.
        prefix: before the names.
        arrays: those of the stack, and all beside them.
        covers: their names in the file.
        stored: their dtype in the file.
        refusal: why they are no stack, if that is known already.
    """

    convention: Convention
    name: str
    prefix: str
    arrays: Mapping[str, Any]
    covers: frozenset[str]
    stored: str
    refusal: str = ""


@dataclass(frozen=True)
class _View:
    """The arrays under a convention's names, and the names in the file behind each."""

    arrays: Mapping[str, Any]
    origins: Mapping[str, Sequence[str]]
    name: str = ""
    refusal: str = ""


def stacks_by_names(
    arrays: Mapping[str, Tensor], convention: Convention | None, known: Mapping[str, Any]
) -> list[FileStack]:
    """Every stack, in the order of the file.

    Args:
        arrays: by the file's names.
        convention: the only one to try; all unless given.
        known: arguments of `from_arrays` that names and shapes may not tell.

    Returns:
        Those that a spec describes, and those that none does, which have no weights and say why.

    Raises:
        FormatError: there are too many.
    """
    known = dict(known)
    if (turned := known.pop("transposed", None)) is not None:
        convention = TEXTBOOK_ROWS if turned else TEXTBOOK
    named = {
        name: array
        for name, array in arrays.items()
        if len(name) <= LONGEST_NAME and OPTIMISERS.isdisjoint(re.split("[./]", name))
    }
    claims: dict[frozenset[str], list[_Claim]] = {}
    for one in [convention] if convention else CONVENTIONS.values():
        for claim in _claims(one, named):
            claims.setdefault(claim.covers, []).append(claim)
            if len(claims) > MOST_CLAIMS:
                raise FormatError(f"it holds more than {MOST_CLAIMS} groups of arrays with names of recurrent layers")
    found: dict[frozenset[str], FileStack] = {}
    refused: dict[frozenset[str], FileStack] = {}
    taken: set[str] = set()
    for covers, fitting in sorted(claims.items(), key=lambda item: -len(item[0])):
        if taken.isdisjoint(covers):
            stack = _read(fitting, known)
            if stack.weights is not None:
                found[covers] = stack
                taken |= covers
            elif not any(covers < larger for larger in refused):
                refused[covers] = stack
    around = [stack.found for covers, stack in refused.items() if not taken.isdisjoint(covers)]
    found |= {covers: stack for covers, stack in refused.items() if taken.isdisjoint(covers)}
    return _told(found, around, list(named))


def _told(found: Mapping[frozenset[str], FileStack], around: Sequence[Found], order: Sequence[str]) -> list[FileStack]:
    """The stacks in the order of the file; what would have been one together with other arrays is said with each."""
    place = {name: number for number, name in enumerate(order)}
    stacks = [found[covers] for covers in sorted(found, key=lambda covers: min(place[name] for name in covers))]
    said = tuple(f"it is no stack together with others below {one.name!r}: {one.refused}" for one in around[:3])
    names = Counter(stack.found.name for stack in stacks)
    told = []
    for stack in stacks:
        own = stack.found
        name = own.name if names[own.name] == 1 else f"{own.name} as {own.convention}".strip()
        told.append(replace(stack, found=replace(own, name=name, about=own.about + said)))
    return told


def _read(claims: Sequence[_Claim], known: Mapping[str, Any]) -> FileStack:
    """The stack that one set of arrays is, or why it is none; conventions that give the same weights are one."""
    stack: FileStack | None = None
    refused: list[FileStack] = []
    for claim in claims:
        try:
            read, weights = _stack(claim, known)
        except (Unrepresentable, InvalidWeights, InvalidSpec, FormatError) as error:
            reason = f"{error} (in the convention {claim.convention.name!r})"
            refused.append(
                FileStack(Found(claim.name, None, claim.convention.name, claim.stored, refused=reason), None)
            )
            continue
        if stack is None:
            stack = FileStack(read, weights)
        elif not _same(stack.loaded(), weights):
            stack = replace(stack, others=(*stack.others, claim.convention.name))
    if stack is None:
        return refused[0]
    if stack.others:
        other = " and ".join(map(repr, stack.others))
        about = f"its arrays fit the convention {other} too, with other weights; pass convention= to choose"
        stack = replace(stack, found=replace(stack.found, about=(*stack.found.about, about)))
    return stack


def _stack(claim: _Claim, known: Mapping[str, Any]) -> tuple[Found, Weights]:
    if claim.refusal:
        raise FormatError(claim.refusal)
    for name in claim.arrays:
        if PROJECTION.fullmatch(name.removeprefix(claim.prefix)):
            raise FormatError(f"{name!r} is a projection (proj_size), which no spec describes")
    own = one_stack(claim.arrays, claim.convention, claim.prefix)
    for name, array in own.items():
        if isinstance(array, np.ndarray) and array.dtype.kind != "f":
            raise FormatError(f"{claim.prefix + name!r} is {array.dtype}, and weights are floating-point numbers")
    weights = from_arrays(
        {name: numbers_of(claim.prefix + name, array) for name, array in own.items()},
        convention=claim.convention,
        transposed=False if claim.convention is TEXTBOOK else None,  # or it would try the other one too
        **known,
    )
    told = {*known, *(["recurrent_activation"] if len(weights.spec.form.gates) == 1 else [])}
    unsaid = tuple(name for name in ("activation", "recurrent_activation") if name not in told)
    about = ("its activations are not in the file",) if unsaid else ()
    return Found(claim.name, weights.spec, claim.convention.name, claim.stored, about, unsaid=unsaid), weights


def _same(a: Weights, b: Weights) -> bool:
    return a.spec == b.spec and all(
        np.array_equal(array, b.arrays[name], equal_nan=True) for name, array in a.arrays.items()
    )


# --- What has the names of a stack -----------------------------------------------------------------------------------


def _claims(convention: Convention, arrays: Mapping[str, Tensor]) -> Iterator[_Claim]:
    views: Callable[[Mapping[str, Tensor]], Iterator[_View]] = _as_they_are
    if convention is FLAX_LINEN:
        views = _numbered
    elif convention is FLAX_NNX:
        views = _fused
    recurrent = _recurrent_names(convention)
    for view in views(arrays):
        by_folder: dict[str, dict[str, Tensor]] = {}
        for name, array in view.arrays.items():
            by_folder.setdefault(_folder(name), {})[name] = array
        for prefix, all_own in by_prefix(view.arrays, convention.pattern).items():
            matches = _of_recurrent_layers(convention, recurrent, all_own)
            named = {view.name or prefix.rstrip("./"): matches}
            if convention.gaps and len({match["layer"] for match in matches}) > 1:  # each alone, if they are no stack
                for match in matches:
                    named.setdefault(prefix + match.string[: match.end("layer")], []).append(match)
            for name, of_one in named.items():
                if not any(recurrent.fullmatch(match["name"]) for match in of_one):
                    continue  # an embedding, a head: names that other layers have too
                own = [match.string for match in of_one]
                folders = dict.fromkeys(_folder(prefix + one) for one in own)
                beside = {one: array for folder in folders for one, array in by_folder[folder].items()}
                covers = frozenset(origin for one in own for origin in view.origins[prefix + one])
                stored = stored_as(arrays[min(covers)])
                yield _Claim(convention, name, prefix, beside, covers, stored, view.refusal)


def _folder(name: str) -> str:
    return name[: max(name.rfind("."), name.rfind("/")) + 1]


def _recurrent_names(convention: Convention) -> re.Pattern[str]:
    """Matches the names of arrays that only a recurrent layer has."""
    entries = [entry for held in convention.arrays.values() for entry in next(iter(held.values()))]
    names = {entry.name for entry in entries if "weight_hh" in entry.holds} | {"weight_ih"}
    return re.compile("|".join(re.escape(name).replace(r"\{gate\}", "[a-z]?") for name in sorted(names)))


def _of_recurrent_layers(
    convention: Convention, recurrent: re.Pattern[str], own: Mapping[str, Any]
) -> list[re.Match[str]]:
    """The names, matched, without those of other layers, where other layers share the numbering."""
    matches = [match for name in own if (match := re.fullmatch(convention.pattern, name))]
    layers = {match["layer"] for match in matches if recurrent.fullmatch(match["name"])}
    return [match for match in matches if not (convention.gaps and layers) or match["layer"] in layers]


def _as_they_are(arrays: Mapping[str, Tensor]) -> Iterator[_View]:
    yield _View(arrays, {name: (name,) for name in arrays})


def _numbered(arrays: Mapping[str, Tensor]) -> Iterator[_View]:
    """Flax Linen's arrays: the cells that it numbered, for each kind and module, and all others."""
    groups: dict[tuple[str, str], dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, array in arrays.items():
        match = COMPACT.fullmatch(name)
        group = rest if match is None else groups.setdefault((match["prefix"] or "", match["kind"]), {})
        group[name] = array
    modules = [prefix for prefix, _ in groups]
    for (prefix, kind), group in groups.items():
        own = f"{prefix}{kind}" if modules.count(prefix) > 1 else prefix.rstrip("/")
        try:
            renamed: Mapping[str, Any] = numbered_cells(group)  # type: ignore[arg-type]  # of the arrays, it needs shapes
        except Unrepresentable as error:
            origins: dict[str, Sequence[str]] = {name: (name,) for name in group}
            first = next(iter(group))  # stands for all: a refusal needs one name that the convention knows
            yield _View({"cell/hi/kernel": group[first]}, {"cell/hi/kernel": tuple(origins)}, own or kind, str(error))
            continue
        by_array = {id(array): name for name, array in group.items()}
        moved = {prefix + name: array for name, array in renamed.items()}
        yield _View(moved, {name: (by_array[id(array)],) for name, array in moved.items()}, own)
    if rest:
        yield from _as_they_are(rest)


def _fused(arrays: Mapping[str, Tensor]) -> Iterator[_View]:
    """Flax NNX's arrays, those of each gate joined; a cell of Linen, which has `if` and not `if_`, is left alone."""
    origins: dict[str, list[str]] = {}
    for name, array in arrays.items():
        match = PER_GATE.fullmatch(name)
        if match is None or isinstance(array, Unread):
            continue
        folder = match["folder"]
        if not (folder.endswith("cell/") and f"{folder}if/kernel" in arrays):
            origins.setdefault(f"{folder}dense_{match['side']}/{match['kind']}", []).append(name)
    gates = {name: numbers_of(name, arrays[name]) for names in origins.values() for name in names}
    fused: Mapping[str, Any] = fused_gates(gates)
    joined = {name: array for name, array in fused.items() if name in origins}
    inside = {name for joint in joined for name in origins[joint]}
    rest = {name: array for name, array in arrays.items() if name not in inside}
    yield _View({**rest, **joined}, {**{name: (name,) for name in rest}, **{name: origins[name] for name in joined}})
