"""Dropout for JAX as pure functions and function transforms.

A method takes a key, an array and a rate, and is not called at test time:

>>> y = jaxdrop.dropout(jax.random.key(0), jnp.ones((2, 8)), 0.25)

Where to begin:

  dropout                 the method that you know; `help(jaxdrop.dropout)`
  drop_path, drop_block,  others, for vision, language, graphs, recurrent networks and
  drop_connect, zoneout   weights; all have the form (key, x, rate, ...)
  dot_product_attention   attention with dropped weights, which it never stores
  plant, sites, match     dropout in a model that was written without it
  per_sample, scheduled   who shares a mask, and rates that change in training
  draw_mask, apply_mask   a mask that is drawn once and applied often
  monte_carlo,            many samples of a prediction, and what they say
  uncertainty
  rescale                 what survivors are multiplied by, and why
  checks                  assertions for your own dropout
  jaxdrop.frameworks      layers for flax.linen, flax.nnx, equinox and haiku; import the
                          module that you use

A drop is a function (key, x) -> y, such as `functools.partial(dropout, rate=0.1)`. All
combinators, layers and rules of `plant` take any drop. `dir(jaxdrop)` lists all names.
"""

from importlib.metadata import version as _version

from jaxdrop.base.oldest_jax import require_jax as _require_jax

_require_jax()  # first: chex and optax would fail on an old JAX with a message of their own

# Namespaces: assertions, what rules of `plant` match, rules for the factor of survivors, and
# what samples say.
from jaxdrop import (
    checks as checks,
    match as match,
    rescale as rescale,
    uncertainty as uncertainty,
)

# The types of a key, of a rate, and of a drop `(key, x) -> y`.
from jaxdrop.base.types import Drop as Drop, Key as Key, Rate as Rate

# Masks that are drawn first and applied later.
from jaxdrop.core.bernoulli import draw_mask as draw_mask
from jaxdrop.core.fixed_count import draw_fixed_count_mask as draw_fixed_count_mask
from jaxdrop.core.mask import Mask as Mask
from jaxdrop.core.part import Part as Part

# Elements. Like most methods, they are functions `(key, x, rate, ...) -> y`.
from jaxdrop.methods.alpha import alpha_dropout as alpha_dropout

# Attention.
from jaxdrop.methods.attention.dot_product import dot_product_attention as dot_product_attention
from jaxdrop.methods.attention.heads_and_keys import drop_heads as drop_heads, drop_key as drop_key

# Feature maps, regions and residual branches.
from jaxdrop.methods.blocks import drop_block as drop_block, drop_block_gamma as drop_block_gamma

# Tokens and conditions.
from jaxdrop.methods.conditions import drop_condition as drop_condition
from jaxdrop.methods.elementwise import (
    apply_mask as apply_mask,
    dropout as dropout,
    fixed_count_dropout as fixed_count_dropout,
    gaussian_dropout as gaussian_dropout,
)

# Fixed masks of an ensemble.
from jaxdrop.methods.ensembles import (
    draw_masksembles as draw_masksembles,
    masksembles as masksembles,
)

# Rectangles of images.
from jaxdrop.methods.erasing import random_erasing as random_erasing

# Gates that learn to be exactly 0 or 1.
from jaxdrop.methods.gates import (
    hard_concrete as hard_concrete,
    hard_concrete_gate as hard_concrete_gate,
    hard_concrete_penalty as hard_concrete_penalty,
)

# Graphs.
from jaxdrop.methods.graph import drop_edges as drop_edges, drop_nodes as drop_nodes

# Layers that are not computed.
from jaxdrop.methods.layers import layer_drop as layer_drop

# Rates that are trained, `(key, x, parameter) -> y`, and the term that each adds to the loss.
from jaxdrop.methods.learned import (
    concrete_dropout as concrete_dropout,
    concrete_dropout_penalty as concrete_dropout_penalty,
    variational_dropout as variational_dropout,
    variational_dropout_kl as variational_dropout_kl,
)

# Recurrent networks.
from jaxdrop.methods.recurrent import locked_dropout as locked_dropout, zoneout as zoneout

# Spans of time, frequency or tokens.
from jaxdrop.methods.spans import drop_spans as drop_spans
from jaxdrop.methods.structured import (
    cutout as cutout,
    drop_path as drop_path,
    drop_path_rates as drop_path_rates,
    shake_drop as shake_drop,
    spatial_dropout as spatial_dropout,
)
from jaxdrop.methods.tokens import (
    drop_tokens as drop_tokens,
    replace_tokens as replace_tokens,
    restore_tokens as restore_tokens,
)

# Weights.
from jaxdrop.methods.weights import (
    drop_connect as drop_connect,
    embedding_dropout as embedding_dropout,
    mixout as mixout,
)

# Drops that are put into functions written without them.
from jaxdrop.planting import (
    Rule as Rule,
    SiteRow as SiteRow,
    SiteTable as SiteTable,
    plant as plant,
    site as site,
    site_key as site_key,
    sites as sites,
)

# Several masks in one training step.
from jaxdrop.transforms.consistency import (
    complementary_views as complementary_views,
    multi_sample as multi_sample,
    symmetric_kl as symmetric_kl,
    two_views as two_views,
)

# Functions that run another function with many keys.
from jaxdrop.transforms.moments import Moments as Moments
from jaxdrop.transforms.monte_carlo import (
    monte_carlo as monte_carlo,
    monte_carlo_moments as monte_carlo_moments,
)

# Combinators over drops `(key, x) -> y`, and schedules for their rates.
from jaxdrop.transforms.policies import (
    chain as chain,
    curriculum_dropout_schedule as curriculum_dropout_schedule,
    early_dropout_schedule as early_dropout_schedule,
    late_dropout_schedule as late_dropout_schedule,
    per_leaf as per_leaf,
    per_sample as per_sample,
    scheduled as scheduled,
)

__version__ = _version("jaxdrop")

_ROOMS = {"base", "core", "jaxdrop", "methods", "planting", "transforms"}
__all__ = sorted(  # pyright: ignore[reportUnsupportedDunderAll] what is imported above
    name for name in globals() if not name.startswith("_") and name not in _ROOMS
)


def __dir__() -> list[str]:
    return __all__
