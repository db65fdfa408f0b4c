"""Mistakes with the biases and with single gates: dropped, merged, doubled, inverted, one too many."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from multirnn.activations import Activation
from multirnn.assembly import Plumbing, chunk
from multirnn.boundary import Boundary, Inputs
from multirnn.catalogue.edits import each, in_blocks, mistake, own_adjoint, own_inverse, zero
from multirnn.layer import Gradients, Output
from multirnn.mistakes import Build, Edit, Mistake, edited
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["BIASES"]

# --- Biases ----------------------------------------------------------------------------------------------------------


def _both_biases(arrays: Mapping[str, Array]) -> Iterator[tuple[str, str]]:
    """The names of every bias_ih and its bias_hh, where there is one."""
    for name in arrays:
        if name.endswith("bias_hh"):
            yield name.replace("bias_hh", "bias_ih"), name


def _pairwise(change: Callable[[Array, Array], tuple[Array, Array]]) -> Edit:
    """Every bias_ih and bias_hh of one pass changed together."""

    def edit(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> dict[str, Array]:
        made = dict(arrays)
        for input_bias, recurrent_bias in _both_biases(arrays):
            made[input_bias], made[recurrent_bias] = change(arrays[input_bias], arrays[recurrent_bias])
        return made

    return edit


def _candidate(change: Callable[[Array, Array], tuple[Array, Array]]) -> Edit:
    """The candidate's two biases changed together; the candidate is the last gate."""

    def both(input_bias: Array, recurrent_bias: Array) -> tuple[Array, Array]:
        ih, hh = input_bias.copy(), recurrent_bias.copy()
        ih[-1], hh[-1] = change(ih[-1].copy(), hh[-1].copy())
        return ih, hh

    return _pairwise(both)


def _has_biases(spec: RecurrentSpec) -> bool:
    return spec.bias != "none"


def _double(spec: RecurrentSpec) -> bool:
    return spec.bias == "double"


def _candidate_apart(spec: RecurrentSpec) -> bool:
    return spec.form.recurrent_candidate_bias and spec.bias != "none"


_DROPPED = _candidate(lambda ih, hh: (ih, zero(hh)))


class _BareFirstStep(Boundary):
    """One pass, whose first step has no recurrent candidate bias in calls without an initial state."""

    def __init__(self, build: Build, weights: Weights) -> None:
        super().__init__(weights.spec)
        self._right, self._bare = build(weights), build(edited(_DROPPED)(weights))
        self.differentiable = getattr(self._right, "differentiable", True)

    def run(self, inputs: Inputs) -> Output:
        if inputs.state_given:
            return self._right(inputs.x, inputs.state, lengths=inputs.lengths)
        first, rest = chunk(inputs, 0, 1), chunk(inputs, 1, None)
        begun = self._bare(first.x, lengths=first.lengths)
        ended = self._right(rest.x, begun.state, lengths=rest.lengths)
        return Output(np.concatenate([begun.sequence, ended.sequence], axis=1), ended.state)

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        if inputs.state_given:
            return self._right.vjp(inputs.x, inputs.state, lengths=inputs.lengths, cotangent=cotangent)
        first, rest = chunk(inputs, 0, 1), chunk(inputs, 1, None)
        begun = self._bare(first.x, lengths=first.lengths)
        after = Output(cotangent.sequence[:, 1:], cotangent.state)
        ended = self._right.vjp(rest.x, begun.state, lengths=rest.lengths, cotangent=after)
        before = Output(cotangent.sequence[:, :1], ended.state)
        found = self._bare.vjp(first.x, lengths=first.lengths, cotangent=before)
        bare = _DROPPED(self.spec, found.weights)
        return Gradients(
            {name: array + bare[name] for name, array in ended.weights.items()},
            np.concatenate([found.x, ended.x], axis=1),
            found.state,
        )


BIAS_KINDS = ("bias_ih", "bias_hh")
_BIAS_MISTAKES = (
    own_inverse(
        "biases swapped",
        "biases",
        "takes the recurrent bias for the input bias and the input bias for the recurrent one, which the reset gate "
        "multiplies in the candidate",
        "swap bias_ih and bias_hh; in Keras row 0 of a GRU's bias is the input's, row 1 the recurrent one",
        lambda spec: spec.form.recurrent_candidate_bias and spec.bias == "double",
        _pairwise(lambda ih, hh: (hh, ih)),
    ),
    mistake(
        "recurrent candidate bias merged into the input bias",
        "biases",
        "adds the candidate's recurrent bias outside the reset gate: b_n + d_n where r * (U_n h + d_n) has to stay",
        "keep the candidate's recurrent bias (PyTorch's b_hn) apart; fold those of r and z alone",
        _candidate_apart,
        _candidate(lambda ih, hh: (ih + hh, zero(hh))),
        _candidate(lambda ih, hh: (ih, ih)),
    ),
    mistake(
        "input candidate bias merged into the recurrent bias",
        "biases",
        "multiplies the candidate's input bias with the reset gate: r * (U_n h + d_n + b_n) where b_n has to stay outside",
        "keep the candidate's input bias in bias_ih, outside the reset gate",
        _candidate_apart,
        _candidate(lambda ih, hh: (zero(ih), ih + hh)),
        _candidate(lambda ih, hh: (hh, hh)),
    ),
    own_adjoint(
        "recurrent candidate bias dropped",
        "biases",
        "has no recurrent bias for the candidate, as the GRUCell of Flax NNX has none",
        "give the candidate its recurrent bias (b_hn) inside the reset gate",
        _candidate_apart,
        _DROPPED,
    ),
    Mistake(
        "recurrent candidate bias skipped without a state",
        "first step",
        "leaves out the candidate's recurrent bias at the first step if no initial state is given, as nn.GRU of MLX did "
        "until 0.31 (mlx#3249)",
        "pass a zero initial state, or add r * b_hn where there is no state yet",
        _candidate_apart,
        realise=Plumbing(make=_BareFirstStep),
        shows="no state",
    ),
    own_adjoint(
        "input bias dropped",
        "biases",
        "leaves out the input bias",
        "add bias_ih to the input's product",
        _has_biases,
        each(("bias_ih",), zero),
    ),
    own_adjoint(
        "recurrent bias dropped",
        "biases",
        "leaves out the recurrent bias",
        "add bias_hh to the state's product, or fold it into bias_ih first",
        _double,
        each(("bias_hh",), zero),
    ),
    own_adjoint(
        "both biases dropped",
        "biases",
        "leaves out both biases, as if built with bias=False",
        "build it with its biases and copy bias_ih and bias_hh",
        lambda spec: _double(spec) or _candidate_apart(spec),
        each(BIAS_KINDS, zero),
    ),
    mistake(
        "biases doubled",
        "biases",
        "adds the biases twice, as when their sum is copied into both bias_ih and bias_hh",
        "copy the sum of the biases into bias_ih and zero into bias_hh",
        _has_biases,
        each(BIAS_KINDS, lambda array: 2 * array),
        each(BIAS_KINDS, lambda array: 2 * array),
        each(BIAS_KINDS, lambda array: array / 2),
    ),
    mistake(
        "biases halved",
        "biases",
        "has half of the biases, as when one of two equal halves is lost",
        "copy the whole bias where there is one array for it",
        _has_biases,
        each(BIAS_KINDS, lambda array: array / 2),
        each(BIAS_KINDS, lambda array: array / 2),
        each(BIAS_KINDS, lambda array: 2 * array),
    ),
    mistake(
        "input bias in place of the recurrent",
        "biases",
        "uses bias_ih for both biases",
        "copy bias_hh into the recurrent bias",
        _double,
        _pairwise(lambda ih, hh: (ih, ih)),
        _pairwise(lambda ih, hh: (ih + hh, zero(hh))),
    ),
    mistake(
        "recurrent bias in place of the input",
        "biases",
        "uses bias_hh for both biases",
        "copy bias_ih into the input bias",
        _double,
        _pairwise(lambda ih, hh: (hh, hh)),
        _pairwise(lambda ih, hh: (zero(ih), ih + hh)),
    ),
)

# --- Single gates ----------------------------------------------------------------------------------------------------


def _gate(spec: RecurrentSpec, name: str) -> int:
    return spec.form.gates.index(name)


def _plus(amount: float) -> Edit:
    """A constant added to the forget gate's input bias."""

    def edit(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> dict[str, Array]:
        made = dict(arrays)
        for name in (name for name in arrays if name.endswith("bias_ih")):
            made[name] = arrays[name].copy()
            made[name][_gate(spec, "f")] += amount
        return made

    return edit


def _forget(name: str, amount: float, says: str, fix: str) -> Mistake:
    return mistake(
        name,
        "forget bias",
        says,
        fix,
        lambda spec: spec.cell == "lstm" and _has_biases(spec),
        _plus(amount),
        lambda spec, arrays: dict(arrays),
        _plus(-amount),
    )


def _negated(gate: str) -> Edit:
    def take(spec: RecurrentSpec, array: Array) -> Array:
        made = array.copy()
        made[_gate(spec, gate)] *= -1
        return made

    return in_blocks(take)


def _tied(spec: RecurrentSpec, array: Array) -> Array:
    made = array.copy()
    made[_gate(spec, "i")] = -array[_gate(spec, "f")]
    return made


def _tied_back(spec: RecurrentSpec, array: Array) -> Array:
    made = array.copy()
    made[_gate(spec, "f")] -= array[_gate(spec, "i")]
    made[_gate(spec, "i")] = 0
    return made


def _odd_about_half(spec: RecurrentSpec) -> bool:
    """Whether s(-v) = 1 - s(v), so that a sign turns a gate into its complement."""
    gate = Activation.of(spec.recurrent_activation)
    return gate.name == "sigmoid" or (gate.name == "hard_sigmoid" and gate.beta == 0.5)


_GATE_MISTAKES = (
    own_inverse(
        "update gate inverted",
        "update gate",
        "lets z weigh the new candidate, h' = (1 - z) * h + z * n, as Haiku does; here z weighs the old state",
        "negate the z block of weight_ih, weight_hh and the biases",
        lambda spec: spec.cell == "gru" and _odd_about_half(spec),
        _negated("z"),
    ),
    own_inverse(
        "forget gate inverted",
        "forget gate",
        "forgets where f is one: c' = (1 - f) * c + i * g",
        "negate the f block of weight_ih, weight_hh and the biases, or use f where 1 - f is used",
        lambda spec: spec.cell == "lstm" and _odd_about_half(spec),
        _negated("f"),
    ),
    mistake(
        "input gate tied to the forget gate",
        "forget gate",
        "couples the gates, i = 1 - f, as input_forget=1 of ONNX does, and ignores the i block",
        "compute i from its own block; in ONNX leave input_forget at 0",
        lambda spec: spec.cell == "lstm" and _odd_about_half(spec),
        in_blocks(_tied),
        in_blocks(_tied_back),
    ),
    _forget(
        "forget bias added",
        1,
        "adds one to the forget gate at run time, as TensorFlow 1 and Haiku do, to biases that have it already",
        "subtract 1 from the f block of bias_ih, or build it with forget_bias=0",
    ),
    _forget(
        "forget bias added twice",
        2,
        "adds one to the forget gate twice: by unit_forget_bias or a forget_bias at run time, and once more in the weights",
        "subtract 2 from the f block of bias_ih, or copy the biases after building it and add nothing to them",
    ),
    _forget(
        "forget bias lost",
        -1,
        "lacks one in the forget gate's bias, as when weights of a layer that adds forget_bias=1 at run time run in one "
        "that does not, or when it is subtracted for a layer that does not add it",
        "add 1 to the f block of bias_ih",
    ),
)

BIASES: tuple[Mistake, ...] = (*_BIAS_MISTAKES, *_GATE_MISTAKES)
