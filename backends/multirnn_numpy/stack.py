"""The stack: layer upon layer, in one direction or in both, forward and backward."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from multirnn import RecurrentSpec
from multirnn.cells import Cell
from multirnn.weights import Array
from multirnn_numpy.faster import forward_both, paired
from multirnn_numpy.loop import CELLS, Padding, Pass
from multirnn_numpy.reverse import pull_back
from multirnn_numpy.workspace import Empty

__all__ = ["Stack"]

ORDER: Mapping[str, slice] = {"forward": slice(None), "backward": slice(None, None, -1)}


class Stack:
    """A recurrent stack in plain NumPy; `layer.native` is one.

    Time comes first: sequences are `(time, batch, features)`, states `(num_layers * directions, batch, hidden_size)`. A
    single sequence may come without the batch axis. It computes in the dtype of the arrays, complex too, so that
    derivatives can be taken by complex step. Overflow and NaN neither raise nor warn, whatever `numpy.errstate` says.

    Args:
        spec: of the stack.
        parameters: by name, in canonical shapes.
        cells: the loop of each cell.
        together: whether both directions of a layer go through one loop.

    Attributes:
        spec: of the stack.
        parameters: live: each call uses their current values.
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
        self._names: dict[tuple[int, str], dict[str, str]] = {place: {} for place in spec.passes}
        for name in spec.shapes:
            _, layer, direction, last = name.split(".")
            self._names[int(layer), direction][last] = name

    @np.errstate(all="ignore")
    def forward(
        self, x: Array, state: Sequence[Array], padded: Padding | None = None, empty: Empty = np.empty
    ) -> tuple[Array, list[Array], list[Pass]]:
        """Run over a sequence, layer by layer.

        Args:
            x: `(time, batch, input_size)`, zero at padding.
            state: before the first step: h, and c of an LSTM.
            padded: the steps that are padding, `(time, batch, 1)`, always at the end; None if none is.
            empty: allocates the large arrays, the outputs among them.

        Returns:
            The outputs, `(time, batch, directions * hidden_size)`; the state after the last step; and a pass for every
            layer and direction, for `backward`.
        """
        passes: list[Pass] = []
        held = dict(self.parameters)  # a snapshot: another thread may assign some meanwhile
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
                    run.empty = empty  # the backward passes run one by one
            outputs = [run.outputs[ORDER[direction]] for run, direction in zip(runs, self.spec.directions, strict=True)]
            x = outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=-1)
            if padded is not None:
                x = np.where(padded, x.dtype.type(0), x)
        return x, _stacked(run.last for run in passes), passes

    @np.errstate(all="ignore")
    def backward(
        self, passes: Sequence[Pass], dy: Array, dstate: Sequence[Array]
    ) -> tuple[dict[str, Array], Array, list[Array]]:
        """From the gradients of the results of `forward` to the gradients of its arguments.

        Args:
            passes: from `forward`.
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
                dparameters, dx, dfirst[k] = pull_back(passes[k], dy_d[order], [part[k] for part in dstate])
                gradients |= {name: dparameters[last] for last, name in self._names[layer, direction].items()}
                dxs.append(dx[order])
            dy = dxs[0] if len(dxs) == 1 else dxs[0] + dxs[1]
        return {name: gradients[name] for name in self.spec.shapes}, dy, _stacked(dfirst[k] for k in range(len(passes)))

    def __repr__(self) -> str:
        return f"<Stack of {self.spec!r}>"


def _stacked(states: Iterable[Sequence[Array]]) -> list[Array]:
    """All h on a new leading axis, and all c of an LSTM."""
    return [np.array(parts) for parts in zip(*states, strict=True)]
