"""`adopt`: a user's own object, called as a `Layer`. It runs unchanged; nothing is rebuilt from its weights.

a Layer             as it is
a framework's own   `torch.nn.GRU`, a hand-written module, a jitted function: by `adopt` of the backend that the
entry-point group multirnn.natives names (`multirnn.protocol.Adopts`)
a plain callable    `f(x, h0) -> (y, h)` on NumPy arrays
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from multirnn.boundary import Boundary, Inputs
from multirnn.errors import InvalidCall, Unrepresentable, kind_of
from multirnn.layer import Gradients, Layer, Output, State
from multirnn.protocol import Adopts, offers
from multirnn.registry import backend_of
from multirnn.returned import arranged, output_of
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights

__all__ = ["Adopted", "AdoptedLayer", "AdoptedNative", "adopt", "adopt_both", "known_spec", "native_spec", "noting"]
__all__ += ["takes_state"]


class Adopted(ABC):
    """A user's own object, called as a `Layer` is.

    Attributes:
        spec: its spec; read from the object if possible, else as given.
        native: the user's object itself.
        title: its name in reports.
        differentiable: whether it has `vjp`, for x and the initial state, and for the weights if it is readable.
        readable: whether it has `weights`.
        takes_lengths: whether it can be called with lengths.
        takes_state: whether it can be called with a non-zero initial state.
        compiled: whether it runs in its compiled form.
        remark: a caveat about how it runs, as a sentence without its subject; empty if there is none.
    """

    spec: RecurrentSpec
    native: Any
    title: str
    differentiable: bool = False
    readable: bool = False
    takes_lengths: bool = False
    takes_state: bool = True
    compiled: bool = False
    remark: str = ""

    @property
    def compilable(self) -> bool:
        """Whether it has a compiled form: by `torch.compile`, `jax.jit` or `tf.function`."""
        return False

    @property
    def parameter_count(self) -> int | None:
        """Trainable parameters, as counted by the framework; None if nothing counts them."""
        return None

    @abstractmethod
    def __call__(self, x: ArrayLike, state: State | None = None, *, lengths: ArrayLike | None = None) -> Output:
        """Run it over `x`; see `Layer.__call__`.

        Returns:
            The output. If a function returns no state, both parts of the state are None.

        Raises:
            InvalidCall: as for a layer; or it does not take lengths or a state; or it returned something else than a
                sequence and states of the spec's shapes. Its own errors are passed on, with a note.
        """

    def vjp(
        self, x: ArrayLike, state: State | None = None, *, lengths: ArrayLike | None = None, cotangent: Output
    ) -> Gradients:
        """Pull a cotangent back; see `Layer.vjp`. Unreached gradients are zero; `weights` is empty if it is not readable.

        Raises:
            InvalidCall: it is not differentiable, or as for a call.
        """
        raise InvalidCall(f"{self.title} has no gradients: nothing differentiates it")

    def weights(self) -> Weights:
        """The parameters as they are now; `Unrepresentable` unless it is readable."""
        raise Unrepresentable(f"the weights of {self.title} cannot be read")

    def __repr__(self) -> str:
        return f"<Adopted {self.title}: {self.spec!r}>"


def adopt(thing: Any, *, spec: RecurrentSpec | None = None, compiled: bool = False) -> Adopted:
    """Wrap the user's own object so that it is called as a `Layer`.

    Args:
        thing: a `Layer`; a framework's own layer, module or compiled function; or a plain callable `f(x, h0) -> (y, h)`
            on NumPy arrays. There x is `(batch, time, input_size)`, y `(batch, time, directions * hidden_size)`, and h0
            and h are `(num_layers * directions, batch, hidden_size)`; for an LSTM they are pairs `(h, c)`. With a single
            pass the returned h may lack its leading axis. If y alone is returned, the state is unknown.
        spec: its spec; needed if it cannot be read.
        compiled: run its compiled form.

    Raises:
        InvalidCall: its spec is unknown, or differs from the given one; it has no compiled form; or it cannot run
            unchanged, because it drops outputs at random, has no weights yet, or takes no x.
        MissingFramework: the framework of its backend is not installed.
    """
    if isinstance(thing, Adopted):
        _known(thing.spec, spec, thing.title)
        return thing if thing.compiled or not compiled else adopt(thing.native, spec=thing.spec, compiled=True)
    if _is_layer(thing):
        _known(thing.spec, spec, type(thing).__name__)
        return adopt(thing.native, spec=thing.spec, compiled=True) if compiled else AdoptedLayer(thing)
    backend = backend_of(thing)
    if offers(backend, Adopts):
        adopted = backend.adopt(thing, spec, compiled=compiled)
        if not isinstance(adopted, Adopted):
            raise InvalidCall(
                f"the backend {backend.name!r} adopted {kind_of(thing)} as {kind_of(adopted)}, "
                "not as a multirnn.adoption.Adopted"
            )
        return adopted
    if not callable(thing):
        raise InvalidCall(
            f"{kind_of(thing)} cannot be run: adopt a multirnn Layer, a framework's own layer, or a function "
            "f(x, h0) -> (y, h) on NumPy arrays"
        )
    spec = spec or known_spec(thing)
    if spec is None:
        raise InvalidCall(f"the spec of {_name(thing)} cannot be read: pass spec=mr.RecurrentSpec(...)")
    if compiled:
        raise InvalidCall(
            f"{_name(thing)} is called with NumPy arrays and has no compiled form; compile it yourself and adopt that"
        )
    return _AdoptedFunction(thing, spec)


def adopt_both(a: Any, b: Any, *, spec: RecurrentSpec | None = None, compiled: bool = False) -> tuple[Adopted, Adopted]:
    """Adopt two things that should be one function; a side whose spec cannot be read gets `spec`, or the other side's.

    A readable side may have another form of the biases than `spec`, and nothing else. With `compiled`, the compiled form
    runs of each side that has one, and at least one must. Anything else is an `InvalidCall`.
    """
    own = known_spec(a), known_spec(b)
    given = spec or own[0] or own[1]
    if given is None:
        raise InvalidCall("the spec of neither side can be read: pass spec=mr.RecurrentSpec(...)")
    for known in filter(None, own):
        if spec is not None and replace(known, bias=spec.bias) != spec:
            raise InvalidCall(f"one side is {known!r}, and spec= says {spec!r}; leave spec out")
    first, second = (adopt(thing, spec=known or given) for thing, known in zip((a, b), own, strict=True))
    if not compiled:
        return first, second
    if not (first.compilable or second.compilable):
        raise InvalidCall(f"neither {first.title} nor {second.title} has a compiled form")
    return adopt(first, compiled=first.compilable), adopt(second, compiled=second.compilable)


def known_spec(thing: Any) -> RecurrentSpec | None:
    """The spec of a thing; None if it cannot be read. `MissingFramework` if its framework is not installed."""
    if isinstance(thing, Adopted) or _is_layer(thing):
        return cast("RecurrentSpec", thing.spec)
    backend = backend_of(thing)
    try:
        return None if backend is None else backend.read(thing).spec
    except Unrepresentable:
        return None


def _is_layer(thing: Any) -> bool:
    has_calls = callable(thing) and (hasattr(thing, "vjp") or hasattr(thing, "stream"))  # a module may have a spec too
    return has_calls and isinstance(getattr(thing, "spec", None), RecurrentSpec)


def _known(own: RecurrentSpec, given: RecurrentSpec | None, title: str) -> None:
    """Raise if a given spec differs from the thing's own."""
    if given is not None and given != own:
        raise InvalidCall(f"{title} is {own!r}, and spec= says {given!r}; leave spec out")


# --- A layer ---------------------------------------------------------------------------------------------------------


class AdoptedLayer(Adopted):
    """A `Layer` as it is, or an object with only its `spec`, `__call__` and `vjp`; its class is its title unless given."""

    takes_lengths = True

    def __init__(self, layer: Any, title: str | None = None) -> None:
        self.spec = layer.spec
        self.title = title or type(layer).__name__
        self.native = getattr(layer, "native", layer)
        self.readable = hasattr(layer, "weights")
        self.differentiable = getattr(layer, "differentiable", hasattr(layer, "vjp"))
        self._layer: Layer = layer

    @property
    def compilable(self) -> bool:
        """Whether its native object has a compiled form."""
        backend = None if self.native is self._layer else backend_of(self.native)
        return offers(backend, Adopts) and adopt(self.native, spec=self.spec).compilable

    @property
    def parameter_count(self) -> int | None:
        """As counted by the layer."""
        return getattr(self._layer, "parameter_count", None)

    def __call__(self, x: ArrayLike, state: State | None = None, *, lengths: ArrayLike | None = None) -> Output:
        """See `Layer.__call__`."""
        return self._layer(x, state, lengths=lengths)

    def vjp(
        self, x: ArrayLike, state: State | None = None, *, lengths: ArrayLike | None = None, cotangent: Output
    ) -> Gradients:
        """See `Layer.vjp`."""
        if not self.differentiable:
            return super().vjp(x, state, lengths=lengths, cotangent=cotangent)
        return self._layer.vjp(x, state, lengths=lengths, cotangent=cotangent)

    def weights(self) -> Weights:
        """See `Layer.weights`."""
        return self._layer.weights() if self.readable else super().weights()


# --- Other objects ---------------------------------------------------------------------------------------------------


class AdoptedNative(Boundary, Adopted):
    """A framework's own object, or a function; subclasses write `run` and `pull_back`, as layers do."""

    def __init__(self, native: Any, spec: RecurrentSpec, title: str, *, compiled: bool = False) -> None:
        super().__init__(spec)
        self.native = native
        self.compiled = compiled
        self.title = f"{title}, compiled" if compiled else title

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """Refused, unless overridden; see `BoundaryLayer.pull_back`."""
        raise InvalidCall(f"{self.title} has no gradients: nothing differentiates it")

    def _check(self, x: ArrayLike, state: State | None, lengths: ArrayLike | None) -> tuple[Inputs, bool]:
        inputs, batched = super()._check(x, state, lengths)
        if inputs.lengths is not None and not self.takes_lengths:
            raise InvalidCall(f"{self.title} takes no lengths: call it with full rows")
        if not self.takes_state and any(part.any() for part in inputs.state.parts):
            raise InvalidCall(f"{self.title} takes no initial state: call it without one")
        return inputs, batched


def native_spec(native: Any, spec: RecurrentSpec | None, read: Callable[[Any], Weights]) -> tuple[RecurrentSpec, bool]:
    """The spec of a framework's own object, and whether it can be read by a backend's `read`.

    `InvalidCall` if it cannot be read and the user gave no spec, or its own spec differs from the given one.
    """
    try:
        own = read(native).spec
    except Unrepresentable as error:
        if spec is None:
            raise InvalidCall(f"{error}. To run it as it is, pass spec=mr.RecurrentSpec(...)") from error
        return spec, False
    _known(own, spec, f"this {type(native).__name__}")
    return own, True


def takes_state(function: Callable[..., Any]) -> bool:
    """Whether a function takes `f(x, state)`, and not only `f(x)`; `InvalidCall` if it takes neither."""
    try:
        parameters = signature(function)
    except ValueError:  # some functions written in C have no signature
        return True
    for arguments in ((None, None), (None,)):
        try:
            parameters.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) == 2
    raise InvalidCall(f"{_name(function)} has the parameters {parameters}; it must be callable as f(x, h0)")


@contextmanager
def noting(title: str, inputs: Inputs) -> Iterator[None]:
    """Adds a note about the arguments to any error of the user's own object."""
    try:
        yield
    except Exception as error:
        state = " and ".join(f"{name} {part.shape}" for name, part in zip("hc", inputs.state.parts, strict=False))
        error.add_note(f"multirnn called {title} with x {inputs.x.shape} and the initial state {state}")
        raise


class _AdoptedFunction(AdoptedNative):
    """A plain callable on NumPy arrays."""

    def __init__(self, native: Callable[..., Any], spec: RecurrentSpec) -> None:
        super().__init__(native, spec, _name(native))
        self.takes_state = takes_state(native)

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`. The function gets copies, and may write to them."""
        state = [part.copy() for part in inputs.state.parts]
        arguments = [inputs.x.copy()]
        if self.takes_state:
            arguments.append(state[0] if len(state) == 1 else tuple(state))  # type: ignore[arg-type]
        with noting(self.title, inputs):
            result = self.native(*arguments)
        try:
            arrays = _arrays(result)
        except ValueError as error:
            raise InvalidCall(f"{self.title} returned no array: {error}; return the tuple (y, h)") from error
        return output_of(arranged(arrays, inputs.x.shape, self.spec, self.title), self.spec, self.title)


def _arrays(result: Any) -> Any:
    """The arrays that a plain callable returned: a tuple is several of them, a list is one."""
    if isinstance(result, tuple):
        return tuple(map(_arrays, result))
    return None if result is None else np.asarray(result)


def _name(function: Any) -> str:
    name = getattr(function, "__name__", None)
    return f"function {name}" if name else f"object {type(function).__name__}"
