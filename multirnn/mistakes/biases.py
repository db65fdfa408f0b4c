"""Mistakes with the biases and with single gates: dropped, merged, doubled, inverted, one too many."""

from collections.abc import Callable, Mapping

import numpy as np

from multirnn.activations import Activation
from multirnn.boundary import Boundary, Inputs
from multirnn.layer import Gradients, Output
from multirnn.mistakes.change import (
    BIASES,
    Build,
    Edit,
    Mistake,
    applied,
    drop,
    each,
    edited,
    in_blocks,
    in_family,
    of_weights,
)
from multirnn.mistakes.plumbing import Chunks, Plumbing
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["BIAS_MISTAKES"]

# --- Biases ----------------------------------------------------------------------------------------------------------

Both = Callable[[Array, Array], tuple[Array, Array]]
"""From an input bias and a recurrent bias to others."""


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


def _biased(spec: RecurrentSpec) -> bool:
    return spec.bias != "none"


def _candidate_apart(spec: RecurrentSpec) -> bool:
    return spec.form.recurrent_candidate_bias and spec.bias != "none"


_DROPPED = _candidate(lambda ih, hh: (ih, 0 * hh))


class _BareFirstStep(Boundary):
    """One pass, whose first step has no recurrent candidate bias in calls without an initial state."""

    def __init__(self, build: Build, weights: Weights) -> None:
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


# --- Single gates ----------------------------------------------------------------------------------------------------


def _gate(spec: RecurrentSpec, name: str) -> int:
    return spec.form.gates.index(name)


def _forget(name: str, amount: float, says: str, fix: str) -> Mistake:
    """A constant added to the forget gate's input bias."""

    def plus(amount: float) -> Edit:
        def edit(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
            forget = np.arange(4)[:, None] == _gate(spec, "f")
            return each(("bias_ih",), lambda array: (array + amount * forget).astype(array.dtype))(spec, arrays)

        return edit

    change = of_weights(plus(amount), lambda spec, arrays: {}, undo=plus(-amount))
    return Mistake(name, says, fix, change, lambda spec: spec.cell == "lstm" and spec.bias != "none")


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


def _odd_about_half(spec: RecurrentSpec, cell: str) -> bool:
    """Whether the gates of this cell have s(-v) = 1 - s(v), so that a sign turns one into its complement."""
    gate = Activation.of(spec.recurrent_activation)
    odd = gate.name == "sigmoid" or (gate.name == "hard_sigmoid" and gate.beta == 0.5)
    return spec.cell == cell and odd


def _scaled(factor: float) -> Edit:
    return each(BIASES, lambda array: array * array.dtype.type(factor))


BIAS_MISTAKES: tuple[Mistake, ...] = (
    *in_family(
        "biases",
        Mistake(
            "biases swapped",
            "takes the recurrent bias for the input bias and the input bias for the recurrent one, which the reset gate "
            "multiplies in the candidate",
            "swap bias_ih and bias_hh; in Keras row 0 of a GRU's bias is the input's, row 1 the recurrent one",
            of_weights(_pairwise(lambda ih, hh: (hh, ih)), undo=True),
            lambda spec: spec.form.recurrent_candidate_bias and spec.bias == "double",
        ),
        Mistake(
            "recurrent candidate bias merged into the input bias",
            "adds the candidate's recurrent bias outside the reset gate: b_n + d_n where r * (U_n h + d_n) has to stay",
            "keep the candidate's recurrent bias (PyTorch's b_hn) apart; fold those of r and z alone",
            of_weights(_candidate(lambda ih, hh: (ih + hh, 0 * hh)), _candidate(lambda ih, hh: (ih, ih))),
            _candidate_apart,
        ),
        Mistake(
            "input candidate bias merged into the recurrent bias",
            "multiplies the candidate's input bias with the reset gate: r * (U_n h + d_n + b_n) where b_n has to stay "
            "outside",
            "keep the candidate's input bias in bias_ih, outside the reset gate",
            of_weights(_candidate(lambda ih, hh: (0 * ih, ih + hh)), _candidate(lambda ih, hh: (hh, hh))),
            _candidate_apart,
        ),
        Mistake(
            "recurrent candidate bias dropped",
            "has no recurrent bias for the candidate, as the GRUCell of Flax NNX has none",
            "give the candidate its recurrent bias (b_hn) inside the reset gate",
            of_weights(_DROPPED),
            _candidate_apart,
        ),
    ),
    *in_family(
        "first step",
        Mistake(
            "recurrent candidate bias skipped without a state",
            "leaves out the candidate's recurrent bias at the first step if no initial state is given, as nn.GRU of MLX "
            "did until 0.31 (mlx#3249)",
            "pass a zero initial state, or add r * b_hn where there is no state yet",
            Plumbing(make=_BareFirstStep),
            _candidate_apart,
            shows="no state",
        ),
    ),
    *in_family(
        "biases",
        Mistake(
            "input bias dropped",
            "leaves out the input bias",
            "add bias_ih to the input's product",
            of_weights(drop("bias_ih")),
            _biased,
        ),
        Mistake(
            "recurrent bias dropped",
            "leaves out the recurrent bias",
            "add bias_hh to the state's product, or fold it into bias_ih first",
            of_weights(drop("bias_hh")),
            _double,
        ),
        Mistake(
            "both biases dropped",
            "leaves out both biases, as if built with bias=False",
            "build it with its biases and copy bias_ih and bias_hh",
            of_weights(drop(*BIASES)),
            lambda spec: _double(spec) or _candidate_apart(spec),
        ),
        Mistake(
            "biases doubled",
            "adds the biases twice, as when their sum is copied into both bias_ih and bias_hh",
            "copy the sum of the biases into bias_ih and zero into bias_hh",
            of_weights(_scaled(2), _scaled(2), undo=_scaled(0.5)),
            _biased,
        ),
        Mistake(
            "biases halved",
            "has half of the biases, as when one of two equal halves is lost",
            "copy the whole bias where there is one array for it",
            of_weights(_scaled(0.5), _scaled(0.5), undo=_scaled(2)),
            _biased,
        ),
        Mistake(
            "input bias in place of the recurrent",
            "uses bias_ih for both biases",
            "copy bias_hh into the recurrent bias",
            of_weights(_pairwise(lambda ih, hh: (ih, ih))),
            _double,
        ),
        Mistake(
            "recurrent bias in place of the input",
            "uses bias_hh for both biases",
            "copy bias_ih into the input bias",
            of_weights(_pairwise(lambda ih, hh: (hh, hh))),
            _double,
        ),
    ),
    *in_family(
        "update gate",
        Mistake(
            "update gate inverted",
            "lets z weigh the new candidate, h' = (1 - z) * h + z * n, as Haiku does; here z weighs the old state",
            "negate the z block of weight_ih, weight_hh and the biases",
            of_weights(_negated("z"), undo=True),
            lambda spec: _odd_about_half(spec, "gru"),
        ),
    ),
    *in_family(
        "forget gate",
        Mistake(
            "forget gate inverted",
            "forgets where f is one: c' = (1 - f) * c + i * g",
            "negate the f block of weight_ih, weight_hh and the biases, or use f where 1 - f is used",
            of_weights(_negated("f"), undo=True),
            lambda spec: _odd_about_half(spec, "lstm"),
        ),
        Mistake(
            "input gate tied to the forget gate",
            "couples the gates, i = 1 - f, as input_forget=1 of ONNX does, and ignores the i block",
            "compute i from its own block; in ONNX leave input_forget at 0",
            of_weights(in_blocks(_tied)),
            lambda spec: _odd_about_half(spec, "lstm"),
        ),
    ),
    *in_family(
        "forget bias",
        _forget(
            "forget bias added",
            1,
            "adds one to the forget gate at run time, as TensorFlow 1 and Haiku do, to biases that have it already",
            "subtract 1 from the f block of bias_ih, or build it with forget_bias=0",
        ),
        _forget(
            "forget bias added twice",
            2,
            "adds one to the forget gate twice: by unit_forget_bias or a forget_bias at run time, and once more in the "
            "weights",
            "subtract 2 from the f block of bias_ih, or copy the biases after building it and add nothing to them",
        ),
        _forget(
            "forget bias lost",
            -1,
            "lacks one in the forget gate's bias, as when weights of a layer that adds forget_bias=1 at run time run in "
            "one that does not, or when it is subtracted for a layer that does not add it",
            "add 1 to the f block of bias_ih",
        ),
    ),
)
