"""A user's own `Stack` called as a `Layer`."""

from typing import Any

from multirnn import InvalidCall, RecurrentSpec
from multirnn.adoption import Adopted, AdoptedLayer, native_spec
from multirnn_numpy.layer import NumpyLayer
from multirnn_numpy.stack import Stack
from multirnn_numpy.weights import read

__all__ = ["AdoptedNumpyStack", "adopt"]


def adopt(native: Any, spec: RecurrentSpec | None, *, compiled: bool) -> Adopted:
    """Run a `multirnn_numpy.Stack` as it is; see `multirnn.adoption.adopt`.

    Raises:
        InvalidCall: it is no stack, or has another spec; or its compiled form is asked for.
    """
    _, readable = native_spec(native, spec, read)
    if not readable:
        raise InvalidCall(f"the numpy backend runs a multirnn_numpy.Stack, not a {type(native).__qualname__}")
    if compiled:
        raise InvalidCall("NumPy has no compiled form of a Stack; run it as it is")
    return AdoptedNumpyStack(native)


class AdoptedNumpyStack(AdoptedLayer):
    """A stack, run as the native object of a `NumpyLayer`."""

    def __init__(self, native: Stack) -> None:
        super().__init__(NumpyLayer(native), "Stack (numpy)")

    @property
    def compilable(self) -> bool:
        """NumPy has no compiled form."""
        return False
