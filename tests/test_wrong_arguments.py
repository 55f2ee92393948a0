"""One wrong argument at a time, in every public function; each message is compared whole."""

import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from good_calls import DROP, GOOD, KEY, METHOD, X, call, function_named, public_functions
from jax.experimental import sparse
from raises import clauses

import jaxdrop
from jaxdrop import dropout

pytestmark = pytest.mark.quick

# What a question mark in the place of an argument gets.
ONE_KEY = "must be one key; got '?'. Make one with jax.random.key."
NUMBER = "must be a real number; got '?'."
INTEGERS = "must be integers; got '?'."
ARRAY = "must be an array; got '?'."
NUMBERS = "must be an array of numbers; got '?'."
DROPS = "must be a function of (key, x); got '?'."
LEAVES = "must be a function of (path, leaf); got '?'."
RULE = "must be a function of (mask, x); got '?'."
CALLED = "must be a function of (key, ...); got '?'."
PROGRESS = "must be a function of the number of samples just finished; got '?'."
RULES = "must be a dict from patterns to drops, or a list of such pairs; got '?'."
BY_NAME = (
    dict.fromkeys(["key"], ONE_KEY)
    | dict.fromkeys(
        [
            "rate",
            "gamma",
            "alpha",
            "scale",
            "temperature",
            "tolerance",
            "weight_regularizer",
            "dropout_regularizer",
            "keep_prob",
            "area",
            "aspect",
            "false_alarm_rate",
        ],
        NUMBER,
    )
    | dict.fromkeys(
        [
            "axis",
            "batch_axis",
            "channel_axis",
            "head_axis",
            "feature_axis",
            "time_axis",
            "broadcast_dims",
            "shape",
            "size",
            "block_size",
            "num_features",
            "features",
            "num_masks",
            "num_samples",
            "num_spans",
            "width",
            "batch_size",
            "start",
            "steps",
            "depth",
            "prefix",
            "length",
            "bins",
            "count",
            "occurrence",
        ],
        INTEGERS,
    )
    | dict.fromkeys(
        [
            "x",
            "weights",
            "table",
            "logits",
            "other_logits",
            "new",
            "rate_logit",
            "log_alpha",
            "tree",
            "probabilities",
            "samples",
            "means",
        ],
        ARRAY,
    )
    | dict.fromkeys(
        [
            "condition",
            "null",
            "ids",
            "replacement",
            "tokens",
            "positions",
            "fill",
            "target",
            "labels",
            "targets",
            "variances",
            "masks",
            "index",
            "lower",
            "upper",
            "old",
        ],
        NUMBERS,
    )
    | {"drop": DROPS, "drops": DROPS, "where": LEAVES, "rescale": RULE, "fn": CALLED}
    | {"stretch": "must be two numbers; got '?'."}
    | {"progress": PROGRESS, "rules": RULES, "part": "must be a Part; got '?'."}
    | {"output": "must be an index or a function of shape and dtype; got '?'."}
)
HERE = {
    "Mask.pack keep": "must be boolean; got '?'. Compare first, as in keep > 0.",
    "Rule drop": "must be a function (key, x) -> y; got '?'.",
    "Rule mesh_axes": "must be a sequence of names; got '?'.",
    "apply_mask mask": "must be a Mask; got '?'. Use Mask.pack.",
    "complementary_views fn": "must be a function of (masks, ...); got '?'.",
    "cutout x": NUMBERS,
    "draw_mask out_sharding": (
        "must be a NamedSharding, or a PartitionSpec in a mesh context, with Explicit axes;"
        " got '?'."
    ),
    "drop_key where": NUMBERS,
    "drop_spans where": NUMBERS,
    "drop_spans x": NUMBERS,
    "drop_tokens x": NUMBERS,
    "layer_drop layer": "must be a function of x; got '?'.",
    "layer_drop x": NUMBERS,
    "plant fn": "must be callable; got '?'.",
    "random_erasing x": NUMBERS,
    "replace_tokens where": NUMBERS,
    "scheduled method": "must be a function of (key, x, rate); got '?'.",
    "scheduled schedule": "must be a function of the step; got '?'.",
    "sites fn": "must be callable; got '?'.",
    "variational_dropout_kl approximation": 'must be "molchanov" or "kingma"; got \'?\'.',
    "uncertainty.crps_ensemble estimator": 'must be "fair" or "plain"; got \'?\'.',
    "uncertainty.crps_normal means": NUMBERS,
    "uncertainty.crps_normal targets": ARRAY,
    "uncertainty.interval_coverage targets": ARRAY,
    "uncertainty.interval_score targets": ARRAY,
    "match.value predicate": "must be a function of shape and dtype; got '?'.",
    "match.within outer": ("must be one of match.named_scope, match.function, match.jit; got '?'."),
    "checks.assert_shape_and_dtype_kept x": NUMBERS,
    "checks.assert_expectation_kept x": ARRAY,
}
CHOICES = {"approximation", "estimator"}  # among texts, so that another text is a wrong value
# A text is a leaf like any other, which these pass unchanged, and a name or a pattern.
TAKE_IT = {"drop_connect params", "mixout params", "site x", "site name", "site_key name"}
TAKE_IT |= {f"match.{name} pattern" for name in jaxdrop.match.__all__}
FLAGS = {
    "exact",
    "linear",
    "adaptive",
    "probabilistic",
    "args",
    "kwargs",
}  # booleans, and arguments of another function
ELSEWHERE = {"dot_product_attention", "rescale.expected", "rescale.none"}  # the last two are rules
PLACES = [
    (name, argument)
    for name, arguments in GOOD.items()
    for argument in arguments
    if f"{name} {argument}" not in TAKE_IT
]


def test_every_public_function_has_a_good_call():
    assert public_functions() - ELSEWHERE <= set(GOOD)
    for name in public_functions() - ELSEWHERE:
        taken = set(inspect.signature(function_named(name)).parameters) - FLAGS
        assert taken == set(GOOD[name]), name


@pytest.mark.parametrize(("name", "argument"), PLACES)
def test_wrong_argument_is_named(name, argument):
    message = HERE.get(f"{name} {argument}") or BY_NAME[argument]
    own = name if name.startswith(("Mask.", "match.")) else name.split(".")[-1]
    with pytest.raises((TypeError, ValueError)) as raised:
        call(name, GOOD[name] | {argument: "?"})
    assert str(raised.value).split("\n")[0] == f"{own}: {argument} {message}"
    kind = ValueError if argument in CHOICES else TypeError
    assert type(raised.value) is kind
    said = {said for said, _ in clauses(function_named(name))}
    assert kind.__name__ in said, f"{name} raises it, and its docstring does not say so"


TYPED = jax.random.key(0)
# The second argument of the functions that begin with a key.
SECOND = {name: [*good][1] for name, good in GOOD.items() if next(iter(good)) == "key"}
del SECOND["site_key"]  # which takes a name


@pytest.mark.parametrize("name", SECOND)
def test_arguments_in_the_order_of_other_libraries_are_named(name):
    second, good = SECOND[name], GOOD[name]
    value = good[second]
    shown = f"float32{[*value.shape]}" if isinstance(value, jax.Array) else f"{value}"
    message = f"{name}: key must come before {second}; got {shown} before key<fry>[]."
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        call(name, good | {"key": value, second: TYPED})
    if "rate" in good and isinstance(value, jax.Array):  # Haiku has the rate first
        message = f"{name}: {second} must come before rate; got 0.1 before {shown}."
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            call(name, good | {second: 0.1, "rate": value})


TEXTS = np.array(["?"])
# What is no number, no integer or no array, though it looks like one.
ODD = {
    NUMBER: [(TypeError, True), (ValueError, float("nan")), (ValueError, np.float32("inf"))],
    INTEGERS: [(TypeError, True), (TypeError, float("nan"))],
    ARRAY: [(TypeError, TEXTS)],
    NUMBERS: [(TypeError, TEXTS)],
    ONE_KEY: [(TypeError, TEXTS)],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_looks_like_a_number_or_an_array_is_named(name):
    said = {said for said, _ in clauses(function_named(name))}
    for argument in GOOD[name]:
        if f"{name} {argument}" in TAKE_IT:
            continue
        for kind, value in ODD.get(HERE.get(f"{name} {argument}", BY_NAME.get(argument)), []):
            with pytest.raises(kind) as raised:
                call(name, GOOD[name] | {argument: value})
            shown = "<U1[1]" if value is TEXTS else f"{value}"
            own = name if name.startswith(("Mask.", "match.")) else name.split(".")[-1]
            assert str(raised.value).startswith(f"{own}: {argument} must ")
            assert f"; got {shown}." in str(raised.value)
            assert kind.__name__ in said, f"{name}: {argument}={value!r}"


SPARSE = sparse.BCOO((jnp.ones(2), jnp.zeros((2, 1), int)), shape=(3,))
OTHER = {
    "a raw key": (
        lambda: jaxdrop.drop_connect(X, KEY, 0.1),
        "drop_connect: key must come before params; got float32[2, 3, 4, 5] before uint32[2].",
    ),
    "no key before an array of the shape of one": (
        lambda: dropout(None, jnp.ones(2), 0.1),
        "dropout: key must be one key; got None. Make one with jax.random.key.",
    ),
    "no key before an array of the dtype of one": (
        lambda: jaxdrop.replace_tokens(None, jnp.ones(3, jnp.uint32), 0.1, replacement=0),
        "replace_tokens: key must be one key; got None. Make one with jax.random.key.",
    ),
    "a scalar behind the rate": (
        lambda: dropout(KEY, 0.1, jnp.float32(2)),
        "dropout: x must come before rate; got 0.1 before float32[].",
    ),
    "indices of edges": (
        lambda: jaxdrop.drop_edges(KEY, jnp.zeros((2, 9), int), 0.1),
        "drop_edges: weights must be floating or complex; got int32. Pass one weight for each"
        " edge, such as jnp.ones(edges), not the edges.",
    ),
    "a sparse array": (
        lambda: dropout(KEY, SPARSE, 0.1),
        "dropout: x must be an array; got BCOO(float32[3]). For the floating arrays of a pytree,"
        " use drop_connect.",
    ),
    "a list": (
        lambda: dropout(KEY, [1.0], 0.1),
        "dropout: x must be an array; got [1.0]. Use jnp.asarray.",
    ),
    "a rate for a drop": (
        lambda: jaxdrop.chain(DROP, 0.1),
        "chain: drops must be a function of (key, x); got 0.1.",
    ),
    "a name that is none": (
        lambda: jaxdrop.site_key(KEY, 3),
        "site_key: name must be a string; got 3.",
    ),
    "a mark that has no name": (
        lambda: jaxdrop.site(X, 3),
        "site: name must be a string; got 3.",
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_calls_that_others_get_wrong(name):
    function, message = OTHER[name]
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        function()


@pytest.mark.parametrize("rate", [0.5, np.float32(0.5)])
def test_numbers_of_python_and_numpy_are_arrays_and_rates(rate):
    assert dropout(KEY, 1.0, rate) in (0, 2)
    assert dropout(KEY, np.float32(1), rate) in (0, 2)
    assert partial(dropout, **METHOD)().shape == X.shape
