"""What a rule of `plant` may match, besides the names of marked sites.

Models that nobody marked have names nevertheless: tags for `jax.checkpoint`
policies, named scopes (flax.linen, equinox and haiku open one for each module), inner
jitted functions, primitives, and the Python functions that computed a value.
Patterns are those of `fnmatch`, with case: `*` is any text, with slashes too.

What such a rule finds is the value as the compiled program has it, so inside an
inner `vmap` it has the batch, and one mask covers it.
"""

from jaxdrop.planting.rules import Matcher

__all__ = ["checkpoint_name", "function", "jit", "named_scope", "primitive", "site"]


def site(pattern: str) -> Matcher:
    """Values marked by `jaxdrop.site`; what a bare string means in a rule.

    Args:
      pattern: a glob over their names.

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
      pattern: a glob over their tags.

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
    """Floating values computed inside of a named scope and used outside of it.

    Modules of flax.linen, equinox and haiku run in a scope, so these are their
    outputs. In flax.linen and haiku its name is the module's, in equinox the
    class's. The pattern
    must match a whole path, as "net/*/Dense_0"; of nested scopes that match, the
    outermost counts. Each time that a scope is entered is a run of its own.

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
    """Floating results of inner jitted functions, and of custom derivatives.

    Which functions of JAX itself are jitted depends on its version.

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

    What a function's helpers compute counts as the function's; of nested
    functions that match, the outermost counts. Calls from different places are
    runs of their own. A function that loops in Python over its own results, or is
    called in such a loop, is refused: nothing tells the two apart.

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
