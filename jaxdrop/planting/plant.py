"""`plant` and `sites`: dropout in functions that were written without it."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import jax.numpy as jnp

from jaxdrop.base.types import Key
from jaxdrop.base.validate import Check
from jaxdrop.core.words import as_threefry, mark_consumed
from jaxdrop.planting import jaxprs
from jaxdrop.planting.groups import Surroundings
from jaxdrop.planting.keys import Stream
from jaxdrop.planting.planner import Planner
from jaxdrop.planting.report import SiteTable, refuse_unmatched, table_of
from jaxdrop.planting.rules import RuleBook, Rules
from jaxdrop.planting.tracing import refuse_functions, trace


def plant(fn: Callable[..., Any], rules: Rules) -> Callable[..., Any]:
    """Puts drops into a function that was written without them.

    The planted function takes a key first, and then what `fn` takes. At test
    time one calls `fn` itself. It is a function like any other: differentiate,
    batch and shard it, or plant one that was differentiated already. And put
    `jax.jit` around it, as around any training step: each call traces `fn` anew.

    Every run of a site has a mask of its own: each call, step of a loop, example
    of an inner `vmap`, and device of a `shard_map` along the axes over which the
    value varies. `site_key` says which key it has; a `Rule` shares masks.

    Prefer `grad(plant(f))`. Of a function that was differentiated before it is
    planted, JAX has moved what is the same in all steps out of scans, so that it
    has one mask; and where a rule of `jax.custom_jvp` runs a site twice, for the
    value and for the derivative, each has a mask. In either order, a site that a
    rule for a custom derivative runs, but the function does not, is left alone.

    Args:
      fn: a pure function of pytrees. Arrays are traced, all other leaves stay as
        they are.
      rules: a dict from patterns to drops `(key, x) -> y` or `Rule`s. A pattern
        is a glob over the names that `site` gave, or from `jaxdrop.match`. No
        two may match one site. In a list of pairs the first match wins.

    Returns:
      A function `(key, *args, **kwargs)` with the results of `fn`.

    Raises:
      TypeError: `fn` is not callable, `rules` are not rules; when called, if
        `key` is not one key, or a drop changes the shape or dtype.
      KeyError: when called, if a rule matches nothing.
      ValueError: when called, if two rules of a dict match one site.
      NotImplementedError: when called, if a site that a rule matches is where no
        drop can be put; the message says where and what to do.

    Example:
      >>> def model(params, x):
      ...     h = site(jnp.tanh(x @ params["in"]), "mlp/hidden")
      ...     return h @ params["out"]
      >>> params = {"in": jnp.ones((2, 4)), "out": jnp.ones(4)}
      >>> train = plant(model, {"mlp/*": partial(dropout, rate=0.5)})
      >>> train(jax.random.key(0), params, jnp.ones((3, 2))).shape
      (3,)
      >>> model(params, jnp.ones((3, 2))).shape  # at test time
      (3,)
    """
    _refuse_uncallable("plant", fn)
    planner = Planner(RuleBook("plant", rules))

    @wraps(fn, updated=())
    def planted(key: Key, /, *args: Any, **kwargs: Any) -> Any:
        key = Check("plant").one_key(key)
        mark_consumed(key)
        jaxpr, rebuild, operands = trace(_checked(fn), *args, **kwargs)
        around = Surroundings(unchecked_axes=jaxprs.ambient_unchecked_axes())
        plan = planner.plan(jaxpr, around)
        refuse_unmatched("plant", jaxpr, plan, planner.book)
        root = as_threefry(key)
        streams = {name: Stream.of(root, name) for name in plan.runs}
        return rebuild([jnp.asarray(result) for result in plan(streams, *operands)])

    return _with_signature(planted, fn)


def sites(
    fn: Callable[..., Any], *args: Any, rules: Rules | None = None, **kwargs: Any
) -> SiteTable:
    """Lists the sites of a function: a dry run, in which nothing is computed.

    Args:
      fn: the function that `plant` would be given.
      *args: what it would be called with, without the key. Arrays may be
        `jax.ShapeDtypeStruct`s.
      rules: the rules that `plant` would be given. None lists all values marked
        by `site` or tagged by `checkpoint_name`.
      **kwargs: keyword arguments of `fn`.

    Returns:
      A sequence of `SiteRow`s that prints as a table. With rules, sites that
      none matches are listed too, with `rule` None.

    Raises:
      TypeError: `rules` are not rules.
      KeyError: a rule matches nothing.
      ValueError: two rules of a dict match one site.
      NotImplementedError: a site that a rule matches is where no drop can be put.

    Example:
      >>> model = lambda x: site(jnp.tanh(x), "hidden").sum()
      >>> table = sites(model, jax.ShapeDtypeStruct((2, 4), jnp.float32))
      >>> [(row.site, row.shape, row.runs) for row in table]
      [('hidden', (2, 4), 1)]
    """
    _refuse_uncallable("sites", fn)
    book = RuleBook("sites", {} if rules is None else rules)
    jaxpr, _, _ = trace(_checked(fn), *args, **kwargs)
    plan = Planner(book).plan(jaxpr, Surroundings())
    refuse_unmatched("sites", jaxpr, plan, book)
    return table_of(jaxpr, book)


def _refuse_uncallable(function: str, fn: Any) -> None:
    if not callable(fn):
        raise TypeError(f"{function}: fn must be callable; got {fn!r}.")


def _checked(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, but for results in which a site would be out of reach."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        results = fn(*args, **kwargs)
        refuse_functions(results)
        return results

    return checked


def _with_signature(planted: Any, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Says that a key comes first, then the parameters of `fn`."""
    del planted.__wrapped__  # which would show the signature of `fn` to some
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return planted
    parameters = signature.parameters
    name = "key" if "key" not in parameters else "plant_key"
    key = inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY, annotation=Key)
    planted.__signature__ = signature.replace(parameters=[key, *parameters.values()])
    return planted
