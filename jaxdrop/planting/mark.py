"""The two primitives that `site` puts into a jaxpr; a site is known by a value, its token.

`token` takes a value and returns uint32[2]. `site` takes the value and the token, and
returns the value. When the function is planted, the token becomes a key and the site
becomes a drop with that key. The token is an ordinary array, so JAX itself carries it
to the place where the derivative of the site is computed: through the residuals of a
scan, through `vmap`, `checkpoint` and `shard_map`. So a backward pass always has the
mask of its forward pass.
"""

from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import UInt32

from jaxdrop.base.compat import vary_over, varying_axes
from jaxdrop.base.names import path_name
from jaxdrop.planting.jaxprs import Params, Value, like_aval, save_always

Tree = TypeVar("Tree")
Token = UInt32[Array, "*batch 2"]
Axes: TypeAlias = Sequence[tuple[int, int | None]]
"""For each inner `vmap` the axis of a value, and that of its token."""

# The function of this library that is tracing, "plant" or "sites"; otherwise None. It
# is part of the key of JAX's caches: an inner jit that was traced outside of planting
# is traced again inside, and the other way round. So only planted programs have marks.
planting = jax.make_user_context(None)


def site(x: Tree, name: str) -> Tree:
    """Marks an activation, where `plant` may put a drop.

    It returns `x` unchanged. Outside of `plant` it adds nothing to the program.

    Args:
      x: any pytree. Its arrays are marked; all other leaves pass unchanged.
      name: the name of the site in rules and keys. Two calls with the same name are two
        runs of one site. For each array of a pytree, runs are counted separately.

    Returns:
      `x`.

    Raises:
      TypeError: `name` is not a string.
      ValueError: `name` is empty.

    Example:
      >>> def model(x):
      ...     return site(jnp.tanh(x), "hidden").sum()
      >>> float(model(jnp.zeros(3)))
      0.0
    """
    if not isinstance(name, str):
        raise TypeError(f"site: name must be a string; got {name!r}.")
    if not name:
        raise ValueError("site: name must not be empty.")
    if planting.value is None:
        return x
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            _mark(leaf, name, path_name(path))
            if is_array(leaf) or isinstance(leaf, np.generic)
            else leaf
        ),
        x,
    )


def is_array(leaf: object) -> bool:
    """Whether a leaf is an array of JAX or NumPy."""
    return isinstance(leaf, jax.Array | np.ndarray)


def _mark(x: Value, name: str, path: str) -> Array:
    x = jnp.asarray(x)
    token = token_p.bind(x, name=name, path=path, axes=())
    return site_p.bind(x, token, name=name, path=path, role="value", axes=())


token_p = Primitive("jaxdrop_token")
"""Parameters: `name`, `path` in the marked pytree, and `axes`: the axes of the
operand that inner `vmap`s added, the outermost first. The token has one axis for each."""

site_p = Primitive("jaxdrop_site")
"""Parameters: `name`, `path`, `role` and `axes`: a pair for each inner `vmap`, the
innermost first, of the axis of the value and that of the token, which may be
None. The role is `value`, or for a derivative `tangent` or `cotangent`."""

_TRANSPOSED = {"value": "cotangent", "tangent": "cotangent", "cotangent": "tangent"}


def _blank(x: Array, *, axes: tuple[int, ...], **_: object) -> Token:
    return jnp.zeros(_token_shape(x.shape, axes), jnp.uint32)


def _token_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return (*(shape[axis] for axis in axes), 2)


def _token_aval(x: ShapedArray, *, axes: tuple[int, ...], **_: object) -> ShapedArray:
    # The key that takes the token's place varies over the mesh axes of the value. The
    # type of the token shows this from the start, since the loops around it are traced
    # with this type.
    return like_aval(x, _token_shape(x.shape, axes), jnp.dtype("uint32"))


def _batch_token(
    args: Sequence[Array], dims: Sequence[int], *, axes: tuple[int, ...], **params: object
) -> tuple[Array, int]:
    (x,), (axis,) = args, dims
    # The new vmap is outside of those that are known. Their axes at or behind the new
    # axis move up by one.
    moved = (inner + (inner >= axis) for inner in axes)
    return token_p.bind(x, axes=(axis, *moved), **params), 0


# The token has no derivative. A checkpoint saves its 8 bytes under every policy: if the
# backward pass computed the token again, it would draw another mask.
token_p.def_impl(_blank)
token_p.def_abstract_eval(_token_aval)
mlir.register_lowering(token_p, mlir.lower_fun(_blank, multiple_results=False))
batching.primitive_batchers[token_p] = _batch_token
ad.defjvp(token_p, None)
save_always(token_p)


def _batch_site(
    args: Sequence[Array], dims: Sequence[int | None], *, axes: Axes, **params: object
) -> tuple[Array, int]:
    (x, token), (axis, token_axis) = args, dims
    # A cotangent may be the same for all examples, but each example still has its own mask.
    if axis is None:
        assert token_axis is not None
        x, axis = jnp.broadcast_to(x, (token.shape[token_axis], *x.shape)), 0
    return site_p.bind(x, token, axes=(*axes, (axis, token_axis)), **params), axis


def _differentiate_site(
    primals: Sequence[Array], tangents: Sequence[Array | ad.Zero], *, role: str, **params: object
) -> tuple[Array, Array | ad.Zero]:
    # The tangent is marked with the token of its value, so it gets the same mask.
    (x, token), (tangent, _) = primals, tangents
    y = site_p.bind(x, token, role=role, **params)
    if isinstance(tangent, ad.Zero):
        return y, tangent
    return y, _bind_linear(tangent, token, "tangent" if role == "value" else role, params)


def _transpose_site(
    cotangent: Array | ad.Zero, x: ad.UndefinedPrimal, token: Array, *, role: str, **params: object
) -> tuple[Array | ad.Zero, None]:
    # If the token depends on the input of the transposed function, the value was never
    # computed. Then there is no forward pass from which the cotangent could take its
    # mask.
    if ad.is_undefined_primal(token):
        caller = planting.value or "plant"  # None if `plant` left this mark in
        raise NotImplementedError(
            f"{caller}: site {params['name']!r} is in a function that is transposed. Transpose the"
            " planted function instead: linear_transpose(plant(f, rules), ...)."
        )
    if isinstance(cotangent, ad.Zero):
        return ad.Zero(x.aval), None
    return _bind_linear(cotangent, token, _TRANSPOSED[role], params), None


def _bind_linear(x: Array, token: Token, role: str, params: Params) -> Array:
    # A derivative may vary over fewer mesh axes than its value.
    x = vary_over(x, varying_axes(token))
    return site_p.bind(x, token, role=role, **params)


site_p.def_impl(lambda x, token, **params: x)
site_p.def_abstract_eval(lambda x, token, **params: x)
mlir.register_lowering(site_p, lambda context, x, token, **params: [x])
batching.primitive_batchers[site_p] = _batch_site
ad.primitive_jvps[site_p] = _differentiate_site
ad.primitive_transposes[site_p] = _transpose_site
