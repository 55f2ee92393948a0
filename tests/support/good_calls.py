"""A good call of every public function: the arguments by name."""

import inspect
from functools import partial

import jax.numpy as jnp
import numpy as np

import jaxdrop
from jaxdrop import checks, rescale, uncertainty

KEY = np.zeros(2, np.uint32)
X = jnp.ones((2, 3, 4, 5))
ROW = jnp.ones(3)
MASK = jaxdrop.Mask.pack(jnp.ones(3, bool), 0.5)
DROP = partial(jaxdrop.dropout, rate=0.5)
P, LABELS = jnp.full((2, 3), 1 / 3), jnp.zeros(2, int)
METHOD = {"key": KEY, "x": X, "rate": 0.5}
CHECKED = {"drop": DROP, "key": KEY, "x": ROW}

GOOD = {
    "Mask.pack": {"keep": jnp.ones(3, bool), "keep_prob": 0.5},
    "Rule": {"drop": DROP, "mesh_axes": ("a",)},
    "alpha_dropout": METHOD | {"broadcast_dims": ()},
    "apply_mask": {"mask": MASK, "x": ROW, "rescale": rescale.expected},
    "chain": {"drops": DROP},
    "complementary_views": {"fn": DROP},
    "concrete_dropout": {
        "key": KEY, "x": X, "rate_logit": 0.0, "temperature": 0.1, "broadcast_dims": ()
    },
    "concrete_dropout_penalty": {
        "rate_logit": 0.0, "weights": X, "num_features": 3, "weight_regularizer": 1.0,
        "dropout_regularizer": 1.0,
    },
    "curriculum_dropout_schedule": {"rate": 0.5, "gamma": 0.1},
    "cutout": {"key": KEY, "x": X, "size": 1, "batch_axis": 0, "channel_axis": -1},
    "draw_fixed_count_mask": {
        "key": KEY, "shape": (3,), "count": 1, "axis": 0, "broadcast_dims": ()
    },
    "draw_masksembles": {"key": KEY, "features": 8, "num_masks": 2, "scale": 2.0},
    "draw_mask": {
        "key": KEY, "shape": (3,), "rate": 0.5, "broadcast_dims": (), "out_sharding": None,
        "part": None,
    },
    "drop_block": METHOD | {"block_size": 2, "batch_axis": 0, "channel_axis": -1},
    "drop_block_gamma": {"rate": 0.5, "shape": (3,), "block_size": 2},
    "drop_condition": {"key": KEY, "condition": X, "rate": 0.5, "null": 0, "batch_axis": 0},
    "drop_connect": {"key": KEY, "params": X, "rate": 0.5, "where": None, "rescale": rescale.none},
    "drop_edges": {"key": KEY, "weights": X, "rate": 0.5, "axis": 0, "rescale": rescale.none},
    "drop_heads": METHOD | {"head_axis": -2, "batch_axis": 0, "rescale": None},
    "drop_key": {"key": KEY, "logits": X, "rate": 0.5, "where": None, "broadcast_dims": ()},
    "drop_nodes": METHOD | {"axis": -2, "rescale": rescale.none},
    "drop_path": METHOD | {"batch_axis": 0, "rescale": rescale.none},
    "drop_path_rates": {"rate": 0.5, "depth": 3},
    "drop_spans": METHOD
    | {
        "width": 2, "num_spans": None, "axis": 1, "batch_axis": 0, "fill": 0, "where": None,
        "rescale": rescale.none,
    },
    "drop_tokens": METHOD | {"axis": -2, "prefix": 0},
    "dropout": METHOD | {"broadcast_dims": (), "rescale": rescale.none, "part": None},
    "early_dropout_schedule": {"rate": 0.5, "steps": 3},
    "embedding_dropout": {"key": KEY, "table": X, "rate": 0.5, "axis": 0, "rescale": rescale.none},
    "fixed_count_dropout": METHOD | {"axis": None, "broadcast_dims": ()},
    "gaussian_dropout": METHOD | {"broadcast_dims": ()},
    "hard_concrete": {
        "key": KEY, "x": X, "log_alpha": 0.0, "temperature": 0.5, "stretch": (-1, 2),
        "broadcast_dims": (),
    },
    "hard_concrete_gate": {"log_alpha": 0.0, "stretch": (-1, 2)},
    "hard_concrete_penalty": {"log_alpha": 0.0, "temperature": 0.5, "stretch": (-1, 2)},
    "late_dropout_schedule": {"rate": 0.5, "start": 3},
    "layer_drop": METHOD | {"layer": jnp.tanh, "rescale": rescale.none},
    "locked_dropout": METHOD | {"time_axis": 0, "rescale": rescale.none},
    "masksembles": {
        "masks": jnp.ones((2, 5), bool), "x": X, "index": LABELS, "batch_axis": 0,
        "feature_axis": -1,
    },
    "mixout": {"key": KEY, "params": X, "rate": 0.5, "target": X, "where": None},
    "monte_carlo": {"fn": DROP, "num_samples": 2, "batch_size": 1, "start": 0, "progress": None},
    "monte_carlo_moments": {
        "fn": DROP, "num_samples": 2, "batch_size": 1, "start": 0, "progress": None
    },
    "multi_sample": {"fn": DROP, "num_samples": 2},
    "per_leaf": {"drop": DROP, "where": None},
    "per_sample": {"drop": DROP, "axis": 0},
    "plant": {"fn": jnp.tanh, "rules": {}},
    "random_erasing": METHOD
    | {"area": (0.1, 0.3), "aspect": (0.5, 2), "fill": 0, "batch_axis": 0, "channel_axis": -1},
    "replace_tokens": {"key": KEY, "ids": X, "rate": 0.5, "replacement": 0, "where": None},
    "restore_tokens": {"tokens": ROW, "positions": jnp.arange(3), "length": 5, "fill": 0},
    "scheduled": {"method": jaxdrop.dropout, "schedule": lambda step: 0.5},
    "shake_drop": METHOD | {"batch_axis": 0},
    "site": {"x": X, "name": "h"},
    "site_key": {"key": KEY, "name": "h", "occurrence": 0},
    "sites": {"fn": jnp.tanh, "rules": {}},
    "spatial_dropout": METHOD | {"batch_axis": 0, "channel_axis": -1, "rescale": rescale.none},
    "symmetric_kl": {"logits": ROW, "other_logits": ROW, "axis": -1},
    "two_views": {"fn": DROP},
    "variational_dropout": {"key": KEY, "x": X, "log_alpha": 0.0, "broadcast_dims": ()},
    "variational_dropout_kl": {"log_alpha": 0.0, "approximation": "kingma"},
    "zoneout": {"key": KEY, "new": ROW, "rate": 0.5, "old": ROW},
    "match.checkpoint_name": {"pattern": "h"},
    "match.function": {"pattern": "f", "output": 0},
    "match.jit": {"pattern": "f", "output": 0},
    "match.named_scope": {"pattern": "net", "output": 0},
    "match.primitive": {"pattern": "exp"},
    "match.site": {"pattern": "h"},
    "match.value": {"predicate": lambda x: True},
    "match.within": {"outer": jaxdrop.match.named_scope("net")},
    "rescale.inference_scale": {"tree": ROW, "rate": 0.5},
    "rescale.preserve_norm": {"axis": -1},
    "rescale.preserve_sum": {"axis": -1, "tolerance": 0.1},
    "rescale.realized": {"axis": -1},
    "uncertainty.brier_score": {"probabilities": P, "labels": LABELS},
    "uncertainty.classification": {"samples": P},
    "uncertainty.classwise_brier_score": {"probabilities": P, "labels": LABELS},
    "uncertainty.classwise_calibration_error": {"probabilities": P, "labels": LABELS, "bins": 3},
    "uncertainty.crps_ensemble": {"targets": ROW, "samples": P, "estimator": "fair"},
    "uncertainty.crps_mixture": {"targets": ROW, "means": P, "variances": P},
    "uncertainty.crps_normal": {"targets": ROW, "means": ROW, "variances": ROW},
    "uncertainty.expected_calibration_error": {"probabilities": P, "labels": LABELS, "bins": 3},
    "uncertainty.interval_coverage": {"targets": ROW, "lower": ROW, "upper": ROW},
    "uncertainty.interval_score": {"targets": ROW, "lower": ROW, "upper": ROW, "alpha": 0.1},
    "uncertainty.mutual_information": {"samples": P},
    "uncertainty.negative_log_likelihood": {"probabilities": P, "labels": LABELS},
    "uncertainty.predictive_entropy": {"probabilities": P},
    "uncertainty.predictive_log_likelihood": {"targets": ROW, "means": P, "variances": P},
    "uncertainty.probability_integral_transform": {"targets": ROW, "means": P, "variances": P},
    "uncertainty.regression": {"means": P, "variances": P},
    "uncertainty.top_label_calibration_error": {"probabilities": P, "labels": LABELS, "bins": 3},
    "uncertainty.variation_ratio": {"samples": P},
    "checks.assert_expectation_kept": CHECKED | {"num_samples": 99, "false_alarm_rate": 0.1},
    "checks.assert_gradient_uses_same_mask": CHECKED,
    "checks.assert_keep_rate": CHECKED | {"rate": 0.5, "num_samples": 99, "false_alarm_rate": 0.1},
    "checks.assert_key_determines_output": CHECKED | {"num_samples": 9},
    "checks.assert_mask_shared_along": CHECKED | {"axis": 0, "num_samples": 9},
    "checks.assert_masks_differ_along": (
        CHECKED | {"axis": 0, "num_samples": 99, "false_alarm_rate": 0.1}
    ),
    "checks.assert_same_under_jit": CHECKED,
    "checks.assert_shape_and_dtype_kept": CHECKED,
}  # fmt: skip


def function_named(name):
    """A public function by the name that users write behind `jaxdrop.`."""
    found = jaxdrop
    for part in name.split("."):
        found = getattr(found, part)
    return found


def public_functions():
    """The names of all functions that users can call."""
    spaces = {"": jaxdrop, "rescale.": rescale, "uncertainty.": uncertainty, "checks.": checks}
    spaces["match."] = jaxdrop.match
    return {
        prefix + name
        for prefix, space in spaces.items()
        for name in space.__all__
        if inspect.isfunction(getattr(space, name))
    }


def call(name, arguments):
    """Calls a public function; what is not named by keyword comes first."""
    arguments = dict(arguments)
    several = [arguments.pop("drops")] if "drops" in arguments else []
    return function_named(name)(*several, **arguments)
