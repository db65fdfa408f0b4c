"""The compiled recurrence: a stack's forward pass, or its gradients, in one call.

It is optional: `refuses()` says why it is absent. It takes addresses, so that the arrays of all frameworks are alike.
It checks nothing: a wrong address is a crash. So backends check first, and keep the arrays alive during the call.
Strides are in elements; None is an absent array.

    compiled = CompiledRecurrence(spec)
    table = compiled.bind({name: operand(array) for name, array in parameters.items()})
    compiled.forward(table, call_record(batch=2, time=5, x=sequence(x), y=sequence(y), last=(address(h), address(c))))
"""

from multirnn.kernel.compiled import (
    CallRecord,
    Choices,
    CompiledRecurrence,
    Operand,
    Packed,
    Sequence,
    States,
    Table,
    address,
    call_record,
    operand,
    sequence,
)
from multirnn.kernel.library import instruction_sets, refuses

__all__ = ["CallRecord", "Choices", "CompiledRecurrence", "Operand", "Packed", "Sequence", "States", "Table", "address"]
__all__ += ["call_record", "instruction_sets", "operand", "refuses", "sequence"]
