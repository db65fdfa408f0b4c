"""The recurrence of the textbooks, h' = tanh(W x + U h + b), as a backend of multirnn."""

from typing import Any, NamedTuple

import numpy as np

import multirnn as mr
from multirnn.boundary import BoundaryLayer, Inputs
from multirnn.protocol import accept


class Elman(NamedTuple):
    """This little framework's own layer: W (units, features), U (units, units), b (units,)."""

    W: np.ndarray
    U: np.ndarray
    b: np.ndarray


class TextbookLayer(BoundaryLayer):
    def __init__(self, spec: mr.RecurrentSpec, native: Elman) -> None:
        super().__init__(spec)
        self._native = native

    @property
    def native(self) -> Elman:
        return self._native

    @property
    def parameter_count(self) -> int:
        return sum(array.size for array in self._native)

    def weights(self) -> mr.Weights:
        return BACKEND.read(self._native)

    def states(self, inputs: Inputs) -> list[np.ndarray]:
        """The state before the first step and after each; at padding it stays as it is."""
        W, U, b = self._native
        states = [inputs.state.h[0]]
        for x, valid in zip(inputs.x.swapaxes(0, 1), inputs.valid.T[:, :, None], strict=True):
            states.append(np.where(valid, np.tanh(x @ W.T + states[-1] @ U.T + b), states[-1]))
        return states

    def run(self, inputs: Inputs) -> mr.Output:
        states = self.states(inputs)
        sequence = np.stack(states[1:], axis=1) * inputs.valid[:, :, None]
        return mr.Output(sequence, mr.State(states[-1][None]))

    def pull_back(self, inputs: Inputs, cotangent: mr.Output) -> mr.Gradients:
        states = self.states(inputs)
        dx, (dW, dU, db) = np.zeros_like(inputs.x), map(np.zeros_like, self._native)
        dh = cotangent.state.h[0]
        for t in reversed(range(inputs.x.shape[1])):
            valid = inputs.valid[:, t, None]
            da = (dh + cotangent.sequence[:, t]) * (1 - states[t + 1] ** 2) * valid
            dx[:, t] = da @ self._native.W
            dW, dU, db = dW + da.T @ inputs.x[:, t], dU + da.T @ states[t], db + da.sum(axis=0)
            dh = np.where(valid, da @ self._native.U, dh)
        return mr.Gradients(_named(self.spec, dW, dU, db), dx, mr.State(dh[None]))


class TextbookBackend:
    name = "textbook"
    differentiable = True

    def refuses(self, spec: mr.RecurrentSpec) -> str | None:
        if spec == mr.RecurrentSpec("simple_rnn", spec.input_size, spec.hidden_size, dtype=spec.dtype):
            return None
        return "the textbook has the simple RNN only, one layer in one direction, with tanh and bias='single'"

    def build(self, weights: mr.Weights, *, device: str | None = None) -> TextbookLayer:
        accept(self, weights.spec)
        if device not in (None, "cpu"):
            raise mr.InvalidCall(f"the textbook computes on the device 'cpu' alone, not on {device!r}")
        return TextbookLayer(weights.spec, Elman(*(array[0].copy() for array in weights.arrays.values())))

    def read(self, native: Any) -> mr.Weights:
        if not isinstance(native, Elman):
            raise mr.Unrepresentable(f"the textbook backend reads an Elman, not a {type(native).__name__}")
        units, features = native.W.shape
        spec = mr.RecurrentSpec("simple_rnn", features, units, dtype=str(native.W.dtype))
        return mr.Weights(spec, _named(spec, *native))

    def versions(self) -> dict[str, str]:
        return {"multirnn-textbook": "1.0"}


def _named(spec: mr.RecurrentSpec, *arrays: np.ndarray) -> dict[str, np.ndarray]:
    return {name: array[None] for name, array in zip(spec.shapes, arrays, strict=True)}  # one gate


BACKEND = TextbookBackend()
