"""JAX: Keras' variables are arguments of pure functions, compiled by `jax.jit`."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import jax
import keras
import numpy as np

from multirnn.weights import Array
from multirnn_keras.engines.interface import Apply, Call, Engine, Mask, Per, Pull, Run, Step, Tensors, holding

__all__ = ["engine"]

finished: Any = jax.block_until_ready


class _Jax(Engine):
    timed = "jitted"
    loops = "lax.scan, the input projected before it, gradients by one scan back"
    nn, concatenate, where = jax.nn, staticmethod(jax.numpy.concatenate), staticmethod(jax.numpy.where)

    def device_count(self, kind: str) -> int:
        return len(jax.devices("cpu")) if kind == "cpu" else sum(device.platform == kind for device in jax.devices())

    def confirming(self) -> AbstractContextManager[Any]:
        precise: AbstractContextManager[Any] = jax.default_matmul_precision("highest")
        return precise

    def vjp(self, apply: Apply, variables: Sequence[Any], mask: Any, primals: Tensors, cotangents: Tensors) -> Tensors:
        pure = _pure(apply, variables)
        outputs, pull = jax.vjp(lambda values, primals: pure(values, mask, primals), _values(variables), primals)
        weights, primals = pull(cotangents[: len(outputs)])
        return [*weights, *primals]

    def compiled(self, function: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
        jitted = jax.jit(_pure(function, variables))
        return lambda *tensors: finished(jitted(_values(variables), *tensors))

    def call(self, function: Any, variables: Sequence[Any], per: Per, eager_first: bool, backward: bool) -> Call:
        pure = _pure(function, variables)
        run: Any = pure if per == "call" else jax.jit(pure)

        def call(mask: Mask, *groups: Sequence[Array]) -> list[Array]:
            tensors = [list(map(jax.numpy.asarray, group)) if per == "call" else list(group) for group in groups]
            return [np.array(array) for array in run(_values(variables), mask, *tensors)]

        return call

    def training_step(self, loss: Callable[[], Any], variables: Sequence[Any], optimiser: Any) -> Callable[[], Any]:
        @jax.jit
        def step(values: Tensors, slots: Tensors) -> Any:
            value, gradients = jax.value_and_grad(_pure(loss, variables))(values)
            return value, optimiser.stateless_apply(slots, gradients, values)

        def call() -> Any:
            value, (values, slots) = finished(step(_values(variables), _values(optimiser.variables)))
            for variable, new in zip([*variables, *optimiser.variables], [*values, *slots], strict=True):
                variable.assign(new)
            return value

        return call

    def differentiated(self, run: Run, pull: Pull, form: Any, primals: Sequence[Any], mask: Any) -> Tensors:
        return list(_with_gradients(run, pull)(form, [keras.ops.convert_to_tensor(primal) for primal in primals], mask))

    def scan(self, step: Step, states: Tensors, given: Tensors, count: int, reverse: bool) -> tuple[Tensors, Tensors]:
        return jax.lax.scan(lambda states, given: step(states, given), states, given, reverse=reverse)


def _values(variables: Sequence[Any]) -> Tensors:
    return [variable.value for variable in variables]


def _pure(function: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
    """The function with the values of its variables as its first argument."""

    def pure(values: Tensors, *arguments: Any) -> Any:
        with holding(variables, values):
            return function(*arguments)

    return pure


@cache
def _with_gradients(run: Run, pull: Pull) -> Any:
    def keep(form: Any, primals: Tensors, mask: Any) -> Any:
        outputs, kept = run(form, primals, mask)
        return outputs, (primals, mask, kept)

    def back(form: Any, kept: Any, cotangents: Tensors) -> Any:
        primals, mask, rest = kept
        return pull(form, primals, mask, rest, cotangents), None

    function = jax.custom_vjp(lambda form, primals, mask: run(form, primals, mask)[0], nondiff_argnums=(0,))
    function.defvjp(keep, back)
    return function


engine = _Jax()
