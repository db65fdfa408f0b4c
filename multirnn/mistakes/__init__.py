"""Known mistakes in writing, porting or wrapping a recurrent layer, as data; and a layer made wrong on purpose.

Each topic is two files: TOPIC.toml has the words, TOPIC.py how each mistake is made and where it applies: by a `Change`
of weights, inputs, outputs or gradients, often made of `edits` of named arrays, or by wrong `Plumbing` between passes.

Sources: the frameworks' own conventions (`multirnn.conventions`), their release notes and their issue trackers.
"""

from collections.abc import Mapping
from types import MappingProxyType

from multirnn.mistakes.biases import BIAS_MISTAKES
from multirnn.mistakes.change import Mistake
from multirnn.mistakes.equations import EQUATIONS
from multirnn.mistakes.gate_orders import GATE_ORDERS
from multirnn.mistakes.gradients import GRADIENTS
from multirnn.mistakes.parameters import PARAMETERS
from multirnn.mistakes.sequences import SEQUENCES
from multirnn.mistakes.states import STATES
from multirnn.spec import RecurrentSpec

__all__ = ["MISTAKES", "Mistake", "mistakes_for"]

_ALL = (*GATE_ORDERS, *PARAMETERS, *BIAS_MISTAKES, *EQUATIONS, *STATES, *SEQUENCES, *GRADIENTS)
MISTAKES: Mapping[str, Mistake] = MappingProxyType({mistake.name: mistake for mistake in _ALL})
"""Every known mistake by its name."""


def mistakes_for(spec: RecurrentSpec) -> tuple[Mistake, ...]:
    """The mistakes that make another function, or other gradients, of a stack of this spec."""
    return tuple(mistake for mistake in MISTAKES.values() if mistake.applies(spec))
