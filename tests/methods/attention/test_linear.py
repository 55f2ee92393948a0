import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from meshes import mesh
from modes import enable_x64, quick_jit

from jaxdrop.methods.attention.linear import linear_map, linear_p, opaque

RANDOM = np.random.default_rng(0)
MATRIX = jnp.asarray(RANDOM.normal(size=(4, 3)), jnp.float32)
X = jnp.asarray(RANDOM.normal(size=3), jnp.float32)
Y = jnp.asarray(RANDOM.normal(size=4), jnp.float32)


def multiply(matrix, x):
    return jnp.sin(matrix) @ x


def multiply_back(matrix, y):
    return jnp.sin(matrix).T @ y


def twice_back(matrix, y):
    """A wrong transpose, which shows where it is used."""
    return 2 * multiply_back(matrix, y)


mapped = partial(linear_map, multiply, multiply_back)
wrongly_mapped = partial(linear_map, multiply, twice_back)
close = partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def primitives(function, *args):
    return [eqn.primitive for eqn in jax.make_jaxpr(function)(*args).eqns]


@pytest.mark.quick
def test_map_is_the_function_given():
    close(mapped(MATRIX, X), multiply(MATRIX, X))
    close(jax.jit(mapped)(MATRIX, X), multiply(MATRIX, X))
    assert jax.eval_shape(mapped, MATRIX, X) == jax.eval_shape(multiply, MATRIX, X)


@pytest.mark.quick
def test_transpose_is_the_one_given():
    for derivative in (
        lambda f: jax.linear_transpose(f, X)(Y)[0],
        lambda f: jax.vjp(f, X)[1](Y)[0],
        lambda f: jax.linear_transpose(jax.linearize(f, X)[1], X)(Y)[0],
    ):
        close(derivative(partial(wrongly_mapped, MATRIX)), twice_back(MATRIX, Y))


def test_transpose_of_the_transpose_is_the_map():
    def transpose(y):
        return jax.linear_transpose(partial(wrongly_mapped, MATRIX), X)(y)[0]

    close(jax.linear_transpose(transpose, Y)(X)[0], multiply(MATRIX, X))
    again = jax.linear_transpose(lambda x: jax.linear_transpose(transpose, Y)(x)[0], X)
    close(again(Y)[0], twice_back(MATRIX, Y))


@pytest.mark.quick
def test_map_and_transpose_are_one_primitive_each():
    transposed = jax.linear_transpose(partial(mapped, MATRIX), X)
    assert primitives(mapped, MATRIX, X) == [linear_p]
    assert primitives(transposed, Y) == [linear_p]


def test_transpose_by_some_of_the_operands_leaves_the_others():
    def both(x, z):
        return linear_map(
            lambda m, xs: multiply(m, xs["x"]) + 3 * multiply(m, xs["z"]),
            lambda m, y: {"x": multiply_back(m, y), "z": 3 * multiply_back(m, y)},
            MATRIX,
            {"x": x, "z": z},
        )

    by_x = jax.vjp(lambda x: both(x, X), X)[1](Y)[0]
    by_z = jax.vjp(lambda z: both(X, z), X)[1](Y)[0]
    by_one_of_a_linear_map = jax.linear_transpose(lambda z: both(jnp.zeros(3), z), X)(Y)[0]
    close((by_x, by_z), (multiply_back(MATRIX, Y), 3 * multiply_back(MATRIX, Y)))
    close(by_one_of_a_linear_map, by_z)


def test_operands_residuals_and_results_are_pytrees():
    def split(fixed, x):
        assert fixed["nothing"] is None
        y = multiply(fixed["matrix"], x["in"])
        return {"all": y, "some": (jnp.where(fixed["keep"], y, 0), None)}

    def join(fixed, y):
        total = y["all"] + jnp.where(fixed["keep"], y["some"][0], 0)
        return {"in": multiply_back(fixed["matrix"], total), "nothing": None}

    fixed = {"matrix": MATRIX, "nothing": None, "keep": jnp.arange(4) % 2 == 0}
    run = partial(linear_map, split, join, fixed)
    x = {"in": X, "nothing": None}
    y = run(x)
    close(y, split(fixed, x))
    close(jax.linear_transpose(run, x)(y)[0], join(fixed, y))
    # A result that nobody uses has no cotangent.
    unused = jax.grad(lambda x: run(x)["some"][0] @ Y)(x)
    close(unused, join(fixed, {"all": jnp.zeros(4), "some": (Y, None)}))


AXES = [axes for axes in itertools.product([None, 0, 1], repeat=2) if axes != (None, None)]


def stacked(array, axis, count=2):
    """The array and others like it, along an axis; or the array alone."""
    if axis is None:
        return array
    return jnp.stack([array * (i + 1) for i in range(count)], axis)


def slices(array, axis, count=2):
    return [array if axis is None else jnp.take(array, i, axis) for i in range(count)]


@pytest.mark.quick
@pytest.mark.parametrize(("matrix_axis", "x_axis"), AXES)
def test_vmap_equals_a_loop(matrix_axis, x_axis):
    matrices, xs, ys = stacked(MATRIX, matrix_axis), stacked(X, x_axis), stacked(Y, x_axis)

    def back(matrix, y):
        return jax.vjp(partial(wrongly_mapped, matrix), X)[1](y)[0]

    def all_of(matrix, x, y):
        return mapped(matrix, x), back(matrix, y)

    batched = jax.vmap(all_of, in_axes=(matrix_axis, x_axis, x_axis))
    rows = zip(slices(matrices, matrix_axis), slices(xs, x_axis), slices(ys, x_axis), strict=True)
    loop = [(multiply(m, x), twice_back(m, y)) for m, x, y in rows]
    close(quick_jit(batched)(matrices, xs, ys), jax.tree.map(lambda *v: jnp.stack(v), *loop))


def test_transpose_of_vmap_sums_over_what_was_shared():
    matrices, xs = stacked(MATRIX, 0), stacked(X, 0)

    def total(f):
        shared = jax.vmap(f, in_axes=(0, None))
        crossed = jax.vmap(jax.vmap(f, in_axes=(None, 0)), in_axes=(0, None))
        return jax.grad(lambda x: jnp.sum(shared(matrices, x) ** 2)), jax.grad(
            lambda xs: jnp.sum(crossed(matrices, xs) ** 3)
        )

    for own, plain, x in zip(total(mapped), total(multiply), (X, xs), strict=True):
        close(quick_jit(own)(x), plain(x))


def loss(f):
    return lambda matrix, x: jnp.sum(jnp.sin(f(matrix, x)) * Y.astype(x.dtype))


@pytest.mark.parametrize("moving", [("matrix",), ("x",), ("matrix", "x")], ids="+".join)
def test_derivatives_by_residuals_and_operands_are_those_of_the_function(moving):
    fixed = {"matrix": MATRIX, "x": X}
    at = {name: fixed[name] for name in moving}

    def derivatives(f):
        def of_moving(values):
            return f(**{**fixed, **values})

        return jax.jvp(of_moving, (at,), (at,)), jax.vjp(of_moving, at)[1](Y)

    def own(matrix, x):
        return mapped(matrix, x)

    close(quick_jit(derivatives, static_argnums=0)(own), derivatives(multiply))


ORDERS = list(itertools.product([jax.jacfwd, jax.jacrev], repeat=2))


@pytest.mark.parametrize(("outer", "inner"), ORDERS)
def test_second_derivatives_are_those_of_the_function(outer, inner):
    with enable_x64():
        at = MATRIX.astype(jnp.float64), X.astype(jnp.float64)
        second = [
            quick_jit(outer(inner(loss(f), argnums=(0, 1)), argnums=(0, 1)))(*at)
            for f in (mapped, multiply)
        ]
        chex.assert_trees_all_close(*second, rtol=1e-12, atol=1e-12)


def test_third_derivative_is_that_of_the_function():
    third = [
        quick_jit(jax.jacrev(jax.hessian(loss(f), argnums=1), argnums=1))
        for f in (mapped, multiply)
    ]
    close(*(f(MATRIX, X) for f in third))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: layer,
        jax.checkpoint,
        partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable),
        jax.jit,
    ],
    ids=["plain", "checkpoint", "dots saved", "jit"],
)
def test_gradients_and_tangents_pass_through_scan(wrap):
    matrices = jnp.stack([MATRIX, 2 * MATRIX, MATRIX - 1])

    def derivatives(f):
        def layer(x, matrix):
            return jnp.sin(f(matrix, x)[:3]), None

        def run(matrices, x):
            return jnp.sum(lax.scan(wrap(layer), x, matrices)[0])

        along = jax.jvp(run, (matrices, X), (matrices, X))
        return along, jax.grad(run, argnums=(0, 1))(matrices, X)

    close(*(quick_jit(derivatives, static_argnums=0)(f) for f in (mapped, multiply)))


def test_residuals_that_are_integers_or_flags_have_no_derivatives():
    def pick(fixed, x):
        keep, count = fixed
        return jnp.where(keep, x * count.astype(x.dtype), 0)

    def derivatives(f):
        def layer(x, fixed):
            return jnp.sin(f(fixed, x)) + x, None

        def run(x):
            # Residuals that a scan steps through have tangents there, of no size.
            fixed = jnp.arange(6).reshape(2, 3) != 1, jnp.arange(6, dtype=jnp.uint32).reshape(2, 3)
            return jnp.sum(lax.scan(jax.checkpoint(layer), x, fixed)[0] ** 2)

        return jax.jvp(run, (X,), (X,)), jax.grad(run)(X), jax.hessian(run)(X)

    own = partial(linear_map, pick, pick)
    close(*(quick_jit(derivatives, static_argnums=0)(f) for f in (own, pick)))


@pytest.mark.parametrize("spec", [(P("a"), P()), (P(), P("a")), (P("a"), P("a"))], ids=str)
def test_shard_map_takes_operands_that_vary_and_operands_that_do_not(spec):
    rows = (stacked(MATRIX, 0, 4), stacked(X, 0, 4))
    args = [row if s == P("a") else row[:1] for row, s in zip(rows, spec, strict=True)]

    def local(f, matrix, x):
        y, tangent = jax.jvp(partial(f, matrix[0]), (x[0],), (x[0],))
        # What does not vary over "a" has one gradient, the sum of those of all devices.
        slope = jax.grad(lambda x: jnp.sum(f(matrix[0], x[0]) ** 2))(x)
        second = jax.grad(lambda m: jnp.sum(f(m[0], x[0]) ** 2))(matrix)
        return y[None], tangent[None], slope, second

    def spread(f):
        out_specs = (P("a"), P("a"), *spec[::-1])
        return jax.shard_map(partial(local, f), mesh=mesh(), in_specs=spec, out_specs=out_specs)

    own, plain = (quick_jit(spread(f))(*args) for f in (mapped, multiply))
    close(own, plain)


@pytest.mark.quick
def test_opaque_function_is_one_equation_with_the_derivatives_of_the_function():
    def loop(operands):
        matrix, x = operands
        return lax.scan(lambda x, _: (jnp.sin(multiply(matrix, x)[:3]), None), x, length=2)[0]

    def hidden(operands):
        return opaque(loop, operands)

    assert primitives(hidden, (MATRIX, X)) == [linear_p]

    def derivatives(f):
        def run(matrix, x):
            return jnp.sum(f((matrix, x)) ** 2)

        slopes = jax.grad(run, argnums=(0, 1))(MATRIX, X)
        return jax.jvp(run, (MATRIX, X), (MATRIX, X)), slopes, jax.hessian(run, 1)(MATRIX, X)

    close(*(quick_jit(derivatives, static_argnums=0)(f) for f in (hidden, loop)))
