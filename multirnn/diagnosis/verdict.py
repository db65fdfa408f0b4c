"""`Diagnosis`: whether two layers are the same function, and which mistakes make them differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from multirnn.adoption import Adopted
from multirnn.diagnosis.divergence import Divergence
from multirnn.errors import an
from multirnn.mistakes.change import Mistake
from multirnn.numerics import TOLERANCE
from multirnn.spec import RecurrentSpec
from multirnn.tables import Content, Shown, Styled, json_value
from multirnn.weights import Weights

__all__ = ["Diagnosis", "Explanation", "Mistakes", "explained", "miscounted", "of_another_shape"]

Mistakes = tuple[Mistake, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """One explanation of the difference, in words."""

    mistakes: Mistakes  # the one nearest to the framework first; empty if the two specs already differ
    sentence: str  # what B does, and what would be right
    fix: str  # begins with "Fix:"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Diagnosis(Shown):
    """Whether two layers are the same function, and if not, what is wrong with the second.

    Attributes:
        spec, titles: the spec of A; the titles of A and B.
        subject: the side that the causes are about: "B", or "A" if A does not compute its own weights.
        equal: whether all answers agree; then there are no causes.
        causes: the mistakes that explain all of B's answers; empty if no known mistake does.
        remarks: facts beside the cause: how the specs differ, whether B's own weights are A's.
        calls: the number of calls made of B.
        eps: the largest normwise difference of B's answers from A's, in eps of `dtype`; infinite if an answer is missing,
            has another shape, or is not finite where A's is.
        dtype: the coarser dtype of A and B, whose tolerance decides.
        divergence: where B parts from A in the first call that shows it; None if they are equal, if it is A that is wrong,
            or if the specs already differ.
        corrected: weights with which B is right: A's if B is correct for its own weights, else A's changed so that the
            mistake undoes the change. None if no weights help.
    """

    spec: RecurrentSpec
    titles: tuple[str, str]
    equal: bool
    subject: str = "B"
    causes: tuple[Explanation, ...] = ()
    remarks: tuple[str, ...] = ()
    calls: int = 0
    eps: float = 0.0
    dtype: str = "float32"
    divergence: Divergence | None = None
    corrected: Weights | None = None

    @property
    def ambiguous(self) -> bool:
        """Whether there are several causes, which are the same function on every call that B takes."""
        return len(self.causes) > 1

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; of the corrected weights only whether there are any."""
        plain = ("equal", "subject", "ambiguous", "calls", "dtype")
        return {
            **{name: getattr(self, name) for name in plain},
            "a": self.titles[0],
            "b": self.titles[1],
            "spec": self.spec.to_dict(),
            "causes": [
                {"mistakes": [m.name for m in cause.mistakes], "sentence": cause.sentence, "fix": cause.fix}
                for cause in self.causes
            ],
            "remarks": list(self.remarks),
            "eps": json_value(self.eps),
            "tolerance_eps": TOLERANCE[self.dtype],
            "divergence": None if self.divergence is None else self.divergence.to_dict(),
            "corrected": self.corrected is not None,
        }

    def _contents(self) -> Iterator[Content]:
        yield Styled(f"A: {self.titles[0]}; B: {self.titles[1]}; {self.spec!r}", "bold")
        for line in self._verdict():
            fix = line.lstrip().startswith("Fix:")
            yield Styled(line, "green" if self.equal else "cyan" if fix else "red")
        if self.divergence is not None:
            yield f"{self.divergence.title}." if self.causes else self.divergence
        yield from self.remarks

    def _verdict(self) -> Iterator[str]:
        if self.equal:
            yield (
                f"A and B are the same function: {self.calls} calls agree within {self.eps:.2g} eps of "
                f"{self.dtype}, and {TOLERANCE[self.dtype]} count as equal."
            )
        elif self.ambiguous:
            yield f"{self._differ}, and no call of {self.subject} tells these {len(self.causes)} explanations apart:"
            for place, cause in enumerate(self.causes, 1):
                yield f"{place}. {cause.sentence}"
                yield f"   {cause.fix}"
        elif self.causes:
            yield self.causes[0].sentence
            yield self.causes[0].fix
        elif self.divergence is not None and self.divergence.kind == "rounding":
            yield (
                f"A and B are {self.eps:.2g} eps of {self.dtype} apart, more than the {TOLERANCE[self.dtype]} that count as "
                "equal, but no more than this stack magnifies rounding to."
            )
        else:
            yield f"{self._differ}, and none of the known mistakes explains it, alone or two together."

    @property
    def _differ(self) -> str:
        return "A and B differ" if self.subject == "B" else "A is not correct for its own weights"


def explained(mistakes: Mistakes, subject: str) -> Explanation:
    """The explanation by these mistakes of A or B, in the words of `multirnn.mistakes`."""
    sentences = [f"{'It also' if place else subject} {mistake.says}." for place, mistake in enumerate(mistakes)]
    fixes = [(mistake.fix[:1].lower() + mistake.fix[1:]).rstrip(".") for mistake in mistakes]
    return Explanation(mistakes, " ".join(sentences), f"Fix: {'; and '.join(fixes)}.")


def of_another_shape(a: RecurrentSpec, b: RecurrentSpec, fields: list[str]) -> Explanation:
    """The explanation of two stacks that do not take the same input and states."""
    words = {
        "cell": "is {}, and A {}",
        "input_size": "takes {} features, and A {}",
        "hidden_size": "has {} units, and A {}",
        "num_layers": "has {} layers, and A {}",
        "bidirectional": "has bidirectional={}, and A {}",
    }
    values = {name: (getattr(b, name), getattr(a, name)) for name in fields}
    found = [words[name].format(*(an(v) if name == "cell" else v for v in pair)) for name, pair in values.items()]
    wanted = ", ".join(f"{name}={right!r}" for name, (_, right) in values.items())
    return Explanation((), f"B {'; it '.join(found)}.", f"Fix: build B with {wanted}.")


def miscounted(layer: Adopted, subject: str) -> Explanation | None:
    """The explanation of a layer that is the right function with a wrong number of parameters."""
    count, expected = layer.parameter_count, layer.spec.parameter_count
    if not layer.readable or count in (None, expected):
        return None
    return Explanation(
        (),
        f"{subject} is the right function, and counts {count} trainable parameters where its spec has {expected}.",
        "Fix: count every trainable array once, and no constant; a zero bias that is only kept is a buffer.",
    )
