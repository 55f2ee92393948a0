"""Dropout for JAX as pure functions and function transforms."""

from importlib.metadata import version

from jaxdrop import checks, match, rescale, uncertainty
from jaxdrop.core.bernoulli import draw_mask
from jaxdrop.core.fixed_count import draw_fixed_count_mask
from jaxdrop.core.mask import Mask
from jaxdrop.methods.attention.dot_product import (
    dot_product_attention,
    reference_dot_product_attention,
)
from jaxdrop.methods.attention.heads_and_keys import drop_heads, drop_key
from jaxdrop.methods.blocks import drop_block, drop_block_gamma
from jaxdrop.methods.elementwise import (
    alpha_dropout,
    apply_mask,
    dropout,
    fixed_count_dropout,
    gaussian_dropout,
)
from jaxdrop.methods.graph import drop_edges, drop_nodes
from jaxdrop.methods.learned import (
    concrete_dropout,
    concrete_dropout_penalty,
    variational_dropout,
    variational_dropout_kl,
)
from jaxdrop.methods.recurrent import locked_dropout, zoneout
from jaxdrop.methods.structured import cutout, drop_path, drop_path_rates, spatial_dropout
from jaxdrop.methods.tokens import drop_condition, drop_tokens, replace_tokens, restore_tokens
from jaxdrop.methods.weights import drop_connect, embedding_dropout, mixout
from jaxdrop.transforms.consistency import multi_sample, symmetric_kl, two_views
from jaxdrop.transforms.monte_carlo import Moments, monte_carlo, monte_carlo_moments
from jaxdrop.transforms.plant import plant, sites
from jaxdrop.transforms.planting.keys import site_key
from jaxdrop.transforms.planting.mark import site
from jaxdrop.transforms.planting.report import SiteRow, SiteTable
from jaxdrop.transforms.planting.rules import Rule
from jaxdrop.transforms.policies import (
    chain,
    curriculum_dropout_schedule,
    early_dropout_schedule,
    late_dropout_schedule,
    per_leaf,
    per_sample,
    scheduled,
)

__version__ = version("jaxdrop")

__all__ = [
    # Elements: `(key, x, rate, ...) -> y`, as all methods.
    "alpha_dropout",
    "dropout",
    "fixed_count_dropout",
    "gaussian_dropout",
    # Rates that are trained: `(key, x, parameter) -> y`, and what each adds to the loss.
    "concrete_dropout",
    "concrete_dropout_penalty",
    "variational_dropout",
    "variational_dropout_kl",
    # Feature maps, regions and residual branches.
    "cutout",
    "drop_block",
    "drop_block_gamma",
    "drop_path",
    "drop_path_rates",
    "spatial_dropout",
    # Tokens and conditions.
    "drop_condition",
    "drop_tokens",
    "replace_tokens",
    "restore_tokens",
    # Weights.
    "drop_connect",
    "embedding_dropout",
    "mixout",
    # Recurrent networks.
    "locked_dropout",
    "zoneout",
    # Graphs.
    "drop_edges",
    "drop_nodes",
    # Attention.
    "dot_product_attention",
    "drop_heads",
    "drop_key",
    "reference_dot_product_attention",
    # Masks that are drawn apart and applied later.
    "Mask",
    "apply_mask",
    "draw_fixed_count_mask",
    "draw_mask",
    # Combinators over drops `(key, x) -> y`, and schedules for their rates.
    "chain",
    "curriculum_dropout_schedule",
    "early_dropout_schedule",
    "late_dropout_schedule",
    "per_leaf",
    "per_sample",
    "scheduled",
    # Drops put into functions that were written without them.
    "Rule",
    "SiteRow",
    "SiteTable",
    "plant",
    "site",
    "site_key",
    "sites",
    # Many runs of a function with a key.
    "Moments",
    "monte_carlo",
    "monte_carlo_moments",
    # Several masks in one training step.
    "multi_sample",
    "symmetric_kl",
    "two_views",
    # Namespaces: assertions, what rules of `plant` match, rules for the factor of survivors, and
    # what samples say.
    "checks",
    "match",
    "rescale",
    "uncertainty",
]
