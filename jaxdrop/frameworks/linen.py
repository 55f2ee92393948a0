"""Layers and attention for flax.linen, and marks for its models."""

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import Array

from jaxdrop.base.types import Key
from jaxdrop.frameworks.attention import Masking, attend
from jaxdrop.frameworks.drops import AnyDrop, at_test_time, drops_nothing, with_any_key
from jaxdrop.frameworks.marks import on_interceptor
from jaxdrop.methods.attention.dot_product import Implementation

__all__ = ["Drop", "attention_fn", "dropout_sites"]


def __dir__() -> list[str]:
    return __all__


class Drop(nn.Module):
    """Any drop in the place of `nn.Dropout`.

    It has the keys, and so the names, that `nn.Dropout` has in its place. At test time it
    gives its input; `zoneout` and `shake_drop` give their mean, and `drop_tokens` all tokens.

    Attributes:
      drop: a function `(key, x) -> y`, or one with more arguments, such as `zoneout`.
      deterministic: whether nothing is dropped; here or when called.
      rng_collection: the collection that keys come from. None is asked for at a known
        rate of 0.
      at_test: a function of x for test time; None for what stands above.

    Raises:
      TypeError: `drop` or `at_test` is no function.
      ValueError: one of the methods named above is inside of another drop, and there is
        no `at_test`.

    Example:
      >>> from flax import linen as nn
      >>> from jaxdrop.frameworks import linen
      >>> layer = linen.Drop(partial(jaxdrop.drop_path, rate=0.5), deterministic=False)
      >>> layer.apply({}, jnp.ones((4, 3)), rngs={"dropout": jax.random.key(0)}).shape
      (4, 3)
    """

    drop: AnyDrop
    deterministic: bool | None = None
    rng_collection: str = "dropout"
    at_test: AnyDrop | None = None

    @nn.compact
    def __call__(
        self, x: Any, deterministic: bool | None = None, rng: Key | None = None, **arguments: Any
    ) -> Any:
        """Drops from `x`; the keyword arguments that no layer knows go to the drop."""
        at_test = at_test_time(self.drop, self.at_test)
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
        if deterministic:
            return at_test(x, **arguments)
        if drops_nothing(self.drop):
            return with_any_key(self.drop, x, **arguments)
        key = self.make_rng(self.rng_collection) if rng is None else rng
        return self.drop(key, x, **arguments)


# Linen derives the names of layers, and from them their keys, from the name of the class.
Drop.__name__ = nn.Dropout.__name__


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
    module: nn.Module | None = None,
    force_fp32_for_softmax: bool = False,
    einsum_dot_general: Any = None,
    qk_attn_weights_einsum: Any = None,
    attn_weights_value_einsum: Any = None,
    *,
    implementation: Implementation | None = None,
) -> Array:
    """`jaxdrop.dot_product_attention` as the `attention_fn` of linen's attention layers.

    It takes what `nn.dot_product_attention` takes and shares masks as that does. The
    softmax is computed in float32 or wider, whatever `force_fp32_for_softmax` says, and
    a query that sees no key gives zeros. To sow the weights, it computes all of them.

    Raises:
      NotImplementedError: one of the three `einsum` arguments is given, or a precision
        that differs between the operands.

    Example:
      >>> from flax import linen as nn
      >>> from jaxdrop.frameworks.linen import attention_fn
      >>> layer = nn.MultiHeadDotProductAttention(4, dropout_rate=0.1, attention_fn=attention_fn)
    """
    del force_fp32_for_softmax
    _refuse_einsums(einsum_dot_general, qk_attn_weights_einsum, attn_weights_value_einsum)
    inputs = tuple(promote_dtype(query, key, value, dtype=dtype))
    rate = 0.0 if deterministic else dropout_rate
    sow = module and partial(module.sow, "intermediates", "attention_weights")
    masking, shared = Masking(bias, mask), broadcast_dropout
    return attend(inputs, dropout_rng, rate, masking, shared, precision, sow, implementation)


def _refuse_einsums(*einsums: Any) -> None:
    names = ("einsum_dot_general", "qk_attn_weights_einsum", "attn_weights_value_einsum")
    for name, einsum in zip(names, einsums, strict=True):
        if einsum is not None:
            raise NotImplementedError(
                f"attention_fn: {name} must be None; got {einsum!r}. Use flax's own attention, or"
                " jaxdrop.dropout on its weights."
            )


def dropout_sites(
    fn: Callable[..., Any], *, layers: type | tuple[type, ...] = (nn.Dropout, Drop)
) -> Callable[..., Any]:
    """Marks what dropout layers give by `jaxdrop.site`, also where they are off.

    The name of a site is the path of its layer in the model, such as `block_3/Dropout_0`.
    So dropout can be planted where the author of a model wanted it, whether it has
    `deterministic=True`, a rate of 0, or drops something itself. The weights that attention
    layers drop are of no layer of dropout: match them by `match.function("softmax")`.

    Args:
      fn: a function that calls modules, such as `model.apply`.
      layers: the classes of the layers that are marked. Other classes than those of
        dropout do as well.

    Returns:
      A function with the arguments and the results of `fn`.

    Raises:
      TypeError: `fn` is not callable, or `layers` are no classes.

    Example:
      >>> from flax import linen as nn
      >>> from jaxdrop.frameworks import linen
      >>> model = nn.Sequential([jnp.tanh, nn.Dropout(0.5, deterministic=True)])
      >>> rules = {"layers_1": partial(dropout, rate=1.0)}
      >>> train = plant(linen.dropout_sites(model.apply), rules)
      >>> float(train(jax.random.key(1), {}, jnp.ones(3)).sum())
      0.0
    """
    return on_interceptor(fn, layers, _name_of, nn.intercept_methods)


def _name_of(layer: nn.Module) -> str:
    return "/".join(layer.path) or type(layer).__name__
