"""Layers and attention for flax.nnx, and `plant`, named scopes and marks for its modules."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype as nnx_promote_dtype
from jax import Array

from jaxdrop.base.types import Key
from jaxdrop.frameworks.attention import Masking, attend
from jaxdrop.frameworks.copies import on_copies
from jaxdrop.frameworks.drops import AnyDrop, at_test_time, drops_nothing, with_any_key
from jaxdrop.frameworks.marks import classes_of_layers
from jaxdrop.frameworks.nnx_copies import with_marks, with_scopes
from jaxdrop.methods.attention.dot_product import Implementation
from jaxdrop.planting import plant as plant_in_pure

__all__ = ["Drop", "attention_fn", "dropout_sites", "named_scopes", "plant"]


def __dir__() -> list[str]:
    return __all__


class Drop(nnx.Module):
    """Any drop in the place of `nnx.Dropout`, with the keys that it would draw.

    At test time it gives its input; `zoneout` and `shake_drop` give their mean, and
    `drop_tokens` all tokens.

    Args:
      drop: a function `(key, x) -> y`, or one with more arguments, such as `zoneout`.
      deterministic: whether nothing is dropped; `model.train()` and `model.eval()` set it.
      rng_collection: which stream of `rngs` keys come from. None is drawn at a known
        rate of 0.
      rngs: where keys come from, unless the call says so.
      at_test: a function of x for test time; None for what stands above.

    Raises:
      TypeError: `drop` or `at_test` is no function.
      ValueError: one of the methods named above is inside of another drop, and there is
        no `at_test`; or when called, if there is no `rngs`.

    Example:
      >>> from flax.nnx import Rngs
      >>> from jaxdrop.frameworks import nnx
      >>> layer = nnx.Drop(partial(jaxdrop.drop_path, rate=0.5), rngs=Rngs(0))
      >>> layer(jnp.ones((4, 3))).shape
      (4, 3)
    """

    def __init__(
        self,
        drop: AnyDrop,
        *,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        at_test: AnyDrop | None = None,
    ) -> None:
        self.drop = drop
        self.at_test = at_test_time(drop, at_test)
        self.deterministic = deterministic
        self.rng_collection = rng_collection
        stream = rngs[rng_collection] if isinstance(rngs, nnx.Rngs) else rngs
        self.rngs = nnx.data(None) if stream is None else stream.fork()

    def __call__(
        self,
        x: Any,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | Array | None = None,
        **arguments: Any,
    ) -> Any:
        """Drops from `x`; the keyword arguments that no layer knows go to the drop."""
        deterministic = _given("deterministic", deterministic, self.deterministic)
        if deterministic:
            return self.at_test(x, **arguments)
        if drops_nothing(self.drop):
            return with_any_key(self.drop, x, **arguments)
        rngs = _given("rngs", rngs, self.rngs)
        if isinstance(rngs, nnx.Rngs):
            rngs = rngs[self.rng_collection]
        key = rngs() if isinstance(rngs, nnx.RngStream) else rngs
        return self.drop(key, x, **arguments)

    def set_view(self, deterministic: bool | None = None) -> None:
        """For `nnx.view`."""
        if deterministic is not None:
            self.deterministic = deterministic


def _given(name: str, called: Any, made: Any) -> Any:
    """What the call says, and else the layer."""
    if called is None and made is None:
        raise ValueError(f"Drop: {name} must be given to the layer or to the call; got None.")
    return made if called is None else called


def attention_fn(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: Key | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: nnx.Module | None = None,
    promote_dtype: Callable[..., Any] = nnx_promote_dtype,
    is_causal: bool = False,
    *,
    implementation: Implementation | None = None,
) -> Array:
    """`jaxdrop.dot_product_attention` as the `attention_fn` of nnx's attention layers.

    It takes what `nnx.dot_product_attention` takes and shares masks as that does. The
    softmax is computed in float32 or wider, and a query that sees no key gives zeros. To
    sow the weights, it computes all of them.

    Raises:
      NotImplementedError: `precision` differs between the operands.

    Example:
      >>> from flax import nnx
      >>> from jaxdrop.frameworks.nnx import attention_fn
      >>> layer = nnx.MultiHeadAttention(
      ...     4, 16, dropout_rate=0.1, attention_fn=attention_fn, decode=False, rngs=nnx.Rngs(0)
      ... )
    """
    inputs = promote_dtype((query, key, value), dtype=dtype)
    rate = 0.0 if deterministic else dropout_rate
    sow = module and partial(module.sow, nnx.Intermediate, "attention_weights")
    masking, shared = Masking(bias, mask, is_causal), broadcast_dropout
    return attend(inputs, dropout_rng, rate, masking, shared, precision, sow, implementation)


def plant(fn: Callable[..., Any], rules: Any) -> Callable[..., Any]:
    """`jaxdrop.plant` for functions that change nnx modules, such as one with BatchNorm.

    As with `nnx.jit`, what `fn` changes in the variables of its arguments is changed in
    them after the call. It must not add variables or remove any.

    Args:
      fn: a function of nnx modules and other pytrees.
      rules: as `jaxdrop.plant` takes them.

    Returns:
      A function `(key, *args, **kwargs)` with the results of `fn`.

    Raises:
      ValueError: when called, if `fn` adds or removes variables.
      Exception: what `jaxdrop.plant` raises.

    Example:
      >>> from flax.nnx import BatchNorm, Rngs
      >>> from jaxdrop.frameworks import nnx
      >>> norm = BatchNorm(4, rngs=Rngs(0))
      >>> def model(norm, x):
      ...     return norm(jaxdrop.site(x, "inputs"))
      >>> train = nnx.plant(model, {"inputs": partial(dropout, rate=0.5)})
      >>> y = train(jax.random.key(0), norm, jnp.ones((8, 4)))
      >>> bool(jnp.all(norm.mean[...] > 0))
      True
    """

    def pure(graph: Any, variables: Any, others: Any) -> tuple[Any, Any, Any]:
        # `merge` may take the variables of the state itself, and `fn` changes them.
        variables = jax.tree.map(lambda leaf: leaf, variables)
        args, kwargs = nnx.merge(graph, variables, others)
        result = fn(*args, **kwargs)
        return result, *nnx.split((args, kwargs), nnx.Variable, ...)[:2]

    run = plant_in_pure(pure, rules)

    @wraps(fn)
    def planted(key: Key, /, *args: Any, **kwargs: Any) -> Any:
        given = (args, kwargs)
        graph, variables, others = nnx.split(given, nnx.Variable, ...)
        result, after, variables = run(key, graph, variables, others)
        if after != graph:
            raise ValueError("plant: fn must not add or remove variables of its arguments.")
        nnx.update(given, variables)
        return result

    return planted


def named_scopes(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Runs each module of a model in a named scope of its path, such as `blocks/3/attn`.

    `match.named_scope("blocks/*/attn")` then matches what a residual branch gives. All
    methods of a module open its scope. The path of a module is that of its attribute in
    the model, with slashes in it, whatever module calls it. A module that has several
    paths has the one below the module that calls it, if there is one. The scope of a module
    that is called by one elsewhere lies below the scope of that one.

    Args:
      fn: a module, a method of one, or a function with modules among its arguments. If
        several arguments hold modules, paths begin with the name of the argument.

    Returns:
      A function with the arguments and the results of `fn`. What `fn` changes in modules
      is changed in those of the caller. Their classes are not changed. Where `fn` itself
      puts a module together, by `nnx.merge`, call `named_scopes(module)(x)` inside.

    Raises:
      TypeError: `fn` is not callable; when called, if no module is seen.

    Example:
      >>> from flax.nnx import Linear, Rngs, Sequential
      >>> from jaxdrop.frameworks import nnx
      >>> model = Sequential(Linear(3, 8, rngs=Rngs(0)), Linear(8, 2, rngs=Rngs(1)))
      >>> rules = {match.named_scope("layers/0"): partial(dropout, rate=0.5)}
      >>> train = plant(nnx.named_scopes(model), rules)
      >>> train(jax.random.key(1), jnp.ones((4, 3))).shape
      (4, 2)
    """
    return on_copies("named_scopes", fn, with_scopes)


def dropout_sites(
    fn: Callable[..., Any], *, layers: type | tuple[type, ...] = (nnx.Dropout, Drop)
) -> Callable[..., Any]:
    """Marks what dropout layers give by `jaxdrop.site`, also where they are off.

    The name of a site is the path of its layer in the model, such as `blocks/3/dropout`.
    So dropout can be planted where the author of a model wanted it, whether it is in
    `eval` mode, has a rate of 0, or drops something itself.

    Args:
      fn: a module, a method of one, or a function with modules among its arguments. If
        several arguments hold modules, paths begin with the name of the argument.
      layers: the classes of the layers that are marked. Other classes than those of
        dropout do as well.

    Returns:
      A function with the arguments and the results of `fn`. What `fn` changes in modules
      is changed in those of the caller.

    Raises:
      TypeError: `fn` is not callable, or `layers` are no classes; when called, if no
        module is seen.

    Example:
      >>> from flax.nnx import Dropout, Sequential
      >>> from jaxdrop.frameworks import nnx
      >>> model = Sequential(jnp.tanh, Dropout(0.5, deterministic=True))
      >>> train = plant(nnx.dropout_sites(model), {"layers/1": partial(dropout, rate=1.0)})
      >>> float(train(jax.random.key(1), jnp.ones(3)).sum())
      0.0
    """
    classes = classes_of_layers("dropout_sites", layers)
    return on_copies("dropout_sites", fn, partial(with_marks, classes))
