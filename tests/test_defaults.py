"""Defaults are those that were reviewed, and a default of None means what its docstring says."""

import inspect
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from good_calls import KEY
from signatures import public_names, signatures

import jaxdrop
from jaxdrop import rescale, uncertainty

GOLDEN = Path(__file__).parent / "golden/signatures.txt"
IMAGES = jnp.arange(1.0, 25).reshape(2, 3, 4)
ROWS = jnp.arange(1.0, 13).reshape(3, 4)
COMPLEX = ROWS.astype(complex)
TREE = {"ids": jnp.arange(4), "w": ROWS, "z": COMPLEX}
DRAWN = jaxdrop.Mask.pack(jnp.array([[True, False, True], [True, True, False]]), 0.5)
MEANS, TARGETS = jnp.array([[0.0, 1.0], [0.5, -1.0]]), jnp.array([0.25, 0.5])
halved = partial(jaxdrop.dropout, rate=0.5)


@pytest.mark.quick
def test_signatures_are_those_reviewed():
    """If a change is meant: `python tests/golden/make.py --signatures`, and a changelog entry."""
    assert "\n".join(signatures()) + "\n" == GOLDEN.read_text()


def with_axis_of_rule(make):
    return lambda **axis: make(**axis)(DRAWN, jnp.arange(1.0, 7).reshape(2, 3)) * jnp.ones((2, 3))


def draw_bits(key):
    return jaxdrop.draw_mask(key, 40, 0.5).unpack()


def is_floating(path, leaf):
    del path
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def is_array(path, leaf):
    del path
    return isinstance(leaf, jax.Array)


def is_real(path, leaf):
    del path
    return leaf.dtype == jnp.float32


def attend(**options):
    """No weight is dropped, so that no mask is compiled."""
    return jaxdrop.dot_product_attention(
        None, *[IMAGES / 10] * 3, 0.0, implementation="whole", **options
    )


# For each default of None: a call, what None stands for, and what it does not stand for.
MEANING = {
    "dot_product_attention scale": (attend, 4**-0.5, 1.0),
    "draw_fixed_count_mask axis": (
        lambda **axis: jaxdrop.draw_fixed_count_mask(KEY, (2, 3), 2, **axis).unpack(), (0, 1), 1
    ),
    "fixed_count_dropout axis": (
        partial(jaxdrop.fixed_count_dropout, KEY, ROWS, 0.5), (0, 1), 1
    ),
    "drop_heads rescale": (
        partial(jaxdrop.drop_heads, KEY, IMAGES, 0.5), rescale.realized(-2), rescale.expected
    ),
    "drop_key where": (
        partial(jaxdrop.drop_key, KEY, ROWS, 0.9), jnp.ones((3, 4), bool), jnp.arange(4) == 3
    ),
    "drop_spans where": (
        partial(jaxdrop.drop_spans, KEY, ROWS, 0.5, width=2), True, jnp.arange(4) < 2
    ),
    "replace_tokens where": (
        partial(jaxdrop.replace_tokens, KEY, ROWS, 0.5, replacement=0), True, jnp.arange(4) < 2
    ),
    "drop_connect where": (partial(jaxdrop.drop_connect, KEY, TREE, 0.5), is_floating, is_real),
    "mixout where": (
        partial(jaxdrop.mixout, KEY, TREE, 0.5, target=TREE | {"w": ROWS * 0, "z": COMPLEX * 0}),
        is_floating, is_real,
    ),
    "per_leaf where": (
        lambda **where: jaxdrop.per_leaf(halved, **where)(KEY, {"w": ROWS, "z": COMPLEX, "n": 3}),
        is_array, lambda path, leaf: is_array(path, leaf) and is_real(path, leaf),
    ),
    "monte_carlo batch_size": (
        lambda **size: jaxdrop.monte_carlo(draw_bits, 3, **size)(KEY), 3, 1
    ),
    "rescale.realized axis": (with_axis_of_rule(rescale.realized), (0, 1), 0),
    "rescale.preserve_sum axis": (with_axis_of_rule(rescale.preserve_sum), (0, 1), 0),
    "rescale.preserve_norm axis": (with_axis_of_rule(rescale.preserve_norm), (0, 1), 0),
    "uncertainty.regression variances": (
        partial(uncertainty.regression, MEANS), 0.0 * MEANS, MEANS**2
    ),
    "uncertainty.probability_integral_transform variances": (
        partial(uncertainty.probability_integral_transform, TARGETS, MEANS), 0.0, 1.0
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MEANING)
def test_default_of_none_means_what_is_said(name):
    run, said, other = MEANING[name]
    option = name.split()[1]
    programs = [program(run), program(run, **{option: said}), program(run, **{option: other})]
    assert programs[0] != programs[2]
    if programs[0] != programs[1]:  # another program, with the same results
        found = run()
        assert_equal(found, run(**{option: said}))
        with pytest.raises(AssertionError):
            assert_equal(found, run(**{option: other}))


def program(run, **options):
    closed = jax.make_jaxpr(partial(run, **options))()
    return str(closed), [np.asarray(constant).tolist() for constant in closed.consts]


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# What is left out: nothing is done with it, or a test of its own says what None means.
ABSENT = {
    "bias", "mask", "query_seq_lengths", "key_value_seq_lengths", "local_window_size",
    "segment_ids", "logits_soft_cap", "part", "out_sharding", "progress", "output", "rules",
    "query_block_size", "key_block_size", "implementation", "num_spans", "rate", "mesh_axes",
}  # fmt: skip


@pytest.mark.quick
def test_each_default_of_none_has_a_meaning():
    missing = [
        f"{name} {option}"
        for name, value in public_names().items()
        if inspect.isfunction(value) and not name.startswith("frameworks.")
        for option, parameter in inspect.signature(value).parameters.items()
        if parameter.default is None and option not in ABSENT and f"{name} {option}" not in MEANING
    ]
    assert not missing
