"""JAX as its users write it by hand: the input projected in one product, a jitted `lax.scan`, and JAX's own autodiff."""

from typing import Any

import numpy as np

import multirnn as mr
from multirnn.protocol import Prepared, Work

from ._jax import FLOAT32, jitted
from ._peer import Peer


def prepare(work: Work, threads: int) -> Prepared:
    """The stack, differentiated by JAX."""
    import jax.numpy as jnp

    spec = work.weights.spec
    weights = {name: jnp.asarray(array) for name, array in work.weights.arrays.items()}
    lengths = None if work.lengths is None else jnp.asarray(work.lengths)
    zero = [(jnp.zeros((len(work.x), spec.hidden_size)),) * len(spec.form.states) for _ in spec.passes]

    def forward(weights: Any, x: Any, state: Any) -> Any:
        return _stack(spec, weights, x, state, lengths)

    return jitted(work, forward, weights, zero, lambda weights: {name: np.asarray(weights[name]) for name in weights})


def _stack(spec: mr.RecurrentSpec, weights: Any, x: Any, state: Any, lengths: Any) -> Any:
    """The sequence, batch first, and the final states of all passes."""
    import jax.numpy as jnp

    x, ends = x.swapaxes(0, 1), []
    valid = None if lengths is None else (jnp.arange(len(x))[:, None] < lengths)[..., None]
    for layer in range(spec.num_layers):
        outputs = []
        for direction in spec.directions:
            prefix = f"layers.{layer}.{direction}."
            parameters = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
            end, y = _pass(spec, parameters, x, state[len(ends)], valid, direction == "backward")
            outputs.append(y)
            ends.append(end)
        x = jnp.concatenate(outputs, axis=-1)
    return x.swapaxes(0, 1), ends


def _pass(spec: mr.RecurrentSpec, p: Any, x: Any, start: Any, valid: Any, reverse: bool) -> Any:
    """One layer in one direction: the states at the end, and the outputs."""
    import jax
    import jax.numpy as jnp

    named = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}
    act, gate = named[str(spec.activation)], named[str(spec.recurrent_activation)]
    gates, H = len(spec.form.gates), spec.hidden_size
    U = p["weight_hh"].reshape(gates * H, H).T
    zeros = jnp.zeros((gates, H))
    d = zeros.at[-len(p["bias_hh"]) :].set(p["bias_hh"]) if "bias_hh" in p else zeros  # of all gates, or the candidate
    bias = p.get("bias_ih", zeros) + (d.at[-1].set(0) if spec.form.recurrent_candidate_bias else d)
    z = x @ p["weight_ih"].reshape(gates * H, -1).T + bias.reshape(-1)

    def step(state: Any, now: Any) -> Any:
        z_t, valid_t = now
        h, *c = state
        if spec.cell == "simple_rnn":
            new = (act(z_t + h @ U),)
        elif spec.cell == "lstm":
            i, f, g, o = jnp.split(z_t + h @ U, 4, axis=-1)
            after = gate(f) * c[0] + gate(i) * act(g)
            new = (gate(o) * act(after), after)
        elif spec.reset_after:
            h_r, h_z, h_n = jnp.split(h @ U, 3, axis=-1)
            z_r, z_z, z_n = jnp.split(z_t, 3, axis=-1)
            update = gate(z_z + h_z)
            new = ((1 - update) * act(z_n + gate(z_r + h_r) * (h_n + d[-1])) + update * h,)
        else:
            reset, update = jnp.split(gate(z_t[:, : 2 * H] + h @ U[:, : 2 * H]), 2, axis=-1)
            new = ((1 - update) * act(z_t[:, 2 * H :] + (reset * h) @ U[:, 2 * H :]) + update * h,)
        if valid_t is None:
            return new, new[0]
        return tuple(jnp.where(valid_t, a, b) for a, b in zip(new, state, strict=True)), new[0] * valid_t

    return jax.lax.scan(step, start, (z, valid), reverse=reverse)


CONTENDERS = (Peer("JAX scan", prepare, ("jax", "jaxlib"), lacks={"float64": FLOAT32}),)
