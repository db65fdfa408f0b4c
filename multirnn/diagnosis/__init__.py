"""Why two layers differ: known mistakes are made on the right side until it is wrong in the same way.

B answers a few calls: small batches, with and without initial states and lengths, and gradients if it has them. A is run
by NumPy in float64. If the answers differ, each known mistake is made in A: alone, in one layer and direction only, and in
pairs. A mistake is named only if it reproduces all of B's answers within the tolerance of the dtype.

    probes         the calls, and the distance between two answers
    hypotheses     mistakes derived from others: in one layer only, or from what a spec declares
    examination    which mistakes explain the answers
    verdict        `diagnose`
    record         `Diagnosis`
"""

from multirnn.diagnosis.record import Diagnosis, Explanation
from multirnn.diagnosis.verdict import diagnose

__all__ = ["Diagnosis", "Explanation", "diagnose"]
