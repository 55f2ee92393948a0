"""How calls and loops are built again: what to hand to JAX's own functions.

The names of parameters of equations differ between versions of JAX, and are here alone.
"""

from typing import Any, TypeAlias

from jax import lax
from jax.sharding import Sharding

from jaxdrop.base.compat import varying_axes
from jaxdrop.planting.jaxprs import Params, Value, Values

Options: TypeAlias = dict[str, Any]
"""Keyword arguments, which each function of JAX has of its own types."""


def jit_options(params: Params) -> Options:
    """What to give `jax.jit` for a call with one more operand, the first."""
    donated = [i + 1 for i, is_donated in enumerate(params["donated_invars"]) if is_donated]
    options = {
        "donate_argnums": donated,
        "keep_unused": params["keep_unused"],
        "inline": params["inline"],
        "compiler_options": dict(params["compiler_options_kvs"]) or None,
    }
    # JAX has a value of its own for a sharding that nobody gave, which `jax.jit` does not take.
    if any(map(_is_specified, params["in_shardings"])):
        options["in_shardings"] = (None, *params["in_shardings"])
    if any(map(_is_specified, params["out_shardings"])):
        options["out_shardings"] = tuple(params["out_shardings"])
    return options


def _is_specified(sharding: object) -> bool:
    return isinstance(sharding, Sharding)


def scan_arity(params: Params) -> tuple[int, int]:
    """How many operands of a `scan` are constants, and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()  # since JAX 0.11
    return len(list(constants)), len(list(carry))


def scan_options(params: Params) -> Options:
    """What to give `lax.scan` besides its operands."""
    names = ("length", "reverse", "unroll", "_split_transpose")
    return {name: params[name] for name in names if name in params}


def checkpoint_options(params: Params) -> Options:
    """What to give `jax.checkpoint` for a call with one more operand, the first."""
    prevent_cse = params["prevent_cse"]
    if not isinstance(prevent_cse, bool):  # one for each operand
        prevent_cse = (False, *prevent_cse)
    return {"policy": params["policy"], "prevent_cse": prevent_cse}


def barrier(values: Values) -> list[Value]:
    """`lax.optimization_barrier` for values that vary over different manual axes."""
    # After one barrier for all, each value would vary over the axes of all of them. So
    # there is one for each set of axes.
    kept = list(values)
    for axes in dict.fromkeys(map(varying_axes, kept)):  # in order, as in `Call.runs`
        places = [i for i, value in enumerate(kept) if varying_axes(value) == axes]
        held = lax.optimization_barrier([kept[i] for i in places])
        for i, value in zip(places, held, strict=True):
            kept[i] = value
    return kept


def shard_map_options(params: Params) -> Options:
    """What to give `jax.shard_map` besides its specs."""
    return {
        "mesh": params["mesh"],
        "axis_names": manual_axes(params),
        "check_vma": params["check_vma"],
    }


def manual_axes(params: Params) -> frozenset[str]:
    """The mesh axes that a `shard_map` makes manual."""
    return params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]
