"""Which results depend on which arguments: the tangents of all others are symbolic zeros, for
which JAX computes nothing.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from good_calls import GOOD, call
from jax.custom_derivatives import SymbolicZero
from jax.tree_util import keystr, tree_leaves_with_path
from modes import make_key

import jaxdrop

ATTENTION = {
    "query": np.ones((2, 4, 2, 3), np.float32),
    "key": np.ones((2, 5, 1, 3), np.float32),
    "value": np.ones((2, 5, 1, 3), np.float32),
    "bias": np.ones((2, 4, 5), np.float32),
    "scale": 0.5,
    "rate": 0.5,
    "rng": make_key("raw"),
}
# What the good calls give as whole numbers.
FILLS = {
    "drop_condition": {"null": 0.5},
    "drop_spans": {"fill": 0.5},
    "random_erasing": {"fill": 0.5},
    "replace_tokens": {"replacement": 0.5},
    "restore_tokens": {"fill": 0.5},
}


def as_by_default(name, arguments):
    """The arguments of a good call, but rescaled by what the rate says."""
    kept = {argument: value for argument, value in arguments.items() if argument != "rescale"}
    return kept | FILLS.get(name, {})


CALLS = {
    name: (partial(call, name), as_by_default(name, arguments))
    for name, arguments in GOOD.items()
    if not name.startswith("checks.")  # which take known arrays
}
CALLS["dot_product_attention"] = (
    lambda arguments: jaxdrop.dot_product_attention(**arguments),
    ATTENTION,
)
KNOWN = {
    "curriculum_dropout_schedule": {"rate", "gamma"},
    "draw_masksembles": {"scale"},
    "drop_tokens": {"rate"},
    "early_dropout_schedule": {"rate"},
    "late_dropout_schedule": {"rate"},
    "rescale.preserve_sum": {"tolerance"},
}
CASES = [
    (name, argument)
    for name, (_, arguments) in CALLS.items()
    for argument, value in arguments.items()
    if isinstance(value, float | jax.Array | np.ndarray) and argument not in KNOWN.get(name, ())
]
# Results that count, or compare.
STEPS = {
    "uncertainty.interval_coverage": {""},
    "uncertainty.variation_ratio": {""},
    "uncertainty.classification": {".variation_ratio"},
    "uncertainty.classwise_calibration_error": {".accuracy"},
    "uncertainty.expected_calibration_error": {".accuracy"},
    "uncertainty.top_label_calibration_error": {".accuracy"},
}
# Results that depend on others of the arguments alone.
APART = {
    ("uncertainty.regression", "means"): {".aleatoric"},
    ("uncertainty.regression", "variances"): {".mean", ".epistemic"},
}


def tangents(run, x):
    """For each floating result, whether it has a tangent where only `x` has one."""
    found = {}

    @jax.custom_jvp
    def told(results):
        return results

    def tell(primals, tangents):
        found.update({name: type(t) is not SymbolicZero for name, t in tangents[0].items()})
        return primals[0], jax.tree.map(jnp.zeros_like, primals[0])

    told.defjvp(tell, symbolic_zeros=True)

    def results(x):
        named = {keystr(path): jnp.asarray(y) for path, y in tree_leaves_with_path(run(x))}
        floating = {n: y for n, y in named.items() if jnp.issubdtype(y.dtype, jnp.inexact)}
        found.update(dict.fromkeys(floating, False))  # the rule does not run if none has one
        return told(floating)

    moves = jnp.issubdtype(x.dtype, jnp.inexact)
    tangent = jnp.ones_like(x) if moves else np.zeros(x.shape, jax.dtypes.float0)
    jax.eval_shape(lambda x: jax.jvp(results, (x,), (tangent,))[0], x)
    return found


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_only_what_depends_on_an_argument_has_a_tangent(name, argument):
    run, arguments = CALLS[name]
    x = jnp.asarray(arguments[argument])
    found = tangents(lambda x: run(arguments | {argument: x}), x)
    fixed = STEPS.get(name, set()) | APART.get((name, argument), set())
    assert fixed <= found.keys()
    if argument == "rate" or not jnp.issubdtype(x.dtype, jnp.inexact):
        fixed = found.keys()
    assert found == {result: result not in fixed for result in found}
