"""What planting needs of JAX that may change: canaries, and flags that change how JAX traces."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxdrop.base.compat import vary_over, varying_axes
from jaxdrop.planting.calls import CALLS
from jaxdrop.planting.derivatives import DERIVATIVES
from jaxdrop.planting.equations import Equation
from jaxdrop.planting.jaxprs import opened

X = jnp.ones(4)


def equations(fn, *args):
    return [Equation(eqn) for eqn in jax.make_jaxpr(fn)(*args).jaxpr.eqns]


def test_derivatives_are_seen_in_the_name_stack():
    def inner(x):
        return jnp.sin(x).sum()

    forwards = [eqn.transforms for eqn in equations(inner, X)]
    assert not any(forwards)
    backwards = [eqn.transforms for eqn in equations(jax.grad(inner), X)]
    assert all("jvp" in transforms for transforms in backwards)
    assert any("transpose" in transforms for transforms in backwards)


def test_each_entry_of_a_scope_has_a_number():
    def twice(x):
        for _ in range(2):
            with jax.named_scope("a"), jax.named_scope("b"):
                x = jnp.exp(jnp.sin(x))
        return x

    for variant in (twice, lambda x: jax.vmap(twice)(x[None])):
        entries = [
            eqn.scopes for eqn in equations(variant, X) if eqn.primitive.name in ("sin", "exp")
        ]
        assert [[name for name, _ in entry] for entry in entries] == [["a", "b"]] * 4
        assert entries[0] == entries[1]
        assert entries[2] == entries[3]
        assert entries[0][0] != entries[2][0]


def test_frames_begin_where_the_tracing_of_their_jaxpr_began():
    def outer(x):
        def body(carry, _):
            return jnp.sin(carry), None

        return lax.scan(body, x, length=2)[0]

    (scan,) = equations(outer, X)
    assert "outer" in [frame.function for frame in scan.frames]
    body, _ = opened(scan.params["jaxpr"])
    names = [frame.function for frame in Equation(body.eqns[0]).frames]
    assert "body" in names
    assert "outer" not in names


def test_calls_are_known_by_their_names():
    relu = jax.custom_jvp(lambda x: x)
    relu.defjvp(lambda primals, tangents: (relu(*primals), tangents[0]))
    square = jax.custom_vjp(lambda x: x)
    square.defvjp(lambda x: (x, None), lambda _, y_bar: (y_bar,))

    def model(x):
        x = jax.jit(jnp.sin)(x)
        x = jax.checkpoint(jnp.sin)(x)
        x = lax.scan(lambda c, _: (c, None), x, length=2)[0]
        x = lax.cond(True, jnp.sin, jnp.cos, x)
        x = lax.while_loop(lambda x: False, lambda x: x, x)
        return checkpoint_name(square(relu(x)), "tag")

    found = equations(model, X)
    names = {eqn.name for eqn in found}
    assert {"jit", "scan", "cond", "while", "checkpoint"} <= names
    assert {"custom_jvp_call", "custom_vjp_call"} <= names
    assert names & {*CALLS, *DERIVATIVES} == {eqn.name for eqn in found if eqn.bodies}
    assert [eqn.tag for eqn in found][-1] == "tag"


def test_variance_over_mesh_axes_is_seen():
    mesh = jax.make_mesh((8,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("a")
    seen = []

    def local(x):
        seen.append((varying_axes(x), varying_axes(jnp.zeros(3))))
        return vary_over(jnp.zeros(1), frozenset("a")) + x

    jax.make_jaxpr(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec))(jnp.ones(8))
    assert seen[0] == ({"a"}, set())


FLAG_PROGRAM = """
import jax, jax.numpy as jnp
from programs import PROGRAMS, RULES, ByHand, X, loss, new_key
from jaxdrop import plant
refused = set()
for name in {names}:
    program = PROGRAMS[name]
    model = lambda x: loss(program.planted(x))
    expected = jax.value_and_grad(lambda x: loss(program.straight(x, ByHand(new_key()))))(X)
    try:
        outside = jax.jit(jax.value_and_grad(plant(model, RULES), argnums=1))(new_key(), X)
        assert jax.tree.all(jax.tree.map(jnp.array_equal, outside, expected)), name
    except NotImplementedError as error:
        assert "which plant cannot go into" in str(error), error
        refused.add((name, "outside"))
    try:
        inside = jax.jit(plant(jax.value_and_grad(model), RULES))(new_key(), X)
        assert jax.tree.all(jax.tree.map(jnp.array_equal, inside, expected)), name
    except NotImplementedError as error:
        assert "programs.py" in str(error), error
        refused.add((name, "inside"))
print(sorted(refused))
"""


@pytest.mark.parametrize(
    ("flag", "names", "refused"),
    [
        (
            "JAX_REMAT3",
            ["scan", "checkpoint", "scan of checkpoint"],
            [("checkpoint", "inside"), ("scan of checkpoint", "inside")],
        ),
        ("JAX_CUSTOM_VJP3", ["custom_vjp", "custom_jvp"], [("custom_vjp", "outside")]),
    ],
)
def test_new_ways_of_tracing_are_followed_or_refused(flag, names, refused):
    """Where the flag exists. A backward pass that would draw other masks is refused."""
    known = hasattr(jax.config, flag.lower())
    support = Path(__file__).parents[1] / "support"
    result = subprocess.run(
        [sys.executable, "-c", FLAG_PROGRAM.format(names=names)],
        env={**os.environ, flag: "1", "PYTHONPATH": str(support)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == str(refused if known else [])
