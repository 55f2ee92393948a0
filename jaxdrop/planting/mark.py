"""What `site` leaves in a jaxpr: two primitives, by which a site's identity is a value.

`token` makes uint32[2] out of a value, and `site` is the identity of the value
that also takes the token. Planted, the token becomes a key and the site becomes
a drop with that key. Because the token is an array like any other, JAX itself
carries it to wherever the site's derivative is computed: through the residuals
of a scan, through `vmap`, `checkpoint` and `shard_map`. So a backward pass
drops with the mask of its forward pass, by construction.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import UInt32

from jaxdrop.base.compat import vary_over, varying_axes
from jaxdrop.base.names import path_name
from jaxdrop.planting import jaxprs

Tree = TypeVar("Tree")
Token = UInt32[Array, "*batch 2"]

# Part of the key of JAX's caches: what was traced for planting is not found by
# what was not, so that programs without a plant have no trace of its sites.
planting = jax.make_user_context(False)


def site(x: Tree, name: str) -> Tree:
    """Marks an activation, where `plant` may put a drop.

    The identity: outside of `plant` nothing of it is left in the program.

    Args:
      x: any pytree. Its arrays are marked; what is no array passes as it is.
      name: what rules and keys know the site by. Several sites of a name are
        its runs, as are the arrays of one pytree, each counted by itself.

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
    if not planting.value:
        return x
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            _mark(leaf, name, path_name(path))
            if is_array(leaf) or isinstance(leaf, np.generic)
            else leaf
        ),
        x,
    )


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of JAX or NumPy."""
    return isinstance(leaf, jax.Array | np.ndarray)


def _mark(x: Any, name: str, path: str) -> Array:
    x = jnp.asarray(x)
    token = token_p.bind(x, name=name, path=path, axes=())
    return site_p.bind(x, token, name=name, path=path, role="value", axes=())


token_p = Primitive("jaxdrop_token")
"""Parameters: `name`, `path` in the marked pytree, and `axes`, the axes of the
operand that inner `vmap`s added, the outermost first. The token has them too."""

site_p = Primitive("jaxdrop_site")
"""Parameters: `name`, `path`, `role` and `axes`, for each inner `vmap`, the
innermost first, the axis of the value and that of the token, or None. The role
is `value`, or that of a derivative: `tangent` or `cotangent`."""

_TRANSPOSED = {"value": "cotangent", "tangent": "cotangent", "cotangent": "tangent"}


def _blank(x: Array, *, axes: tuple[int, ...], **_: Any) -> Token:
    return jnp.zeros(_token_shape(x, axes), jnp.uint32)


def _token_shape(x: Any, axes: tuple[int, ...]) -> tuple[int, ...]:
    return (*(x.shape[axis] for axis in axes), 2)


def _token_aval(x: Any, *, axes: tuple[int, ...], **_: Any) -> Any:
    return jaxprs.like_aval(x, _token_shape(x, axes), jnp.dtype("uint32"))


def _batch_token(args: Any, dims: Any, *, axes: tuple[int, ...], **params: Any) -> Any:
    (x,), (axis,) = args, dims
    moved = (inner + (inner >= axis) for inner in axes)
    return token_p.bind(x, axes=(axis, *moved), **params), 0


token_p.def_impl(_blank)
token_p.def_abstract_eval(_token_aval)
mlir.register_lowering(token_p, mlir.lower_fun(_blank, multiple_results=False))
batching.primitive_batchers[token_p] = _batch_token
ad.defjvp(token_p, None)
jaxprs.save_always(token_p)


def _batch_site(args: Any, dims: Any, *, axes: Any, **params: Any) -> Any:
    (x, token), (axis, token_axis) = args, dims
    if axis is None:
        x, axis = jnp.broadcast_to(x, (token.shape[token_axis], *x.shape)), 0
    return site_p.bind(x, token, axes=(*axes, (axis, token_axis)), **params), axis


def _differentiate_site(primals: Any, tangents: Any, *, role: str, **params: Any) -> Any:
    (x, token), (tangent, _) = primals, tangents
    y = site_p.bind(x, token, role=role, **params)
    if isinstance(tangent, ad.Zero):
        return y, tangent
    return y, _bind_linear(tangent, token, "tangent" if role == "value" else role, params)


def _transpose_site(cotangent: Any, x: Any, token: Any, *, role: str, **params: Any) -> Any:
    if ad.is_undefined_primal(token):
        raise NotImplementedError(
            f"plant: site {params['name']!r} is in a function that is transposed. Transpose the"
            " planted function instead: linear_transpose(plant(f, rules), ...)."
        )
    if isinstance(cotangent, ad.Zero):
        return ad.Zero(x.aval), None
    return _bind_linear(cotangent, token, _TRANSPOSED[role], params), None


def _bind_linear(x: Array, token: Token, role: str, params: Any) -> Array:
    x = vary_over(x, varying_axes(token))
    return site_p.bind(x, token, role=role, **params)


site_p.def_impl(lambda x, token, **params: x)
site_p.def_abstract_eval(lambda x, token, **params: x)
mlir.register_lowering(site_p, lambda context, x, token, **params: [x])
batching.primitive_batchers[site_p] = _batch_site
ad.primitive_jvps[site_p] = _differentiate_site
ad.primitive_transposes[site_p] = _transpose_site
