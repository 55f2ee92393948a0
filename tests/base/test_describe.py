"""What error messages say of values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

from jaxdrop.base.describe import describe, way_out

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (jnp.ones((2, 3)), "float32[2, 3]"),
        (np.int8(1), "int8[]"),
        (jax.ShapeDtypeStruct((4,), jnp.bfloat16), "bfloat16[4]"),
        (sparse.BCOO((jnp.ones(2), jnp.zeros((2, 1), int)), shape=(3,)), "BCOO(float32[3])"),
        ("a text", "'a text'"),
        ("a" * 198, repr("a" * 198)),  # 200 characters with its marks
        ("a" * 199, "'" + "a" * 199 + "... (str)"),
        ({"w": [0] * 99}, ("{'w': [" + "0, " * 99)[:200] + "... (dict)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arrays_are_told_by_their_type_and_other_values_by_their_text(value, text):
    assert describe(value) == text


def test_way_out_is_told_for_pytrees():
    for_pytrees = " For the floating arrays of a pytree, use drop_connect."
    assert way_out({"w": jnp.ones(3)}) == way_out([np.ones(3), 1.0]) == for_pytrees
    assert way_out([1.0, 2.0]) == way_out((1,)) == " Use jnp.asarray."
    assert way_out("a") == way_out(1.0) == way_out([]) == way_out(None) == ""
