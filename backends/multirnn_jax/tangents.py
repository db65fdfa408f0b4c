"""Derivatives of a function whose reverse rule is written by hand, in both modes.

`jax.custom_vjp` forbids forward mode. `jax.custom_jvp` allows both, and derives the reverse rule by transposing the map
from tangents to tangents. Here that map is a primitive: where it runs, it is `TangentRule.push`; transposed, it is `TangentRule.pull`,
the rule written by hand. Tangents that are zero are left out of it, and `pull` is told what is asked for.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad as untyped_ad
from jax.interpreters import batching as untyped_batching
from jax.interpreters import mlir

ad: Any = untyped_ad
batching: Any = untyped_batching

__all__ = ["TangentRule", "tangents_of"]


class TangentRule(Protocol):
    """The derivative of a function at a point, which `kept` determines; hashable.

    Inputs are the leaves of the function's arguments.
    """

    def push(self, kept: Any, tangents: list[Any]) -> Any:
        """The tangents of the outputs, a pytree, from those of the inputs; None is a tangent of zero."""
        ...

    def pull(self, kept: Any, cotangents: Any, asked: tuple[bool, ...]) -> list[Any]:
        """The gradients of the inputs, from those of the outputs; any value where none is asked for."""
        ...


def tangents_of(output: Any, rule: TangentRule, kept: Any, tangents: Any) -> Any:
    """The tangents of `output`, for a `custom_jvp` with `symbolic_zeros=True`.

    Args:
        output: a pytree of floating-point arrays.
        rule: of the function at this point.
        kept: a pytree; `rule` differentiated again is differentiated with respect to these arrays.
        tangents: of the arguments; at least one is not a `SymbolicZero`.
    """
    leaves = jax.tree.leaves(tangents)
    asked = tuple(not isinstance(leaf, SymbolicZero) for leaf in leaves)
    arrays, tree = jax.tree.flatten(kept)
    results = jax.tree.structure(output)
    given = [leaf for leaf, is_asked in zip(leaves, asked, strict=True) if is_asked]
    found = _tangents.bind(*arrays, *given, rule=rule, asked=asked, tree=tree, results=results)
    return jax.tree.unflatten(results, found)


_tangents: Any = Primitive("multirnn_tangents")
_tangents.multiple_results = True


@partial(jax.jit, static_argnames=("rule", "asked", "tree", "results"))
def _run(*operands: Any, rule: TangentRule, asked: tuple[bool, ...], tree: Any, results: Any) -> list[Any]:
    del results
    kept, given = operands[: tree.num_leaves], iter(operands[tree.num_leaves :])
    tangents = [next(given) if is_asked else None for is_asked in asked]
    return jax.tree.leaves(rule.push(jax.tree.unflatten(tree, kept), tangents))


def _evaluate(*operands: Any, **static: Any) -> list[Any]:
    found: list[Any] = _run(*operands, **static)
    return found


def _avals(*operands: Any, **static: Any) -> list[Any]:
    return list(jax.make_jaxpr(partial(_run, **static))(*operands).out_avals)


def _differentiate(operands: Any, along: Any, *, asked: tuple[bool, ...], tree: Any, **static: Any) -> Any:
    """Forward mode: the map is linear in the tangents, and JAX differentiates `push` with respect to what is kept."""
    run = partial(_run, asked=asked, tree=tree, **static)
    found = _tangents.bind(*operands, asked=asked, tree=tree, **static)
    moving = [place for place, tangent in enumerate(along) if _moves(tangent)]
    terms = []
    if linear := [place for place in moving if place >= tree.num_leaves]:
        given = [place for place, is_asked in enumerate(asked) if is_asked]
        still_asked = {given[place - tree.num_leaves] for place in linear}
        fewer = tuple(place in still_asked for place in range(len(asked)))
        kept = operands[: tree.num_leaves]
        terms.append(_tangents.bind(*kept, *(along[place] for place in linear), asked=fewer, tree=tree, **static))
    if other := [place for place in moving if place < tree.num_leaves]:

        def at(*changed: Any) -> Any:
            now = list(operands)
            for place, array in zip(other, changed, strict=True):
                now[place] = array
            return run(*now)

        terms.append(jax.jvp(at, tuple(operands[i] for i in other), tuple(along[i] for i in other))[1])
    return found, [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)]


def _moves(tangent: Any) -> bool:
    return type(tangent) is not ad.Zero and tangent.dtype != jax.dtypes.float0


def _transpose(
    cotangents: Sequence[Any], *operands: Any, rule: TangentRule, asked: tuple[bool, ...], tree: Any, results: Any
) -> list[Any]:
    kept = jax.tree.unflatten(tree, operands[: tree.num_leaves])
    arrays = [ad.instantiate_zeros(cotangent) for cotangent in cotangents]
    gradients = rule.pull(kept, jax.tree.unflatten(results, arrays), asked)
    found = [gradient for gradient, is_asked in zip(gradients, asked, strict=True) if is_asked]
    linear = map(ad.is_undefined_primal, operands[tree.num_leaves :])
    return [None] * tree.num_leaves + [
        part if is_linear else None for part, is_linear in zip(found, linear, strict=True)
    ]


def _batch(operands: Any, axes: Any, *, rule: TangentRule, tree: Any, **static: Any) -> Any:
    """`vmap`: a map of its own, whose transpose is that of each index."""
    ((size,)) = {array.shape[axis] for array, axis in zip(operands, axes, strict=True) if axis is not None}
    count = tree.num_leaves
    given = [batching.bdim_at_front(*pair, size) for pair in zip(operands[count:], axes[count:], strict=True)]
    each = _Each(rule, tuple(axes[:count]), size)
    found = _tangents.bind(*operands[:count], *given, rule=each, tree=tree, **static)
    return found, [0] * len(found)


class _Each(NamedTuple):
    """A rule at each index of a new axis: the first of tangents and cotangents, and `axes` of the leaves of `kept`."""

    rule: TangentRule
    axes: tuple[int | None, ...]
    size: int

    def push(self, kept: Any, tangents: list[Any]) -> Any:
        return self._vmapped(self.rule.push, kept, tangents)

    def pull(self, kept: Any, cotangents: Any, asked: tuple[bool, ...]) -> list[Any]:
        def pull(kept: Any, cotangents: Any) -> list[Any]:
            found = self.rule.pull(kept, cotangents, asked)
            return [gradient if is_asked else None for gradient, is_asked in zip(found, asked, strict=True)]

        gradients: list[Any] = self._vmapped(pull, kept, cotangents)
        return gradients

    def _vmapped(self, function: Any, kept: Any, others: Any) -> Any:
        axes = jax.tree.unflatten(jax.tree.structure(kept), self.axes)
        return jax.vmap(function, in_axes=(axes, 0), axis_size=self.size)(kept, others)


_tangents.def_impl(_evaluate)
_tangents.def_abstract_eval(_avals)
ad.primitive_jvps[_tangents] = _differentiate
ad.primitive_transposes[_tangents] = _transpose
batching.primitive_batchers[_tangents] = _batch
mlir.register_lowering(_tangents, mlir.lower_fun(_evaluate, multiple_results=True))
