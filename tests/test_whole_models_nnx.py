"""Two whole models in Flax NNX, their layers replaced: the same outputs, gradients, dropout and losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from whole_models_nnx import LanguageModel, Tagger

import multirnn as mr

OTHERS = ((1, 2), (4, 17))  # batch and time


@dataclass(frozen=True)
class Case:
    """A model, and arguments of a call by batch and time."""

    make: Callable[..., Any]
    draw: Callable[[int, int], tuple[jax.Array, ...]]


def words(batch: int, time: int) -> jax.Array:
    return jax.random.randint(jax.random.key(batch), (batch, time), 0, 17)


def lengths(batch: int, time: int) -> jax.Array:
    return jax.random.randint(jax.random.key(time), (batch,), 1, time + 1)


CASES = {
    "language model": Case(LanguageModel, lambda batch, time: (words(batch, time),)),
    "tagger": Case(Tagger, lambda batch, time: (words(batch, time), lengths(batch, time))),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def pair(case: Case) -> tuple[Any, Any]:
    """The model with Flax' layers, and the same with ours."""
    stock, fast = (case.make(rngs=nnx.Rngs(3)) for _ in range(2))
    replacement = mr.replace_layers(fast)
    assert len(replacement.replaced) == 2
    assert not replacement.kept
    return stock, fast


def logits(outputs: Any) -> jax.Array:
    return outputs[0] if isinstance(outputs, tuple) else outputs


@nnx.jit
def gradients(model: Any, args: tuple[jax.Array, ...], cotangent: jax.Array) -> Any:
    return nnx.grad(lambda model: (logits(model(*args)) * cotangent).sum())(model)


@nnx.jit
def run(model: Any, *args: Any) -> Any:
    return model(*args)


@nnx.jit
def train_step(model: Any, optimiser: Any, args: tuple[jax.Array, ...], target: jax.Array) -> jax.Array:
    loss, found = nnx.value_and_grad(lambda model: ((logits(model(*args)) - target) ** 2).mean())(model)
    optimiser.update(model, found)
    return loss


def assert_close(actual: Any, expected: Any) -> None:
    """Trees of arrays."""
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        found = mr.difference(np.asarray(one), np.asarray(other))
        assert found.normwise <= mr.tolerance("float32"), found


@every_case
def test_outputs_and_gradients_are_those_of_the_stock_model(case: Case) -> None:
    stock, fast = pair(case)
    stock.eval()
    fast.eval()
    for size in OTHERS:
        args = case.draw(*size)
        assert_close(run(fast, *args), run(stock, *args))
    cotangent = jax.random.normal(jax.random.key(4), logits(run(stock, *args)).shape)
    found, expected = (nnx.state(gradients(model, args, cotangent), nnx.Param) for model in (fast, stock))
    assert_close(found, expected)


@every_case
def test_losses_of_training_are_the_same_with_the_same_dropout(case: Case) -> None:
    args = case.draw(4, 9)
    stock, fast = pair(case)
    target = jax.random.normal(jax.random.key(5), logits(stock(*args)).shape)

    def losses(model: Any) -> jax.Array:
        model.train()
        optimiser = nnx.Optimizer(model, optax.sgd(0.3, momentum=0.9), wrt=nnx.Param)
        return jnp.stack([train_step(model, optimiser, args, target) for _ in range(6)])

    logits(fast(*args))  # as the stock model, whose dropout has drawn once
    expected = losses(stock)
    assert expected[-1] < expected[0]
    assert_close(losses(fast), expected)


@every_case
def test_restored_it_is_the_stock_model_again(case: Case) -> None:
    model = case.make(rngs=nnx.Rngs(3))
    model.eval()
    args = case.draw(3, 7)
    before, kind = run(model, *args), jax.tree.structure(nnx.state(model))
    replacement = mr.replace_layers(model)
    replacement.restore()
    assert jax.tree.structure(nnx.state(model)) == kind
    assert all(map(np.array_equal, jax.tree.leaves(run(model, *args)), jax.tree.leaves(before)))


def test_chunks_are_the_whole() -> None:
    _, fast = pair(CASES["language model"])
    fast.eval()
    given = words(2, 12)
    whole, final = run(fast, given)
    outputs, state = [], None
    for start, end in ((0, 5), (5, 6), (6, 12)):
        part, state = run(fast, given[:, start:end], state)
        outputs.append(part)
    assert_close([jnp.concatenate(outputs, axis=1), state], [whole, final])
