"""Training parity: the same start, data and loss in every framework, each with its own optimiser on its own object.

The loss is the mean of `(sequence - target)²` over the valid steps. The target defaults to the output of a teacher: the
same stack with other weights, on the same input. Loss curves and final weights are compared with the reference, NumPy in
float64, whose formulas are in `multirnn_numpy.training`.

Training magnifies rounding, 1 to 1000 times in 20 steps, depending on the stack, the data, the optimiser and its learning
rate. So the factor is measured: the reference trains again from starts shifted by eps of the dtype, and the distance at
the end, in eps, multiplies the tolerance of one call. The worst seen over drawn stacks, in eps times this factor: 17.5 in
float32, where the tolerance is 64 (JAX, Adam), and 2.1 in float64, where it is 256; after 300 steps 12.3, NumPy in
float32.

A difference beyond the bound is explained if it vanishes when the reference trains under one of the conventions in
`CAUSES`, or several.

    optimiser  optimisers and batches
    causes     the conventions in which frameworks differ
    record     the results
    training   trains every backend beside the reference
"""

from multirnn.parity.causes import CAUSES, Cause, Setting
from multirnn.parity.optimiser import OPTIMISERS, STEPS, Batch, Optimiser
from multirnn.parity.record import Parity, Trained
from multirnn.parity.training import train_parity

__all__ = ["CAUSES", "OPTIMISERS", "STEPS", "Batch", "Cause", "Optimiser", "Parity", "Setting", "Trained"]
__all__ += ["train_parity"]
