"""The compiled recurrence: a whole stack there, and its gradients, in one call each.

It is an option of the installation. `missing()` says why it is not there, and everything else of multirnn runs without it.

Arrays are given by address, so that NumPy arrays and the tensors of any framework are alike: an operand is the tuple
`(address, *strides)`, the address as an integer and the strides in elements, an axis each. Of sequences the last axis has
to be dense and its stride is left out. `operand` and `sequence` write them for NumPy arrays. An address 0 stands for an
array that is not there. Nothing is checked here: a wrong address is a crash, so backends check before they call, and keep
the arrays alive.

    stack = Stack(spec)
    table = stack.bind({name: operand(array) for name, array in parameters.items()})
    stack.forward(table, batch, time, sequence(x), sequence(y), (h, c), (last_h, last_c))
"""

from multirnn.kernel.library import instruction_sets, missing
from multirnn.kernel.stack import Choices, Operand, Packed, Sequence, Stack, States, operand, sequence

__all__ = [
    "Choices",
    "Operand",
    "Packed",
    "Sequence",
    "Stack",
    "States",
    "instruction_sets",
    "missing",
    "operand",
    "sequence",
]
