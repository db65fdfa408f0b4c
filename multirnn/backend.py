"""What a backend offers: `Backend`. See `backends/README.md` for how to write one."""

from collections.abc import Mapping
from inspect import get_annotations
from typing import Any, Protocol, runtime_checkable

from multirnn.errors import Unsupported
from multirnn.layer import Layer
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights

__all__ = ["Backend", "accept", "offers"]


@runtime_checkable
class Backend(Protocol):
    """A framework that realises specs: exactly, or not at all.

    It may have a method `adopt(native, spec, *, compiled)` besides, which runs a user's own object as it is; see
    `multirnn.adoption`. It may have `implementations`, names of which "native" is one, and then `build` takes an
    argument `implementation`; see `multirnn.implementation`.

    Attributes:
        name: under which it is selected; that of its entry point.
        differentiable: whether its layers have `vjp`; False for inference only.
    """

    name: str
    differentiable: bool

    def refuses(self, spec: RecurrentSpec) -> str | None:
        """None: this backend will realise exactly this spec. A string: the reason why not, one a user can act on."""
        ...

    def build(self, weights: Weights, *, device: str | None = None) -> Layer:
        """Realise `weights.spec` with these weights.

        Args:
            weights: copied into the framework's own parameters.
            device: a device of the framework ("cpu", "cuda", …); its default unless given.

        Raises:
            Unsupported: with the reason that `refuses` gives.
            InvalidCall: the framework has no such device here.
        """
        ...

    def read(self, native: Any) -> Weights:
        """The spec and the weights of a layer that the user made with the framework itself.

        Raises:
            Unrepresentable: no spec describes it; the sentence names what no spec has.
        """
        ...

    def versions(self) -> Mapping[str, str]:
        """The versions of what it runs on, by package."""
        ...


def offers(thing: object, protocol: type) -> bool:
    """Whether an object has every attribute that a Protocol declares.

    `isinstance` of a runtime-checkable Protocol asks the object on Python 3.11, but only its class from 3.12 on. Then an
    attribute behind `__getattr__` does not count, and a property that raises stays unseen.
    """
    names = {*vars(protocol), *get_annotations(protocol)}
    return all(hasattr(thing, name) for name in names if not name.startswith("_"))


def accept(backend: Backend, spec: RecurrentSpec) -> None:
    """The first line of every `build`: go on only if the backend realises this spec.

    Raises:
        Unsupported: with the backend's own reason.
    """
    if reason := backend.refuses(spec):
        raise Unsupported(f"backend {backend.name!r} refuses {spec!r}: {reason}")
