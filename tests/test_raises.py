"""Each clause of each "Raises" section is raised by a bad call: its exact type and message.

`golden/raises.txt` has the calls: under the name of a function and a clause of its
docstring, the arguments to change in its good call, or a whole call, and behind an arrow
the message. "..." ends what is compared. A clause may name a test instead. What stands
under "*" holds for all functions that say so in these words.
"""

import importlib
import re
from functools import cache
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from good_calls import DROP, GOOD, KEY, MASK, ROW, P, X, call, function_named
from raises import clauses
from signatures import public_names

import jaxdrop
from jaxdrop import rescale

pytestmark = pytest.mark.quick

TESTS = Path(__file__).parent
CASES = TESTS / "golden/raises.txt"
PLACE = re.compile(r" at \S+:\d+:\d+ \(\w+\)")  # of a site
# Of classes with methods of their own, the method that checks what it gets.
NAMES = [*public_names(), "Mask.pack"]

INTEGERS = jnp.arange(3)
BATCH = jax.vmap(lambda keep: jaxdrop.Mask.pack(keep, 0.5))(jnp.ones((2, 3), bool))
HUGE = jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)
SYMBOLIC = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 8"), jnp.float32)
HUGER = jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)


def split(kind, *spec):
    mesh = jax.make_mesh((1,), ("a",), axis_types=(kind,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))


AUTO = split(jax.sharding.AxisType.Auto, "a")
EXPLICIT = split(jax.sharding.AxisType.Explicit, None, "a")
Q, WIDE = jnp.ones((1, 2, 1, 4)), jnp.ones((1, 2, 1, 300))
F8 = Q.astype(jnp.float8_e5m2)
ATTENTION = {"rng": KEY, "query": Q, "key": Q, "value": Q, "rate": 0.5}


def marked(x):
    return jaxdrop.site(x, "h")


def planted(drop):
    return jaxdrop.plant(marked, {"h": drop})


def dropped(rule):
    return jaxdrop.dropout(KEY, X, 0.5, rescale=rule)


def traced(method):
    """With a rate that is not known while tracing."""
    return jax.jit(lambda rate: method(KEY, X, rate))(0.5)


def framework(name):
    return importlib.import_module(f"jaxdrop.frameworks.{name}")


SCOPE = {
    "AUTO": AUTO, "BATCH": BATCH, "DROP": DROP, "EXPLICIT": EXPLICIT, "F8": F8, "HUGE": HUGE,
    "HUGER": HUGER, "INTEGERS": INTEGERS, "KEY": KEY, "MASK": MASK, "P": P, "Q": Q, "ROW": ROW,
    "SYMBOLIC": SYMBOLIC,
    "WIDE": WIDE, "X": X, "dropped": dropped, "framework": framework, "jax": jax,
    "jaxdrop": jaxdrop, "jnp": jnp, "marked": marked, "np": np, "planted": planted,
    "rescale": rescale, "traced": traced,
}  # fmt: skip


@cache
def cases():
    """The lines of the file below each function and clause."""
    found, name, clause = {}, "", ""
    for line in CASES.read_text().splitlines():
        depth = len(line) - len(line.lstrip())
        if depth == 0:
            name = line
        elif depth == 2:
            clause = line.strip()
        else:
            found.setdefault((name, clause), []).append(line.strip())
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if clauses(function_named(name))])
def test_each_clause_is_raised_with_its_type_and_message(name):
    for kind, clause in clauses(function_named(name)):
        lines = cases().get((name, clause)) or cases().get(("*", clause))
        assert lines, f"{name}: golden/raises.txt has no call for {clause!r}"
        for line in lines:
            assert_raised(name, kind, line)


def assert_raised(name, kind, line):
    source, arrow, message = line.partition(" -> ")
    if not arrow:  # the name of a test, which pytest itself runs
        path, test = source.split("::")
        assert f"def {test}(" in (TESTS / path.removeprefix("tests/")).read_text(), line
        return
    with pytest.raises(Exception) as raised:  # noqa: PT011 compared below
        run(name, source)
    assert type(raised.value).__name__ == kind, line
    found = PLACE.sub(" at HERE", str(raised.value.args[0]).split("\n")[0])
    if not message.startswith("dropout: "):  # which another function calls
        message = f"{short(name)}: {message}"
    assert found.startswith(message[:-3]) if message.endswith("...") else found == message


def short(name):
    """As messages begin."""
    return name if name.startswith(("Mask.", "match.")) else name.split(".")[-1]


def run(name, source):
    if source.startswith("{"):
        around = ATTENTION if name == "dot_product_attention" else GOOD[name]
        call(name, around | eval(source, dict(SCOPE)))
    else:
        eval(source, dict(SCOPE))


def test_each_call_of_the_file_belongs_to_a_clause():
    said = {(name, clause) for name in NAMES for _, clause in clauses(function_named(name))}
    said |= {("*", clause) for _, clause in said}
    assert cases().keys() <= said
