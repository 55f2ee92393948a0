"""NumPy arrays and Python numbers are taken where the annotations say so, and lists nowhere."""

import inspect
import typing

import jax
import numpy as np
import pytest
from good_calls import GOOD, call, function_named

pytestmark = pytest.mark.quick

# Lists are pytrees of arrays there, or give a shape.
TREES = {"params", "target", "condition", "null", "tree"}
TREES_OF = {"concrete_dropout_penalty weights", "layer_drop x", "site x"}


def alternatives(name, argument):
    """The types that an annotation allows."""
    annotation = inspect.signature(function_named(name)).parameters[argument].annotation
    members = typing.get_args(annotation) or (annotation,)
    return [each for member in members for each in typing.get_args(member) or (member,)]


def takes_numpy(name, argument):
    return any(
        getattr(kind, "array_type", None) is np.ndarray for kind in alternatives(name, argument)
    )


ARRAYS = [
    (name, argument)
    for name, arguments in GOOD.items()
    for argument, value in arguments.items()
    if isinstance(value, jax.Array)
]


@pytest.mark.parametrize(("name", "argument"), [each for each in ARRAYS if takes_numpy(*each)])
def test_numpy_arrays_are_taken_as_arrays_of_jax_are(name, argument):
    def result(value):
        found = jax.eval_shape(lambda: call(name, GOOD[name] | {argument: value}))
        return jax.tree.leaves(found)

    value = GOOD[name][argument]
    assert result(np.asarray(value)) == result(value)


def test_most_arrays_may_be_of_numpy():
    assert len([each for each in ARRAYS if takes_numpy(*each)]) > 60


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name, argument in ARRAYS
        if argument not in TREES and f"{name} {argument}" not in TREES_OF
    ],
)
def test_lists_are_refused_and_told_what_to_do(name, argument):
    values = np.asarray(GOOD[name][argument]).ravel()[:2].tolist()
    message = r": \w+ must be (an array|boolean).*; got \["
    with pytest.raises(TypeError, match=message) as raised:
        call(name, GOOD[name] | {argument: values})
    assert str(raised.value).endswith(("Use jnp.asarray.", "as in keep > 0."))


@pytest.mark.parametrize("kind", [float, np.float32, np.float64])
@pytest.mark.parametrize("name", ["dropout", "gaussian_dropout", "alpha_dropout", "drop_path"])
def test_numbers_of_python_and_numpy_are_arrays_without_axes(name, kind):
    axes = {"batch_axis": None} if name == "drop_path" else {}
    arguments = GOOD[name] | {"x": kind(1)} | axes
    assert jax.eval_shape(lambda: call(name, arguments)).shape == ()
