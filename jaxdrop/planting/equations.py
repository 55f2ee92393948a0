"""An equation, read in the same way whatever version of JAX made it.

The equation is where planting finds what it needs to know: the bodies of a call,
the names of a value, the scopes and the Python functions that were running.
"""

import re
from collections.abc import Generator, Hashable
from contextlib import contextmanager
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from jax.extend import source_info_util
from jax.extend.core import JaxprEqn

from jaxdrop.planting.jaxprs import Params, Value, bodies_in, name_and_params, opened
from jaxdrop.planting.options import manual_axes

_PACKAGE = str(Path(__file__).parent.parent)
# Frames inside of JAX are of no interest, except functions of whole layers: jax.nn.relu.
_INTERNAL = re.compile(rf"/jax/_src/(?!(nn|ops|scipy)/)|{re.escape(_PACKAGE)}/")
_ONE_NAME = {
    "pjit": "jit",
    "remat": "checkpoint",
    "remat2": "checkpoint",
    "custom_vjp_call_jaxpr": "custom_vjp_call",
}
_CUSTOM = ("custom_jvp_call", "custom_vjp_call", "CustomVJPTraced")

# A site's source line is in the code of the user.
source_info_util.register_exclusion(_PACKAGE)


class Frame(NamedTuple):
    """A Python function that was running when an equation was traced, and where it was."""

    function: str
    position: tuple[Hashable, int]  # its code object, and the instruction in it
    is_internal: bool


class Equation:
    """An equation of a jaxpr. What costs something to find is found once, when it is asked for."""

    def __init__(self, eqn: JaxprEqn) -> None:
        self.eqn = eqn
        self.primitive = eqn.primitive
        self.operands = eqn.invars
        self.results = eqn.outvars
        name, self.params = name_and_params(eqn)
        if self.params.get("branches_platforms"):
            name = "platform_dependent"  # a `cond` to JAX, but no index chooses the branch
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
        """The same for two equations that do the same with the same bodies."""
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
        """What the table of sites calls it: its name, with that of the function it calls."""
        return f"{self.name}({self.called})" if self.called else self.name

    @property
    def tag(self) -> str | None:
        """The name that `checkpoint_name` gave, if the equation is of it."""
        return self.params["name"] if self.name in ("name", "CheckpointName") else None

    @cached_property
    def source(self) -> str:
        """Where the user's code made it, as `file:line (function)`."""
        return source_info_util.summarize(self.eqn.source_info)

    @cached_property
    def scopes(self) -> list[tuple[str, int]]:
        """The named scopes in which it was traced, outermost first, and which entry each was."""
        # JAX makes an object each time that a scope is entered. So two entries of one
        # name have different numbers, as long as the equation keeps the objects.
        stack = self.eqn.source_info.name_stack.stack
        return [(part.name, id(part)) for part in stack if type(part).__name__ == "Scope"]

    @property
    def transforms(self) -> frozenset[str]:
        """The transforms that it went through: "jvp", "transpose", "vmap"."""
        # Nothing but the name stack says whether a tangent was computed here. A test
        # watches that JAX still writes it there.
        stack = self.eqn.source_info.name_stack.stack
        return frozenset(part.name for part in stack if type(part).__name__ == "Transform")

    @cached_property
    def frames(self) -> list[Frame]:
        """The functions that were running, outermost first, since its jaxpr began."""
        traceback = self.eqn.source_info.traceback
        if traceback is None:
            return []
        frames: list[Frame] = []
        for frame, *position in zip(traceback.frames, *traceback.raw_frames(), strict=True):
            # What is further out traced the call around, whose equation has these frames.
            if frame.function_name.startswith("trace_to_jaxpr"):
                break
            name = frame.function_name.rpartition(".")[2]
            is_internal = bool(_INTERNAL.search(frame.file_name))
            frames.append(Frame(name, tuple(position), is_internal))
        return frames[::-1]

    @property
    def unchecked_axes(self) -> frozenset[str]:
        """The mesh axes of a `shard_map` that does not check over which of them values vary."""
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
        # Primitives that take functions are bound to those first, then to the operands.
        params = self.primitive.get_bind_params(self.eqn.params)
        functions, params = params if isinstance(params, tuple) else ((), params)
        results = self.primitive.bind(*functions, *operands, **params)
        return tuple(results) if self.primitive.multiple_results else (results,)
