"""`plant` and `sites`: dropout in functions that were written without it."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax.numpy as jnp

from jaxdrop.base.types import Key
from jaxdrop.base.validate import Check
from jaxdrop.core.words import as_threefry, mark_consumed
from jaxdrop.planting.groups import Surroundings
from jaxdrop.planting.jaxprs import ambient_unchecked_axes
from jaxdrop.planting.keys import Stream, Streams
from jaxdrop.planting.plan import Plan
from jaxdrop.planting.planner import Planner
from jaxdrop.planting.report import LISTED, refuse_unmatched, table_of
from jaxdrop.planting.rules import Rules, RulesLike, is_counter
from jaxdrop.planting.table import SiteTable
from jaxdrop.planting.tracing import (
    PyTree,
    refuse_functions,
    refuse_uncallable,
    refusing_changes,
    trace,
)

_KEY_FIRST = "The planted function takes a key first, and then what fn takes."

P = ParamSpec("P")
Out = TypeVar("Out")


def plant(fn: Callable[P, Out], rules: RulesLike) -> Callable[Concatenate[Key, P], Out]:
    """Puts drops into a function that was written without them.

    The planted function takes a key first, and then the arguments of `fn`. At test
    time, call `fn` itself. You can differentiate, batch and shard a planted function
    like any other function. You can also plant a function that was differentiated
    already. Each call of a planted function traces `fn` again, so wrap it in `jax.jit`,
    like any training step.

    Each run of a site has a mask of its own. A run is one call, one step of a loop, one
    example of an inner `vmap`, or one device of a `shard_map` along the axes over which
    the value varies. `site_key` says which key each run has. With a `Rule`, several
    runs can share a mask: in a solver of differential equations, all of them must.

    Prefer `grad(plant(f))` to `plant(grad(f))`. With `plant(grad(f))` three things
    differ. First, JAX has moved values that are the same in all steps of a scan out of
    the scan, so a site on such a value has one mask for all steps. Second, if a rule of
    `jax.custom_jvp` runs a site twice, for the value and for the derivative, the two
    runs have different masks. Third, if the rule of a custom derivative runs a site but
    the function itself does not, a drop is put there; `grad(plant(f))` puts none. A rate
    that depends on the run is refused in `plant(grad(f))`.

    Args:
      fn: a pure function of pytrees. Arrays are traced; all other leaves are passed unchanged.
      rules: a dict from patterns to drops `(key, x) -> y` or `Rule`s. A pattern
        is a glob over the names that `site` gave, or a matcher from
        `jaxdrop.match`. No two patterns of a dict may match one site. In a list
        of pairs the first match wins. A rule of None leaves alone what it matches, in a
        dict before all others.

    Returns:
      A function `(key, *args, **kwargs)` with the results of `fn`.

    Raises:
      TypeError: `fn` is not callable, `rules` are not rules; when called, if
        `key` is not one key, or a drop changes the shape or dtype.
      KeyError: when called, if a rule matches nothing.
      ValueError: when called, if two rules of a dict match one site, a value would be
        dropped in a call or loop and again around it, a matcher does not say which of
        several outputs is meant, or `fn` changes an argument, such as the running mean of
        a module of flax.nnx.
      NotImplementedError: when called, if a rule matches a site where no drop
        can be put. The message says where it is and what to do.

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
    refuse_uncallable("plant", fn)
    # Rules are checked before any call. The planner lives as long as the planted
    # function. So an inner jitted function that JAX traces once for all calls is also
    # planned once for all calls.
    checked_rules = Rules("plant", rules)
    planner = Planner(checked_rules)

    @wraps(fn, updated=())
    def planted(key: Key, /, *args: PyTree, **kwargs: PyTree) -> PyTree:
        key = Check("plant").one_key(key, advice=_KEY_FIRST)
        mark_consumed(key)
        unchanging = _checked("plant", _unchanging(fn))
        jaxpr, unflatten, operands = trace("plant", unchanging, *args, **kwargs)
        plan = planner.plan(jaxpr, Surroundings(unchecked_axes=ambient_unchecked_axes()))
        refuse_unmatched(jaxpr, plan, checked_rules)
        streams = _streams(plan, as_threefry(key))
        return unflatten([jnp.asarray(result) for result in plan(streams, *operands)])

    return _with_signature(planted, fn)


def _streams(plan: Plan, root: Key) -> Streams:
    """The keys of all sites, and the counters of the rules whose rate depends on the run."""
    shared = {site.match.name for site in plan.sites if site.match.rule.share_runs}
    return {
        name: Stream.counting(runs)
        if is_counter(name)
        else Stream.of(root, name, fixed=name in shared)
        for name, runs in plan.runs.items()
    }


def sites(
    fn: Callable[..., Any], *args: Any, rules: RulesLike | None = None, **kwargs: Any
) -> SiteTable:
    """Lists the sites of a function. It is a dry run: nothing is computed.

    Args:
      fn: the function that `plant` would be given.
      *args: the arguments of `fn`. Arrays may be `jax.ShapeDtypeStruct`s.
      rules: the rules that `plant` would be given. With None, the table has all values
        that are marked by `site` or tagged by `checkpoint_name`, and prints below what
        else the matchers of `jaxdrop.match` can find.
      **kwargs: keyword arguments of `fn`.

    Returns:
      A sequence of `SiteRow`s that prints as a table. Marked and tagged values
      that no rule matches are listed too, with `rule` None.

    Raises:
      TypeError: `rules` are not rules.
      KeyError: a rule matches nothing.
      ValueError: two rules of a dict match one site, a value would be dropped twice, or a
        matcher does not say which of several outputs is meant.
      NotImplementedError: a rule matches a site where no drop can be put.

    Example:
      >>> model = lambda x: site(jnp.tanh(x), "hidden").sum()
      >>> table = sites(model, jax.ShapeDtypeStruct((2, 4), jnp.float32))
      >>> [(row.site, row.shape, row.runs) for row in table]
      [('hidden', (2, 4), 1)]
    """
    refuse_uncallable("sites", fn)
    checked_rules = Rules("sites", {} if rules is None else rules)
    jaxpr, _, _ = trace("sites", _checked("sites", fn), *args, **kwargs)
    plan = Planner(checked_rules, LISTED).plan(jaxpr, Surroundings())
    refuse_unmatched(jaxpr, plan, checked_rules)
    return table_of(jaxpr, plan, unmarked=rules is None)


def _checked(caller: str, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same function, with an error if it returns a function that still has a site inside."""

    def checked(*args: PyTree, **kwargs: PyTree) -> PyTree:
        results = fn(*args, **kwargs)
        refuse_functions(caller, results)
        return results

    return checked


def _unchanging(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same function, with an error if it changes its arguments."""

    def unchanging(*args: PyTree, **kwargs: PyTree) -> PyTree:
        with refusing_changes("plant", args, kwargs):
            return fn(*args, **kwargs)

    return unchanging


def _with_signature(planted: Any, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Gives the planted function a signature: a key, then the parameters of `fn`."""
    # Libraries that follow `__wrapped__`, as Equinox does, would see the signature of `fn`.
    del planted.__wrapped__
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return planted
    parameters = signature.parameters
    name = "key" if "key" not in parameters else "plant_key"
    key = inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY, annotation=Key)
    planted.__signature__ = signature.replace(parameters=[key, *parameters.values()])
    return planted
