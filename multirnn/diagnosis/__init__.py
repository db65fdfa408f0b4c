"""Which mistake makes two layers differ? The known ones are made on the right side, until it is wrong in the same way.

B is asked a few calls: small batches, with initial states and lengths, and gradients where it has them. A is realised
by NumPy in float64. Where B answers differently, each mistake of the catalogue is made in that realisation: alone; in
one layer and direction only; and two of them together. A mistake is named where it gives B's answers, all of them,
within the tolerance of the dtype. So however it was guessed, what is named is proven on numbers.

    probes         the calls, and how far two answers are apart
    hypotheses     what a mistake is in, and mistakes made of other ones
    examination    which of them explain the answers
    verdict        `diagnose`
    record         what was found, in words
"""

from multirnn.diagnosis.record import Diagnosis, Explanation
from multirnn.diagnosis.verdict import diagnose

__all__ = ["Diagnosis", "Explanation", "diagnose"]
