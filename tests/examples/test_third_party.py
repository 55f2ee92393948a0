"""What the example with other packages printed is what its README says, and its checks can fail.

The packages are not needed here: the checks run on a small model of nnx.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scripts import EXAMPLES, load

from jaxdrop import match
from jaxdrop.frameworks.nnx import named_scopes

X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))


@pytest.fixture(scope="module")
def example():
    return load(EXAMPLES / "third_party.py")


def test_readme_has_the_table_that_was_printed(example):
    records = json.loads(example.RESULT.read_text())["models"]
    readme = (EXAMPLES / "README.md").read_text()
    assert "\n".join(example.rows_of(records)) in readme
    assert len({record["package"] for record in records}) == 3
    for record in records:
        assert all(record["checks"].values()), record
        assert record["branches"] > 0


class Net(nnx.Module):
    def __init__(self):
        self.branch = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return jnp.tanh(self.norm(x + self.branch(x)))


def case_of(example, **changes):
    graph, params, rest = nnx.split(Net(), nnx.Param, ...)
    scoped = named_scopes(lambda model, x: model(x))

    def apply(params, x):
        model = nnx.merge(graph, params, rest, copy=True)
        return scoped(model, x), nnx.state(model, nnx.BatchStat)

    branches = example.branch_rules("branch")
    case = example.Case("flax", "Net", apply, params, (X,), {}, branches, {}, "norm")
    return case._replace(**changes)


def test_all_checks_hold_of_a_model_with_statistics(example):
    record = example.measured(case_of(example))
    assert record["branches"] == 1
    assert record["attention"] is None
    assert record["checks"] == dict.fromkeys(example.CHECKS, True)
    assert example.rows_of([record])[-1].endswith("| 0 | - | 1 | - | yes | yes | yes | yes | yes |")


@pytest.mark.parametrize(
    ("check", "change"),
    [
        (
            "each group changes the output",
            {"embeddings": {match.named_scope("norm"): lambda k, x: x}},
        ),
        ("gradient finite", {"branches": {match.named_scope("branch"): lambda k, x: x / 0}}),
        ("two keys differ", {"branches": {match.named_scope("branch"): lambda k, x: 0 * x}}),
        ("statistics untouched", {"normalization": "branch"}),
    ],
)
def test_each_check_can_fail(example, check, change):
    with jax.numpy_rank_promotion("allow"):
        checks = example.checks_of(case_of(example, **change))
    assert not checks[check]
    assert "NO" in example.rows_of([{**EMPTY, "checks": checks}])[-1]


EMPTY = dict.fromkeys(("package", "model", "dropout layers", "attention", "branches"), "")
EMPTY["embeddings"] = None
