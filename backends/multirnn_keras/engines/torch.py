"""PyTorch: nothing is compiled, since Keras compiles nothing on it unless told to, and `torch.compile` takes minutes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import keras
import torch

from multirnn.weights import Array
from multirnn_keras.engines.interface import Apply, Call, Engine, Mask, Per, Pull, Run, Tensors, holding

__all__ = ["engine"]


class _Torch(Engine):
    compiles = False
    timed = "as it stands"
    loops = "a loop over addmm, the input projected before it, gradients by one loop back"
    nn, concatenate, where = torch, staticmethod(torch.cat), staticmethod(torch.where)
    stack, unstack = staticmethod(torch.stack), staticmethod(torch.unbind)

    def affine(self, p: Any, h: Any, matrix: Any) -> Any:
        return torch.addmm(p, h, matrix)

    def device_count(self, kind: str) -> int:
        return {"cpu": 1, "gpu": torch.cuda.device_count()}.get(kind, 0)

    def use_threads(self, count: int) -> None:
        torch.set_num_threads(count)

    @contextmanager
    def confirming(self) -> Iterator[None]:
        with torch.no_grad(), torch.random.fork_rng():
            yield

    def vjp(self, apply: Apply, variables: Sequence[Any], mask: Any, primals: Tensors, cotangents: Tensors) -> Tensors:
        with torch.inference_mode(False), torch.enable_grad():
            # Copies of the variables: their own .grad stays as it is, and frozen ones have gradients too.
            values = [variable.value.detach().requires_grad_() for variable in variables]
            primals = [primal.detach().requires_grad_() for primal in primals]
            with holding(variables, values):
                outputs = apply(mask, primals)
            reached = [(y, dy) for y, dy in zip(outputs, cotangents, strict=False) if y.requires_grad]
            wanted = [*values, *primals]
            if not reached:
                return [torch.zeros_like(tensor) for tensor in wanted]
            ys, dys = zip(*reached, strict=True)
            return list(torch.autograd.grad(ys, wanted, dys, allow_unused=True, materialize_grads=True))

    def compiled(self, function: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
        def run(*tensors: Any) -> Any:
            with torch.inference_mode():
                return function(*tensors)

        return run

    def call(self, function: Any, variables: Sequence[Any], per: Per, eager_first: bool, backward: bool) -> Call:
        def tensor(array: Any) -> Any:
            # PyTorch shares the memory of an array: a user's layer may write to it, and PyTorch warns if it must not.
            return keras.ops.convert_to_tensor(array if per == "batch" and array.flags.writeable else array.copy())

        def call(mask: Mask, *groups: Sequence[Array]) -> list[Array]:
            with torch.inference_mode(False), torch.no_grad():
                given = None if mask is None else keras.ops.convert_to_tensor(mask)
                found = function(given, *(list(map(tensor, group)) for group in groups))
                return [each.cpu().numpy() for each in found]

        return call

    def training_step(self, loss: Callable[[], Any], variables: Sequence[Any], optimiser: Any) -> Callable[[], Any]:
        def call() -> Any:
            value = loss()
            gradients = torch.autograd.grad(value, [variable.value for variable in variables])
            with torch.no_grad():
                optimiser.apply(list(gradients), variables)
            return value

        return call

    def differentiated(self, run: Run, pull: Pull, form: Any, primals: Sequence[Any], mask: Any) -> Tensors:
        tensors = [keras.ops.convert_to_tensor(primal) for primal in primals]
        return list(_with_gradients(run, pull).apply(form, mask, *tensors))


@cache
def _with_gradients(run: Run, pull: Pull) -> Any:
    class Differentiated(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, form: Any, mask: Any, *primals: Any) -> Any:
            outputs, kept = run(form, primals, mask)
            ctx.form, ctx.mask, ctx.count = form, mask, len(primals)
            ctx.save_for_backward(*primals, *kept)
            return tuple(outputs)

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            saved = ctx.saved_tensors
            primals, kept = saved[: ctx.count], saved[ctx.count :]
            if not torch.is_grad_enabled():
                return None, None, *pull(ctx.form, primals, ctx.mask, kept, cotangents)
            # Gradients that will be differentiated again: by PyTorch itself, through the same loop.
            outputs, _ = run(ctx.form, primals, ctx.mask)
            wanted = [primal for primal in primals if primal.requires_grad]
            found = iter(torch.autograd.grad(outputs, wanted, cotangents, create_graph=True, materialize_grads=True))
            return None, None, *(next(found) if primal.requires_grad else None for primal in primals)

    return Differentiated


engine = _Torch()
