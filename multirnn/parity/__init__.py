"""Do frameworks train alike? The same start, the same data, the same loss; each with its own optimiser on its own object.

The loss is the mean of `(sequence - target)²` over the valid steps. Unless a target is given, it is the output of a
teacher: the same stack with other weights, on the same input. Every curve of losses and all final weights are held
against the reference, NumPy in float64, whose formulas stand in `multirnn_numpy.training`.

Training magnifies rounding, by a factor of 1 to 1000 in 20 steps, which depends on the stack, the data, the optimiser and
its learning rate. So the factor is measured: the reference is trained again from starts that are shifted by eps of the
dtype, and how far apart they end, in eps, is what the tolerance of one call is multiplied by. The worst that was seen of
frameworks over drawn stacks, in eps times this factor: 17.5 in float32, where the tolerance is 64 (JAX, Adam), and 2.1 in
float64, where it is 256; after 300 steps 12.3, NumPy in float32.

A difference beyond the bound is explained where one of the conventions in `CAUSES` is what makes it: the reference is
trained again under that convention, and the difference has to vanish.

    optimiser  what is trained with, and on
    causes     the conventions in which frameworks differ
    record     what was found
    training   every backend beside the reference
"""

from multirnn.parity.causes import CAUSES, Cause, Setting
from multirnn.parity.optimiser import OPTIMISERS, STEPS, Batch, Optimiser
from multirnn.parity.record import Parity, Trained
from multirnn.parity.training import train_parity

__all__ = [
    "CAUSES",
    "OPTIMISERS",
    "STEPS",
    "Batch",
    "Cause",
    "Optimiser",
    "Parity",
    "Setting",
    "Trained",
    "train_parity",
]
