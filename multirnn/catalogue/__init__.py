"""The known mistakes as data: what people do wrong when they write, port or wrap a recurrent layer.

    gates        the order of the gates
    parameters   whole matrices and layers: transposed, reshaped, given to another pass, rounded
    biases       biases and single gates: dropped, merged, doubled, inverted, one too many
    cells        equations: the form of the GRU, activations, precision
    states       ignored, in another order, h taken for c, taken at the wrong end
    sequences    directions, axes, padding
    gradients    cut, truncated, forgotten, scaled

Sources: the frameworks' own conventions (`multirnn.conventions`), their release notes and their issue trackers.
"""

from collections.abc import Mapping
from types import MappingProxyType

from multirnn.catalogue.biases import BIASES
from multirnn.catalogue.cells import EQUATIONS
from multirnn.catalogue.gates import GATES
from multirnn.catalogue.gradients import GRADIENTS
from multirnn.catalogue.parameters import PARAMETERS
from multirnn.catalogue.sequences import SEQUENCES
from multirnn.catalogue.states import STATES
from multirnn.mistakes import Mistake
from multirnn.spec import RecurrentSpec

__all__ = ["MISTAKES", "mistakes_for"]

MISTAKES: Mapping[str, Mistake] = MappingProxyType(
    {mistake.name: mistake for mistake in (*GATES, *PARAMETERS, *BIASES, *EQUATIONS, *STATES, *SEQUENCES, *GRADIENTS)}
)
"""Every known mistake by its name."""


def mistakes_for(spec: RecurrentSpec) -> tuple[Mistake, ...]:
    """The mistakes that make another function, or other gradients, of a stack of this spec."""
    return tuple(mistake for mistake in MISTAKES.values() if mistake.applies(spec))
