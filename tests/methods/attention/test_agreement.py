"""Attention in tiles is that of the whole: its output, and derivatives in both directions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import cases
from hypothesis import given, settings, strategies as st
from modes import enable_x64, make_key, quick_jit

from jaxdrop import dot_product_attention

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}  # of inputs and weights near 1


def with_derivatives(attention, moving, tangent, cotangent):
    """Output, its tangent, and cotangents of all that moves."""

    def run(moving):
        rest = {name: x for name, x in moving.items() if name not in ("query", "key", "value")}
        out = attention(moving["query"], moving["key"], moving["value"], **rest)
        # Minus infinity, for rows that see nothing, has no derivative.
        return jax.tree.map(lambda x: jnp.where(jnp.isneginf(x), -100, x), out)

    out, along = jax.linearize(run, moving)
    return out, along(tangent), jax.linear_transpose(along, moving)(cotangent)[0]


def compared(case, dtype):
    """What both give, by one program: it is compiling that takes the time."""
    moving, fixed = case.moving(dtype), case.fixed()
    random = np.random.default_rng(case.seed + 2)
    along = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), moving)

    @quick_jit
    def both(rng, rate, fixed, moving, along, cotangent):
        rate = rate if case.rate_is_traced else case.rate

        def run(attention, **options):
            def call(query, key, value, **rest):
                return attention(
                    rng, query, key, value, rate, **rest, **fixed, **case.static(), **options
                )

            return with_derivatives(call, moving, along, cotangent)

        tiled = run(dot_product_attention, **case.blocks)
        return tiled, run(dot_product_attention, implementation="whole")

    cotangent = case.cotangent(dtype)
    return both(make_key("raw", 3), jnp.float32(case.rate), fixed, moving, along, cotangent)


@settings(max_examples=10)
@given(case=cases(), dtype=st.sampled_from(["float64", "float32"]))
def test_output_and_derivatives_are_those_of_the_whole(case, dtype):
    with enable_x64(dtype == "float64"):
        tiled, whole = compared(case, dtype)
    chex.assert_trees_all_equal_shapes_and_dtypes(tiled, whole)
    for ours, theirs in zip(*map(jax.tree.leaves, (tiled, whole)), strict=True):
        assert np.isfinite(ours).all()
        atol = TOLERANCE[dtype] * np.max(np.abs(theirs), initial=1)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)
