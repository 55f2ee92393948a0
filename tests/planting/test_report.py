"""`sites` is a dry run: it lists what gets planted, as data and as a table."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from programs import NAMES, PROGRAMS, X as ROW, drop

from jaxdrop import match, plant, site, sites

pytestmark = pytest.mark.quick

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


def test_runs_are_multiplied_in_nested_loops_and_unknown_in_while_loops():
    mark = jax.jit(lambda x: site(x, "s"))

    def scanned(body, x, length):
        return lax.scan(lambda x, _: (body(x), None), x, length=length)[0]

    def every(x):
        x = scanned(lambda x: scanned(lambda x: mark(mark(x)), x, 2), x, 3)
        x = scanned(lambda x: lax.while_loop(lambda x: False, lambda x: mark(mark(x)), x), x, 3)
        return scanned(mark, x, 0)

    assert [(row.where, row.runs) for row in sites(every, X)] == [
        ("scan[3]/scan[2]/jit(<lambda>)", 12),
        ("scan[3]/while/jit(<lambda>)", None),
        ("scan[0]/jit(<lambda>)", 0),
    ]


def test_batches_are_named_from_the_outermost_and_the_shape_is_without_them():
    inner = jax.vmap(lambda x: site(x, "s"), in_axes=1)
    model = jax.vmap(lambda x: lax.map(inner, x[None]), in_axes=2)
    (row,) = sites(model, jax.ShapeDtypeStruct((6, 3, 2), jnp.float32))
    assert (row.where, row.shape, row.runs) == ("scan[1]/vmap[2]/vmap[3]", (6,), 1)


def test_source_is_the_line_that_computes_the_value():
    def model(x):
        x = jnp.exp(x)
        x = site(x + 1, "s")
        return x * 2

    line = model.__code__.co_firstlineno
    for pattern, place in ((match.primitive("exp"), line + 1), ("s", line + 2)):
        rows = [row for row in sites(model, X, rules={pattern: drop}) if row.rule]
        assert re.search(rf"test_report\.py:{place}\b.*model", rows[0].source)


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
    assert state.split()[5].startswith("tests/planting/test_report.py:")
    by_name = {row.site: row.rule for row in table}
    assert by_name["checkpoint_name:tag"] == "match.checkpoint_name('tag')"
    assert by_name["row"] is None


def test_table_has_a_word_for_what_is_unknown_and_for_what_is_not_there():
    def model(x):
        x = checkpoint_name(x, "a tag")
        return lax.while_loop(lambda x: x.sum() < 0, lambda x: site(x, "s"), x)

    _, *lines = repr(sites(model, X, rules={"s": drop})).splitlines()
    tag, loop = (re.split("  +", line) for line in lines)
    assert tag[:5] == ["checkpoint_name:a tag", "float32[4,6]", "1", "-", "-"]
    assert loop[:5] == ["s", "float32[4,6]", "?", "while", "s"]
    assert len({line.index("float32") for line in lines}) == 1


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


def test_where_names_each_call_loop_and_branch():
    def mark(x):
        return site(x * 2, "s")

    @jax.custom_jvp
    def with_jvp(x):
        return mark(x)

    @jax.custom_vjp
    def with_vjp(x):
        return mark(x)

    with_jvp.defjvp(lambda primals, tangents: jax.jvp(mark, primals, tangents))
    with_vjp.defvjp(lambda x: jax.vjp(mark, x), lambda pull, y_bar: pull(y_bar))
    mesh = jax.make_mesh((1,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("a")

    def every(x):
        x = jax.jit(mark)(x)
        x = jax.checkpoint(mark)(x)
        x = lax.scan(lambda c, _: (jax.vmap(mark)(c), None), x, length=5)[0]
        x = lax.while_loop(lambda x: x.sum() < 0, lambda x: lax.map(mark, x), x)
        x = lax.switch(1, [lambda x: x, mark, lambda x: mark(mark(x))], x)
        x = with_vjp(with_jvp(x))
        x = jax.shard_map(mark, mesh=mesh, in_specs=spec, out_specs=spec)(x)
        x = lax.platform_dependent(x, cpu=mark, default=lambda x: x)
        return lax.custom_linear_solve(mark, x, lambda matvec, b: b / 2, symmetric=True)

    listed = [(row.where, row.runs) for row in sites(every, X)]
    expected = [
        ("jit(mark)", 1),
        ("checkpoint", 1),
        ("scan[5]/vmap[4]", 5),
        ("while/scan[4]", None),
        ("cond[1]", 1),
        ("cond[2]", 2),
        ("custom_jvp_call(with_jvp)", 1),
        ("custom_vjp_call(with_vjp)", 1),
        ("shard_map", 1),
        ("cond[0]", 1),
    ]
    assert listed[: len(expected)] == expected
    # How often JAX keeps the function of a solver is its own affair, but it is listed.
    assert {where for where, _ in listed[len(expected) :]} == {"custom_linear_solve"}


@pytest.mark.parametrize("name", NAMES)
def test_each_program_lists_the_runs_that_its_keys_count(name):
    seen = []

    def counting(key, x):
        jax.debug.callback(lambda: seen.append(1))
        return x

    rows = sites(PROGRAMS[name].planted, ROW, rules={"s": counting})
    plant(PROGRAMS[name].planted, {"s": counting})(jax.random.key(0), ROW)
    jax.effects_barrier()
    # Of the branches of a cond one runs, and all are listed.
    taken = [row.runs for row in rows if row.where in ("", "cond[1]") or "cond" not in row.where]
    assert sum(taken) == len(seen)


def test_sites_takes_what_the_function_takes():
    def picky(x, flag, *, name, extra=None):
        assert flag is True
        assert extra is None
        return site(x, name)

    (row,) = sites(picky, X, True, name="n")
    assert row.site == "n"
    (row,) = sites(lambda x, *, function, caller: site(x, function), X, function="n", caller=0)
    assert row.site == "n"
    assert len(sites(jnp.sin, X, rules={})) == 0


def attend(x):
    with jax.named_scope("weights"):
        weights = jax.nn.softmax(x)
    return weights * 2


def net(x):
    with jax.named_scope("net"):
        for i in range(12):
            with jax.named_scope(f"layer_{i}"):
                with jax.named_scope("attn"):
                    y = attend(x)
                x = x + y
        with jax.named_scope("head"):
            return x[:, :2] * 3


class TestUnmarked:
    def test_scopes_are_a_tree_with_one_line_for_all_layers(self):
        lines = repr(sites(net, X)).splitlines()
        assert lines[0] == "no marked sites; jaxdrop.match can find:"
        texts = [line.split("  -  ")[0].rstrip() for line in lines[1:]]
        assert texts == [
            "named_scope:net   float32[4,2]  1",
            "  layer_{0..11}   float32[4,6]  12",
            "    attn          float32[4,6]  12",
            "      weights     float32[4,6]  12",
            "  head            float32[4,2]  1",
            "function:softmax  float32[4,6]  12",
        ]
        assert all("test_report.py" in line for line in lines[1:])

    def test_rows_are_found_by_name_and_by_shape_and_turned_into_rules(self):
        table = sites(net, X)
        assert len(table) == 0
        (row,) = table.where("*attn")
        assert row.site == "named_scope:net/layer_{0..11}/attn"
        assert row.matcher == match.named_scope("net/layer_*/attn")
        (head, whole) = reversed(table.where(lambda row: row.shape == (4, 2)))
        assert (head.site, whole.site) == ("named_scope:net/head", "named_scope:net")
        rules = {row.matcher: drop for row in table.where("*softmax")}
        assert sum(row.runs for row in sites(net, X, rules=rules)) == 12

    @pytest.mark.parametrize("index", range(5))
    def test_the_matcher_of_each_row_matches_its_runs(self, index):
        row = sites(net, X).unmarked[index]
        found = sites(net, X, rules={row.matcher: drop})
        assert {(one.shape, one.dtype) for one in found} == {(row.shape, row.dtype)}
        assert sum(one.runs for one in found) == row.runs

    def test_a_glob_that_would_match_more_is_spelled_out(self):
        def model(x):
            for name in ("a0", "a1", "ax"):
                with jax.named_scope(name):
                    x = jnp.exp(x) if name != "ax" else x[:2] * 2
            return x

        (row,) = sites(model, X).where("*a{0..1}")
        assert row.matcher == match.named_scope("a0") | match.named_scope("a1")
        assert len(sites(model, X, rules={row.matcher: drop})) == 2

    def test_layers_with_a_gap_are_listed(self):
        def model(x):
            for i in (0, 2, 7):
                with jax.named_scope(f"layer_{i}"):
                    x = jnp.exp(x)
            return x

        assert [row.site for row in sites(model, X).unmarked] == ["named_scope:layer_{0,2,7}"]

    def test_a_tag_does_not_hide_all_else(self):
        table = sites(lambda x: checkpoint_name(net(x), "tag"), X)
        assert [row.site for row in table] == ["checkpoint_name:tag"]
        assert len(table.where("*attn")) == 1
        assert [*table.where("checkpoint*")] == [*table]
        assert [*table.where(lambda row: row.matcher == match.checkpoint_name("tag"))] == [*table]
        above, below = repr(table).split("\n\nnot marked; jaxdrop.match can find:\n")
        assert "checkpoint_name:tag" in above
        assert "attn" in below

    def test_values_inside_of_calls_and_loops_have_their_place(self):
        def layer(x, _):
            with jax.named_scope("layer"):
                return jax.checkpoint(jax.nn.silu)(x) + 1, None

        table = sites(lambda x: lax.scan(layer, x, length=3)[0], X)
        rows = {row.site: (row.where, row.runs) for row in table.unmarked}
        assert rows["named_scope:layer"] == ("scan[3]", 3)
        assert rows["function:silu"][0].startswith("scan[3]/checkpoint")
        table = sites(lambda x: lax.cond(True, lambda x: layer(x, 0)[0], lambda x: x, x), X)
        assert [row.where for row in table.where("*layer")] == ["cond[1]"]

    def test_a_function_that_is_called_in_several_places_has_rows_with_one_matcher(self):
        def layer(x):
            return jnp.exp(x) * 2

        def model(x):
            return lax.scan(lambda x, _: (layer(x), None), layer(x), length=3)[0]

        rows = sites(model, X).where("*layer")
        assert [(row.where, row.runs) for row in rows] == [("", 1), ("scan[3]", 3)]
        assert {row.matcher for row in rows} == {match.function("layer")}
        found = sites(model, X, rules={rows[0].matcher: drop})
        assert sum(row.runs for row in found) == 4

    def test_of_nested_functions_of_one_name_the_outermost_is_offered(self):
        def layer(x, depth=2):
            return layer(x, depth - 1) + 1 if depth else jnp.exp(x) * 2

        rows = sites(lambda x: layer(x) * 2, X).where("*layer")
        assert [(row.runs, row.matcher) for row in rows] == [(1, match.function("layer"))]

    def test_numbers_at_several_places_of_a_path_are_collapsed(self):
        def model(x):
            for i in range(2):
                with jax.named_scope(f"block_{i}"):
                    for j in range(3):
                        with jax.named_scope(f"layer_{j}"):
                            x = jnp.exp(x)
            return x

        (_, row) = sites(model, X).unmarked
        assert row.site == "named_scope:block_{0..1}/layer_{0..2}"
        assert (row.runs, row.matcher) == (6, match.named_scope("block_*/layer_*"))

    def test_a_name_that_begins_like_another_is_not_below_it(self):
        def model(x):
            for name in ("dense", "dense_out"):
                with jax.named_scope(name):
                    x = x * 2
            return x

        _, *lines = repr(sites(model, X)).splitlines()
        assert [line.split()[0] for line in lines] == [
            "named_scope:dense",
            "named_scope:dense_out",
        ]

    def test_a_function_is_not_offered_if_a_scope_shows_one_of_its_outputs(self):
        def two(x):
            with jax.named_scope("first"):
                y = x * 2
            return y, x[0] + 1

        def model(x):
            y, z = two(x)
            return y + z.sum() * 2

        assert [row.site for row in sites(model, X).unmarked] == [
            "named_scope:first",
            "function:model",
        ]

    def test_what_cannot_be_planted_is_not_offered(self):
        def inner(x):
            with jax.named_scope("lost"):
                return jnp.exp(x) * 2

        @jax.custom_jvp
        def custom(x):
            return inner(x)

        custom.defjvp(lambda primals, tangents: (custom(*primals), tangents[0]))

        def looping(x):
            for _ in range(3):
                x = jnp.exp(x)
            return x

        def model(x):
            x = lax.while_loop(lambda x: inner(x).sum() < 0, lambda x: x, x)
            x = jax.grad(lambda x: inner(x).sum())(x)
            return looping(custom(x))

        table = sites(model, X)
        assert [row.site for row in table.where("*lost*")] == []
        assert [row.site for row in table.where("*looping")] == []
        assert [row.matcher for row in table.where("*custom")] == [match.jit("custom")]

    def test_several_outputs_are_offered_one_by_one(self):
        def model(x):
            with jax.named_scope("two"):
                a, b = x * 2, x[0] + 1
            return a + b.sum() * 2

        rows = sites(model, X).where("*two")
        assert [(row.shape, row.matcher) for row in rows] == [
            ((4, 6), match.named_scope("two", output=0)),
            ((6,), match.named_scope("two", output=1)),
        ]
        assert [sites(model, X, rules={row.matcher: drop})[0].shape for row in rows] == [
            (4, 6),
            (6,),
        ]

    def test_a_jitted_function_is_offered_once(self):
        @jax.jit
        def layer(x):
            return jnp.exp(x) * 2

        def model(x):
            return layer(jax.nn.silu(x) * 2) * 2

        rows = sites(model, X).where(lambda row: row.site.endswith(("silu", "layer")))
        assert [row.matcher for row in rows] == [match.function("silu"), match.function("layer")]
        assert len(sites(model, X, rules={row.matcher: drop for row in rows})) == 2

    def test_of_functions_in_a_scope_those_of_jax_are_shown_and_outside_all_are(self):
        def inner(x):
            return jax.nn.softmax(x)

        def outer(x):
            return inner(x)

        def model(x):
            with jax.named_scope("net"):
                return outer(x)

        assert [row.site for row in sites(model, X).unmarked] == [
            "named_scope:net",
            "function:softmax",
        ]
        rows = sites(lambda x: outer(x) * 2, X).unmarked
        assert [row.site for row in rows] == [
            f"function:{name}" for name in ("outer", "inner", "softmax")
        ]

    def test_a_line_is_never_a_dot(self):
        lines = repr(sites(lambda x: jax.nn.relu6(x) + jax.nn.gelu(x), X)).splitlines()
        assert not any(line.endswith(" .") for line in lines)

    def test_rules_are_shown_alone(self):
        assert sites(net, X, rules={match.function("softmax"): drop}).unmarked == ()
        assert sites(net, X, rules={}).unmarked == ()

    @pytest.mark.parametrize("wanted", [3, None])
    def test_where_takes_a_glob_or_a_function(self, wanted):
        with pytest.raises(TypeError, match="wanted must be a glob or a function"):
            sites(net, X).where(wanted)


def test_the_matcher_of_a_marked_value_has_its_path():
    rows = sites(lambda x: site({"a": x, "b": x}, "s"), X)
    assert [row.matcher for row in rows] == [match.site("s['a']"), match.site("s['b']")]
    assert [*rows.where("s['a']")] == [rows[0]]
    table = sites(lambda x: site({"a": x, "b": x}, "s"), X, rules={rows[1].matcher: drop})
    assert [(row.site, row.rule) for row in table] == [("s['a']", None), ("s['b']", "s['b']")]
