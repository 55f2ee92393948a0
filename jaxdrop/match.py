"""Matchers: what a rule of `plant` may match besides the names of marked sites.

The values of a model that nobody marked have names too: tags for the policies of
`jax.checkpoint`, named scopes (flax.linen, equinox and haiku open one for each module),
inner jitted functions, primitives, and the Python functions that computed a value.
Patterns are those of `fnmatch`: `*` stands for any text, also with slashes in it. Upper
and lower case letters are different.

A matcher finds the value that the compiled program has. In an inner `vmap` this value
is the whole batch, so one mask covers all examples.
"""

from jaxdrop.planting.rules import Matcher

__all__ = ["checkpoint_name", "function", "jit", "named_scope", "primitive", "site"]


def site(pattern: str) -> Matcher:
    """Values marked by `jaxdrop.site`. A bare string in a rule means the same.

    Args:
      pattern: a glob over the names of sites.

    Returns:
      A matcher for the rules of `plant`.

    Example:
      >>> match.site("mlp/*")
      match.site('mlp/*')
    """
    return Matcher("site", pattern)


def checkpoint_name(pattern: str) -> Matcher:
    """Values tagged by `jax.ad_checkpoint.checkpoint_name`.

    Args:
      pattern: a glob over the tags.

    Returns:
      A matcher for the rules of `plant`.

    Example:
      >>> from jax.ad_checkpoint import checkpoint_name
      >>> model = lambda x: checkpoint_name(x, "hidden")
      >>> drop = partial(dropout, rate=1.0)
      >>> planted = plant(model, {match.checkpoint_name("hidden"): drop})
      >>> float(planted(jax.random.key(0), jnp.ones(3)).sum())
      0.0
    """
    return Matcher("checkpoint_name", pattern)


def named_scope(pattern: str) -> Matcher:
    """Floating values computed inside a named scope and used outside of it.

    Modules of flax.linen, equinox and haiku run in a scope, so these values are their
    outputs. The scope has the name of the module in flax.linen and haiku, and the name
    of the class in equinox. The pattern must match a whole path of scopes, as
    "net/*/Dense_0" does. If nested scopes match, only the outermost counts. Each entry
    into a scope is a run of its own.

    Args:
      pattern: a glob over paths of scopes, with slashes between them.

    Returns:
      A matcher for the rules of `plant`.

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
    return Matcher("named_scope", pattern)


def jit(pattern: str) -> Matcher:
    """Floating results of inner jitted functions, and of functions with a custom derivative.

    Which functions of JAX itself are jitted depends on the version of JAX.

    Args:
      pattern: a glob over the names of the functions.

    Returns:
      A matcher for the rules of `plant`.

    Example:
      >>> drop = partial(dropout, rate=1.0)
      >>> planted = plant(lambda x: jax.nn.relu(x), {match.jit("relu"): drop})
      >>> float(planted(jax.random.key(0), jnp.ones(3)).sum())
      0.0
    """
    return Matcher("jit", pattern)


def primitive(pattern: str) -> Matcher:
    """Floating results of a JAX primitive.

    Args:
      pattern: a glob over the names of primitives.

    Returns:
      A matcher for the rules of `plant`.

    Example:
      >>> drop = partial(dropout, rate=1.0)
      >>> planted = plant(lambda x: jnp.exp(x) + 1, {match.primitive("exp"): drop})
      >>> float(planted(jax.random.key(0), jnp.ones(3)).sum())
      3.0
    """
    return Matcher("primitive", pattern)


def function(pattern: str) -> Matcher:
    """Floating values computed by a Python function and used outside of it.

    If the function calls a helper, the values that the helper computes count too. If
    nested functions match, only the outermost counts. Calls from different places are
    different runs. `plant` refuses a function with a Python loop over its own results,
    and a function that is called in such a loop, because it cannot tell these two cases
    apart.

    Args:
      pattern: a glob over the names of functions.

    Returns:
      A matcher for the rules of `plant`.

    Example:
      >>> def normalize(x):
      ...     return x / jnp.linalg.norm(x)
      >>> drop = partial(dropout, rate=1.0)
      >>> planted = plant(lambda x: normalize(x) + 1, {match.function("normalize"): drop})
      >>> float(planted(jax.random.key(0), jnp.ones(3)).sum())
      3.0
    """
    return Matcher("function", pattern)
