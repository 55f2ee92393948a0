"""The dtype of each result, by that of the arguments, with 64-bit types on and off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from good_calls import DROP, GOOD, KEY, ROW, call, public_functions
from modes import enable_x64
from table.methods import RECORDS

import jaxdrop
from jaxdrop import rescale

INTEGERS = jnp.arange(3, dtype=jnp.int8)
FLAGS = INTEGERS > 0
# Of each result: that of the arguments ("like"), that of JAX's own floats ("float"), float32 or
# wider ("wide"), or always the same.
WIDE = {"float64": "float64"}
RESULTS = {
    "Mask.pack": "uint32 float",
    "concrete_dropout_penalty": "wide",
    "draw_fixed_count_mask": "uint32 float",
    "draw_mask": "uint32 float",
    "draw_masksembles": "bool",
    "hard_concrete_gate": "wide",
    "hard_concrete_penalty": "wide",
    "masksembles": "like",
    "restore_tokens": "like",
    "symmetric_kl": "wide",
    "variational_dropout_kl": "wide",
    "rescale.inference_scale": "like",
    "uncertainty.brier_score": "wide",
    "uncertainty.classification": "wide wide wide wide wide",
    "uncertainty.classwise_brier_score": "wide",
    "uncertainty.classwise_calibration_error": "wide wide wide int32",
    "uncertainty.crps_ensemble": "wide",
    "uncertainty.crps_mixture": "wide",
    "uncertainty.crps_normal": "wide",
    "uncertainty.expected_calibration_error": "wide wide wide int32",
    "uncertainty.interval_coverage": "wide",
    "uncertainty.interval_score": "wide",
    "uncertainty.mutual_information": "wide",
    "uncertainty.negative_log_likelihood": "wide",
    "uncertainty.predictive_entropy": "wide",
    "uncertainty.predictive_log_likelihood": "wide",
    "uncertainty.probability_integral_transform": "wide",
    "uncertainty.regression": "wide wide wide wide",
    "uncertainty.top_label_calibration_error": "wide wide wide int32",
    "uncertainty.variation_ratio": "wide",
}
# The same for what is not called with the arguments of its good call, of one array.
LOGITS = {"rate_logit", "log_alpha"}  # numbers in their good calls
CALLS = {
    "chain": (lambda x: jaxdrop.chain(DROP, DROP)(KEY, x), "like"),
    "complementary_views": (
        lambda x: jaxdrop.complementary_views(lambda mask, x: jaxdrop.apply_mask(mask, x))(
            GOOD["apply_mask"]["mask"], x
        ),
        "like like",
    ),
    "curriculum_dropout_schedule": (
        lambda x: jaxdrop.curriculum_dropout_schedule(0.5, 0.1)(x[0]), "like"
    ),
    "drop_block_gamma": (lambda x: jaxdrop.drop_block_gamma(x[0], (3,), 2), "wide"),
    "drop_path_rates": (lambda x: jaxdrop.drop_path_rates(x[0], 3), "wide"),
    "early_dropout_schedule": (
        lambda x: jaxdrop.early_dropout_schedule(0.5, 3)(x[0]), "float"
    ),
    "late_dropout_schedule": (lambda x: jaxdrop.late_dropout_schedule(0.5, 3)(x[0]), "float"),
    "monte_carlo": (lambda x: jaxdrop.monte_carlo(DROP, 2)(KEY, x), "like"),
    "monte_carlo_moments": (
        lambda x: jaxdrop.monte_carlo_moments(DROP, 2)(KEY, x), "uint32 wide wide"
    ),
    "multi_sample": (lambda x: jaxdrop.multi_sample(DROP, 2)(KEY, x), "like"),
    "per_leaf": (lambda x: jaxdrop.per_leaf(DROP)(KEY, [x]), "like"),
    "per_sample": (lambda x: jaxdrop.per_sample(DROP)(KEY, x), "like"),
    "plant": (
        lambda x: jaxdrop.plant(lambda x: jaxdrop.site(x, "h"), {"h": DROP})(KEY, x), "like"
    ),
    "scheduled": (
        lambda x: jaxdrop.scheduled(jaxdrop.dropout, lambda step: 0.5)(KEY, x, 3), "like"
    ),
    "site": (lambda x: jaxdrop.site(x, "h"), "like"),
    "two_views": (lambda x: jaxdrop.two_views(DROP)(KEY, x), "like like"),
} | {
    f"rescale.{rule.__name__}": (
        lambda x, rule=rule: rule(GOOD["apply_mask"]["mask"], x), "wide"
    )
    for rule in (rescale.expected, rescale.none)
} | {
    f"rescale.{make.__name__}": (
        lambda x, make=make: make()(GOOD["apply_mask"]["mask"], x), "wide"
    )
    for make in (rescale.realized, rescale.preserve_sum, rescale.preserve_norm)
}  # fmt: skip
# Neither arrays nor functions that return them.
OTHER = {"site_key", "sites"}


def test_every_function_has_its_dtypes():
    methods = {record.function for record in RECORDS}  # their laws are in test_laws.py
    found = methods | RESULTS.keys() | CALLS.keys() | OTHER | {"apply_mask", "restore_tokens"}
    named = {name for name in public_functions() if not name.startswith(("checks.", "match."))}
    assert named <= found, named - found


@pytest.mark.parametrize(
    ("dtype", "x64"),
    [("bfloat16", False), ("float32", True), ("float64", True)],
)
@pytest.mark.parametrize("name", [*RESULTS, *CALLS])
def test_dtypes_of_results(name, dtype, x64):
    with enable_x64(x64):
        run, said = CALLS.get(name) or (None, RESULTS[name])
        if run is None:
            found = result_of_good_call(name, dtype)
        else:
            found = jax.eval_shape(run, ROW.astype(dtype))
        kinds = {"like": dtype, "wide": WIDE.get(dtype, "float32")}
        kinds["float"] = "float64" if x64 else "float32"
        expected = [kinds.get(kind, kind) for kind in said.split()]
        assert [leaf.dtype.name for leaf in jax.tree.leaves(found)] == expected


def result_of_good_call(name, dtype):
    arguments = GOOD[name] | {key: ROW[0] for key in GOOD[name] if key in LOGITS}
    arrays = {key: value for key, value in arguments.items() if is_floating(value)}
    rest = {key: value for key, value in arguments.items() if key not in arrays}
    cast = jax.tree.map(lambda x: x.astype(dtype), arrays)
    return jax.eval_shape(lambda arrays: call(name, rest | arrays), cast)


def is_floating(value):
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating)


# Methods that take arrays of any numbers.
OF_ANY = {
    "cutout": lambda x: jaxdrop.cutout(KEY, x.reshape(1, 3, 1), 1),
    "drop_condition": lambda x: jaxdrop.drop_condition(KEY, x, 0.5, null=0),
    "drop_spans": lambda x: jaxdrop.drop_spans(KEY, x[None], 0.5, width=2),
    "drop_tokens": lambda x: jaxdrop.drop_tokens(KEY, x, 0.5, axis=0),
    "layer_drop": lambda x: jaxdrop.layer_drop(KEY, x, 0.5, layer=abs, rescale=rescale.none),
    "random_erasing": lambda x: jaxdrop.random_erasing(KEY, x.reshape(1, 3, 1, 1), 0.5),
    "replace_tokens": lambda x: jaxdrop.replace_tokens(KEY, x, 0.5, replacement=0),
    "restore_tokens": lambda x: jaxdrop.restore_tokens(x, jnp.arange(3), 5),
    "monte_carlo": lambda x: jaxdrop.monte_carlo(lambda key, x: x, 2)(KEY, x),
    "per_sample": lambda x: jaxdrop.per_sample(lambda key, x: x)(KEY, x),
    "site": lambda x: jaxdrop.site(x, "h"),
}


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", OF_ANY)
def test_integers_and_booleans_keep_their_dtype(name, x64):
    with enable_x64(x64):
        for x in (INTEGERS, FLAGS, *([jnp.arange(3)] if x64 else [])):
            if x is FLAGS and name == "layer_drop":
                continue  # no booleans have an absolute value
            y, *positions = jax.tree.leaves(jax.eval_shape(OF_ANY[name], x))
            assert y.dtype == x.dtype
            assert all(each.dtype == jnp.int32 for each in positions)


def test_means_of_integers_and_rates_of_integer_steps():
    def same(key, x):
        del key
        return x

    for x64 in (False, True):
        with enable_x64(x64):
            moments = jax.eval_shape(jaxdrop.monte_carlo_moments(same, 2), KEY, INTEGERS)
            mean = jax.eval_shape(jaxdrop.multi_sample(same, 2), KEY, INTEGERS)
            assert {mean.dtype, moments.mean.dtype, moments.variance.dtype} == {
                jnp.dtype("float32")
            }
            rate = jaxdrop.curriculum_dropout_schedule(0.5, 0.1)(jnp.int32(10))
            assert abs(float(rate) - 0.5 * (1 - np.exp(-1))) < 1e-6
