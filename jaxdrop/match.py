"""Matchers: what a rule of `plant` may match besides the names of marked sites.

The values of a model that nobody marked have names too: tags for the policies of
`jax.checkpoint`, named scopes (flax.linen and haiku open one for each module),
inner jitted functions, primitives, and the Python functions that computed a value.
Patterns are those of `fnmatch`: `*` stands for any text, also with slashes in it. Upper
and lower case letters are different.

Matchers are combined by `&`, `|` and `~`. In `a & b`, the name that `a` found is the one in
keys and tables, and decides who reads the value after the drop: of a scope or function, only
what is outside of it. A rule of None leaves alone what it matches:

>>> drop = partial(dropout, rate=0.1)
>>> rules = {
...     match.function("softmax") & match.within(match.named_scope("encoder/*")): drop,
...     match.within(match.named_scope("encoder/layer_0/*")): None,
... }
"""

from typing import TypeAlias, cast

from jaxdrop.planting.matchers import Inside, Matcher, Named, OfType, Predicate

Output: TypeAlias = int | Predicate | None

__all__ = [
    "checkpoint_name",
    "function",
    "jit",
    "named_scope",
    "primitive",
    "site",
    "value",
    "within",
]


def __dir__() -> list[str]:
    return __all__


def site(pattern: str) -> Matcher:
    """Values marked by `jaxdrop.site`. A bare string in a rule means the same.

    Args:
      pattern: a glob over the names of sites, or over the names with the paths of arrays
        in a marked pytree, as in "hidden['a']".

    Returns:
      A matcher for the rules of `plant`.

    Raises:
      TypeError: `pattern` is not a string.

    Example:
      >>> match.site("mlp/*")
      match.site('mlp/*')
    """
    return Named("site", pattern)


def checkpoint_name(pattern: str) -> Matcher:
    """Values tagged by `jax.ad_checkpoint.checkpoint_name`.

    Args:
      pattern: a glob over the tags.

    Returns:
      A matcher for the rules of `plant`.

    Raises:
      TypeError: `pattern` is not a string.

    Example:
      >>> from jax.ad_checkpoint import checkpoint_name
      >>> model = lambda x: checkpoint_name(x, "hidden")
      >>> drop = partial(dropout, rate=1.0)
      >>> planted = plant(model, {match.checkpoint_name("hidden"): drop})
      >>> float(planted(jax.random.key(0), jnp.ones(3)).sum())
      0.0
    """
    return Named("checkpoint_name", pattern)


def named_scope(pattern: str, *, output: Output = None) -> Matcher:
    """The floating value computed inside a named scope and used outside of it.

    Modules of flax.linen and haiku run in a scope with the name of the module, and layers
    of `equinox.nn` in one with the name of the class. If several values leave a scope,
    those that are only returned are state, such as a running mean or cached keys, and
    stay as they are. If several are left, it is an error that lists them. The pattern
    must match a whole path of scopes, as "net/*/Dense_0" does. If nested scopes match,
    only the outermost counts. Each entry into a scope is a run of its own.

    Args:
      pattern: a glob over paths of scopes, with slashes between them.
      output: which of several values is meant: an index, as the error lists them, or a
        function of a `jax.ShapeDtypeStruct` that is True for each of those.

    Returns:
      A matcher for the rules of `plant`.

    Raises:
      TypeError: `pattern` is not a string, or `output` no index and no function.

    Example:
      >>> def model(x):
      ...     with jax.named_scope("hidden"):
      ...         h = jnp.exp(jnp.sin(x))
      ...     return h + 1
      >>> drop = partial(dropout, rate=1.0)
      >>> planted = plant(model, {match.named_scope("hidden"): drop})
      >>> float(planted(jax.random.key(0), jnp.ones(3)).sum())
      3.0
    """
    return Named("named_scope", pattern, output)


def jit(pattern: str, *, output: Output = None) -> Matcher:
    """The floating result of inner jitted functions, and of functions with a custom derivative.

    Which functions of JAX itself are jitted depends on the version of JAX. Of several
    results, those that are only returned are taken for state, as for `named_scope`.

    Args:
      pattern: a glob over the names of the functions.
      output: which of several results is meant, as for `named_scope`.

    Returns:
      A matcher for the rules of `plant`.

    Raises:
      TypeError: `pattern` is not a string, or `output` no index and no function.

    Example:
      >>> drop = partial(dropout, rate=1.0)
      >>> planted = plant(lambda x: jax.nn.relu(x), {match.jit("relu"): drop})
      >>> float(planted(jax.random.key(0), jnp.ones(3)).sum())
      0.0
    """
    return Named("jit", pattern, output)


def primitive(pattern: str) -> Matcher:
    """Floating results of a JAX primitive.

    Args:
      pattern: a glob over the names of primitives.

    Returns:
      A matcher for the rules of `plant`.

    Raises:
      TypeError: `pattern` is not a string.

    Example:
      >>> drop = partial(dropout, rate=1.0)
      >>> planted = plant(lambda x: jnp.exp(x) + 1, {match.primitive("exp"): drop})
      >>> float(planted(jax.random.key(0), jnp.ones(3)).sum())
      3.0
    """
    return Named("primitive", pattern)


def function(pattern: str, *, output: Output = None) -> Matcher:
    """The floating value computed by a Python function and used outside of it.

    If the function calls a helper, the values that the helper computes count too. If
    nested functions match, only the outermost counts. Of several values, those that are
    only returned are taken for state, as for `named_scope`. Calls from different places
    are different runs. `plant` refuses a function with a Python loop over its own results,
    and a function that is called in such a loop, because it cannot tell these two cases
    apart. It cannot see such calls only if one call could have run all that they ran, in
    this order.

    Args:
      pattern: a glob over the names of functions, also with the class that defines them, as
        "Attention.__call__".
      output: which of several values is meant, as for `named_scope`.

    Returns:
      A matcher for the rules of `plant`.

    Raises:
      TypeError: `pattern` is not a string, or `output` no index and no function.

    Example:
      >>> def normalize(x):
      ...     return x / jnp.linalg.norm(x)
      >>> drop = partial(dropout, rate=1.0)
      >>> planted = plant(lambda x: normalize(x) + 1, {match.function("normalize"): drop})
      >>> float(planted(jax.random.key(0), jnp.ones(3)).sum())
      3.0
    """
    return Named("function", pattern, output)


def within(outer: Matcher) -> Matcher:
    """Values computed inside of a scope, a function or a call, at any depth.

    It names no value. So a rule with a drop needs a matcher that does, put beside it by
    `&`. The values that leave what is around are inside, too.

    Args:
      outer: a matcher made by `named_scope`, `function` or `jit`.

    Returns:
      A matcher for the rules of `plant`.

    Raises:
      TypeError: `outer` is another matcher, or none.

    Example:
      >>> def model(x):
      ...     with jax.named_scope("first"):
      ...         x = jnp.exp(x)
      ...     return jnp.exp(x) + 1
      >>> drop = partial(dropout, rate=1.0)
      >>> rule = match.primitive("exp") & ~match.within(match.named_scope("first"))
      >>> float(plant(model, {rule: drop})(jax.random.key(0), jnp.ones(3)).sum())
      3.0
    """
    return Inside(cast(Named, outer))


def value(predicate: Predicate) -> Matcher:
    """Values of some shapes or dtypes.

    It names no value. So a rule with a drop needs a matcher that does, put beside it by
    `&`. For a marked value in an inner `vmap`, the shape is that of one example.

    Args:
      predicate: a function of a `jax.ShapeDtypeStruct` that is True for what it matches.

    Returns:
      A matcher for the rules of `plant`.

    Raises:
      TypeError: `predicate` is not callable.

    Example:
      >>> model = lambda x: jnp.exp(x).sum() + jnp.exp(x.sum())
      >>> drop = partial(dropout, rate=1.0)
      >>> rule = match.primitive("exp") & match.value(lambda x: x.ndim == 0)
      >>> float(plant(model, {rule: drop})(jax.random.key(0), jnp.zeros(3)))
      3.0
    """
    return OfType(predicate)
