"""The stack: layer upon layer, in one direction or in both, there and back."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from multirnn import RecurrentSpec
from multirnn.cells import Cell
from multirnn.weights import Array
from multirnn_numpy.both import forward_both, paired
from multirnn_numpy.cells import CELLS
from multirnn_numpy.passes import Padding, Pass
from multirnn_numpy.workspace import Empty

__all__ = ["Stack"]

ORDER: Mapping[str, slice] = {"forward": slice(None), "backward": slice(None, None, -1)}


class Stack:
    """A recurrent stack in plain NumPy; what `layer.native` is.

    Time comes first: sequences are `(time, batch, features)`, states `(num_layers * directions, batch, hidden_size)`.
    Of a single sequence they may come without the batch axis. The arithmetic is that of the arrays that are given,
    complex too, so that derivatives can be taken by complex step. Overflow and NaN raise and warn of nothing, whatever
    `numpy.errstate` says.

    Args:
        spec: what it computes.
        parameters: by name, in canonical shapes.
        cells: the loops of the cells.
        together: whether both directions of a layer go through one loop.

    Attributes:
        spec: what it computes.
        parameters: they are live: what is written into them holds from the next call on.
    """

    def __init__(
        self,
        spec: RecurrentSpec,
        parameters: dict[str, Array],
        cells: Mapping[Cell, type[Pass]] = CELLS,
        *,
        together: bool = False,
    ) -> None:
        self.spec = spec
        self.parameters = parameters
        self._cell = cells[spec.form]
        self._together = together and spec.bidirectional
        self._names = {(layer, direction): _names(spec, layer, direction) for layer, direction in spec.passes}

    @np.errstate(all="ignore")
    def forward(
        self, x: Array, state: Sequence[Array], padded: Padding | None = None, empty: Empty = np.empty
    ) -> tuple[Array, list[Array], list[Pass]]:
        """There: over a sequence, layer by layer.

        Args:
            x: `(time, batch, input_size)`, zero at padding.
            state: before the first step: h, and of an LSTM c.
            padded: which steps are padding, `(time, batch, 1)`, always at the end; None where none is.
            empty: where the large arrays come from, the outputs among them.

        Returns:
            The outputs, `(time, batch, directions * hidden_size)`; the state after the last step; and the passes, one
            for every layer and direction, which `backward` goes back.
        """
        passes: list[Pass] = []
        held = dict(self.parameters)  # all of one moment, whatever another thread assigns meanwhile
        for layer in range(self.spec.num_layers):
            memory = paired(empty) if self._together else [empty] * len(self.spec.directions)
            for direction, of_direction in zip(self.spec.directions, memory, strict=True):
                order = ORDER[direction]
                parameters = {last: held[name] for last, name in self._names[layer, direction].items()}
                first = [part[len(passes)] for part in state]
                steps = None if padded is None else padded[order]
                run = self._cell(self.spec, parameters, x[order], first, steps, of_direction)
                if not self._together:
                    run.forward()
                passes.append(run)
            runs = passes[-len(self.spec.directions) :]
            if self._together:
                forward_both(runs)
                for run in runs:
                    run.empty = empty  # the ways back have nothing together
            outputs = [run.outputs[ORDER[direction]] for run, direction in zip(runs, self.spec.directions, strict=True)]
            x = outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=-1)
            if padded is not None:
                x = np.where(padded, x.dtype.type(0), x)
        return x, _stacked(run.last for run in passes), passes

    @np.errstate(all="ignore")
    def backward(
        self, passes: Sequence[Pass], dy: Array, dstate: Sequence[Array]
    ) -> tuple[dict[str, Array], Array, list[Array]]:
        """Back: from the gradients of what `forward` returned to those of what it was given.

        Args:
            passes: that `forward` made.
            dy: the gradient of the outputs, zero at padding.
            dstate: the gradient of the state after the last step.

        Returns:
            The gradients of the parameters, by name; of x; and of the state before the first step.
        """
        gradients: dict[str, Array] = {}
        dfirst: dict[int, list[Array]] = {}
        directions = self.spec.directions
        for layer in reversed(range(self.spec.num_layers)):
            dxs = []
            for d, (direction, dy_d) in enumerate(zip(directions, np.split(dy, len(directions), axis=-1), strict=True)):
                k, order = layer * len(directions) + d, ORDER[direction]
                dparameters, dx, dfirst[k] = passes[k].pull_back(dy_d[order], [part[k] for part in dstate])
                gradients |= {name: dparameters[last] for last, name in self._names[layer, direction].items()}
                dxs.append(dx[order])
            dy = dxs[0] if len(dxs) == 1 else dxs[0] + dxs[1]
        return {name: gradients[name] for name in self.spec.shapes}, dy, _stacked(dfirst[k] for k in range(len(passes)))

    def __repr__(self) -> str:
        return f"<Stack of {self.spec!r}>"


def _names(spec: RecurrentSpec, layer: int, direction: str) -> dict[str, str]:
    """The names of the parameters of one layer and direction, by their last part."""
    prefix = f"layers.{layer}.{direction}."
    return {name.removeprefix(prefix): name for name in spec.shapes if name.startswith(prefix)}


def _stacked(states: Iterable[Sequence[Array]]) -> list[Array]:
    """All h on a new leading axis, and of an LSTM all c."""
    return [np.array(parts) for parts in zip(*states, strict=True)]
