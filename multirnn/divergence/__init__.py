"""Where two layers part first: layer, direction, time step and gate.

Both are stepped with the same states, those of A, so that what one step makes wrong is not taken for a mistake of the
steps and layers that it goes on to. What first means:

    the lowest layer that makes other states of the same input and states, since a layer runs on the outputs of the one
    below; in it the direction that had run fewer steps until then, forward before backward; and the first such step in
    the order in which that direction runs. Steps are counted in original time: backward runs from the last step to 0.

Where all single steps agree and the calls do not, the mistake is in the handling of time, states or lengths, and the
first step is the one from which a direction goes wrong. Of a final state it is the step after which that should have been
taken; of what a layer hands to the one above, the first that goes wrong on its way; and of gradients, which run back, the
highest layer and the last step.

    stepping     layers called a step at a time, with states of our choice
    measures     how far two of them are apart, and how far that may be
    moves        what people do to states
    steps        where single steps part, and why
    gates        which gate it is
    calls        where whole calls part, though single steps agree
    lengths      where calls with lengths part, though full ones agree
    gradients    where gradients part, though outputs agree
    record       what was found
    report       from measures to a record
    search       all of it in the order in which it has to be asked
"""

from multirnn.divergence.record import Divergence
from multirnn.divergence.search import first_divergence

__all__ = ["Divergence", "first_divergence"]
