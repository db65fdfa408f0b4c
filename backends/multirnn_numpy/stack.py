"""The stack: layer upon layer, in one direction or in both, there and back."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from multirnn import RecurrentSpec
from multirnn.weights import Array
from multirnn_numpy.cells import RECURRENCES, Recurrence

__all__ = ["Stack"]

ORDER: Mapping[str, slice] = {"forward": slice(None), "backward": slice(None, None, -1)}


class Stack:
    """A recurrent stack in plain NumPy; what `layer.native` is.

    Time comes first: sequences are `(time, batch, features)`, states `(num_layers * directions, batch, hidden_size)`,
    and of a single sequence they have no batch axis. What is computed has the dtype of what is given, complex too, so
    that derivatives can be taken by complex step.

    Attributes:
        spec: what it computes.
        parameters: by name, in canonical shapes. They are live: what is written into them holds from the next call on.
    """

    def __init__(self, spec: RecurrentSpec, parameters: dict[str, Array]) -> None:
        self.spec = spec
        self.parameters = parameters
        self._recurrence = RECURRENCES[spec.form]
        self._names = {at: _names(spec, *at) for at in spec.passes}

    def forward(
        self, x: Array, state: Sequence[Array], padded: Array | None = None
    ) -> tuple[Array, list[Array], list[Recurrence]]:
        """There: over a sequence, layer by layer.

        Args:
            x: `(time, batch, input_size)`, zero at padding.
            state: before the first step, h and of an LSTM c.
            padded: which steps are padding, `(time, batch, 1)`; None where none is.

        Returns:
            The outputs, `(time, batch, directions * hidden_size)`; the state after the last step; and the run of every
            layer and direction, for `backward`.
        """
        runs: list[Recurrence] = []
        for layer in range(self.spec.num_layers):
            outputs = []
            for direction in self.spec.directions:
                order = ORDER[direction]
                first = [part[len(runs)] for part in state]
                run = self._recurrence(
                    self.spec, self._at(layer, direction), x[order], first, None if padded is None else padded[order]
                )
                outputs.append(run.outputs[order])
                runs.append(run)
            x = outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=-1)
            if padded is not None:
                x = np.where(padded, x.dtype.type(0), x)
        return x, _each(run.last for run in runs), runs

    def backward(
        self, runs: Sequence[Recurrence], dy: Array, dstate: Sequence[Array]
    ) -> tuple[dict[str, Array], Array, list[Array]]:
        """Back: from the gradients of what `forward` returned to those of what it was given.

        Args:
            runs: of the call of `forward`.
            dy: the gradient of the outputs, zero at padding.
            dstate: the gradient of the state after the last step.

        Returns:
            The gradients of the parameters, by name; of x; and of the state before the first step.
        """
        gradients: dict[str, Array] = {}
        dfirst: list[list[Array]] = []
        directions = self.spec.directions
        for layer in reversed(range(self.spec.num_layers)):
            dys = np.split(dy, len(directions), axis=-1)
            for d, direction in reversed(list(enumerate(directions))):
                order, k = ORDER[direction], layer * len(directions) + d
                dparameters, dx, dstart = runs[k].pull_back(dys[d][order], [part[k] for part in dstate])
                gradients |= {self._names[layer, direction][last]: array for last, array in dparameters.items()}
                dfirst.insert(0, dstart)
                dy = dx[order] if direction == directions[-1] else dy + dx[order]
        return {name: gradients[name] for name in self.parameters}, dy, _each(dfirst)

    def _at(self, layer: int, direction: str) -> dict[str, Array]:
        """The parameters of one layer and direction by their last name."""
        return {last: self.parameters[name] for last, name in self._names[layer, direction].items()}

    def __repr__(self) -> str:
        return f"<Stack of {self.spec!r}>"


def _names(spec: RecurrentSpec, layer: int, direction: str) -> dict[str, str]:
    """The names of the parameters of one layer and direction by their last part."""
    prefix = f"layers.{layer}.{direction}."
    return {name.removeprefix(prefix): name for name in spec.shapes if name.startswith(prefix)}


def _each(states: Iterable[Sequence[Array]]) -> list[Array]:
    """All h on a new leading axis, and of an LSTM all c."""
    return [np.array(parts) for parts in zip(*states, strict=True)]
