"""The loop of the textbooks in NumPy, as in tutorials: nothing is hoisted out of the loop, nothing allocated ahead."""

from typing import Any

import numpy as np

import multirnn as mr
from multirnn.protocol import Prepared, Work

from ._peer import Peer, gathered, modes

ACTIVATIONS = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "sigmoid": lambda x: 1 / (1 + np.exp(-x))}


def prepare(work: Work, threads: int) -> Prepared:
    """The loop over `x` from zero, or over one step from the state of the call before."""
    spec = work.weights.spec
    weights = mr.split_biases(work.weights)  # a bias that is not there is zero
    parameters = [weights.at(*place) for place in spec.passes]
    matrices = [[p[name].reshape(-1, p[name].shape[-1]).T for name in ("weight_ih", "weight_hh")] for p in parameters]
    biases = [[p[name].reshape(-1) for name in ("bias_ih", "bias_hh")] for p in parameters]
    zero = np.zeros((len(work.x), spec.hidden_size), spec.dtype)
    start = [(zero,) * len(spec.form.states) for _ in parameters]

    def run(states: list[Any]) -> Any:
        x, ends = work.x, []
        for _ in range(spec.num_layers):
            outputs = []
            for direction in spec.directions:
                place = len(ends)
                steps = x.swapaxes(0, 1) if direction == "forward" else x.swapaxes(0, 1)[::-1]
                y, end = _loop(spec, steps, states[place], *matrices[place], *biases[place])
                outputs.append(y if direction == "forward" else y[::-1])
                ends.append(end)
            x = np.concatenate(outputs, axis=-1).swapaxes(0, 1)
        return x, ends

    return modes(work, run, start, lambda found: gathered(spec, found[0], [part for end in found[1] for part in end]))


def _loop(spec: mr.RecurrentSpec, x: Any, state: Any, W: Any, U: Any, b: Any, d: Any) -> Any:
    act, gate = ACTIVATIONS[str(spec.activation)], ACTIVATIONS[str(spec.recurrent_activation)]
    outputs = []
    h, *c = state
    H = spec.hidden_size
    for x_t in x:
        if spec.cell == "simple_rnn":
            h = act(x_t @ W + b + h @ U + d)
        elif spec.cell == "lstm":
            i, f, g, o = np.split(x_t @ W + b + h @ U + d, 4, axis=-1)
            c = [gate(f) * c[0] + gate(i) * act(g)]
            h = gate(o) * act(c[0])
        elif spec.reset_after:
            x_r, x_z, x_n = np.split(x_t @ W + b, 3, axis=-1)
            h_r, h_z, h_n = np.split(h @ U + d, 3, axis=-1)
            z = gate(x_z + h_z)
            h = (1 - z) * act(x_n + gate(x_r + h_r) * h_n) + z * h
        else:
            x_r, x_z, x_n = np.split(x_t @ W + b + d, 3, axis=-1)
            r, z = gate(x_r + h @ U[:, :H]), gate(x_z + h @ U[:, H : 2 * H])
            h = (1 - z) * act(x_n + (r * h) @ U[:, 2 * H :]) + z * h
        outputs.append(h)
    return np.stack(outputs), (h, *c)


CONTENDERS = (
    Peer(
        "NumPy loop",
        prepare,
        ("numpy",),
        lacks={"gradients": "the loop has no gradients", "lengths": "the loop takes no lengths"},
        activations=ACTIVATIONS,
    ),
)
