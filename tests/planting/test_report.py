"""`sites` is a dry run: it lists what gets planted, as data and as a table."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from programs import drop

from jaxdrop import match, plant, site, sites

X = jax.ShapeDtypeStruct((4, 6), jnp.float32)


def model(x):
    def step(carry, _):
        return jax.checkpoint(lambda c: site(c * 2, "state"))(carry), None

    x = jax.vmap(lambda row: site(row, "row"))(x)
    x, _ = lax.scan(step, x, length=5)
    x = jax.jit(lambda x: checkpoint_name(x, "tag"))(x)
    x = lax.cond(x.sum() > 0, lambda x: site(x, "branch"), lambda x: x, x)
    x = lax.while_loop(lambda x: x.sum() < 0, lambda x: site(x, "loop"), x)
    return site({"a": x, "b": site(x, "twice")}, "tree"), site(x, "twice")


def test_sites_are_listed_without_running_anything():
    table = sites(model, X)
    names = ["row", "state", "checkpoint_name:tag", "branch", "loop", "twice", "tree['a']"]
    assert [row.site for row in table] == [*names, "tree['b']", "twice"]
    rows = {row.site: row for row in table}
    assert rows["row"].shape == (6,)
    assert rows["row"].where == "vmap[4]"
    assert rows["state"].shape == (4, 6)
    assert rows["state"].dtype == jnp.float32
    assert rows["state"].runs == 5
    assert rows["state"].where.startswith("scan[5]/")
    assert rows["loop"].runs is None
    assert rows["loop"].where == "while"
    assert rows["branch"].where.startswith("cond[")
    assert all(row.rule is None for row in rows.values())
    assert "test_report.py" in rows["row"].source


def test_same_name_on_two_lines_has_two_rows():
    assert [row.runs for row in sites(model, X) if row.site == "twice"] == [1, 1]


def test_table_prints_one_line_a_row():
    table = sites(model, X, rules={"st*": drop, match.checkpoint_name("tag"): drop})
    lines = repr(table).splitlines()
    assert len(lines) == len(table) + 1
    assert lines[0].split() == ["site", "value", "runs", "where", "rule", "source"]
    (state,) = [line for line in lines if line.startswith("state")]
    assert state.split()[:4] == ["state", "float32[4,6]", "5", "scan[5]/checkpoint"]
    assert state.split()[4] == "st*"
    by_name = {row.site: row.rule for row in table}
    assert by_name["checkpoint_name:tag"] == "match.checkpoint_name('tag')"
    assert by_name["row"] is None


def test_table_is_a_sequence():
    table = sites(lambda x: site(x, "s"), X)
    assert len(table) == 1
    assert table[0] in table
    assert [*table[:1]] == [*table]


def test_listed_runs_are_the_runs_that_happen():
    seen = []

    def counting(key, x):
        jax.debug.callback(lambda: seen.append(1))
        return drop(key, x)

    def looping(x):
        x, _ = lax.scan(
            lambda c, _: (site(jax.jit(lambda c: site(c, "s"))(c), "s"), None), x, length=3
        )
        return site(x, "s")

    table = sites(looping, jnp.ones(6), rules={"s": counting})
    plant(looping, {"s": counting})(jax.random.key(0), jnp.ones(6))
    jax.effects_barrier()
    assert sum(row.runs for row in table) == len(seen) == 7


def test_sites_takes_what_the_function_takes():
    def picky(x, flag, *, name, extra=None):
        assert flag is True
        assert extra is None
        return site(x, name)

    (row,) = sites(picky, X, True, name="n")
    assert row.site == "n"
    assert len(sites(jnp.sin, X, rules={})) == 0
