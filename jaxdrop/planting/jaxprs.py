"""What planting must know of jaxprs, which differ between versions of JAX.

One equation is read in `equations`, and what a rule hands to JAX in `options`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import jax
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Primitive, Var
from jax.interpreters import partial_eval

from jaxdrop.base.compat import ClosedJaxpr, in_pmap, varying_axes
from jaxdrop.base.sharding import with_spec

Variable = TypeVar("Variable")

AnyJaxpr: TypeAlias = Jaxpr | ClosedJaxpr
Atom: TypeAlias = Var | Literal
Value: TypeAlias = Any
"""An array, a tracer or a key. JAX and NumPy have no type in common for them."""
Values: TypeAlias = Sequence[Value]
Params: TypeAlias = Mapping[str, Any]
"""The parameters of an equation, which each primitive has of its own types."""


def opened(jaxpr: AnyJaxpr) -> tuple[Jaxpr, Values]:
    """A jaxpr and its constants; some versions have two classes for it, some one."""
    return cast(Jaxpr, getattr(jaxpr, "jaxpr", jaxpr)), tuple(getattr(jaxpr, "consts", ()))


def name_and_params(eqn: JaxprEqn) -> tuple[str, Params]:
    """The name and the parameters of an equation's primitive."""
    # Under the flags jax_remat3 and jax_custom_vjp3, an equation holds one object, and
    # that object holds what the parameters are otherwise.
    hidden = eqn.params.get("_prim")
    if hidden is None:
        return eqn.primitive.name, eqn.params
    if "policy" in hidden.params:
        return "checkpoint", {"prevent_cse": True, **hidden.params, "differentiated": False}
    return type(hidden).__name__, vars(hidden)


def jaxprs_in(eqn: JaxprEqn) -> Iterator[AnyJaxpr]:
    """The jaxprs among the parameters of an equation, and in traced functions among them."""
    _, params = name_and_params(eqn)
    for found in bodies_in(params).values():
        yield from found


def bodies_in(params: Params) -> dict[str, tuple[AnyJaxpr, ...]]:
    """The jaxprs in each parameter that has any."""
    found: dict[str, tuple[AnyJaxpr, ...]] = {}
    for name, value in params.items():
        parts: Iterable[object] = value if isinstance(value, tuple | list) else (value,)
        if bodies := tuple(filter(None, map(jaxpr_of, parts))):
            found[name] = bodies
    return found


def jaxpr_of(value: object) -> AnyJaxpr | None:
    """A jaxpr, or that of a traced function; None of anything else."""
    # A class that JAX adds for jaxprs is none of those known here, so their attribute decides.
    body = value if hasattr(value, "eqns") else getattr(value, "jaxpr", None)
    return cast(AnyJaxpr, body) if hasattr(body, "eqns") else None


def has_primitive(jaxpr: AnyJaxpr, primitive: Primitive) -> bool:
    """Whether a primitive is bound in a jaxpr, at any depth."""
    body, _ = opened(jaxpr)
    return any(
        eqn.primitive is primitive or any(has_primitive(j, primitive) for j in jaxprs_in(eqn))
        for eqn in body.eqns
    )


def unique_variables(atoms: Iterable[Variable | Literal]) -> list[Variable]:
    """The variables among the atoms of a jaxpr, each once."""
    return list(dict.fromkeys(atom for atom in atoms if not isinstance(atom, Literal)))


def ambient_unchecked_axes() -> frozenset[str]:
    """The manual axes around, if the `shard_map` does not check over which values vary."""
    # In `pmap`, which is such a `shard_map` too, each device has the key that it is given,
    # as each example has in `vmap`.
    if in_pmap():
        return frozenset()
    # An axis index varies along its axis. Where JAX does not say so, it does not check.
    axes = jax.sharding.get_abstract_mesh().manual_axes
    return frozenset(axis for axis in axes if axis not in varying_axes(lax.axis_index(axis)))


def like_aval(aval: ShapedArray, shape: tuple[int, ...], dtype: np.dtype) -> ShapedArray:
    """The type of an unsharded array that varies over the same manual axes."""
    sharding = with_spec(aval.sharding, (None,) * len(shape))
    return aval.update(shape=shape, dtype=dtype, weak_type=False, sharding=sharding)


def save_always(primitive: Primitive) -> None:
    """Makes `jax.checkpoint` save what a primitive returns, under every policy."""

    # JAX asks this rule which results of an equation are known before the backward pass,
    # and which the backward pass computes again. It wants the equation for the one
    # and for the other, then two lists: what is unknown, and what must be instantiated.
    def save(
        saveable: object, unknown: Sequence[bool], instantiated: Sequence[bool], eqn: JaxprEqn
    ) -> tuple[JaxprEqn | None, JaxprEqn | None, list[bool], list[bool], list[Var]]:
        del saveable, instantiated
        if any(unknown):
            return None, eqn, [True], [True], []
        return eqn, None, [False], [False], []

    partial_eval.partial_eval_jaxpr_custom_rules[primitive] = save
