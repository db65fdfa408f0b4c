"""Where two layers part (`first_divergence`), and why (`diagnose`).

`locating` has the first, on top of `parting`, `pair` and `stepping`; `examination` the second: B answers a few calls:
small batches, with and without initial states and lengths, and gradients if it has them. A is run by NumPy in float64.
If the answers differ, each known mistake is made in A: alone, in one layer and direction only, and in pairs. A mistake
is named only if it reproduces all of B's answers within the tolerance of the dtype.
"""

from multirnn.diagnosis.divergence import Divergence, Parting
from multirnn.diagnosis.examination import diagnose
from multirnn.diagnosis.locating import first_divergence
from multirnn.diagnosis.verdict import Diagnosis, Explanation

__all__ = ["Diagnosis", "Divergence", "Explanation", "Parting", "diagnose", "first_divergence"]
