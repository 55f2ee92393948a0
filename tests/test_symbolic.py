"""Exported with a symbolic batch, programs draw the masks that the library draws for each batch."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from modes import make_key
from table.methods import RECORDS

from jaxdrop import (
    dot_product_attention,
    draw_mask,
    drop_path,
    drop_spans,
    dropout,
    gaussian_dropout,
    monte_carlo,
    plant,
    rescale,
    site,
)

SIZES = {"b": 7, "c": 2, "t": 100}
drop = partial(dropout, rate=0.3)


def slope(key, x):
    return jax.grad(lambda x: jnp.sum(dot_product_attention(key, x, x, x, 0.3) ** 2))(x)


def planted(key, x):
    return plant(lambda x: site(x, name="h"), {"h": drop})(key, x)


PROGRAMS = {
    "whole words": ("b, 64", drop),
    "rows that are merged": ("b, 8", drop),
    "two axes": ("b, t, 64", drop),
    "an axis that a constraint makes long": ("b, t, 8", drop),
    "two axes before two": ("b, c, 4, 8", drop),
    "a traced rate": ("b, 8", lambda key, x: dropout(key, x, jnp.float32(0.3))),
    "another rule": ("b, 8", lambda key, x: drop(key, x, rescale=rescale.realized())),
    "a mask by itself": ("b, 8", lambda key, x: draw_mask(key, x.shape, 0.3).unpack()),
    "drop_path": ("b, 8", partial(drop_path, rate=0.3)),
    "drop_spans": ("b, 40, 8", partial(drop_spans, rate=0.3, width=(1, 4))),
    "drop_spans of a number": ("b, 40, 8", partial(drop_spans, num_spans=2, width=(0, 4))),
    "gaussian_dropout": ("b, 8", partial(gaussian_dropout, rate=0.3)),
    "monte_carlo": ("b, 8", monte_carlo(drop, 3)),
    "plant": ("b, 8", planted),
    "attention": ("b, 40, 2, 4", slope),
    "attention over two batch axes": ("b, c, 40, 2, 4", slope),
    "attention along symbolic lengths": (
        "b, t, 1, 4",
        lambda key, x: dot_product_attention(key, x, x, x, 0.3, is_causal=True),
    ),
}


def exported(spec, program, constraints=()):
    shape = export.symbolic_shape(spec, constraints=constraints)
    key, x = jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct(shape, jnp.float32)
    return export.export(jax.jit(program))(key, x)


@pytest.mark.parametrize("name", PROGRAMS)
def test_exported_programs_draw_the_masks_of_the_library(name):
    spec, program = PROGRAMS[name]
    constraints = ["t >= 97"] if "t" in spec else []
    if name == "attention along symbolic lengths":
        constraints = ["t >= 775"]
    sizes = SIZES if constraints != ["t >= 775"] else {"b": 2, "t": 776}
    shape = [sizes.get(size) or int(size) for size in spec.split(", ")]
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    found = exported(spec, program, constraints).call(make_key("raw"), x)
    expected = jax.jit(program)(make_key("raw"), x)
    if "attention" in name:  # whose tiles have other sizes
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    else:
        np.testing.assert_array_equal(found, expected)


CONSTRAINTS = {
    "drop_block of the paper": "b >= 3",  # whose first axis is no batch
    "dot_product_attention": "40*b >= 775",  # whose record has queries along the first axis
}
COUNTED = {"fixed_count_dropout"}  # over all axes, which is refused


@pytest.mark.quick
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_every_method_takes_a_symbolic_first_axis(record):
    spec = ", ".join(["b", *map(str, record.shape[1:])])
    constraint = CONSTRAINTS.get(record.name)
    shape = export.symbolic_shape(spec, constraints=[constraint] if constraint else ())
    key, x = jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct(shape, jnp.float32)

    def run():
        return jax.eval_shape(lambda key, x: record.run(key, x, 0.3), key, x)

    if record.name in COUNTED:
        with pytest.raises(ValueError, match="axis must span a known number of elements; got 40"):
            run()
    else:
        assert run().shape == shape


def test_error_names_the_constraint_that_is_missing():
    message = "draw_mask: shape must tell how many of its last axes are merged; got (b, t, 8)."
    fix = "jax.export.symbolic_shape(..., constraints=['8*t >= 775'])"
    with pytest.raises(ValueError, match=re.escape(message) + ".*" + re.escape(fix)):
        exported("b, t, 8", drop)
    exported("b, t, 8", drop, ["8*t >= 775"])


def test_tiles_of_symbolic_lengths_are_refused():
    message = "dot_product_attention: query must have a known length with implementation='tiled'"
    with pytest.raises(ValueError, match=f"^{message}; got t. Use implementation='whole', or None"):
        exported(
            "b, t, 1, 4",
            lambda key, x: dot_product_attention(key, x, x, x, 0, implementation="tiled"),
        )
