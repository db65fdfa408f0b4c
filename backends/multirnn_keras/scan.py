"""The loop over the steps, as each engine has it."""

from collections.abc import Callable
from typing import Any

from multirnn_keras.engine import ENGINE
from multirnn_keras.operations import Tensors, engine, ops

__all__ = ["scan"]

Step = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]


def scan(step: Step, states: Tensors, given: Tensors, count: int, reverse: bool) -> tuple[Tensors, Tensors]:
    """Run a step over the first axis of what is given.

    Args:
        step: from the states and what is given of a step to the states after it and what it found.
        states: before the first step.
        given: what each step is given, `(time, …)` each.
        count: how much each step finds.
        reverse: begin at the end.

    Returns:
        The states after the last step, and what was found, `(time, …)` each.
    """
    if ENGINE == "jax":
        final, found = engine.lax.scan(lambda states, given: step(states, given), states, given, reverse=reverse)
        return final, found
    if ENGINE == "tensorflow" and not engine.executing_eagerly():
        return _while_loop(step, states, given, count, reverse)
    unstack, stack = (engine.unstack, engine.stack) if ENGINE == "tensorflow" else (engine.unbind, engine.stack)
    steps = list(zip(*(unstack(each) for each in given), strict=True))
    rows = []
    for row in reversed(steps) if reverse else steps:
        states, found = step(states, list(row))
        rows.append(found)
    if reverse:
        rows.reverse()
    return states, [stack(column) for column in zip(*rows, strict=True)]


def _while_loop(step: Step, states: Tensors, given: Tensors, count: int, reverse: bool) -> tuple[Tensors, Tensors]:
    """`scan` in a graph of TensorFlow."""
    tf = engine
    time = ops.shape(given[0])[0]
    rows = [tf.TensorArray(each.dtype, time).unstack(each) for each in given]
    found = [tf.TensorArray(states[0].dtype, time) for _ in range(count)]

    def body(number: Any, states: Tensors, found: Tensors) -> tuple[Any, Tensors, Tensors]:
        place = time - 1 - number if reverse else number
        states, new = step(states, [row.read(place) for row in rows])
        return number + 1, states, [all.write(place, one) for all, one in zip(found, new, strict=True)]

    _, final, found = tf.while_loop(
        lambda number, *_: number < time, body, (0, list(states), found), maximum_iterations=time
    )
    return list(final), [each.stack() for each in found]
