"""Mistakes with the biases and with single gates: dropped, merged, doubled, inverted, one too many."""

from collections.abc import Callable, Mapping

import numpy as np

from multirnn.activations import Activation
from multirnn.boundary import Boundary, Inputs
from multirnn.layer import Gradients, Output
from multirnn.mistakes.change import Applies, Build, Change, biased, known
from multirnn.mistakes.edits import BIASES, Edit, applied, drop, each, edited, in_blocks, of_weights
from multirnn.mistakes.plumbing import Chunks, Plumbing
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["BIAS_MISTAKES"]

Both = Callable[[Array, Array], tuple[Array, Array]]  # from an input bias and a recurrent bias to others


def _pairwise(change: Both) -> Edit:
    """Every bias_ih and bias_hh of one pass changed together, if there are both."""

    def edit(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> dict[str, Array]:
        made = {}
        for name in (name for name in arrays if name.endswith("bias_hh")):
            other = name.replace("bias_hh", "bias_ih")
            made[other], made[name] = change(arrays[other], arrays[name])
        return made

    return edit


def _candidate(change: Both) -> Edit:
    """The candidate's two biases changed together; the candidate is the last gate."""

    def both(input_bias: Array, recurrent_bias: Array) -> tuple[Array, Array]:
        ih, hh = input_bias.copy(), recurrent_bias.copy()
        ih[-1], hh[-1] = change(input_bias[-1], recurrent_bias[-1])
        return ih, hh

    return _pairwise(both)


def _double(spec: RecurrentSpec) -> bool:
    return spec.bias == "double"


def _candidate_apart(spec: RecurrentSpec) -> bool:
    return spec.form.recurrent_candidate_bias and spec.bias != "none"


_DROPPED = _candidate(lambda ih, hh: (ih, 0 * hh))


class _BareFirstStep(Boundary):
    """One pass, whose first step has no recurrent candidate bias in calls without an initial state."""

    def __init__(self, build: Build, weights: Weights, place: tuple[int, str]) -> None:
        super().__init__(weights.spec)
        self._right, self._bare = build(weights), build(edited(_DROPPED)(weights))
        self.differentiable = getattr(self._right, "differentiable", True)

    def _chunks(self, inputs: Inputs) -> Chunks:
        time = inputs.x.shape[1]
        if inputs.state_given:
            return Chunks([self._right], inputs, [0, time])
        return Chunks([self._bare, self._right], inputs, [0, 1, time])

    def run(self, inputs: Inputs) -> Output:
        return self._chunks(inputs).output

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        def change(place: int, taken: Inputs, found: Gradients) -> Gradients:
            bare = not (place or inputs.state_given)
            return applied(_DROPPED, self.spec, found) if bare else found

        return self._chunks(inputs).pull_back(cotangent, change)


def _gate(spec: RecurrentSpec, name: str) -> int:
    return spec.form.gates.index(name)


def _plus(amount: float) -> Edit:
    """A constant added to the forget gate's input bias."""

    def edit(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        forget = np.arange(len(spec.form.gates))[:, None] == _gate(spec, "f")
        return each(("bias_ih",), lambda array: (array + amount * forget).astype(array.dtype))(spec, arrays)

    return edit


def _forget(amount: float) -> tuple[Change, Applies]:
    change = of_weights(_plus(amount), lambda spec, arrays: {}, undo=_plus(-amount))
    return change, lambda spec: spec.cell == "lstm" and biased(spec)


def _negated(source: str, gate: str) -> Edit:
    """The parameters of a gate are those of another, or its own, with the other sign."""

    def take(spec: RecurrentSpec, array: Array) -> Array:
        made = array.copy()
        made[_gate(spec, gate)] = -array[_gate(spec, source)]
        return made

    return in_blocks(take)


def _odd_about_half(spec: RecurrentSpec, cell: str) -> bool:
    """Whether the gates of this cell have s(-v) = 1 - s(v), so that a sign turns one into its complement."""
    gate = Activation.of(spec.recurrent_activation)
    odd = gate.name == "sigmoid" or (gate.name == "hard_sigmoid" and gate.beta == 0.5)
    return spec.cell == cell and odd


def _scaled(factor: float) -> Edit:
    return each(BIASES, lambda array: array * array.dtype.type(factor))


BIAS_MISTAKES = known(
    "biases",
    {
        "biases swapped": (
            of_weights(_pairwise(lambda ih, hh: (hh, ih)), undo=True),
            lambda spec: spec.form.recurrent_candidate_bias and spec.bias == "double",
        ),
        "recurrent candidate bias merged into the input bias": (
            of_weights(_candidate(lambda ih, hh: (ih + hh, 0 * hh)), _candidate(lambda ih, hh: (ih, ih))),
            _candidate_apart,
        ),
        "input candidate bias merged into the recurrent bias": (
            of_weights(_candidate(lambda ih, hh: (0 * ih, ih + hh)), _candidate(lambda ih, hh: (hh, hh))),
            _candidate_apart,
        ),
        "recurrent candidate bias dropped": (of_weights(_DROPPED), _candidate_apart),
        "recurrent candidate bias skipped without a state": (Plumbing(make=_BareFirstStep), _candidate_apart),
        "input bias dropped": (of_weights(drop("bias_ih")), biased),
        "recurrent bias dropped": (of_weights(drop("bias_hh")), _double),
        "both biases dropped": (of_weights(drop(*BIASES)), lambda spec: _double(spec) or _candidate_apart(spec)),
        "biases doubled": (of_weights(_scaled(2), _scaled(2), undo=_scaled(0.5)), biased),
        "biases halved": (of_weights(_scaled(0.5), _scaled(0.5), undo=_scaled(2)), biased),
        "input bias in place of the recurrent": (of_weights(_pairwise(lambda ih, hh: (ih, ih))), _double),
        "recurrent bias in place of the input": (of_weights(_pairwise(lambda ih, hh: (hh, hh))), _double),
        "update gate inverted": (of_weights(_negated("z", "z"), undo=True), lambda spec: _odd_about_half(spec, "gru")),
        "forget gate inverted": (of_weights(_negated("f", "f"), undo=True), lambda spec: _odd_about_half(spec, "lstm")),
        "input gate tied to the forget gate": (
            of_weights(_negated("f", "i")),
            lambda spec: _odd_about_half(spec, "lstm"),
        ),
        "forget bias added": _forget(1),
        "forget bias added twice": _forget(2),
        "forget bias lost": _forget(-1),
    },
)
