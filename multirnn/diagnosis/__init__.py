"""Where two layers part (`first_divergence`), and why (`diagnose`).

    calls          the calls, their answers, and the distance between two answers
    stepping       layers called a step at a time, from given states
    pair           how far two of them are apart, and how far rounding may take them
    gate_errors    which gate has the largest error
    parting        where outputs part, and gradients if outputs agree
    divergence     `Divergence`
    locating       `first_divergence`
    hypotheses     mistakes derived from others: in one layer only, or from what a spec declares
    examination    `diagnose`: which mistakes explain the answers
    verdict        `Diagnosis`

`diagnose`: B answers a few calls: small batches, with and without initial states and lengths, and gradients if it has
them. A is run by NumPy in float64. If the answers differ, each known mistake is made in A: alone, in one layer and
direction only, and in pairs. A mistake is named only if it reproduces all of B's answers within the tolerance of the
dtype.
"""

from multirnn.diagnosis.divergence import Divergence, Parting
from multirnn.diagnosis.examination import diagnose
from multirnn.diagnosis.locating import first_divergence
from multirnn.diagnosis.verdict import Diagnosis, Explanation

__all__ = ["Diagnosis", "Divergence", "Explanation", "Parting", "diagnose", "first_divergence"]
