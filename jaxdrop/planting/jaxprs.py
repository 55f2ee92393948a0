"""What planting must know of jaxprs, which differ between versions of JAX."""

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax
from jax.extend import source_info_util
from jax.interpreters import partial_eval
from jax.sharding import Sharding

from jaxdrop.base.compat import varying_axes
from jaxdrop.base.sharding import with_spec

Tree = TypeVar("Tree")

_PACKAGE = str(Path(__file__).parent.parent)
_INTERNAL = re.compile(rf"/jax/_src/(?!(nn|ops|scipy)/)|{re.escape(_PACKAGE)}/")
JIT = ("jit", "pjit")
CALL = ("closed_call", "core_call", "eval_jaxpr")
CHECKPOINT = ("checkpoint", "remat", "remat2")
CUSTOM_JVP = ("custom_jvp_call",)
CUSTOM_VJP = ("custom_vjp_call", "custom_vjp_call_jaxpr")
CUSTOM = (*CUSTOM_JVP, *CUSTOM_VJP, "CustomVJPTraced")

# A site's source line is in the code of the user.
source_info_util.register_exclusion(_PACKAGE)


def opened(jaxpr: Any) -> tuple[Any, tuple[Any, ...]]:
    """A jaxpr and its constants; some versions have two classes for it, some one."""
    return getattr(jaxpr, "jaxpr", jaxpr), tuple(getattr(jaxpr, "consts", ()))


def call_of(eqn: Any) -> tuple[str, Mapping[str, Any]]:
    """The name and the parameters of an equation's primitive.

    What the flags `jax_remat3` and `jax_custom_vjp3` make has them in an object.
    """
    hidden = eqn.params.get("_prim")
    if hidden is None:
        return eqn.primitive.name, eqn.params
    if "policy" in hidden.params:
        return CHECKPOINT[0], {"prevent_cse": True, **hidden.params, "differentiated": False}
    return type(hidden).__name__, vars(hidden)


def jaxprs_in(eqn: Any) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation, and in traced functions among them."""
    _, params = call_of(eqn)
    for value in params.values():
        yield from filter(None, map(jaxpr_of, _parts(value)))


def _parts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else (value,)


def jaxpr_of(value: Any) -> Any:
    """A jaxpr, or that of a traced function; None of anything else."""
    body = value if hasattr(value, "eqns") else getattr(value, "jaxpr", None)
    return body if hasattr(body, "eqns") else None


def identity_of(eqn: Any) -> tuple[Any, ...]:
    """What two equations have in common that do the same with the same jaxprs inside."""
    name, params = call_of(eqn)
    own = ((k, v) for k, v in params.items() if not any(map(jaxpr_of, _parts(v))))
    return name, *sorted(own, key=itemgetter(0))


def has_primitive(jaxpr: Any, primitive: Any) -> bool:
    """Whether a primitive is bound in a jaxpr, at any depth."""
    body, _ = opened(jaxpr)
    return any(
        eqn.primitive is primitive or any(has_primitive(j, primitive) for j in jaxprs_in(eqn))
        for eqn in body.eqns
    )


def tag_of(eqn: Any) -> str | None:
    """The name that `checkpoint_name` gave, if the equation is of it."""
    name, params = call_of(eqn)
    return params["name"] if name in ("name", "CheckpointName") else None


def scan_arity(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many operands of a `scan` are constants, and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()
    return len(list(constants)), len(list(carry))


def manual_axes(params: Mapping[str, Any]) -> frozenset[str]:
    """The mesh axes that a `shard_map` makes manual."""
    return params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]


def unchecked_axes(eqn: Any) -> frozenset[str]:
    """The mesh axes of a `shard_map` that does not check over which of them values vary."""
    checks = eqn.params.get("check_vma", True)
    return frozenset() if checks else manual_axes(eqn.params)


def barrier(values: Sequence[Any]) -> list[Any]:
    """`lax.optimization_barrier` for values that vary over different manual axes.

    One barrier for all would make them all vary.
    """
    kept = list(values)
    for axes in {varying_axes(value) for value in kept}:
        places = [i for i, value in enumerate(kept) if varying_axes(value) == axes]
        held = lax.optimization_barrier([kept[i] for i in places])
        for i, value in zip(places, held, strict=True):
            kept[i] = value
    return kept


def ambient_unchecked_axes() -> frozenset[str]:
    """The manual axes around, if the `shard_map` does not check over which values vary."""
    axes = jax.sharding.get_abstract_mesh().manual_axes
    return frozenset(axis for axis in axes if axis not in varying_axes(lax.axis_index(axis)))


def like_aval(aval: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """The type of an unsharded array that varies over the same manual axes."""
    sharding = with_spec(aval.sharding, (None,) * len(shape))
    return aval.update(shape=shape, dtype=dtype, weak_type=False, sharding=sharding)


def save_always(primitive: Any) -> None:
    """Makes `jax.checkpoint` save what a primitive returns, under every policy."""

    def save(saveable: Any, unknown: Any, instantiated: Any, eqn: Any) -> Any:
        del saveable, instantiated
        if any(unknown):
            return None, eqn, [True], [True], []
        return eqn, None, [False], [False], []

    partial_eval.partial_eval_jaxpr_custom_rules[primitive] = save


class Frame(NamedTuple):
    """A Python function that was running when an equation was traced, and where it was."""

    function: str
    position: tuple[Any, int]
    is_internal: bool  # to this package or to JAX, but for its functions of whole layers


def frames_of(eqn: Any) -> list[Frame]:
    """The functions that were running, outermost first, since the tracing of the jaxpr began."""
    traceback = eqn.source_info.traceback
    if traceback is None:
        return []
    frames: list[Frame] = []
    for frame, *position in zip(traceback.frames, *traceback.raw_frames(), strict=True):
        if frame.function_name.startswith("trace_to_jaxpr"):
            break
        name = frame.function_name.rpartition(".")[2]
        is_internal = bool(_INTERNAL.search(frame.file_name))
        frames.append(Frame(name, tuple(position), is_internal))
    return frames[::-1]


def scopes_of(eqn: Any) -> list[tuple[str, int]]:
    """The named scopes in which an equation was traced, outermost first, and which entry it was.

    JAX makes an object each time that a scope is entered, so two entries of one
    name have different numbers.
    """
    stack = eqn.source_info.name_stack.stack
    return [(part.name, id(part)) for part in stack if type(part).__name__ == "Scope"]


def transforms_of(eqn: Any) -> frozenset[str]:
    """The transforms that an equation went through: "jvp", "transpose", "vmap"."""
    stack = eqn.source_info.name_stack.stack
    return frozenset(part.name for part in stack if type(part).__name__ == "Transform")


def function_name(params: Mapping[str, Any]) -> str:
    """The name of the function in a call with a custom derivative."""
    call, _ = opened(params["call_jaxpr"] if "call_jaxpr" in params else params["traced"].jaxpr)
    return call.debug_info.func_name


def source_line(eqn: Any) -> str:
    """Where the user's code made an equation, as `file:line (function)`."""
    return source_info_util.summarize(eqn.source_info)


@contextmanager
def within(eqn: Any) -> Generator[None]:
    """The configuration, the named scopes and the source line of an equation."""
    source = eqn.source_info
    names = source_info_util.current_name_stack() + source.name_stack
    with source_info_util.user_context(source.traceback, name_stack=names), eqn.ctx.manager:
        yield


def bind(eqn: Any, *operands: Any) -> tuple[Any, ...]:
    """Evaluates an equation as JAX itself does."""
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)
    results = eqn.primitive.bind(*functions, *operands, **params)
    return tuple(results) if eqn.primitive.multiple_results else (results,)


def jit_options(params: Mapping[str, Any]) -> dict[str, Any]:
    """What to give `jax.jit` for a call with one more operand, the first."""
    donated = [i + 1 for i, is_donated in enumerate(params["donated_invars"]) if is_donated]
    options = {
        "donate_argnums": donated,
        "keep_unused": params["keep_unused"],
        "inline": params["inline"],
        "compiler_options": dict(params["compiler_options_kvs"]) or None,
    }
    if any(map(_is_specified, params["in_shardings"])):
        options["in_shardings"] = (None, *params["in_shardings"])
    if any(map(_is_specified, params["out_shardings"])):
        options["out_shardings"] = tuple(params["out_shardings"])
    return options


def _is_specified(sharding: Any) -> bool:
    return isinstance(sharding, Sharding)


def scan_options(params: Mapping[str, Any]) -> dict[str, Any]:
    """What to give `lax.scan` besides its operands."""
    names = ("length", "reverse", "unroll", "_split_transpose")
    return {name: params[name] for name in names if name in params}


def checkpoint_options(params: Mapping[str, Any]) -> dict[str, Any]:
    """What to give `jax.checkpoint` for a call with one more operand, the first."""
    prevent_cse = params["prevent_cse"]
    if not isinstance(prevent_cse, bool):
        prevent_cse = (False, *prevent_cse)
    return {"policy": params["policy"], "prevent_cse": prevent_cse}


def shard_map_options(params: Mapping[str, Any]) -> dict[str, Any]:
    """What to give `jax.shard_map` besides its specs."""
    return {
        "mesh": params["mesh"],
        "axis_names": manual_axes(params),
        "check_vma": params["check_vma"],
    }
