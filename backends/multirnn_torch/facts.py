"""A table of the shapes for which the loops were measured to be at least as fast as PyTorch's layers."""

from math import inf
from typing import NamedTuple

from multirnn import RecurrentSpec

__all__ = ["refuses"]


class Fact(NamedTuple):
    """Shapes for which a loop is at least as fast as the framework's own layer.

    The first fact for a loop and cell whose `weights` are not exceeded decides.
    """

    loop: str  # a key of `multirnn_torch.fast.LOOPS`
    cells: tuple[str, ...]  # of a `RecurrentSpec`
    gradients: bool  # forward and backward, or forward alone
    weights: float  # the most numbers in the weights of one layer in one direction
    few: float = 0  # at most so many steps of all rows, or at least so many steps
    steps: float = 1
    batch: float = inf  # the most rows


# The numbers are the time of PyTorch 2.13 over the time of the loop. They were measured on two cores of an Intel Sapphire
# Rapids with one thread and two, each in its own process; sizes of input and state are equal, 64 to 1024. The cost to win back is the
# packing of the weights, which the kernel does in every call of more than a few rows.
FACTS = (
    Fact("kernel", ("lstm",), False, inf),  # 1.0 to 4.3
    Fact("kernel", ("simple_rnn", "gru"), False, 150_000),  # 1.0 to 60
    # 0.9 to 3.1; one step of 16 to 128 rows 0.4 to 1.3
    Fact("kernel", ("simple_rnn", "gru"), False, inf, few=8, steps=2),
    Fact("kernel", ("simple_rnn", "gru"), True, 400_000),  # 1.2 to 60
    Fact("kernel", ("simple_rnn", "gru"), True, 2_000_000, steps=4),  # 0.9 to 5; one step 0.25 to 0.7
    # 1.0 to 3.5; 128 rows of 1024 units 0.6 to 0.9
    Fact("kernel", ("simple_rnn", "gru"), True, inf, steps=4, batch=64),
    Fact("kernel", ("lstm",), True, inf),  # 0.9 to 2.8
    Fact("tensors", ("simple_rnn",), True, inf, steps=16),  # 1.0 to 3.4; at 1 step 0.8
    Fact("tensors", ("gru",), True, inf, steps=16, batch=64),  # 1.2 to 1.5; 128 rows 0.85
)

# With dropout each layer is a call of its own, which some cells win back in so many steps. At 2 layers of 8 to 200 units, 1 and
# 20 rows, with and without gradients, one thread: simple RNNs 0.8 to 1.05 at 3 steps and 1.0 to 1.2 at 4; GRUs 0.8 to 1.05 at one
# step and 1.0 to 1.3 at 2; LSTMs 1.03 and more everywhere.
DROPPING_STEPS = {"simple_rnn": 4, "gru": 2}


def refuses(
    loop: str, spec: RecurrentSpec, batch: int, time: int, gradients: bool, dropping: bool = False
) -> str | None:
    """None, or why the framework's own layer runs a shape, according to `FACTS`.

    `dropping` says that outputs are dropped between the layers.
    """
    if dropping and time < (steps := DROPPING_STEPS.get(spec.cell, 1)):
        return f"with dropout between layers something faster is known from {steps} steps on"
    weights = len(spec.form.gates) * spec.hidden_size * (spec.input_size + spec.hidden_size)
    for fact in FACTS:
        if fact.loop == loop and spec.cell in fact.cells and gradients == fact.gradients and weights <= fact.weights:
            if batch > fact.batch:
                return f"of more than {fact.batch} rows with {weights} weights nothing faster is known"
            if time < fact.steps and batch * time > fact.few:
                few = f", or up to {fact.few} steps of all rows" if fact.few else ""
                return f"with {weights} weights something faster is known from {fact.steps} steps on{few}"
            return None
    return "without the compiled kernel nothing faster is known"
