"""Reads an equation of a jaxpr in the same way for all versions of JAX.

Planting finds everything it needs at the equation: the bodies of a call, the names of a
value, the scopes and the Python functions that were running.
"""

import re
from collections.abc import Generator, Hashable
from contextlib import contextmanager
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from types import CodeType
from typing import NamedTuple

from jax.extend import source_info_util
from jax.extend.core import JaxprEqn

from jaxdrop.planting.jaxprs import Params, Value, bodies_in, name_and_params, opened
from jaxdrop.planting.options import manual_axes

_PACKAGE = str(Path(__file__).parent.parent)
# Frames inside of JAX are ignored, except functions of whole layers, such as jax.nn.relu.
_INTERNAL = re.compile(rf"/jax/_src/(?!(nn|ops|scipy)/)|{re.escape(_PACKAGE)}/")
_ONE_NAME = {
    "pjit": "jit",
    "remat": "checkpoint",
    "remat2": "checkpoint",
    "custom_vjp_call_jaxpr": "custom_vjp_call",
}
_CUSTOM = ("custom_jvp_call", "custom_vjp_call", "CustomVJPTraced")
# Functions of JAX that differentiate the function that they call.
_DERIVATIVES = ("value_and_grad_f", "grad_f", "vjp", "jvp", "linearize")

# The source line of a site is in the user's code.
source_info_util.register_exclusion(_PACKAGE)


class Frame(NamedTuple):
    """A Python function that was running when an equation was traced, and where it was."""

    function: str
    qualified: str  # with its class, as "Attention.__call__"
    position: tuple[CodeType, int]  # its code object, and the position of the instruction
    is_internal: bool

    @property
    def is_layer_of_jax(self) -> bool:
        """Whether it is a function of JAX that users know, such as `jax.nn.softmax`."""
        return not self.is_internal and "/jax/_src/" in self.position[0].co_filename


class Equation:
    """An equation of a jaxpr. Expensive properties are computed once, when they are first read."""

    def __init__(self, eqn: JaxprEqn) -> None:
        self.eqn = eqn
        self.primitive = eqn.primitive
        self.operands = eqn.invars
        self.results = eqn.outvars
        name, self.params = name_and_params(eqn)
        if self.params.get("branches_platforms"):
            name = "platform_dependent"  # JAX makes it a `cond`, but no index chooses the branch
        self.name = _ONE_NAME.get(name, name)

    @cached_property
    def bodies(self) -> Params:
        """The jaxprs in each parameter that has any."""
        return bodies_in(self.params)

    @cached_property
    def own_params(self) -> Params:
        """The parameters without the bodies."""
        return {name: value for name, value in self.params.items() if name not in self.bodies}

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """A key that is equal for two equations that do the same with the same bodies."""
        return self.name, *sorted(self.own_params.items(), key=itemgetter(0))

    @property
    def is_custom_derivative(self) -> bool:
        """Whether it calls a function of `jax.custom_jvp` or `jax.custom_vjp`."""
        return self.name in _CUSTOM

    @property
    def called(self) -> str | None:
        """The name of the function that it calls, if the equation keeps one."""
        if self.name == "jit":
            return self.params["name"]
        if not self.is_custom_derivative:
            return None
        known = "call_jaxpr" in self.params
        body, _ = opened(self.params["call_jaxpr"] if known else self.params["traced"].jaxpr)
        return body.debug_info.func_name

    @property
    def label(self) -> str:
        """Its label in the table of sites: its name, and the name of the function that it calls."""
        return f"{self.name}({self.called})" if self.called else self.name

    @property
    def tag(self) -> str | None:
        """The name that `checkpoint_name` gave, if this is an equation of `checkpoint_name`."""
        return self.params["name"] if self.name in ("name", "CheckpointName") else None

    @cached_property
    def source(self) -> str:
        """The place in the user's code that made it, as `file:line (function)`."""
        # Bodies of JAX's own functions are traced once, for all users.
        return source_info_util.summarize(self.eqn.source_info) or "a line of JAX"

    @cached_property
    def scopes(self) -> list[tuple[str, int]]:
        """The named scopes in which it was traced, outermost first, each with a number
        for its entry.
        """
        # JAX makes a new object for each entry into a scope. So two entries of one name
        # have different numbers, as long as the equation keeps the objects.
        stack = self.eqn.source_info.name_stack.stack
        return [(part.name, id(part)) for part in stack if type(part).__name__ == "Scope"]

    @property
    def transforms(self) -> frozenset[str]:
        """The transforms that were applied to it: "jvp", "transpose", "vmap"."""
        # Only the name stack says whether the equation computes a tangent. A test
        # checks that JAX still writes this there.
        stack = self.eqn.source_info.name_stack.stack
        return frozenset(part.name for part in stack if type(part).__name__ == "Transform")

    @cached_property
    def frames(self) -> list[Frame]:
        """The functions that were running, outermost first, without those outside of its jaxpr."""
        traceback = self.eqn.source_info.traceback
        if traceback is None:
            return []
        frames: list[Frame] = []
        for frame, *position in zip(traceback.frames, *traceback.raw_frames(), strict=True):
            # Outer frames belong to the call around this jaxpr; the equation of that call has them.
            if frame.function_name.startswith("trace_to_jaxpr"):
                break
            qualified = frame.function_name.rpartition("<locals>.")[2]
            name = qualified.rpartition(".")[2]
            is_internal = bool(_INTERNAL.search(frame.file_name))
            frames.append(Frame(name, qualified, tuple(position), is_internal))
        return frames[::-1]

    @cached_property
    def line(self) -> tuple[Hashable, ...]:
        """Where all these functions were: equal for equations of one line, called from one line."""
        # By the identity of the code, since its hash takes long.
        return tuple((id(code), offset) for code, offset in (f.position for f in self.frames))

    @property
    def planted_inside(self) -> str:
        """What to write instead, if it was traced inside of a derivative: the planted function
        is differentiated, by its name where that is known.
        """
        inner, caller = "", ""
        frames = iter(self.frames)
        for frame in frames:
            if frame.is_internal and frame.function in _DERIVATIVES:
                inner = next((f.function for f in frames if not f.is_internal), inner)
                break
            if not frame.is_internal:
                caller = f" in {frame.qualified}"
        is_named = inner.isidentifier()
        return f"grad(plant({inner if is_named else 'f'}, rules)){caller if is_named else ''}"

    @property
    def unchecked_axes(self) -> frozenset[str]:
        """The mesh axes of a `shard_map` that does not check over which axes values vary."""
        return frozenset() if self.params.get("check_vma", True) else manual_axes(self.params)

    @contextmanager
    def context(self) -> Generator[None]:
        """The configuration, the named scopes and the source line where it was traced."""
        source = self.eqn.source_info
        names = source_info_util.current_name_stack() + source.name_stack
        located = source_info_util.user_context(source.traceback, name_stack=names)
        with located, self.eqn.ctx.manager:
            yield

    def bind(self, *operands: Value) -> tuple[Value, ...]:
        """Evaluates it as JAX itself does."""
        # If a primitive takes functions, they come first, and then the operands.
        params = self.primitive.get_bind_params(self.eqn.params)
        functions, params = params if isinstance(params, tuple) else ((), params)
        results = self.primitive.bind(*functions, *operands, **params)
        return tuple(results) if self.primitive.multiple_results else (results,)
