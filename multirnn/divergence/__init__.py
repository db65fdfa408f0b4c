"""Where two layers part: layer, direction, time step and gate. It names no cause; `multirnn.diagnosis` does.

Both are stepped from the states of A, so that an error is not carried to the steps and layers after it. What is first:

    the lowest layer that makes other states from the same input and states; in it the direction that had run fewer steps,
    forward before backward; and the first such step in running order. Steps are counted in original time: backward runs
    from the last step to 0.

If single steps agree and calls do not, the first step is the last one of the shortest beginning of the call that parts.
If only outputs or only final states differ, it is the first output that does, or the end of the row. Gradients run back:
the highest layer and the last step come first.

    stepping     layers called a step at a time, from given states
    measures     how far two of them are apart, and how far rounding may take them
    calls        where outputs part: rows, final states, outputs, single steps, the shortest call
    gates        which gate has the largest error
    gradients    where gradients part, if outputs agree
    report       from measures to a record
    record       `Divergence`
    search       `first_divergence`
"""

from multirnn.divergence.record import Divergence, Parting
from multirnn.divergence.search import first_divergence

__all__ = ["Divergence", "Parting", "first_divergence"]
